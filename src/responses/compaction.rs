//! Long conversations made short: the model writes a summary, which is sealed, so that the client keeps it for us.

use super::{
    config::Dialect,
    encoder::{EncodeOptions, Encoder},
    event::ResponseEvent,
    response::{Failure, Response, Usage, new_id, unix_seconds},
};
use crate::{
    chat::{self, Calls, ChatError, ChatEvent, ChatRequest, Finished, Lease, Message, OutputFormat, Role},
    engine::FinishReason,
};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// What the model is asked to write.
const TASK: &str = "Summarize our conversation so far, so that it can be continued from the summary alone. Keep what was asked, \
                    what was decided and why, every name, number and identifier that matters, what has been done, and what \
                    is still to do. Write only the summary.";
/// What the summary is introduced with when it comes back.
const INTRODUCTION: &str = "Summary of our conversation so far:\n";
/// A summary is cut where it gets longer.
const MAX_SUMMARY_TOKENS: NonZeroU32 = NonZeroU32::new(2048).expect("not zero");
/// Of the user's own words, the latest are kept as they are.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// The window that takes the place of a conversation.
#[derive(Debug, Serialize)]
pub struct Compaction {
    id: String,
    object: &'static str,
    created_at: u64,
    output: Vec<Value>,
    usage: Option<Usage>,
}

/// Takes the item that asks for a compaction from the end of a request's input. Whether there was one.
pub(super) fn take_trigger(body: &mut Value) -> bool {
    let Some(input) = body.get_mut("input").and_then(Value::as_array_mut) else { return false };
    input.pop_if(|item| item["type"] == "compaction_trigger").is_some()
}

/// The request for the summary of a conversation. However long it is: what does not fit is left out, the oldest first.
pub(super) fn summary_request(request: ChatRequest) -> ChatRequest {
    let mut messages = request.messages;
    messages.push(Message::text(Role::User, TASK));
    ChatRequest {
        messages,
        tools: Vec::new(),
        calls: Calls::default(),
        format: OutputFormat::Text,
        enable_thinking: Some(false),
        max_output_tokens: Some(MAX_SUMMARY_TOKENS),
        top_logprobs: None,
        truncate: true,
        stop: Vec::new(),
        ..request
    }
}

/// Where a conversation has more than `threshold` tokens: puts a summary in the place of all but its last turn, and returns
/// the summary, whose tokens no usage counts. A conversation of one turn, and one whose summary fails, stays as it is.
///
/// # Errors
/// As for a reply.
pub(super) async fn compact_beyond(
    threshold: usize,
    lease: &Lease,
    request: &mut ChatRequest,
) -> Result<Option<String>, ChatError> {
    let Some(last_turn) = request.messages.iter().rposition(|message| message.role == Role::User) else {
        return Ok(None);
    };
    let is_system = |message: &Message| message.role == Role::System;
    if request.messages[..last_turn].iter().all(is_system) || lease.count_tokens(request.clone()).await? <= threshold {
        return Ok(None);
    }
    let mut older = request.clone();
    older.messages.truncate(last_turn);
    let (summary, finished) = lease.answer(summary_request(older)).await?;
    if !finished.is_some_and(|finished| is_summary(&summary, finished.reason)) {
        return Ok(None);
    }
    let last = request.messages.split_off(last_turn);
    request.messages.retain(is_system);
    request.messages.push(Message::text(Role::Assistant, format!("{INTRODUCTION}{summary}")));
    request.messages.extend(last);
    Ok(Some(summary))
}

/// A conversation must not be exchanged for nothing.
fn is_summary(text: &str, reason: FinishReason) -> bool {
    matches!(reason, FinishReason::Stop | FinishReason::Length) && !text.trim().is_empty()
}

/// The events of a response that is nothing but a compaction.
pub(super) fn encode_compaction<C: Stream<Item = ChatEvent> + Unpin>(
    response: Response,
    options: EncodeOptions,
    dialect: Dialect,
    chat: C,
) -> impl Stream<Item = ResponseEvent> + use<C> {
    let mut encoder = Encoder::begin(response, options).start();
    let first = encoder.drain();
    let rest = async move {
        let (summary, finished) = chat::whole_answer(chat).await;
        match finished {
            None => encoder.fail(Failure::EngineLost, None),
            Some(Finished { reason, usage }) if is_summary(&summary, reason) => {
                encoder.compaction(dialect.seal_compaction(&summary)).complete(usage)
            }
            Some(Finished { reason, usage }) => {
                let failure = match reason {
                    FinishReason::Stop | FinishReason::Length | FinishReason::Error => Failure::Model,
                    FinishReason::OutOfMemory => Failure::OutOfMemory,
                    FinishReason::DeviceLost => Failure::EngineLost,
                    FinishReason::Shutdown => Failure::Shutdown,
                };
                encoder.fail(failure, Some(usage))
            }
        }
    };
    stream::iter(first).chain(stream::once(rest).flat_map(stream::iter))
}

impl Compaction {
    /// Of a conversation: what the user said last, and the summary of all.
    pub(super) fn new(items: &[Value], response: &Response) -> Self {
        let mut output = kept(items);
        output.extend(response.output.iter().map(|item| serde_json::to_value(item).expect("wire types serialize")));
        let (id, created_at) = (new_id("resp"), unix_seconds());
        Self { id, object: "response.compaction", created_at, output, usage: response.usage() }
    }
}

/// The user's messages, the latest of them, in their order.
fn kept(items: &[Value]) -> Vec<Value> {
    let user = |content: Value| json!({ "type": "message", "id": new_id("msg"), "status": "completed", "role": "user", "content": content });
    let text = |text: &str| json!([{ "type": "input_text", "text": text }]);
    let messages = items.iter().rev().filter(|item| item["role"] == "user");
    let mut num_bytes = 0;
    let contents = messages.map(|item| item["content"].as_str().map_or_else(|| item["content"].clone(), text));
    let fits = |content: &Value| {
        num_bytes += content.to_string().len();
        num_bytes <= MAX_KEPT_BYTES
    };
    let mut kept: Vec<Value> = contents.take_while(fits).map(user).collect();
    kept.reverse();
    kept
}

/// What a compaction item becomes in a later request.
pub(super) fn expand(summary: &str) -> Value {
    json!({ "type": "message", "role": "assistant", "content": format!("{INTRODUCTION}{summary}") })
}
