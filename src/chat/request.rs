//! A chat whose every field is known to be good.

use crate::engine::{SamplingParams, ServiceClass};
use serde::Serialize;
use serde_json::{Map, Value};
use std::num::NonZeroU32;

/// What to say next, and how.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// The conversation so far, oldest first; at least one.
    pub messages: Vec<Message>,
    /// A text to go on from as it stands, in place of a conversation: no template, no reasoning, no calls.
    pub text: Option<String>,
    /// Functions that the model is told of.
    pub tools: Vec<Tool>,
    /// Which of them it may or must call.
    pub calls: Calls,
    /// What shape the answer has, reasoning and calls aside.
    pub format: OutputFormat,
    /// The template's `enable_thinking`; none leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// More variables for the template, scalars; the server's own names are not among them.
    pub template_arguments: Map<String, Value>,
    /// How to pick each token.
    pub sampling: SamplingParams,
    /// Upper limit on generated tokens; none means as many as the context still holds.
    pub max_output_tokens: Option<NonZeroU32>,
    /// Report the probability of each token of the answer, and of so many others; none reports nothing.
    pub top_logprobs: Option<u32>,
    /// Leave out the oldest turns, but for system messages, when the conversation does not fit; else it is refused.
    pub truncate: bool,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Which requests are served first.
    pub service_class: ServiceClass,
    /// Only requests with the same salt share what is cached.
    pub cache_salt: u64,
    /// Most tokens that are guessed ahead in one step; none leaves it to the config.
    pub max_draft_tokens: Option<u32>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The operator or developer. The protocol's `developer` is this too: templates know only `system`.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A function's result.
    Tool,
}

/// One turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty when an assistant only calls tools.
    pub content: String,
    /// Assistant only: the thinking that led to it.
    pub reasoning: Option<String>,
    /// Assistant only.
    pub tool_calls: Vec<ToolCall>,
    /// Tool only: which call this answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn of text alone.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// A function the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON Schema of its arguments, an object.
    pub parameters: Option<Value>,
    /// Every call's arguments follow the schema, whatever the model would rather say.
    pub strict: bool,
    /// Whether the schema is small and plain enough to be followed. That of a strict tool is.
    pub is_enforceable: bool,
}

/// Which tools may or must be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// Whether there is a call at all.
    pub mode: CallMode,
    /// The only tools that may be called; none means all.
    pub allowed: Option<Vec<String>>,
    /// Calls in one reply; none means any number.
    pub max_calls: Option<NonZeroU32>,
}

/// Whether a reply calls tools.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CallMode {
    /// As the model likes.
    #[default]
    Auto,
    /// Never.
    None,
    /// At least one.
    Required,
}

/// The shape of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OutputFormat {
    /// Free.
    #[default]
    Text,
    /// Any JSON object.
    Json,
    /// JSON that follows a schema.
    JsonSchema(Value),
    /// Text that matches a regular expression as a whole.
    Regex(String),
    /// Text of a grammar in llguidance's variant of Lark.
    Lark(String),
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Ties the result to the call.
    pub id: String,
    /// Which function.
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}
