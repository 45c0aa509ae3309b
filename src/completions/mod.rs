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
