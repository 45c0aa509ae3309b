//! Wire types of the response object. Every key of it is always there, null when it has no value.

use super::{
    logprob::TokenLogprob,
    reasoning::Reasoning,
    text_format::TextSettings,
    tool_choice::ToolChoice,
    tools::{Callable, Tools},
};
use crate::chat;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};
use std::{
    num::NonZeroU32,
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// A key whose value is always `[]` in this version.
type Empty = [(); 0];

/// The response object, in the protocol's order of keys.
#[derive(Clone, Debug, Serialize)]
pub struct Response {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created_at: u64,
    pub(super) completed_at: Option<u64>,
    pub(super) status: Status,
    pub(super) incomplete_details: Option<IncompleteDetails>,
    pub(super) model: String,
    pub(super) previous_response_id: Option<String>,
    pub(super) instructions: Option<String>,
    pub(super) output: Vec<Item>,
    pub(super) error: Option<Failure>,
    pub(super) tools: Tools,
    pub(super) tool_choice: ToolChoice,
    pub(super) truncation: &'static str,
    pub(super) parallel_tool_calls: bool,
    pub(super) text: TextSettings,
    pub(super) top_p: f32,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) top_logprobs: u32,
    pub(super) temperature: f32,
    pub(super) reasoning: Option<Reasoning>,
    pub(super) usage: Option<Usage>,
    pub(super) max_output_tokens: Option<NonZeroU32>,
    pub(super) max_tool_calls: Option<NonZeroU32>,
    pub(super) store: bool,
    pub(super) background: bool,
    pub(super) service_tier: &'static str,
    pub(super) metadata: Map<String, Value>,
    pub(super) safety_identifier: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) conversation: Option<ConversationReference>,
}

/// Which conversation a response belongs to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ConversationReference {
    pub(super) id: String,
}

impl Response {
    /// As clients name it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The served model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// How far it has come.
    pub fn status(&self) -> Status {
        self.status
    }

    /// None until the end, and when the engine was lost.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The tool that the model calls by this name.
    pub fn callable(&self, name: &str) -> Option<&Callable> {
        self.tools.callables().iter().find(|callable| callable.tool.name == name)
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<Failure> {
        self.error.clone()
    }
}

/// Progress of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

impl Status {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

/// Progress of an item.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

/// Output item.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Item {
    Message {
        id: String,
        status: ItemStatus,
        role: chat::Role,
        content: Vec<Part>,
    },
    Reasoning {
        id: String,
        summary: Vec<Part>,
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<Vec<Part>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        encrypted_content: Option<String>,
        status: ItemStatus,
    },
    Compaction {
        id: String,
        encrypted_content: String,
    },
    FunctionCall {
        id: String,
        call_id: String,
        #[serde(flatten)]
        name: ToolName,
        arguments: String,
        status: ItemStatus,
    },
    CustomToolCall {
        id: String,
        call_id: String,
        #[serde(flatten)]
        name: ToolName,
        input: String,
        status: ItemStatus,
    },
}

/// What the client calls a tool.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ToolName {
    /// Unique in its namespace.
    pub name: String,
    /// Where the client defined it in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Content of an item.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Part {
    OutputText { text: String, annotations: Empty, logprobs: Vec<TokenLogprob> },
    ReasoningText { text: String },
    SummaryText { text: String },
}

impl Part {
    pub(super) fn output_text(text: String, logprobs: Vec<TokenLogprob>) -> Self {
        Self::OutputText { text, annotations: [], logprobs }
    }
}

/// Why a response is incomplete. There is one reason in this version.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct IncompleteDetails {
    reason: &'static str,
}

impl IncompleteDetails {
    pub(super) const MAX_OUTPUT_TOKENS: Self = Self { reason: "max_output_tokens" };
}

/// Why a response failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// A run of the model failed.
    #[error("the model failed while it wrote this reply; send the request again")]
    Model,
    /// Memory did not suffice for this one beside those that were there before.
    #[error(
        "the memory of the model's device ran out while it wrote this reply; send the request again later, and where that \
         goes on, have `engine.max_batch_size`, `engine.max_step_tokens` or `engine.max_context_tokens` lowered"
    )]
    OutOfMemory,
    /// The engine went away, perhaps without a word.
    #[error("the engine was lost while it wrote this reply; send the request again")]
    EngineLost,
    /// The server stopped first.
    #[error("the server is shutting down; send the request again")]
    Shutdown,
    /// What was asked in the background turned out to be impossible when its turn came.
    #[error("{message}")]
    Refused {
        /// What a request that waits for its reply would have been told.
        message: String,
    },
    /// Whoever follows it from somewhere in the middle has to begin anew.
    #[error("the server was stopped while it wrote this reply and begins it anew; follow it from its beginning")]
    Restarted,
    /// The process was stopped each time while it wrote this reply in the background.
    #[error("the server stopped {attempts} times while it wrote this reply; it is not tried again")]
    Interrupted {
        /// How often it was tried.
        attempts: u64,
    },
}

impl Failure {
    /// The protocol has one code for all that is our fault.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Model
            | Self::OutOfMemory
            | Self::EngineLost
            | Self::Shutdown
            | Self::Restarted
            | Self::Interrupted { .. } => "server_error",
            Self::Refused { .. } => "invalid_prompt",
        }
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_map(Some(2))?;
        error.serialize_entry("code", self.code())?;
        error.serialize_entry("message", &self.to_string())?;
        error.end()
    }
}

/// What a reply cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub struct Usage {
    pub input_tokens: usize,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: usize,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: usize,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub struct InputTokensDetails {
    pub cached_tokens: usize,
    pub cache_write_tokens: usize,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub struct OutputTokensDetails {
    pub reasoning_tokens: usize,
}

impl From<chat::Usage> for Usage {
    fn from(usage: chat::Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens: usage.cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.output_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: usage.reasoning_tokens },
            total_tokens: usage.input_tokens + usage.output_tokens,
        }
    }
}

/// Cannot be guessed, nor met twice.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

/// 0 for a clock before 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
