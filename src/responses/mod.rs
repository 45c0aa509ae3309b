//! The OpenAI Responses protocol. Knows nothing of HTTP.

mod background;
mod compaction;
mod config;
mod conversations;
mod custom_input;
mod encoder;
mod error;
mod event;
mod field;
mod follow;
mod history;
mod hosted_item;
mod include;
mod input;
mod items;
mod keeping;
mod labels;
mod list;
mod logprob;
mod obfuscation;
mod origin;
mod prompts;
mod query;
mod reasoning;
mod replay;
mod request;
mod responder;
mod response;
mod retrieval;
mod sampling;
mod schema_limits;
mod seal;
mod stream;
mod template_arguments;
mod text_format;
mod tool_choice;
mod tools;

pub use compaction::Compaction;
pub use config::{Dialect, DialectError, ReasoningEvents, ResponsesConfig};
pub use encoder::{Begun, EncodeOptions, Encoder, Idle, InCustomToolCall, InFunctionCall, InMessage, InReasoning};
pub use error::{InvalidRequest, Kind, ResponsesError};
pub use event::{Payload, ResponseEvent};
pub use follow::WireEvent;
pub use include::ReplyOptions;
pub use list::List;
pub use logprob::TokenLogprob;
pub use prompts::{Prompts, PromptsError};
pub use query::Query;
pub use request::{CreateResponse, UnknownFields};
pub use responder::{Caller, Memory, Prepared, Responder, Turn};
pub use response::{
    Failure, InputTokensDetails, Item, ItemStatus, OutputTokensDetails, Part, Response, Status, ToolName, Usage,
};
pub use seal::{Key, KeyError, KeySource, Purpose, Seal};
pub use stream::{encode, last_response};
pub use tools::{CUSTOM_INPUT, Callable, CallableKind};
