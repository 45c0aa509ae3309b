//! Wire types: the pieces of a stream, and the whole that they add up to.

use super::request::{Envelope, Protocol};
use crate::{
    chat,
    responses::{TokenLogprob, tellable},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::slice;

/// A piece of one choice.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) index: usize,
    /// Whether this is the first one.
    pub(super) begins: bool,
    pub(super) content: Option<String>,
    pub(super) reasoning: Option<String>,
    pub(super) call: Option<CallPiece>,
    pub(super) logprobs: Vec<chat::TokenLogprob>,
    /// Where they begin in the text of the choice, in characters.
    pub(super) logprobs_offset: usize,
    pub(super) finish_reason: Option<&'static str>,
}

/// A piece of a call: its beginning, or more of its arguments.
#[derive(Debug)]
pub(super) struct CallPiece {
    pub(super) index: usize,
    /// Its id and its function.
    pub(super) begins: Option<(String, String)>,
    pub(super) arguments: String,
}

/// Tokens of all choices. The prompt is counted once for each text that it is.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

impl Usage {
    /// Another choice, which may have the prompt of one before it.
    pub(super) fn add(&mut self, usage: chat::Usage, is_new_prompt: bool) {
        if is_new_prompt {
            self.prompt_tokens += usage.input_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.output_tokens;
        self.completion_tokens_details.reasoning_tokens += usage.reasoning_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }

    /// Of the prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Of all choices.
    pub fn completion_tokens(&self) -> usize {
        self.completion_tokens
    }
}

impl Envelope {
    /// An object with these choices.
    fn object(&self, kind: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".to_owned(), json!(self.id));
        object.insert("object".to_owned(), json!(kind));
        object.insert("created".to_owned(), json!(self.created));
        object.insert("model".to_owned(), json!(self.model));
        object.insert("service_tier".to_owned(), json!(self.service_tier));
        object.insert("system_fingerprint".to_owned(), Value::Null);
        object.insert("choices".to_owned(), Value::Array(choices));
        object
    }

    /// As a stream has it.
    pub(super) fn chunk(&self, piece: &Piece) -> String {
        let choice = match self.protocol {
            Protocol::Chat => chat_chunk(piece),
            Protocol::Text => text_chunk(piece),
        };
        let mut chunk = self.object(self.protocol.chunk_kind(), vec![choice]);
        if self.includes_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk).to_string()
    }

    /// The chunk that ends a stream whose client wants to know.
    pub(super) fn usage_chunk(&self, usage: Usage) -> String {
        let mut chunk = self.object(self.protocol.chunk_kind(), Vec::new());
        chunk.insert("usage".to_owned(), json!(usage));
        Value::Object(chunk).to_string()
    }

    /// The object that all pieces add up to.
    pub(super) fn whole(&self, choices: Vec<Choice>, usage: Usage) -> Value {
        let choice = |(index, choice): (usize, Choice)| match self.protocol {
            Protocol::Chat => choice.into_chat(index),
            Protocol::Text => choice.into_text(index),
        };
        let mut whole = self.object(self.protocol.whole_kind(), choices.into_iter().enumerate().map(choice).collect());
        whole.insert("usage".to_owned(), json!(usage));
        Value::Object(whole)
    }
}

impl Protocol {
    fn chunk_kind(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Text => "text_completion",
        }
    }

    fn whole_kind(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Text => "text_completion",
        }
    }
}

fn chat_chunk(piece: &Piece) -> Value {
    let mut delta = Map::new();
    if piece.begins {
        delta.insert("role".to_owned(), json!("assistant"));
        delta.insert("content".to_owned(), json!(""));
    }
    if let Some(text) = &piece.content {
        delta.insert("content".to_owned(), json!(text));
    }
    if let Some(text) = &piece.reasoning {
        delta.insert("reasoning_content".to_owned(), json!(text));
    }
    if let Some(CallPiece { index, begins, arguments }) = &piece.call {
        let call = match begins {
            Some((id, name)) => {
                let function = json!({ "name": name, "arguments": arguments });
                json!({ "index": index, "id": id, "type": "function", "function": function })
            }
            None => json!({ "index": index, "function": { "arguments": arguments } }),
        };
        delta.insert("tool_calls".to_owned(), json!([call]));
    }
    json!({
        "index": piece.index,
        "delta": delta,
        "logprobs": chat_logprobs(&piece.logprobs),
        "finish_reason": piece.finish_reason,
    })
}

fn text_chunk(piece: &Piece) -> Value {
    json!({
        "index": piece.index,
        "text": piece.content.as_deref().unwrap_or_default(),
        "logprobs": text_logprobs(&piece.logprobs, piece.logprobs_offset),
        "finish_reason": piece.finish_reason,
    })
}

/// What the pieces of one choice add up to.
#[derive(Debug, Default)]
pub(super) struct Choice {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    logprobs: Vec<chat::TokenLogprob>,
    finish_reason: &'static str,
}

#[derive(Debug)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Choice {
    pub(super) fn push(&mut self, piece: Piece) {
        self.content.push_str(&piece.content.unwrap_or_default());
        self.reasoning.push_str(&piece.reasoning.unwrap_or_default());
        if let Some(CallPiece { index, begins, arguments }) = piece.call {
            if let Some((id, name)) = begins {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            self.calls[index].arguments.push_str(&arguments);
        }
        self.logprobs.extend(piece.logprobs);
        if let Some(reason) = piece.finish_reason {
            self.finish_reason = reason;
        }
    }

    fn into_chat(self, index: usize) -> Value {
        let content = Some(self.content).filter(|content| !content.is_empty() || self.calls.is_empty());
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null, "annotations": [] });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.reasoning);
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.into_iter().map(Call::into_value).collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(&self.logprobs),
            "finish_reason": self.finish_reason,
        })
    }

    fn into_text(self, index: usize) -> Value {
        json!({
            "index": index,
            "text": self.content,
            "logprobs": text_logprobs(&self.logprobs, 0),
            "finish_reason": self.finish_reason,
        })
    }
}

impl Call {
    fn into_value(self) -> Value {
        let Self { id, name, arguments } = self;
        json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
    }
}

/// Null where there are none.
fn chat_logprobs(logprobs: &[chat::TokenLogprob]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let content: Vec<TokenLogprob> = logprobs.iter().cloned().map(Into::into).collect();
    json!({ "content": content, "refusal": null })
}

/// As the older protocol has it, where so many characters have begun before these tokens.
fn text_logprobs(logprobs: &[chat::TokenLogprob], mut num_begun: usize) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let offset = |token: &chat::TokenLogprob| {
        // A token may go on with a character that the one before it began.
        let goes_on = token.token.bytes.first().is_some_and(|byte| !begins_char(*byte));
        let offset = num_begun.saturating_sub(usize::from(goes_on));
        num_begun += num_chars(slice::from_ref(token));
        offset
    };
    json!({
        "text_offset": logprobs.iter().map(offset).collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|token| tellable(token.token.logprob)).collect::<Vec<_>>(),
        "tokens": logprobs.iter().map(|token| text_of(&token.token)).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(top_logprobs).collect::<Vec<_>>(),
    })
}

/// What could have been said, and in any case what was.
fn top_logprobs(token: &chat::TokenLogprob) -> Map<String, Value> {
    let mut top = Map::new();
    for one in token.top.iter().chain([&token.token]) {
        // Halves of characters look alike, and the first of them is the most probable.
        top.entry(text_of(one)).or_insert_with(|| json!(tellable(one.logprob)));
    }
    top
}

/// So many characters begin in these tokens.
pub(super) fn num_chars(logprobs: &[chat::TokenLogprob]) -> usize {
    logprobs.iter().flat_map(|token| &token.token.bytes).filter(|byte| begins_char(**byte)).count()
}

/// Whether a byte of UTF-8 is the first of its character.
fn begins_char(byte: u8) -> bool {
    byte & 0b1100_0000 != 0b1000_0000
}

/// Lossy where the token is not whole characters.
fn text_of(logprob: &chat::Logprob) -> String {
    String::from_utf8_lossy(&logprob.bytes).into_owned()
}
