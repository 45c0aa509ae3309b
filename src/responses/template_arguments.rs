//! `chat_template_kwargs` → variables of the chat template.

use super::{
    error::{InvalidRequest, excerpt},
    field::Field,
};
use serde_json::{Map, Value};

const MAX_ARGUMENTS: usize = 32;
const MAX_NAME_CHARS: usize = 64;
const MAX_TEXT_CHARS: usize = 1024;
/// The server's own, and those that `transformers` takes for itself. Names of special tokens end in `_token`.
const RESERVED: &[&str] = &[
    "add_generation_prompt",
    "additional_special_tokens",
    "chat_template",
    "continue_final_message",
    "documents",
    "messages",
    "tools",
];

/// Scalars under names that the template may look at.
pub(crate) fn parse_template_arguments(field: &Field) -> Result<Map<String, Value>, InvalidRequest> {
    let arguments = field.value().as_object().ok_or_else(|| field.wrong_type("an object"))?;
    if MAX_ARGUMENTS < arguments.len() {
        let num_arguments = arguments.len();
        return Err(field.invalid(format!("may hold at most {MAX_ARGUMENTS} variables, and it holds {num_arguments}")));
    }
    for (name, value) in arguments {
        check_argument(name, value).map_err(|why| field.invalid(why))?;
    }
    Ok(arguments.clone())
}

fn check_argument(name: &str, value: &Value) -> Result<(), String> {
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let is_name = begins_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let spelled = excerpt(name);
    if !is_name || MAX_NAME_CHARS < name.len() {
        return Err(format!(
            "names `{spelled}`; a name is a letter or `_`, then letters, digits or `_`, at most {MAX_NAME_CHARS} in all"
        ));
    }
    if RESERVED.contains(&name) || name.ends_with("_token") {
        return Err(format!("names `{spelled}`, which the server sets itself"));
    }
    match value {
        // The one variable whose meaning the server knows.
        Value::Bool(_) | Value::Null => Ok(()),
        _ if name == "enable_thinking" => Err("must give `enable_thinking` true or false".to_owned()),
        Value::Number(_) => Ok(()),
        Value::String(text) if text.chars().count() <= MAX_TEXT_CHARS => Ok(()),
        Value::String(_) => Err(format!("may give `{spelled}` at most {MAX_TEXT_CHARS} characters")),
        Value::Array(_) | Value::Object(_) => {
            Err(format!("must give `{spelled}` a string, a number, true, false or null"))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::responses::request::tests::{begin, errors, with};
    use insta::assert_snapshot;
    use serde_json::{Map, Value, json};

    #[test]
    fn names_and_values_are_checked() {
        let many: Map<String, Value> = (0..33).map(|index| (format!("a{index}"), json!(1))).collect();
        let bodies = [
            json!([]),
            json!(many),
            json!({ "": 1 }),
            json!({ "1a": 1 }),
            json!({ "a-b": 1 }),
            json!({ "a".repeat(65): 1 }),
            json!({ "messages": "x" }),
            json!({ "bos_token": "x" }),
            json!({ "enable_thinking": "no" }),
            json!({ "a": "x".repeat(1025) }),
            json!({ "a": {} }),
            json!({ "a": [1] }),
        ];
        let bodies = bodies.map(|arguments| with(json!({ "chat_template_kwargs": arguments })));
        assert_snapshot!(errors(&bodies), @"
        chat_template_kwargs invalid_type: `chat_template_kwargs` must be an object, and it is an array
        chat_template_kwargs invalid_value: `chat_template_kwargs` may hold at most 32 variables, and it holds 33
        chat_template_kwargs invalid_value: `chat_template_kwargs` names ``; a name is a letter or `_`, then letters, digits or `_`, at most 64 in all
        chat_template_kwargs invalid_value: `chat_template_kwargs` names `1a`; a name is a letter or `_`, then letters, digits or `_`, at most 64 in all
        chat_template_kwargs invalid_value: `chat_template_kwargs` names `a-b`; a name is a letter or `_`, then letters, digits or `_`, at most 64 in all
        chat_template_kwargs invalid_value: `chat_template_kwargs` names `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…`; a name is a letter or `_`, then letters, digits or `_`, at most 64 in all
        chat_template_kwargs invalid_value: `chat_template_kwargs` names `messages`, which the server sets itself
        chat_template_kwargs invalid_value: `chat_template_kwargs` names `bos_token`, which the server sets itself
        chat_template_kwargs invalid_value: `chat_template_kwargs` must give `enable_thinking` true or false
        chat_template_kwargs invalid_value: `chat_template_kwargs` may give `a` at most 1024 characters
        chat_template_kwargs invalid_value: `chat_template_kwargs` must give `a` a string, a number, true, false or null
        chat_template_kwargs invalid_value: `chat_template_kwargs` must give `a` a string, a number, true, false or null
        ");
    }

    #[test]
    fn what_is_said_here_is_said_last() {
        let of = |fields| {
            let (_, chat) = begin(&with(fields));
            format!("{:?} {}", chat.enable_thinking, Value::Object(chat.template_arguments))
        };
        assert_eq!(of(json!({})), "None {}");
        assert_eq!(of(json!({ "reasoning": { "effort": "none" } })), "Some(false) {}");
        assert_eq!(of(json!({ "reasoning": { "effort": "low" } })), r#"Some(true) {"reasoning_effort":"low"}"#);
        let fields = json!({
            "reasoning": { "effort": "low" },
            "chat_template_kwargs": { "reasoning_effort": "little", "enable_thinking": false, "a": 1.5, "_b": null },
        });
        assert_eq!(of(fields), r#"Some(false) {"reasoning_effort":"little","a":1.5,"_b":null}"#);
    }
}
