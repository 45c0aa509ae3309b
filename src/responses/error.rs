//! What is wrong with a request body, and why a request cannot be answered.

use crate::{chat::ChatError, engine::EngineError, store::StoreError};
use serde_json::Value;
use std::fmt::{self, Display};

/// A field that cannot be honoured. The message is one sentence that says what would be accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// Path of the field, such as `input[2].content[0].type`; none when the body as a whole is wrong.
    pub param: Option<String>,
    /// The protocol's name for what is wrong.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl InvalidRequest {
    /// A field that must be there is not.
    pub(crate) fn missing(path: &str) -> Self {
        Self::new(path, "missing_required_parameter", "is required".to_owned())
    }

    /// The JSON type is wrong.
    pub(super) fn wrong_type(path: &str, expected: &str, value: &Value) -> Self {
        Self::new(path, "invalid_type", format!("must be {expected}, and it is {}", describe(value)))
    }

    /// The type is right and the value is not.
    pub(crate) fn invalid(path: &str, why: impl Display) -> Self {
        Self::new(path, "invalid_value", why.to_string())
    }

    /// The value is a JSON Schema that the model cannot be held to.
    pub(super) fn invalid_schema(path: &str, why: impl Display) -> Self {
        Self::new(path, "invalid_json_schema", why.to_string())
    }

    /// The protocol allows the value and this version does not do what it asks for.
    pub(super) fn unsupported_value(path: &str, why: impl Display) -> Self {
        Self::new(path, "unsupported_value", why.to_string())
    }

    /// The protocol has the field and this version does not.
    pub(crate) fn unsupported_parameter(path: &str, why: impl Display) -> Self {
        Self::new(path, "unsupported_parameter", format!("is not supported: {why}"))
    }

    /// The protocol does not have the field.
    pub(super) fn unknown_parameter(name: &str) -> Self {
        Self::new(name, "unknown_parameter", "is not a field of this request".to_owned())
    }

    fn new(path: &str, code: &'static str, predicate: String) -> Self {
        if path.is_empty() {
            return Self { param: None, code, message: format!("the body {predicate}") };
        }
        Self { param: Some(path.to_owned()), code, message: format!("`{path}` {predicate}") }
    }
}

/// Known before the first byte of the reply.
#[derive(Debug, thiserror::Error)]
pub enum ResponsesError {
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The chat did not start.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// What was said before could not be read, or what will be said could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not there, or it is another's, which is the same to whoever asks.
    #[error("{kind} with id '{id}' not found.")]
    NotFound {
        /// What it would be.
        kind: Kind,
        /// As the client sent it, cut.
        id: String,
    },
    /// Only what runs in the background can be cancelled.
    #[error("the response '{id}' was not made in the background, and only such a response can be cancelled")]
    NotBackground {
        /// Its id.
        id: String,
    },
    /// The client should try again later.
    #[error("{max} background responses have not ended yet, which is the limit; try again later")]
    BackgroundFull {
        /// `responses.max_background`
        max: u64,
    },
}

/// What an id names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "names are the protocol's")]
pub enum Kind {
    Response,
    Item,
    Conversation,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Response => "Response",
            Self::Item => "Item",
            Self::Conversation => "Conversation",
        })
    }
}

impl ResponsesError {
    pub(super) fn not_found(kind: Kind, id: &str) -> Self {
        Self::NotFound { kind, id: excerpt(id) }
    }

    /// The field that is to blame.
    pub fn param(&self) -> Option<&str> {
        use ChatError as C;
        use EngineError as E;
        match self {
            Self::Invalid(error) => error.param.as_deref(),
            Self::Chat(C::UnknownModel { .. } | C::LoadQueueFull { .. } | C::LoadFailed { .. }) => Some("model"),
            Self::Chat(
                C::Template { .. } | C::PromptTooLarge { .. } | C::Tokenizer(_) | C::Engine(E::PromptTooLong { .. }),
            )
            | Self::Store(StoreError::TooLong) => Some("input"),
            Self::Chat(C::Engine(E::UnknownToken { .. })) => Some("logit_bias"),
            Self::Chat(C::InvalidFormat { .. }) => Some("text.format"),
            Self::Chat(C::InvalidTool { .. }) => Some("tools"),
            Self::Chat(
                C::Engine(E::QueueFull { .. } | E::TooManyTokensWaiting { .. } | E::Stopped)
                | C::NoGrammar
                | C::NoForcedCall
                | C::Panicked,
            )
            | Self::Store(_)
            | Self::NotFound { .. }
            | Self::NotBackground { .. }
            | Self::BackgroundFull { .. } => None,
        }
    }

    /// The response that a request goes on from: the protocol has a code of its own for it.
    pub(super) fn previous_not_found(id: &str) -> Self {
        Self::Invalid(InvalidRequest {
            param: Some("previous_response_id".to_owned()),
            code: "previous_response_not_found",
            message: format!("Previous response with id '{}' not found.", excerpt(id)),
        })
    }
}

/// The start of a client's text, without what could garble a log.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    let mut chars = text.chars();
    let printable = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
    let mut excerpt: String = chars.by_ref().take(MAX_CHARS).map(printable).collect();
    if chars.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string \"{}\"", excerpt(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
