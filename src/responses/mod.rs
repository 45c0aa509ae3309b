//! The OpenAI Responses protocol. Knows nothing of HTTP.

mod compaction;
mod config;
mod custom_input;
mod encoder;
mod error;
mod event;
mod field;
mod hosted_item;
mod include;
mod input;
mod labels;
mod logprob;
mod obfuscation;
mod prompts;
mod reasoning;
mod request;
mod response;
mod sampling;
mod schema_limits;
mod seal;
mod stream;
mod template_arguments;
mod text_format;
mod tool_choice;
mod tools;

pub use compaction::{Compaction, compact_beyond, encode_compaction, summary_request, take_trigger};
pub use config::{Dialect, DialectError, ReasoningEvents, ResponsesConfig};
pub use encoder::{Begun, EncodeOptions, Encoder, Idle, InCustomToolCall, InFunctionCall, InMessage, InReasoning};
pub use error::InvalidRequest;
pub use event::{Payload, ResponseEvent};
pub use include::ReplyOptions;
pub use logprob::TokenLogprob;
pub use prompts::{Prompts, PromptsError};
pub use request::{CreateResponse, UnknownFields};
pub use response::{
    Failure, InputTokensDetails, Item, ItemStatus, OutputTokensDetails, Part, Response, Status, ToolName, Usage,
};
pub use seal::{Key, KeyError, KeySource, Purpose, Seal};
pub use stream::{encode, last_response};
pub use tools::{CUSTOM_INPUT, Callable, CallableKind};
