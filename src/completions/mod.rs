//! Chat Completions and the older Completions, for clients that speak only these: the same chats as under `responses`, told
//! in other words. Nothing is kept. Knows nothing of HTTP.

mod choices;
mod chunk;
mod messages;
mod request;
mod text;

pub use choices::{CompletionEvent, last_completion, start};
pub use request::{ChatCompletion, Envelope};
pub use text::TextCompletion;

use crate::{
    chat::ChatRequest,
    engine::SamplingParams,
    responses::{InvalidRequest, UnknownFields},
};
use serde_json::Value;

/// The body of a request for a completion, of either protocol.
pub trait CompletionRequest: Sized {
    /// The field that is gone on from.
    const INPUT: &str;

    /// # Errors
    /// Names the first field that is wrong or that this version does not support.
    fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest>;

    /// None means the server's first one.
    fn model(&self) -> Option<&str>;

    /// Server-sent events, or one object.
    fn is_streamed(&self) -> bool;

    /// How it is told, and what each choice is. `model` is the served name, `defaults` its own settings.
    fn begin(self, model: &str, defaults: &SamplingParams, cache_salt: u64) -> (Envelope, Vec<ChatRequest>);
}
