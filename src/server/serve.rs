//! Runs the server from the first connection to the last byte.

use super::{AppState, app};
use actix_web::{HttpServer, dev::Server};
use futures::{Stream, StreamExt, stream};
use std::{io, net::TcpListener, pin::pin, task::Poll, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Long enough to send a last event, short enough for whoever waits for the process to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// After it has been told to leave, a client gets this long to do so.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until a failure or the first of `signals`, then drains; the second signal ends everything at once. A failure does
/// not, whenever it comes: whoever has nothing to do with it hears its reply to the end.
///
/// # Errors
/// When the system refuses threads or the listener.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    failure: impl Future<Output = ()>,
    signals: impl Stream<Item = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let mut signals = pin!(signals);
    let mut server = start(listener, state.clone())?;
    tracing::info!("listening on http://{address}");
    if state.keys.is_empty() && !address.ip().is_loopback() {
        tracing::warn!(
            "`server.insecure_no_auth` is set and there are no API keys: whoever reaches {address} is let in"
        );
    }

    let has_failed = tokio::select! {
        stopped = &mut server => return stopped,
        () = failure => true,
        _ = signals.next() => false,
    };
    // After a failure, the first one asks for what is going on already.
    drain(server, &state, signals.skip(usize::from(has_failed))).await
}

fn start(listener: TcpListener, state: AppState) -> io::Result<Server> {
    let config = state.config.clone();
    let server = HttpServer::new(move || app(state.clone()))
        .workers(config.workers.get())
        .max_connections(config.max_connections.get())
        .client_request_timeout(config.header_timeout())
        .client_disconnect_timeout(DISCONNECT_TIMEOUT)
        // Otherwise a client that leaves is noticed only when its reply is complete.
        .h1_allow_half_closed(false)
        // `drain` keeps the time.
        .shutdown_timeout(u64::from(u32::MAX))
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}

/// Accepts nothing more and lets what runs finish; what is late gets its last events.
async fn drain(mut server: Server, state: &AppState, mut signals: impl Stream<Item = ()> + Unpin) -> io::Result<()> {
    let timeout = state.config.drain_timeout();
    tracing::info!(timeout_seconds = timeout.as_secs(), "draining; a second signal stops at once");
    state.start_draining();
    state.models.stop_loading();
    drop(server.handle().stop(true));
    tokio::select! {
        stopped = &mut server => return stopped,
        () = sleep(timeout) => {}
        Some(()) = signals.next() => return Ok(()),
    }
    tracing::warn!("the drain timeout has passed; ending the replies that still run");
    state.responder.stop();
    state.models.shut_down();
    tokio::select! {
        stopped = &mut server => return stopped,
        () = sleep(LAST_WORDS) => {}
        Some(()) = signals.next() => {}
    }
    // Dropping the server closes what is left.
    Ok(())
}

/// SIGTERM and SIGINT, each time one comes.
///
/// # Errors
/// When the system refuses handlers.
pub fn signals() -> io::Result<impl Stream<Item = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(stream::poll_fn(move |context| match terminate.poll_recv(context) {
        Poll::Ready(signal) => Poll::Ready(signal),
        Poll::Pending => interrupt.poll_recv(context),
    }))
}
