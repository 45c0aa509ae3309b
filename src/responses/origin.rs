//! What a request goes on from.

use super::{
    error::InvalidRequest,
    field::{Field, Object},
};

const MAX_ID_CHARS: usize = 256;

/// At most one of the two ways in which the protocol names what was said before.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum Origin {
    /// The request says all there is to know.
    #[default]
    Nothing,
    /// A response, and all that it went on from.
    Response(String),
    /// A conversation, which gets what is said.
    Conversation(String),
}

impl Origin {
    pub(super) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let previous_id = body.optional("previous_response_id", parse_id)?;
        let conversation_id = body.optional("conversation", parse_conversation)?;
        match (previous_id, conversation_id) {
            (None, None) => Ok(Self::Nothing),
            (Some(id), None) => Ok(Self::Response(id)),
            (None, Some(id)) => Ok(Self::Conversation(id)),
            (Some(_), Some(_)) => Err(InvalidRequest::invalid(
                "previous_response_id",
                "cannot be combined with `conversation`; send one of the two",
            )),
        }
    }

    pub(super) fn previous_id(&self) -> Option<&str> {
        match self {
            Self::Response(id) => Some(id),
            Self::Nothing | Self::Conversation(_) => None,
        }
    }

    pub(super) fn conversation_id(&self) -> Option<&str> {
        match self {
            Self::Conversation(id) => Some(id),
            Self::Nothing | Self::Response(_) => None,
        }
    }
}

/// An id, or an object that holds it.
fn parse_conversation(field: &Field) -> Result<String, InvalidRequest> {
    if field.value().is_string() {
        return parse_id(field);
    }
    let object = field.object().map_err(|_| field.wrong_type("a string or an object"))?;
    parse_id(&object.require("id")?)
}

fn parse_id(field: &Field) -> Result<String, InvalidRequest> {
    match field.text_up_to(MAX_ID_CHARS)? {
        "" => Err(field.invalid("is empty, and it must be an id")),
        id => Ok(id.to_owned()),
    }
}
