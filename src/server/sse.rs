//! Events as `text/event-stream`.

use crate::responses::WireEvent;
use actix_web::{
    HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use std::{convert::Infallible, time::Duration};

const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// Streams until the events end or the client leaves; leaving drops the events, which cancels the request.
pub(super) fn reply(events: impl Stream<Item = impl Into<WireEvent>> + 'static, keep_alive: Duration) -> HttpResponse {
    stream_frames(events.map(|event| frame(&event.into())), keep_alive)
}

/// The same of JSON texts, as Chat Completions has it: its events have no names.
pub(super) fn reply_unnamed(events: impl Stream<Item = String> + 'static, keep_alive: Duration) -> HttpResponse {
    stream_frames(events.map(|json| format!("data: {json}\n\n").into()), keep_alive)
}

fn stream_frames(frames: impl Stream<Item = Bytes> + 'static, keep_alive: Duration) -> HttpResponse {
    let frames = frames.chain(stream::iter([DONE]));
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(with_keep_alive(frames, keep_alive).map(Ok::<_, Infallible>))
}

/// One event, whole: some clients lose a frame that is cut.
fn frame(WireEvent { name, json }: &WireEvent) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}

/// A comment whenever nothing came for `interval`, so that proxies keep the connection.
fn with_keep_alive(frames: impl Stream<Item = Bytes>, interval: Duration) -> impl Stream<Item = Bytes> {
    stream::unfold(Box::pin(frames), move |mut frames| async move {
        match tokio::time::timeout(interval, frames.next()).await {
            Ok(frame) => frame.map(|frame| (frame, frames)),
            Err(_idle) => Some((KEEP_ALIVE, frames)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::SamplingParams,
        responses::{CreateResponse, EncodeOptions, UnknownFields, encode},
    };
    use actix_web::body::to_bytes;
    use serde_json::{Value, json};

    #[actix_web::test]
    async fn each_frame_names_its_event() {
        let request = CreateResponse::parse(&json!({ "input": "hi" }), UnknownFields::Refuse).unwrap();
        let (response, _) = request.begin("tiny", &SamplingParams::default());
        let reply = reply(encode(response, EncodeOptions::default(), stream::empty()), Duration::from_secs(60));
        let body = to_bytes(reply.into_body()).await.unwrap();
        let frames: Vec<&str> = std::str::from_utf8(&body).unwrap().split_terminator("\n\n").collect();
        let (done, events) = frames.split_last().unwrap();
        assert_eq!(*done, "data: [DONE]");
        for event in events {
            let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
            assert_eq!(serde_json::from_str::<Value>(data).unwrap()["type"], name);
        }
    }

    #[actix_web::test]
    async fn silence_is_filled_with_comments() {
        let frames = stream::iter([DONE]).chain(stream::pending());
        let frames = with_keep_alive(frames, Duration::from_millis(1)).take(3);
        assert_eq!(frames.collect::<Vec<_>>().await, [DONE, KEEP_ALIVE, KEEP_ALIVE]);
    }
}
