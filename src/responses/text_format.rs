//! What a request says about the text of the answer: its shape and how much of it.

use super::{
    error::InvalidRequest,
    field::{Field, Object},
    schema_limits::check_schema,
    tools::parse_name,
};
use crate::chat::OutputFormat;
use serde::Serialize;
use serde_json::Value;

const MAX_PATTERN_BYTES: usize = 4 * 1024;
const MAX_GRAMMAR_BYTES: usize = 64 * 1024;

/// As the response repeats it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TextSettings {
    pub(super) format: TextFormat,
    /// Templates have no word for it: repeated, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    verbosity: Option<&'static str>,
}

/// Shape of the text.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum TextFormat {
    /// Free.
    Text,
    /// Any JSON object.
    JsonObject,
    /// Held to whether it is `strict` or not.
    JsonSchema { name: String, description: Option<String>, schema: Value, strict: bool },
    /// Not the protocol's: the whole text matches.
    Regex { pattern: String },
    /// Not the protocol's: the format of its custom tools, for the answer.
    Grammar { syntax: &'static str, definition: String },
}

impl TextSettings {
    pub(super) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let mut settings = Self { format: TextFormat::Text, verbosity: None };
        if let Some(field) = body.get("text") {
            let text = field.object()?;
            settings.format = text.optional("format", TextFormat::parse)?.unwrap_or(TextFormat::Text);
            settings.verbosity = text.optional("verbosity", |field| field.choice(&["low", "medium", "high"]))?;
        }
        Ok(settings)
    }
}

impl TextFormat {
    pub(crate) fn parse(field: &Field) -> Result<Self, InvalidRequest> {
        const KINDS: &[&str] = &["text", "json_object", "json_schema", "regex", "grammar"];
        let format = field.object()?;
        Ok(match format.require("type")?.choice(KINDS)? {
            "json_object" => Self::JsonObject,
            // Flat as in Responses, or with an object inside as in Chat Completions.
            "json_schema" => match format.get("json_schema") {
                Some(nested) => Self::parse_json_schema(&nested.object()?)?,
                None => Self::parse_json_schema(&format)?,
            },
            "regex" => Self::Regex { pattern: parse_grammar(&format.require("pattern")?, MAX_PATTERN_BYTES)? },
            "grammar" => {
                let (syntax, max_bytes) = match format.require("syntax")?.choice(&["lark", "regex"])? {
                    "regex" => ("regex", MAX_PATTERN_BYTES),
                    _ => ("lark", MAX_GRAMMAR_BYTES),
                };
                Self::Grammar { syntax, definition: parse_grammar(&format.require("definition")?, max_bytes)? }
            }
            _ => Self::Text,
        })
    }

    fn parse_json_schema(format: &Object) -> Result<Self, InvalidRequest> {
        let schema = format.require("schema")?;
        check_schema(&schema)?;
        Ok(Self::JsonSchema {
            name: parse_name(format)?,
            description: format.optional("description", Field::text)?.map(str::to_owned),
            schema: schema.value().clone(),
            strict: format.optional("strict", Field::boolean)?.unwrap_or(false),
        })
    }

    /// What the chat holds the model to.
    pub(crate) fn to_chat(&self) -> OutputFormat {
        match self {
            Self::Text => OutputFormat::Text,
            Self::JsonObject => OutputFormat::Json,
            Self::JsonSchema { schema, .. } => OutputFormat::JsonSchema(schema.clone()),
            Self::Regex { pattern } | Self::Grammar { syntax: "regex", definition: pattern } => {
                OutputFormat::Regex(pattern.clone())
            }
            Self::Grammar { definition, .. } => OutputFormat::Lark(definition.clone()),
        }
    }
}

fn parse_grammar(field: &Field, max_bytes: usize) -> Result<String, InvalidRequest> {
    let text = field.text()?;
    match text.len() {
        0 => Err(field.invalid("is empty, and it must have a character")),
        num_bytes if max_bytes < num_bytes => {
            Err(field.invalid(format!("may have at most {max_bytes} bytes, and it has {num_bytes}")))
        }
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use crate::responses::request::tests::{begin, errors, with};
    use insta::assert_snapshot;
    use serde_json::json;

    #[test]
    fn each_format_reaches_the_chat_and_comes_back() {
        let formats = [
            json!({}),
            json!({ "format": null }),
            json!({ "format": { "type": "text" }, "verbosity": "low" }),
            json!({ "format": { "type": "json_object" } }),
            json!({ "format": { "type": "json_schema", "name": "a", "schema": { "type": "object" }, "strict": true } }),
            json!({ "format": { "type": "json_schema", "json_schema": { "name": "a", "schema": {}, "description": "d" } } }),
            json!({ "format": { "type": "regex", "pattern": "a+" } }),
            json!({ "format": { "type": "grammar", "syntax": "regex", "definition": "a+" } }),
            json!({ "format": { "type": "grammar", "syntax": "lark", "definition": "start: \"a\"" } }),
        ];
        let line = |text| {
            let (response, chat) = begin(&with(json!({ "text": text })));
            format!("{} => {:?}\n", serde_json::to_string(&response.text).unwrap(), chat.format)
        };
        assert_snapshot!(formats.map(line).concat(), @r#"
        {"format":{"type":"text"}} => Text
        {"format":{"type":"text"}} => Text
        {"format":{"type":"text"},"verbosity":"low"} => Text
        {"format":{"type":"json_object"}} => Json
        {"format":{"type":"json_schema","name":"a","description":null,"schema":{"type":"object"},"strict":true}} => JsonSchema(Object {"type": String("object")})
        {"format":{"type":"json_schema","name":"a","description":"d","schema":{},"strict":false}} => JsonSchema(Object {})
        {"format":{"type":"regex","pattern":"a+"}} => Regex("a+")
        {"format":{"type":"grammar","syntax":"regex","definition":"a+"}} => Regex("a+")
        {"format":{"type":"grammar","syntax":"lark","definition":"start: \"a\""}} => Lark("start: \"a\"")
        "#);
    }

    #[test]
    fn formats_are_checked() {
        let formats = [
            json!("json_object"),
            json!({}),
            json!({ "type": "xml" }),
            json!({ "type": "json_schema", "name": "a" }),
            json!({ "type": "json_schema", "schema": {} }),
            json!({ "type": "json_schema", "name": "a b", "schema": {} }),
            json!({ "type": "json_schema", "name": "a", "schema": true }),
            json!({ "type": "json_schema", "name": "a", "schema": { "$ref": "file:///etc/passwd" } }),
            json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": {}, "strict": 1 } }),
            json!({ "type": "regex" }),
            json!({ "type": "regex", "pattern": "" }),
            json!({ "type": "regex", "pattern": "a".repeat(4097) }),
            json!({ "type": "grammar", "syntax": "gbnf", "definition": "a" }),
            json!({ "type": "grammar", "syntax": "regex", "definition": "a".repeat(4097) }),
            json!({ "type": "grammar", "syntax": "lark", "definition": "a".repeat(65_537) }),
        ];
        assert_snapshot!(errors(&formats.map(|format| with(json!({ "text": { "format": format } })))), @r#"
        text.format invalid_type: `text.format` must be an object, and it is the string "json_object"
        text.format.type missing_required_parameter: `text.format.type` is required
        text.format.type invalid_value: `text.format.type` is `xml`, and it must be one of `text`, `json_object`, `json_schema`, `regex`, `grammar`
        text.format.schema missing_required_parameter: `text.format.schema` is required
        text.format.name missing_required_parameter: `text.format.name` is required
        text.format.name invalid_value: `text.format.name` is `a b`, and it must be 1 to 64 letters, digits, `_` or `-`
        text.format.schema invalid_json_schema: `text.format.schema` must be a JSON Schema, which is an object
        text.format.schema invalid_json_schema: `text.format.schema` refers to `file:///etc/passwd`; a `$ref` must begin with `#`, because nothing is fetched
        text.format.json_schema.strict invalid_type: `text.format.json_schema.strict` must be true or false, and it is 1
        text.format.pattern missing_required_parameter: `text.format.pattern` is required
        text.format.pattern invalid_value: `text.format.pattern` is empty, and it must have a character
        text.format.pattern invalid_value: `text.format.pattern` may have at most 4096 bytes, and it has 4097
        text.format.syntax invalid_value: `text.format.syntax` is `gbnf`, and it must be one of `lark`, `regex`
        text.format.definition invalid_value: `text.format.definition` may have at most 4096 bytes, and it has 4097
        text.format.definition invalid_value: `text.format.definition` may have at most 65536 bytes, and it has 65537
        "#);
        assert_snapshot!(errors(&[with(json!({ "text": { "verbosity": "mute" } }))]), @"text.verbosity invalid_value: `text.verbosity` is `mute`, and it must be one of `low`, `medium`, `high`");
    }
}
