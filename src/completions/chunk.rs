//! Wire types: the pieces of a stream, and the whole that they add up to.

use super::request::Envelope;
use crate::{chat, responses::TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value, json};

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
        let (kind, choice) = if self.is_chat {
            ("chat.completion.chunk", chat_chunk(piece))
        } else {
            ("text_completion", text_chunk(piece))
        };
        let mut chunk = self.object(kind, vec![choice]);
        if self.includes_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk).to_string()
    }

    /// The chunk that ends a stream whose client wants to know.
    pub(super) fn usage_chunk(&self, usage: Usage) -> String {
        let kind = if self.is_chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.object(kind, Vec::new());
        chunk.insert("usage".to_owned(), json!(usage));
        Value::Object(chunk).to_string()
    }

    /// The object that all pieces add up to.
    pub(super) fn whole(&self, choices: Vec<Choice>, usage: Usage) -> Value {
        let kind = if self.is_chat { "chat.completion" } else { "text_completion" };
        let choice = |(index, choice): (usize, Choice)| {
            if self.is_chat { choice.into_chat(index) } else { choice.into_text(index) }
        };
        let mut whole = self.object(kind, choices.into_iter().enumerate().map(choice).collect());
        whole.insert("usage".to_owned(), json!(usage));
        Value::Object(whole)
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
    /// Ids, functions and arguments.
    calls: Vec<(String, String, String)>,
    logprobs: Vec<chat::TokenLogprob>,
    finish_reason: &'static str,
}

impl Choice {
    pub(super) fn push(&mut self, piece: Piece) {
        self.content.push_str(&piece.content.unwrap_or_default());
        self.reasoning.push_str(&piece.reasoning.unwrap_or_default());
        if let Some(CallPiece { index, begins, arguments }) = piece.call {
            if let Some((id, name)) = begins {
                self.calls.push((id, name, String::new()));
            }
            self.calls[index].2.push_str(&arguments);
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
            let call = |(id, name, arguments): (String, String, String)| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
            message["tool_calls"] = self.calls.into_iter().map(call).collect();
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

/// Null where there are none.
fn chat_logprobs(logprobs: &[chat::TokenLogprob]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let content: Vec<TokenLogprob> = logprobs.iter().cloned().map(Into::into).collect();
    json!({ "content": content, "refusal": null })
}

/// As the older protocol has it, where the text that the tokens stand in begins at `offset`.
fn text_logprobs(logprobs: &[chat::TokenLogprob], mut offset: usize) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let value = |logprob: &chat::Logprob| if logprob.logprob.is_finite() { logprob.logprob } else { -9999.0 };
    let tokens: Vec<String> = logprobs.iter().map(|token| text_of(&token.token)).collect();
    let top = |token: &chat::TokenLogprob| -> Map<String, Value> {
        token.top.iter().map(|one| (text_of(one), json!(value(one)))).collect()
    };
    let offsets = tokens.iter().map(|token| {
        let begin = offset;
        offset += token.chars().count();
        begin
    });
    json!({
        "text_offset": offsets.collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|token| value(&token.token)).collect::<Vec<_>>(),
        "tokens": tokens,
        "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
    })
}

/// So many characters do these tokens have in [`text_logprobs`].
pub(super) fn num_chars(logprobs: &[chat::TokenLogprob]) -> usize {
    logprobs.iter().map(|token| text_of(&token.token).chars().count()).sum()
}

/// Lossy where the token is not whole characters.
fn text_of(logprob: &chat::Logprob) -> String {
    String::from_utf8_lossy(&logprob.bytes).into_owned()
}
