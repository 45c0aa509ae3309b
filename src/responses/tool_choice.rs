//! Which tools a reply may or must call.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    tools::{Callable, CallableKind, Tools, parse_name},
};
use crate::chat::{CallMode, Calls};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::num::NonZeroU32;

const MAX_ALLOWED_TOOLS: usize = 128;
/// As JSON text, because the response repeats it.
const MAX_BYTES: usize = 64 * 1024;

/// A choice that the request's tools allow for.
#[derive(Clone, Debug)]
pub(crate) struct ToolChoice {
    echo: Value,
    mode: CallMode,
    /// Names as the model knows them; none means all.
    allowed: Option<Vec<String>>,
}

impl Default for ToolChoice {
    fn default() -> Self {
        Self { echo: json!("auto"), mode: CallMode::Auto, allowed: None }
    }
}

impl Serialize for ToolChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.echo.serialize(serializer)
    }
}

impl ToolChoice {
    pub(crate) fn parse(field: &Field, tools: &Tools) -> Result<Self, InvalidRequest> {
        let choice = if field.value().is_object() {
            Self::parse_object(field, tools)?
        } else if field.value().is_string() {
            let name = field.choice(&["auto", "none", "required"])?;
            Self { echo: json!(name), mode: mode(name), allowed: None }
        } else {
            return Err(field.wrong_type("a string or an object"));
        };
        let is_callable = choice.allowed.as_ref().map_or(!tools.callables().is_empty(), |allowed| !allowed.is_empty());
        if choice.mode == CallMode::Required && !is_callable {
            return Err(field.invalid("requires a call, and no tool that it allows can be called here"));
        }
        Ok(choice)
    }

    fn parse_object(field: &Field, tools: &Tools) -> Result<Self, InvalidRequest> {
        let num_bytes = field.value().to_string().len();
        if MAX_BYTES < num_bytes {
            return Err(field.invalid(format!("may have at most {MAX_BYTES} bytes, and it has {num_bytes}")));
        }
        let choice = field.object()?;
        let kind = choice.require("type")?;
        if kind.text()? == "allowed_tools" {
            return Self::parse_allowed_tools(&choice, tools);
        }
        match Named::parse(field, tools)? {
            Named::Callables { echo, flat_names } => {
                Ok(Self { echo, mode: CallMode::Required, allowed: Some(flat_names) })
            }
            Named::NotOffered => Ok(Self::default()),
        }
    }

    fn parse_allowed_tools(choice: &Object, tools: &Tools) -> Result<Self, InvalidRequest> {
        // Chat Completions puts the rest into an object.
        let nested = choice.optional("allowed_tools", Field::object)?;
        let choice = nested.as_ref().unwrap_or(choice);
        let name = choice.optional("mode", |field| field.choice(&["auto", "required"]))?.unwrap_or("auto");
        let field = choice.require("tools")?;
        let elements = field.elements()?;
        if !(1..=MAX_ALLOWED_TOOLS).contains(&elements.len()) {
            let num_tools = elements.len();
            return Err(field.invalid(format!("must hold 1 to {MAX_ALLOWED_TOOLS} tools, and it holds {num_tools}")));
        }
        let mut allowed = Vec::new();
        for element in elements {
            if let Named::Callables { flat_names, .. } = Named::parse(&element, tools)? {
                allowed.extend(flat_names);
            }
        }
        allowed.sort_unstable();
        allowed.dedup();
        let echo = json!({ "type": "allowed_tools", "mode": name, "tools": field.value() });
        // Where only tools are allowed that nobody runs, nothing can be called.
        let mode = if allowed.is_empty() && name == "auto" { CallMode::None } else { mode(name) };
        Ok(Self { echo, mode, allowed: Some(allowed) })
    }

    /// What the chat holds the model to.
    pub(crate) fn into_calls(self, max_calls: Option<NonZeroU32>) -> Calls {
        Calls { mode: self.mode, allowed: self.allowed, max_calls }
    }
}

fn mode(name: &str) -> CallMode {
    match name {
        "none" => CallMode::None,
        "required" => CallMode::Required,
        _ => CallMode::Auto,
    }
}

/// What an object with the `type` and perhaps the `name` of a tool stands for.
enum Named {
    Callables {
        echo: Value,
        flat_names: Vec<String>,
    },
    /// It is there, and runs on another server.
    NotOffered,
}

impl Named {
    fn parse(field: &Field, tools: &Tools) -> Result<Self, InvalidRequest> {
        let reference = field.object()?;
        let type_field = reference.require("type")?;
        let (kind, wanted) = match type_field.text()? {
            "function" => ("function", Some(CallableKind::Function)),
            "custom" => ("custom", Some(CallableKind::Custom)),
            "namespace" => ("namespace", None),
            other if tools.has_type(other) => return Ok(Self::NotOffered),
            other => {
                let other = excerpt(other);
                return Err(type_field.invalid(format!("is `{other}`, and `tools` has no tool of that type")));
            }
        };
        // Chat Completions puts the name into an object.
        let holder = match reference.get(kind) {
            Some(nested) => nested.object()?,
            None => reference,
        };
        let name = parse_name(&holder)?;
        let namespace = holder.optional("namespace", Field::text)?;
        let is_meant = |callable: &&Callable| match wanted {
            None => callable.namespace.as_deref() == Some(&name),
            Some(wanted) => callable.kind == wanted && callable.is_called(namespace, &name),
        };
        let flat_names: Vec<String> =
            tools.callables().iter().filter(is_meant).map(|callable| callable.tool.name.clone()).collect();
        if flat_names.is_empty() {
            return Err(field.invalid(format!("names the {kind} `{name}`, which is not in `tools`")));
        }
        let mut echo = json!({ "type": kind, "name": name });
        if let Some(namespace) = namespace {
            echo["namespace"] = json!(namespace);
        }
        Ok(Self::Callables { echo, flat_names })
    }
}

#[cfg(test)]
mod tests {
    use crate::responses::request::tests::{begin, errors, with};
    use insta::assert_snapshot;
    use serde_json::{Value, json};

    fn choose(choice: &Value) -> Value {
        with(json!({ "tool_choice": choice, "tools": [
            { "type": "function", "name": "find" },
            { "type": "custom", "name": "patch" },
            { "type": "namespace", "name": "crm", "tools": [
                { "type": "function", "name": "look" }, { "type": "function", "name": "list" },
            ] },
            { "type": "web_search" },
            { "type": "mcp", "server_label": "x" },
        ] }))
    }

    #[test]
    fn each_choice_reaches_the_chat_and_comes_back() {
        let choices = [
            json!(null),
            json!("auto"),
            json!("none"),
            json!("required"),
            json!({ "type": "function", "name": "find" }),
            json!({ "type": "function", "function": { "name": "find" } }),
            json!({ "type": "function", "name": "look" }),
            json!({ "type": "function", "name": "crm__look" }),
            json!({ "type": "function", "name": "look", "namespace": "crm" }),
            json!({ "type": "custom", "name": "patch" }),
            json!({ "type": "web_search" }),
            json!({ "type": "mcp", "server_label": "x" }),
            json!({ "type": "allowed_tools", "tools": [{ "type": "function", "name": "find" }, { "type": "mcp" }] }),
            json!({ "type": "allowed_tools", "mode": "required", "tools": [{ "type": "custom", "name": "patch" }] }),
            json!({ "type": "allowed_tools", "mode": "auto", "tools": [
                { "type": "namespace", "name": "crm" }, { "type": "function", "name": "look" },
            ] }),
            json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "type": "web_search" }] }),
        ];
        let line = |choice| {
            let (response, chat) = begin(&choose(&choice));
            let echo = serde_json::to_string(&response.tool_choice).unwrap();
            format!("{echo} {:?} {:?} of {}\n", chat.calls.mode, chat.calls.allowed, chat.tools.len())
        };
        assert_snapshot!(choices.map(line).concat(), @r#"
        "auto" Auto None of 4
        "auto" Auto None of 4
        "none" None None of 0
        "required" Required None of 4
        {"type":"function","name":"find"} Required Some(["find"]) of 4
        {"type":"function","name":"find"} Required Some(["find"]) of 4
        {"type":"function","name":"look"} Required Some(["crm__look"]) of 4
        {"type":"function","name":"crm__look"} Required Some(["crm__look"]) of 4
        {"type":"function","name":"look","namespace":"crm"} Required Some(["crm__look"]) of 4
        {"type":"custom","name":"patch"} Required Some(["patch"]) of 4
        "auto" Auto None of 4
        "auto" Auto None of 4
        {"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"find"},{"type":"mcp"}]} Auto Some(["find"]) of 4
        {"type":"allowed_tools","mode":"required","tools":[{"type":"custom","name":"patch"}]} Required Some(["patch"]) of 4
        {"type":"allowed_tools","mode":"auto","tools":[{"type":"namespace","name":"crm"},{"type":"function","name":"look"}]} Auto Some(["crm__list", "crm__look"]) of 4
        {"type":"allowed_tools","mode":"auto","tools":[{"type":"web_search"}]} None Some([]) of 0
        "#);
    }

    #[test]
    fn choices_are_checked() {
        let choices = [
            json!(1),
            json!("any"),
            json!({}),
            json!({ "type": "function" }),
            json!({ "type": "function", "name": "lost" }),
            json!({ "type": "function", "name": "patch" }),
            json!({ "type": "function", "name": "find", "namespace": "crm" }),
            json!({ "type": "namespace", "name": "erp" }),
            json!({ "type": "file_search" }),
            json!({ "type": "allowed_tools" }),
            json!({ "type": "allowed_tools", "tools": [] }),
            json!({ "type": "allowed_tools", "mode": "none", "tools": [{ "type": "mcp" }] }),
            json!({ "type": "allowed_tools", "mode": "required", "tools": [{ "type": "mcp" }] }),
            json!({ "type": "allowed_tools", "tools": [{ "type": "function", "name": "lost" }] }),
            json!({ "type": "allowed_tools", "tools": vec![json!({ "type": "mcp" }); 129] }),
            json!({ "type": "mcp", "server_label": "x".repeat(70_000) }),
        ];
        assert_snapshot!(errors(&choices.map(|choice| choose(&choice))), @"
        tool_choice invalid_type: `tool_choice` must be a string or an object, and it is 1
        tool_choice invalid_value: `tool_choice` is `any`, and it must be one of `auto`, `none`, `required`
        tool_choice.type missing_required_parameter: `tool_choice.type` is required
        tool_choice.name missing_required_parameter: `tool_choice.name` is required
        tool_choice invalid_value: `tool_choice` names the function `lost`, which is not in `tools`
        tool_choice invalid_value: `tool_choice` names the function `patch`, which is not in `tools`
        tool_choice invalid_value: `tool_choice` names the function `find`, which is not in `tools`
        tool_choice invalid_value: `tool_choice` names the namespace `erp`, which is not in `tools`
        tool_choice.type invalid_value: `tool_choice.type` is `file_search`, and `tools` has no tool of that type
        tool_choice.tools missing_required_parameter: `tool_choice.tools` is required
        tool_choice.tools invalid_value: `tool_choice.tools` must hold 1 to 128 tools, and it holds 0
        tool_choice.mode invalid_value: `tool_choice.mode` is `none`, and it must be one of `auto`, `required`
        tool_choice invalid_value: `tool_choice` requires a call, and no tool that it allows can be called here
        tool_choice.tools[0] invalid_value: `tool_choice.tools[0]` names the function `lost`, which is not in `tools`
        tool_choice.tools invalid_value: `tool_choice.tools` must hold 1 to 128 tools, and it holds 129
        tool_choice invalid_value: `tool_choice` may have at most 65536 bytes, and it has 70032
        ");
        let without_tools = [
            with(json!({ "tool_choice": "required" })),
            with(json!({ "tool_choice": "required", "tools": [{ "type": "web_search" }] })),
        ];
        assert_snapshot!(errors(&without_tools), @"
        tool_choice invalid_value: `tool_choice` requires a call, and no tool that it allows can be called here
        tool_choice invalid_value: `tool_choice` requires a call, and no tool that it allows can be called here
        ");
    }

    #[test]
    fn the_model_is_held_to_the_smaller_number_of_calls() {
        let max_calls = |fields| begin(&with(fields)).1.calls.max_calls.map(u32::from);
        assert_eq!(max_calls(json!({})), None);
        assert_eq!(max_calls(json!({ "max_tool_calls": 3 })), Some(3));
        assert_eq!(max_calls(json!({ "parallel_tool_calls": true, "max_tool_calls": 1 })), Some(1));
        assert_eq!(max_calls(json!({ "parallel_tool_calls": false, "max_tool_calls": 3 })), Some(1));
    }
}
