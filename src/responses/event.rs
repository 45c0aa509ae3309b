//! Wire types of the event stream.

use super::{
    logprob::TokenLogprob,
    response::{Failure, Item, Part, Response},
};
use serde::{Serialize, Serializer, ser::SerializeMap};

/// One server-sent event.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseEvent {
    #[serde(rename = "type")]
    name: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    payload: Payload,
    /// Of a delta, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    obfuscation: Option<String>,
}

/// What an event says.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Payload {
    Created { response: Box<Response> },
    Queued { response: Box<Response> },
    InProgress { response: Box<Response> },
    ItemAdded { output_index: usize, item: Item },
    PartAdded { item_id: String, output_index: usize, content_index: usize, part: Part },
    TextDelta { item_id: String, output_index: usize, content_index: usize, delta: String, logprobs: Logprobs },
    TextDone { item_id: String, output_index: usize, content_index: usize, text: String, logprobs: Logprobs },
    ReasoningTextDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    ReasoningTextDone { item_id: String, output_index: usize, content_index: usize, text: String },
    ReasoningDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    ReasoningDone { item_id: String, output_index: usize, content_index: usize, text: String },
    PartDone { item_id: String, output_index: usize, content_index: usize, part: Part },
    SummaryPartAdded { item_id: String, output_index: usize, summary_index: usize, part: Part },
    SummaryTextDelta { item_id: String, output_index: usize, summary_index: usize, delta: String },
    SummaryTextDone { item_id: String, output_index: usize, summary_index: usize, text: String },
    SummaryPartDone { item_id: String, output_index: usize, summary_index: usize, part: Part },
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    InputDelta { item_id: String, output_index: usize, delta: String },
    InputDone { item_id: String, output_index: usize, input: String },
    ItemDone { output_index: usize, item: Item },
    Error(ErrorPayload),
    Completed { response: Box<Response> },
    Incomplete { response: Box<Response> },
    Failed { response: Box<Response> },
}

/// Of the tokens of a text.
type Logprobs = Vec<TokenLogprob>;

/// The fields that OpenAI's documents put in the event itself, and once more in the `error` object that its service
/// and Open Responses send. Clients read one or the other.
#[derive(Clone, Debug)]
pub struct ErrorPayload(pub(super) Failure);

impl ResponseEvent {
    pub(super) fn new(sequence_number: u64, payload: Payload, obfuscation: Option<String>) -> Self {
        Self { name: payload.name(), sequence_number, payload, obfuscation }
    }

    /// The `type`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The response, if this is the terminal event.
    pub fn final_response(&self) -> Option<&Response> {
        let (Payload::Completed { response } | Payload::Incomplete { response } | Payload::Failed { response }) =
            &self.payload
        else {
            return None;
        };
        Some(response)
    }

    /// The same, to say in it what has become of the response.
    pub(super) fn final_response_mut(&mut self) -> Option<&mut Response> {
        let (Payload::Completed { response } | Payload::Incomplete { response } | Payload::Failed { response }) =
            &mut self.payload
        else {
            return None;
        };
        Some(response)
    }

    /// Its place in the stream.
    pub fn sequence_number(&self) -> u64 {
        self.sequence_number
    }
}

impl Payload {
    /// What is new, if this is a delta.
    pub(super) fn delta(&self) -> Option<&str> {
        let (Self::TextDelta { delta, .. }
        | Self::ReasoningTextDelta { delta, .. }
        | Self::ReasoningDelta { delta, .. }
        | Self::SummaryTextDelta { delta, .. }
        | Self::ArgumentsDelta { delta, .. }
        | Self::InputDelta { delta, .. }) = self
        else {
            return None;
        };
        Some(delta)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::Queued { .. } => "response.queued",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningTextDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningTextDone { .. } => "response.reasoning_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning.delta",
            Self::ReasoningDone { .. } => "response.reasoning.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::SummaryPartAdded { .. } => "response.reasoning_summary_part.added",
            Self::SummaryTextDelta { .. } => "response.reasoning_summary_text.delta",
            Self::SummaryTextDone { .. } => "response.reasoning_summary_text.done",
            Self::SummaryPartDone { .. } => "response.reasoning_summary_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::InputDelta { .. } => "response.custom_tool_call_input.delta",
            Self::InputDone { .. } => "response.custom_tool_call_input.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Error(_) => "error",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}

impl Serialize for ErrorPayload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Error<'a> {
            r#type: &'static str,
            code: &'static str,
            message: &'a str,
            param: (),
        }
        let message = self.0.to_string();
        let code = self.0.code();
        let nested = Error { r#type: code, code, message: &message, param: () };
        let mut event = serializer.serialize_map(Some(4))?;
        event.serialize_entry("code", code)?;
        event.serialize_entry("message", &message)?;
        event.serialize_entry("param", &())?;
        event.serialize_entry("error", &nested)?;
        event.end()
    }
}
