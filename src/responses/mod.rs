//! The OpenAI Responses protocol. Knows nothing of HTTP.

mod encoder;
mod error;
mod event;
mod field;
mod input;
mod request;
mod response;
mod sampling;
mod stream;
mod tools;

pub use encoder::{Encoder, Idle, InFunctionCall, InMessage, InReasoning};
pub use error::InvalidRequest;
pub use event::{Payload, ResponseEvent};
pub use request::{CreateResponse, UnknownFields};
pub use response::{Failure, InputTokensDetails, Item, ItemStatus, OutputTokensDetails, Part, Response, Status, Usage};
pub use stream::{encode, last_response};
