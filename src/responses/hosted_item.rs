//! Items of a history that speak of tools which run elsewhere: searches, shells, MCP servers and their like. Nothing in
//! them is an error: another server wrote them, and a client only sends them back.

use serde_json::{Value, json};

/// As far as the item can be told to a model.
#[derive(Debug, PartialEq)]
pub(super) enum HostedItem<'a> {
    /// A call, with its result if the item holds that too.
    Call { id: &'a str, name: String, arguments: String, result: Option<String> },
    /// The result of an earlier call.
    Result { call_id: &'a str, text: String },
}

/// An item that is a call: its type, what it was given, and where the same item holds what came of it. A web search is
/// not among these, because the item says nothing of what was found.
const CALLS: &[(&str, &str, &[&str])] = &[
    ("apply_patch_call", "operation", &[]),
    ("code_interpreter_call", "code", &["outputs"]),
    ("computer_call", "action", &[]),
    ("file_search_call", "queries", &["results"]),
    ("image_generation_call", "revised_prompt", &["result"]),
    ("local_shell_call", "action", &[]),
    ("mcp_call", "arguments", &["output", "error"]),
    ("program", "code", &[]),
    ("shell_call", "action", &[]),
    ("tool_search_call", "arguments", &[]),
];
/// Where an item that is a result holds it.
const RESULTS: &[&str] = &["output", "result", "tools", "status"];
/// What a type of content may be about that is not text.
const MEDIA: &[&str] = &["image", "screenshot", "file", "audio", "video"];

impl<'a> HostedItem<'a> {
    /// None when there is nothing in it for a model.
    pub(super) fn read(kind: &str, item: &'a Value) -> Option<Self> {
        let id = || item["call_id"].as_str().or(item["id"].as_str());
        if let Some((_, given, results)) = CALLS.iter().find(|(call, ..)| *call == kind) {
            let result = first(item, results);
            if result.is_none() && item["call_id"].is_null() {
                return None;
            }
            // The image itself, as a text that no model can read.
            let text = |value| if kind == "image_generation_call" { "[image]".to_owned() } else { text_of(value) };
            let name = item["name"].as_str().unwrap_or(kind.strip_suffix("_call").unwrap_or(kind)).to_owned();
            return Some(Self::Call {
                id: id()?,
                name,
                arguments: arguments(given, &item[given]),
                result: result.map(text),
            });
        }
        let result = kind.ends_with("_output").then(|| first(item, RESULTS)).flatten()?;
        Some(Self::Result { call_id: id()?, text: text_of(result) })
    }
}

fn first<'a>(item: &'a Value, names: &[&str]) -> Option<&'a Value> {
    names.iter().map(|name| &item[*name]).find(|value| !value.is_null())
}

/// JSON text of an object, whatever the item has.
fn arguments(name: &str, value: &Value) -> String {
    if value.is_null() {
        return "{}".to_owned();
    }
    let text = value.as_str().filter(|_| name == "arguments").map(str::to_owned);
    text.unwrap_or_else(|| if value.is_object() { value.to_string() } else { json!({ name: value }).to_string() })
}

fn text_of(value: &Value) -> String {
    let parts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    parts.iter().map(part_text).collect::<Vec<_>>().join("\n")
}

fn part_text(part: &Value) -> String {
    let kind = part["type"].as_str().unwrap_or_default();
    if let Some(medium) = MEDIA.iter().find(|medium| kind.contains(**medium)) {
        return format!("[{medium}]");
    }
    let text = part.as_str().or(part["text"].as_str()).or(part["logs"].as_str());
    text.map_or_else(|| part.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use crate::responses::request::tests::begin;
    use insta::assert_snapshot;
    use serde_json::{Value, json};

    fn tell(items: &[Value]) -> String {
        let (_, chat) = begin(&json!({ "input": items }));
        let line = |message: &crate::chat::Message| {
            let calls = message.tool_calls.iter().map(|call| format!(" {}{}", call.name, call.arguments));
            format!("{:?} {:?}{}\n", message.role, message.content, calls.collect::<String>())
        };
        chat.messages.iter().map(line).collect()
    }

    #[test]
    fn calls_and_their_results_are_told_and_the_rest_is_left_out() {
        assert_snapshot!(tell(&[
            json!({ "role": "user", "content": "hi" }),
            json!({ "type": "web_search_call", "id": "ws_1", "status": "completed", "action": { "type": "search", "query": "a" } }),
            json!({ "type": "file_search_call", "id": "fs_1", "queries": ["a"], "results": [{ "file_id": "f", "text": "found" }] }),
            json!({ "type": "file_search_call", "id": "fs_2", "queries": ["a"], "results": null }),
            json!({ "type": "code_interpreter_call", "id": "ci_1", "code": "1+1", "outputs": [
                { "type": "logs", "logs": "2" }, { "type": "image", "url": "data:image/png;base64,AAAA" },
            ] }),
            json!({ "type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA" }),
            json!({ "type": "mcp_list_tools", "id": "mcpl_1", "server_label": "x", "tools": [] }),
            json!({ "type": "mcp_approval_request", "id": "mcpr_1", "server_label": "x", "name": "a", "arguments": "{}" }),
            json!({ "type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": true }),
            json!({ "type": "mcp_call", "id": "mcp_1", "server_label": "x", "name": "roll", "arguments": "{\"n\":2}", "output": "7" }),
            json!({ "type": "mcp_call", "id": "mcp_2", "name": "roll", "arguments": "{}", "error": { "code": 1 } }),
            json!({ "type": "computer_call", "id": "cu_1", "call_id": "c1", "action": { "type": "screenshot" } }),
            json!({ "type": "computer_call_output", "call_id": "c1", "output": { "type": "computer_screenshot", "image_url": "data:" } }),
            json!({ "type": "local_shell_call", "id": "lsh_1", "call_id": "c2", "action": { "type": "exec", "command": ["ls"] } }),
            json!({ "type": "local_shell_call_output", "id": "c2", "output": "a.txt" }),
            json!({ "type": "shell_call", "call_id": "c3", "action": { "commands": ["ls"] } }),
            json!({ "type": "shell_call_output", "call_id": "c3", "output": [
                { "stdout": "a", "stderr": "", "outcome": { "type": "exit", "exit_code": 0 } },
            ] }),
            json!({ "type": "apply_patch_call", "call_id": "c4", "operation": { "type": "delete_file", "path": "a" } }),
            json!({ "type": "apply_patch_call_output", "call_id": "c4", "status": "completed", "output": null }),
            json!({ "type": "tool_search_call", "call_id": "c5", "arguments": { "query": "git" } }),
            json!({ "type": "tool_search_output", "call_id": "c5", "tools": [{ "type": "function", "name": "log" }] }),
            json!({ "type": "shell_call_output", "call_id": "nobody's", "output": [] }),
            json!({ "type": "teleport_call", "call_id": "c6", "where": "home" }),
            json!({ "type": "teleport_call_output", "call_id": "c6", "output": "there" }),
            json!({ "type": "additional_tools", "role": "developer", "tools": [] }),
        ]), @r#"
        User "hi"
        Assistant "" file_search{"queries":["a"]}
        Tool "found"
        Assistant "" code_interpreter{"code":"1+1"}
        Tool "2\n[image]"
        Assistant "" image_generation{}
        Tool "[image]"
        Assistant "" roll{"n":2}
        Tool "7"
        Assistant "" roll{}
        Tool "{\"code\":1}"
        Assistant "" computer{"type":"screenshot"}
        Tool "[screenshot]"
        Assistant "" local_shell{"type":"exec","command":["ls"]}
        Tool "a.txt"
        Assistant "" shell{"commands":["ls"]}
        Tool "{\"stdout\":\"a\",\"stderr\":\"\",\"outcome\":{\"type\":\"exit\",\"exit_code\":0}}"
        Assistant "" apply_patch{"type":"delete_file","path":"a"}
        Tool "completed"
        Assistant "" tool_search{"query":"git"}
        Tool "{\"type\":\"function\",\"name\":\"log\"}"
        "#);
    }

    #[test]
    fn no_shape_of_an_item_is_an_error() {
        let kinds = super::CALLS.iter().map(|(kind, ..)| *kind).chain(["shell_call_output", "agent_message"]);
        let values = [json!(null), json!(1), json!("x"), json!([]), json!([[1]]), json!({}), json!({ "type": 3 })];
        for kind in kinds {
            for value in &values {
                let item = json!({
                    "type": kind, "id": value, "call_id": value, "name": value, "action": value, "arguments": value,
                    "code": value, "queries": value, "output": value, "outputs": value, "results": value, "result": value,
                });
                tell(&[json!({ "role": "user", "content": "hi" }), item]);
            }
        }
    }
}
