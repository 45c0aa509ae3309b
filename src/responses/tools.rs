//! Functions the model may call, and which of them it must.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
};
use crate::chat::Tool;
use serde::Serialize;
use serde_json::{Map, Value};

const MAX_TOOLS: usize = 128;
const MAX_NAME_CHARS: usize = 64;
/// Of all tools as JSON text. They are copied a few times on their way into the prompt.
const MAX_TOOLS_BYTES: usize = 256 * 1024;

/// A function as the response repeats it: all five keys are there, whichever shape the request had.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "function")]
pub(super) struct FunctionTool {
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    /// Never true: nothing here holds the model to the schema.
    strict: Option<bool>,
}

/// Whether the model may call functions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToolChoice {
    /// As the model likes.
    Auto,
    /// The model is not told of any.
    None,
}

impl FunctionTool {
    /// What the model is told.
    pub(super) fn to_chat(&self) -> Tool {
        Tool {
            name: self.name.clone(),
            description: self.description.clone(),
            parameters: self.parameters.clone().map(Value::Object),
            strict: self.strict == Some(true),
        }
    }

    /// Flat as in Responses, or with a `function` object inside as in Chat Completions.
    fn parse(field: &Field) -> Result<Self, InvalidRequest> {
        let tool = field.object()?;
        let kind = tool.require("type")?;
        if kind.text()? != "function" {
            let kind_name = excerpt(kind.text()?);
            return Err(kind.unsupported(format!(
                "is `{kind_name}`, which this version does not support; only `function` tools are"
            )));
        }
        let function = match tool.get("function") {
            Some(nested) => nested.object()?,
            None => tool,
        };
        Ok(Self {
            name: parse_name(&function)?,
            description: function.optional("description", Field::text)?.map(str::to_owned),
            parameters: function.optional("parameters", parse_parameters)?,
            strict: function.optional("strict", parse_strict)?,
        })
    }
}

/// At most 128 functions, each with a name of its own.
pub(super) fn parse_tools(field: &Field) -> Result<Vec<FunctionTool>, InvalidRequest> {
    let elements = field.elements()?;
    if MAX_TOOLS < elements.len() {
        return Err(field.invalid(format!("may hold at most {MAX_TOOLS} tools, and it holds {}", elements.len())));
    }
    let num_bytes = field.value().to_string().len();
    if MAX_TOOLS_BYTES < num_bytes {
        return Err(field.invalid(format!("may have {MAX_TOOLS_BYTES} bytes, and it has {num_bytes}")));
    }
    let mut tools: Vec<FunctionTool> = Vec::with_capacity(elements.len());
    for element in elements {
        let tool = FunctionTool::parse(&element)?;
        if tools.iter().any(|earlier| earlier.name == tool.name) {
            return Err(element.invalid(format!("has the name `{}`, which an earlier tool has", tool.name)));
        }
        tools.push(tool);
    }
    Ok(tools)
}

/// `required`, one function and `allowed_tools` would have to be enforced, and are not yet.
pub(super) fn parse_tool_choice(field: &Field) -> Result<ToolChoice, InvalidRequest> {
    if field.value().is_object() {
        return Err(field.unsupported("names tools, which this version does not enforce; send `auto` or `none`"));
    }
    match field.choice(&["auto", "none"], &["required"])? {
        "none" => Ok(ToolChoice::None),
        _ => Ok(ToolChoice::Auto),
    }
}

/// The rule is the protocol's, for tools as well as for the calls in a history.
pub(super) fn parse_name(function: &Object) -> Result<String, InvalidRequest> {
    let field = function.require("name")?;
    let name = field.text()?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(name.to_owned());
    }
    let name = excerpt(name);
    Err(field.invalid(format!("is `{name}`, and it must be 1 to {MAX_NAME_CHARS} letters, digits, `_` or `-`")))
}

fn parse_parameters(field: &Field) -> Result<Map<String, Value>, InvalidRequest> {
    let schema = field.value().as_object().ok_or_else(|| field.wrong_type("a JSON Schema, which is an object"))?;
    Ok(schema.clone())
}

fn parse_strict(field: &Field) -> Result<bool, InvalidRequest> {
    if field.boolean()? {
        return Err(field.unsupported(
            "is true, and this version does not hold the model to the schema of the arguments; send `strict: false`",
        ));
    }
    Ok(false)
}
