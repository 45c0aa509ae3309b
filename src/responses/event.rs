//! Wire types of the event stream.

use super::response::{Failure, Item, Part, Response};
use serde::{Serialize, Serializer, ser::SerializeMap};

/// One server-sent event.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseEvent {
    #[serde(rename = "type")]
    name: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    payload: Payload,
}

/// What an event says.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Payload {
    Created { response: Box<Response> },
    InProgress { response: Box<Response> },
    ItemAdded { output_index: usize, item: Item },
    PartAdded { item_id: String, output_index: usize, content_index: usize, part: Part },
    TextDelta { item_id: String, output_index: usize, content_index: usize, delta: String, logprobs: [(); 0] },
    TextDone { item_id: String, output_index: usize, content_index: usize, text: String, logprobs: [(); 0] },
    ReasoningDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    ReasoningDone { item_id: String, output_index: usize, content_index: usize, text: String },
    PartDone { item_id: String, output_index: usize, content_index: usize, part: Part },
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    ItemDone { output_index: usize, item: Item },
    Error(ErrorPayload),
    Completed { response: Box<Response> },
    Incomplete { response: Box<Response> },
    Failed { response: Box<Response> },
}

/// The fields that OpenAI's documents put in the event itself, and once more in the `error` object that its service
/// and Open Responses send. Clients read one or the other.
#[derive(Clone, Copy, Debug)]
pub struct ErrorPayload(pub(super) Failure);

impl ResponseEvent {
    pub(super) fn new(sequence_number: u64, payload: Payload) -> Self {
        Self { name: payload.name(), sequence_number, payload }
    }

    /// The `type`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The response, if this is the terminal event.
    pub fn final_response(&self) -> Option<&Response> {
        match &self.payload {
            Payload::Completed { response } | Payload::Incomplete { response } | Payload::Failed { response } => {
                Some(response)
            }
            Payload::Created { .. }
            | Payload::InProgress { .. }
            | Payload::ItemAdded { .. }
            | Payload::PartAdded { .. }
            | Payload::TextDelta { .. }
            | Payload::TextDone { .. }
            | Payload::ReasoningDelta { .. }
            | Payload::ReasoningDone { .. }
            | Payload::PartDone { .. }
            | Payload::ArgumentsDelta { .. }
            | Payload::ArgumentsDone { .. }
            | Payload::ItemDone { .. }
            | Payload::Error(_) => None,
        }
    }
}

impl Payload {
    fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
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
        let nested = Error { r#type: Failure::CODE, code: Failure::CODE, message: &message, param: () };
        let mut event = serializer.serialize_map(Some(4))?;
        event.serialize_entry("code", Failure::CODE)?;
        event.serialize_entry("message", &message)?;
        event.serialize_entry("param", &())?;
        event.serialize_entry("error", &nested)?;
        event.end()
    }
}
