//! What is wrong with a request body.

use serde_json::Value;
use std::fmt::Display;

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
    pub(super) fn invalid(path: &str, why: impl Display) -> Self {
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
    pub(super) fn unsupported_parameter(path: &str, why: impl Display) -> Self {
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

/// The start of a client's text, without what could garble a log.
pub(super) fn excerpt(text: &str) -> String {
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
