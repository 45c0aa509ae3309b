//! What a client attaches to a request for itself; the response repeats it.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
};
use serde_json::{Map, Value};

const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;
const MAX_KEY_CHARS: usize = 128;
const MAX_USER_CHARS: usize = 512;

/// Nothing here changes what is said.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    pub(super) metadata: Map<String, Value>,
    pub(super) safety_identifier: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) user: Option<String>,
}

impl Labels {
    pub(crate) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let key = |name| body.optional(name, |field| field.text_up_to(MAX_KEY_CHARS).map(str::to_owned));
        Ok(Self {
            metadata: body.optional("metadata", parse_metadata)?.unwrap_or_default(),
            safety_identifier: key("safety_identifier")?,
            prompt_cache_key: key("prompt_cache_key")?,
            user: body.optional("user", |field| field.text_up_to(MAX_USER_CHARS).map(str::to_owned))?,
        })
    }
}

pub(super) fn parse_metadata(field: &Field) -> Result<Map<String, Value>, InvalidRequest> {
    let pairs = field.value().as_object().ok_or_else(|| field.wrong_type("an object of strings"))?;
    if MAX_METADATA_PAIRS < pairs.len() {
        return Err(field.invalid(format!("may hold at most {MAX_METADATA_PAIRS} pairs, and it holds {}", pairs.len())));
    }
    for (key, value) in pairs {
        let (name, key_chars) = (excerpt(key), key.chars().count());
        if MAX_METADATA_KEY_CHARS < key_chars {
            let why =
                format!("may have keys of at most {MAX_METADATA_KEY_CHARS} characters, and `{name}` has {key_chars}");
            return Err(field.invalid(why));
        }
        let text = value.as_str().ok_or_else(|| field.invalid(format!("must give `{name}` a string")))?;
        let chars = text.chars().count();
        if MAX_METADATA_VALUE_CHARS < chars {
            let why = format!(
                "may have values of at most {MAX_METADATA_VALUE_CHARS} characters, and that of `{name}` has {chars}"
            );
            return Err(field.invalid(why));
        }
    }
    Ok(pairs.clone())
}
