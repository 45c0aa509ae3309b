//! What has become of a model's requests, and how long each part of them took.

use super::{ChatEvent, Finished, Histogram};
use crate::engine::FinishReason;
use futures::{Stream, StreamExt, stream};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
};
use tokio::time::Instant;

/// In seconds. These and the next are vLLM's, so that what is made for its metrics fits.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Since the process began, over all times that the model was loaded.
#[derive(Debug)]
pub struct RequestStats {
    /// Until the request got its slot.
    pub queue: Histogram,
    /// From its slot to the first piece of the reply.
    pub prefill: Histogram,
    /// From the request to the first piece of the reply.
    pub first_token: Histogram,
    /// From one piece of the reply to the next; most are one token.
    pub inter_token: Histogram,
    /// From the first piece to the end.
    pub decode: Histogram,
    /// From the request to the end.
    pub end_to_end: Histogram,
    stopped: AtomicU64,
    cut: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
}

impl Default for RequestStats {
    fn default() -> Self {
        let request = || Histogram::new(REQUEST);
        let count = || AtomicU64::new(0);
        Self {
            queue: request(),
            prefill: request(),
            first_token: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(INTER_TOKEN),
            decode: request(),
            end_to_end: request(),
            stopped: count(),
            cut: count(),
            failed: count(),
            cancelled: count(),
        }
    }
}

impl RequestStats {
    /// How many ended so, by the name of the end: `stop`, `length`, `error` (also where the server stopped first, or
    /// the engine was lost), and `abort` where the client left.
    pub fn ends(&self) -> [(&'static str, u64); 4] {
        let ends =
            [("stop", &self.stopped), ("length", &self.cut), ("error", &self.failed), ("abort", &self.cancelled)];
        ends.map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

/// The clock of one reply. Dropped before the end, it counts as cancelled.
#[derive(Debug)]
pub(super) struct Timing {
    stats: Arc<RequestStats>,
    began: Instant,
    started: Option<Instant>,
    /// Of the reply's pieces.
    first: Option<Instant>,
    last: Option<Instant>,
    has_ended: bool,
}

impl Timing {
    pub(super) fn begin(stats: Arc<RequestStats>) -> Self {
        Self { stats, began: Instant::now(), started: None, first: None, last: None, has_ended: false }
    }

    /// It was refused, and is no request of the model's.
    pub(super) fn forget(&mut self) {
        self.has_ended = true;
    }

    /// The same events, noted as they pass.
    pub(super) fn watch<S: Stream<Item = ChatEvent> + Unpin>(
        mut self,
        mut events: S,
    ) -> impl Stream<Item = ChatEvent> + Unpin + use<S> {
        stream::poll_fn(move |context| {
            let polled = events.poll_next_unpin(context);
            match &polled {
                Poll::Ready(Some(event)) => self.on_event(event),
                Poll::Ready(None) => self.on_loss(),
                Poll::Pending => {}
            }
            polled
        })
    }

    /// Nothing comes any more. Without an end before, the engine was lost.
    fn on_loss(&mut self) {
        if !self.has_ended {
            self.stats.failed.fetch_add(1, Ordering::Relaxed);
            self.has_ended = true;
        }
    }

    fn on_event(&mut self, event: &ChatEvent) {
        let now = Instant::now();
        match event {
            ChatEvent::Queued | ChatEvent::Logprobs(_) => {}
            ChatEvent::Started => {
                self.started = Some(now);
                self.stats.queue.observe(now - self.began);
            }
            ChatEvent::Delta(_) => {
                match self.last {
                    Some(last) => self.stats.inter_token.observe(now - last),
                    None => {
                        self.first = Some(now);
                        self.stats.first_token.observe(now - self.began);
                        self.stats.prefill.observe(now - self.started.unwrap_or(self.began));
                    }
                }
                self.last = Some(now);
            }
            ChatEvent::Finished(Finished { reason, .. }) => {
                let count = match reason {
                    FinishReason::Stop => &self.stats.stopped,
                    FinishReason::Length => &self.stats.cut,
                    FinishReason::Error
                    | FinishReason::OutOfMemory
                    | FinishReason::DeviceLost
                    | FinishReason::Shutdown => &self.stats.failed,
                };
                count.fetch_add(1, Ordering::Relaxed);
                self.stats.end_to_end.observe(now - self.began);
                self.stats.decode.observe(now - self.first.unwrap_or(now));
                self.has_ended = true;
            }
        }
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        if !self.has_ended {
            self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Delta, Usage};
    use std::time::Duration;
    use tokio::time::advance;

    fn piece() -> ChatEvent {
        ChatEvent::Delta(Delta::Text("a".to_owned()))
    }

    fn end(reason: FinishReason) -> ChatEvent {
        ChatEvent::Finished(Finished { reason, usage: Usage::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn each_part_has_its_time() {
        let stats = Arc::new(RequestStats::default());
        let mut timing = Timing::begin(Arc::clone(&stats));
        let events = [
            (1, ChatEvent::Queued),
            (2, ChatEvent::Started),
            (4, piece()),
            (8, ChatEvent::Logprobs(Vec::new())),
            (16, piece()),
            (32, piece()),
            (64, end(FinishReason::Stop)),
        ];
        for (seconds, event) in events {
            advance(Duration::from_secs(seconds)).await;
            timing.on_event(&event);
        }
        drop(timing);
        let times = [
            (&stats.queue, 1, 3.0),
            (&stats.prefill, 1, 4.0),
            (&stats.first_token, 1, 7.0),
            (&stats.inter_token, 2, 24.0 + 32.0),
            (&stats.decode, 1, 24.0 + 32.0 + 64.0),
            (&stats.end_to_end, 1, 127.0),
        ];
        for (histogram, count, sum) in times {
            let counts = histogram.read();
            assert_eq!((counts.count(), counts.sum), (count, sum));
        }
        assert_eq!(stats.ends(), [("stop", 1), ("length", 0), ("error", 0), ("abort", 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_is_counted_once() {
        let stats = Arc::new(RequestStats::default());
        for reason in [FinishReason::Length, FinishReason::Error, FinishReason::Shutdown] {
            Timing::begin(Arc::clone(&stats)).on_event(&end(reason));
        }
        Timing::begin(Arc::clone(&stats)).on_event(&piece());
        drop(Timing::begin(Arc::clone(&stats)));
        Timing::begin(Arc::clone(&stats)).forget();
        assert_eq!(stats.ends(), [("stop", 0), ("length", 1), ("error", 2), ("abort", 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_without_an_end_has_failed_and_one_that_is_left_has_not() {
        let stats = Arc::new(RequestStats::default());
        let watch = |events: Vec<ChatEvent>| Timing::begin(Arc::clone(&stats)).watch(stream::iter(events));
        let whole = vec![ChatEvent::Started, piece(), end(FinishReason::Stop)];
        assert_eq!(watch(whole.clone()).collect::<Vec<_>>().await, whole);
        assert_eq!(watch(vec![ChatEvent::Started, piece()]).count().await, 2);
        watch(whole).next().await;
        assert_eq!(stats.ends(), [("stop", 1), ("length", 0), ("error", 1), ("abort", 1)]);
    }
}
