//! Tools of a request: what the model is told of them, and how the response repeats them.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    schema_limits::check_schema,
};
use crate::chat::Tool;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const MAX_TOOLS: usize = 128;
const MAX_NAME_CHARS: usize = 64;
/// Of all tools as JSON text. They are copied a few times on their way into the prompt.
const MAX_TOOLS_BYTES: usize = 256 * 1024;

/// What came, of which only functions and custom tools can be called here. Tools that would have to run on the server
/// are repeated and not offered to the model, because clients send them to every server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    echo: Vec<Value>,
    /// Shared, because three events of a response hold all it says of tools.
    callables: Arc<[Callable]>,
}

/// A tool the model may call, with what the client knows it by.
#[derive(Clone, Debug)]
pub struct Callable {
    /// Which type of item a call of it is.
    pub kind: CallableKind,
    /// Where the client has it, if not at the top. The model knows no namespaces, so its name for the tool has both.
    pub namespace: Option<String>,
    /// The client's own name for it.
    pub name: String,
    pub(crate) tool: Tool,
}

/// What a tool is given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallableKind {
    /// Arguments, which are JSON.
    Function,
    /// A text. The model gives it as the argument [`CUSTOM_INPUT`] of a function.
    Custom,
}

/// The only argument of the function that stands for a custom tool.
pub const CUSTOM_INPUT: &str = "input";

impl Tools {
    /// At most 128, and those that can be called each with a name of its own.
    pub(crate) fn parse(field: &Field) -> Result<Self, InvalidRequest> {
        let elements = field.elements()?;
        check_count(field, elements.len())?;
        let num_bytes = field.value().to_string().len();
        if MAX_TOOLS_BYTES < num_bytes {
            return Err(field.invalid(format!("may have at most {MAX_TOOLS_BYTES} bytes, and it has {num_bytes}")));
        }
        let mut echo = Vec::with_capacity(elements.len());
        let mut callables = Vec::new();
        let mut not_offered = Vec::new();
        for element in elements {
            let tool = element.object()?;
            if tool.require("type")?.text()? == "namespace" {
                let namespace = parse_name(&tool)?;
                for inner in tool.require("tools")?.elements()? {
                    push_callable(Some(&namespace), &inner, &mut callables, &mut not_offered)?;
                }
            } else {
                push_callable(None, &element, &mut callables, &mut not_offered)?;
            }
            echo.push(echo_tool(element.value()));
        }
        check_count(field, callables.len())?;
        if !not_offered.is_empty() {
            tracing::warn!(types = not_offered.join(", "), "tools that only another server can run are not offered");
        }
        Ok(Self { echo, callables: callables.into() })
    }

    /// What the model is told of.
    pub(crate) fn callables(&self) -> &[Callable] {
        &self.callables
    }

    /// Whether there is any tool of this type, offered or not.
    pub(super) fn has_type(&self, kind: &str) -> bool {
        self.echo.iter().any(|tool| tool["type"] == kind)
    }
}

impl Callable {
    /// Whether a client means this tool: by its own name, with or without the namespace, or by the model's.
    pub(super) fn is_called(&self, namespace: Option<&str>, name: &str) -> bool {
        match namespace {
            Some(_) => self.namespace.as_deref() == namespace && self.name == name,
            None => self.name == name || self.tool.name == name,
        }
    }
}

impl Serialize for Tools {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.echo.serialize(serializer)
    }
}

/// One name for the model. Clients tend to end a namespace with the underscores that keep it apart.
pub(super) fn flat_name(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None => name.to_owned(),
        Some(namespace) if namespace.ends_with("__") => format!("{namespace}{name}"),
        Some(namespace) => format!("{namespace}__{name}"),
    }
}

/// The rule is the protocol's, for tools as well as for the calls in a history.
pub(crate) fn parse_name(function: &Object) -> Result<String, InvalidRequest> {
    let field = function.require("name")?;
    let name = field.text()?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(name.to_owned());
    }
    let name = excerpt(name);
    Err(field.invalid(format!("is `{name}`, and it must be 1 to {MAX_NAME_CHARS} letters, digits, `_` or `-`")))
}

fn check_count(field: &Field, num_tools: usize) -> Result<(), InvalidRequest> {
    if num_tools <= MAX_TOOLS {
        return Ok(());
    }
    Err(field.invalid(format!("may hold at most {MAX_TOOLS} tools, and it holds {num_tools}")))
}

fn push_callable(
    namespace: Option<&str>,
    field: &Field,
    callables: &mut Vec<Callable>,
    not_offered: &mut Vec<String>,
) -> Result<(), InvalidRequest> {
    let object = field.object()?;
    let (kind, tool) = match object.require("type")?.text()? {
        "function" => (CallableKind::Function, parse_function(object)?),
        "custom" => (CallableKind::Custom, parse_custom(&object)?),
        other => {
            not_offered.push(excerpt(other));
            return Ok(());
        }
    };
    let name = tool.name;
    let tool = Tool { name: flat_name(namespace, &name), ..tool };
    if callables.iter().any(|earlier| earlier.tool.name == tool.name) {
        return Err(field.invalid(format!("has the name `{}`, which an earlier tool has", tool.name)));
    }
    callables.push(Callable { kind, namespace: namespace.map(str::to_owned), name, tool });
    Ok(())
}

/// Flat as in Responses, or with a `function` object inside as in Chat Completions.
fn parse_function(tool: Object) -> Result<Tool, InvalidRequest> {
    let function = match tool.get("function") {
        Some(nested) => nested.object()?,
        None => tool,
    };
    let strict = function.optional("strict", Field::boolean)?.unwrap_or(false);
    let parse_parameters = |field: &Field| {
        let schema = field.value();
        if !schema.is_object() {
            return Err(field.wrong_type("a JSON Schema, which is an object"));
        }
        match check_schema(field) {
            Err(error) if strict => Err(error),
            checked => Ok((schema.clone(), checked.is_ok())),
        }
    };
    let name = parse_name(&function)?;
    let description = function.optional("description", Field::text)?.map(str::to_owned);
    let (parameters, is_enforceable) = function.optional("parameters", parse_parameters)?.unzip();
    Ok(Tool { name, description, parameters, strict, is_enforceable: is_enforceable.unwrap_or(true) })
}

/// A function of one text. A grammar of it is told and not enforced.
fn parse_custom(tool: &Object) -> Result<Tool, InvalidRequest> {
    let mut description = tool.optional("description", Field::text)?.map(str::to_owned);
    if let Some(format) = tool.optional("format", Field::object)?
        && format.require("type")?.choice(&["text", "grammar"])? == "grammar"
    {
        let syntax = format.require("syntax")?.choice(&["lark", "regex"])?;
        let definition = format.require("definition")?;
        let grammar = format!("`{CUSTOM_INPUT}` must match this {syntax} grammar:\n{}", definition.text()?);
        description = Some(description.map_or_else(|| grammar.clone(), |text| format!("{text}\n\n{grammar}")));
    }
    let parameters = json!({
        "type": "object",
        "properties": { CUSTOM_INPUT: { "type": "string" } },
        "required": [CUSTOM_INPUT],
        "additionalProperties": false,
    });
    // Strict, because the client never sees the JSON that its text comes in, and could not mend it.
    Ok(Tool { name: parse_name(tool)?, description, parameters: Some(parameters), strict: true, is_enforceable: true })
}

/// As it came, but flat and with all five keys if it is a function, and without what proves who somebody is.
fn echo_tool(tool: &Value) -> Value {
    const KEYS: [&str; 4] = ["name", "description", "parameters", "strict"];
    let mut rest = tool.as_object().cloned().unwrap_or_default();
    match tool["type"].as_str() {
        Some("function") => {
            let function = tool["function"].as_object().or(tool.as_object());
            let value = |key| function.and_then(|function| function.get(key)).cloned().unwrap_or_default();
            let mut echo = Map::from_iter([("type".to_owned(), json!("function"))]);
            echo.extend(KEYS.map(|key| (key.to_owned(), value(key))));
            rest.retain(|key, _| !KEYS.contains(&key.as_str()) && key != "type" && key != "function");
            echo.extend(rest);
            Value::Object(echo)
        }
        Some("mcp") => {
            rest.retain(|key, _| key != "authorization" && key != "headers");
            Value::Object(rest)
        }
        _ => Value::Object(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responses::request::tests::{begin, errors, with};
    use insta::assert_snapshot;

    #[test]
    fn tools_are_checked() {
        let tool = json!({ "type": "function", "name": "find", "parameters": {} });
        let namespace = |tools: Value| json!({ "type": "namespace", "name": "crm", "tools": tools });
        let lists = [
            json!({}),
            json!([{ "name": "find" }]),
            json!([{ "type": 3 }]),
            json!([tool, { "type": "function" }]),
            json!([tool, { "type": "function", "function": { "name": "a b" } }]),
            json!([tool, tool]),
            json!([tool, { "type": "custom", "name": "find" }]),
            json!([{ "type": "function", "name": "find", "parameters": "x" }]),
            json!([{ "type": "function", "name": "find", "strict": "yes" }]),
            json!([{ "type": "function", "name": "find", "strict": true, "parameters": { "$ref": "a.json" } }]),
            json!([{ "type": "custom", "name": "run", "format": { "type": "binary" } }]),
            json!([{ "type": "custom", "name": "run", "format": { "type": "grammar", "syntax": "lark" } }]),
            json!([{ "type": "namespace", "tools": [] }]),
            json!([{ "type": "namespace", "name": "crm" }]),
            json!([namespace(json!([{ "type": "function" }]))]),
            json!([{ "type": "function", "name": "crm__find" }, namespace(json!([tool]))]),
            json!([namespace((0..129).map(|name| json!({ "type": "custom", "name": name.to_string() })).collect())]),
            json!(vec![tool; 129]),
            json!([{ "type": "web_search", "filters": "x".repeat(MAX_TOOLS_BYTES) }]),
        ];
        assert_snapshot!(errors(&lists.map(|tools| with(json!({ "tools": tools })))), @r#"
        tools invalid_type: `tools` must be an array, and it is an object
        tools[0].type missing_required_parameter: `tools[0].type` is required
        tools[0].type invalid_type: `tools[0].type` must be a string, and it is 3
        tools[1].name missing_required_parameter: `tools[1].name` is required
        tools[1].function.name invalid_value: `tools[1].function.name` is `a b`, and it must be 1 to 64 letters, digits, `_` or `-`
        tools[1] invalid_value: `tools[1]` has the name `find`, which an earlier tool has
        tools[1] invalid_value: `tools[1]` has the name `find`, which an earlier tool has
        tools[0].parameters invalid_type: `tools[0].parameters` must be a JSON Schema, which is an object, and it is the string "x"
        tools[0].strict invalid_type: `tools[0].strict` must be true or false, and it is the string "yes"
        tools[0].parameters invalid_json_schema: `tools[0].parameters` refers to `a.json`; a `$ref` must begin with `#`, because nothing is fetched
        tools[0].format.type invalid_value: `tools[0].format.type` is `binary`, and it must be one of `text`, `grammar`
        tools[0].format.definition missing_required_parameter: `tools[0].format.definition` is required
        tools[0].name missing_required_parameter: `tools[0].name` is required
        tools[0].tools missing_required_parameter: `tools[0].tools` is required
        tools[0].tools[0].name missing_required_parameter: `tools[0].tools[0].name` is required
        tools[1].tools[0] invalid_value: `tools[1].tools[0]` has the name `crm__find`, which an earlier tool has
        tools invalid_value: `tools` may hold at most 128 tools, and it holds 129
        tools invalid_value: `tools` may hold at most 128 tools, and it holds 129
        tools invalid_value: `tools` may have at most 262144 bytes, and it has 262180
        "#);
    }

    #[test]
    fn the_response_repeats_what_came() {
        let (response, _) = begin(&with(json!({ "tools": [
            { "type": "function", "name": "find", "strict": true, "parameters": { "type": "object" }, "defer_loading": true },
            { "type": "function", "function": { "name": "list", "description": "Lists." }, "strict": true },
            { "type": "custom", "name": "patch", "format": { "type": "text" } },
            { "type": "namespace", "name": "crm", "description": "Customers.", "tools": [{ "type": "function", "name": "find" }] },
            { "type": "web_search" },
            { "type": "mcp", "server_label": "x", "authorization": "secret", "headers": { "a": "secret" } },
        ] })));
        let lines: Vec<String> = response.tools.echo.iter().map(Value::to_string).collect();
        assert_snapshot!(lines.join("\n"), @r#"
        {"type":"function","name":"find","description":null,"parameters":{"type":"object"},"strict":true,"defer_loading":true}
        {"type":"function","name":"list","description":"Lists.","parameters":null,"strict":null}
        {"type":"custom","name":"patch","format":{"type":"text"}}
        {"type":"namespace","name":"crm","description":"Customers.","tools":[{"type":"function","name":"find"}]}
        {"type":"web_search"}
        {"type":"mcp","server_label":"x"}
        "#);
    }

    #[test]
    fn the_model_is_told_of_what_it_can_call() {
        let (response, chat) = begin(&with(json!({ "tools": [
            { "type": "function", "name": "find", "strict": true, "parameters": { "type": "object" } },
            { "type": "custom", "name": "patch", "description": "Edits.", "format":
                { "type": "grammar", "syntax": "lark", "definition": "start: \"a\"" } },
            { "type": "namespace", "name": "crm", "tools": [{ "type": "function", "name": "find" }, { "type": "later" }] },
            { "type": "namespace", "name": "mcp__git__", "tools": [{ "type": "custom", "name": "log" }] },
            { "type": "web_search" },
        ] })));
        let line = |tool: &Tool| {
            let Callable { kind, namespace, name, .. } = response.callable(&tool.name).unwrap();
            let Tool { name: told, description, parameters, strict, .. } = tool;
            let parameters = parameters.as_ref().map(Value::to_string);
            format!("{told}: {kind:?} {namespace:?} {name} {strict} {description:?} {parameters:?}")
        };
        let lines: Vec<String> = chat.tools.iter().map(line).collect();
        assert_snapshot!(lines.join("\n"), @r#"
        find: Function None find true None Some("{\"type\":\"object\"}")
        patch: Custom None patch true Some("Edits.\n\n`input` must match this lark grammar:\nstart: \"a\"") Some("{\"type\":\"object\",\"properties\":{\"input\":{\"type\":\"string\"}},\"required\":[\"input\"],\"additionalProperties\":false}")
        crm__find: Function Some("crm") find false None None
        mcp__git__log: Custom Some("mcp__git__") log true None Some("{\"type\":\"object\",\"properties\":{\"input\":{\"type\":\"string\"}},\"required\":[\"input\"],\"additionalProperties\":false}")
        "#);
        assert!(response.callable("web_search").is_none());
    }
}
