//! Input items in the form in which they are kept and listed: each with an id and a type.

use super::response::new_id;
use serde_json::{Value, json};

/// Of an `input` that was found good.
pub(super) fn normalize_input(input: Value) -> Vec<Value> {
    match input {
        Value::String(text) => vec![normalize(json!({ "role": "user", "content": text }))],
        Value::Array(items) => items.into_iter().map(normalize).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

/// An id of its own, unless it came with one; what a message leaves out is filled in.
pub(super) fn normalize(mut item: Value) -> Value {
    if item["type"].is_null() {
        item["type"] = json!("message");
    }
    if item["type"] == "message" {
        let part = if item["role"] == "assistant" { "output_text" } else { "input_text" };
        if let Some(text) = item["content"].as_str() {
            item["content"] = if part == "output_text" {
                json!([{ "type": part, "text": text, "annotations": [], "logprobs": [] }])
            } else {
                json!([{ "type": part, "text": text }])
            };
        }
        if item["status"].is_null() {
            item["status"] = json!("completed");
        }
    }
    if !has_id(&item) {
        item["id"] = json!(new_id(prefix(item["type"].as_str().unwrap_or_default())));
    }
    item
}

fn has_id(item: &Value) -> bool {
    item["id"].as_str().is_some_and(|id| !id.is_empty())
}

/// Clients look at how an id begins.
fn prefix(kind: &str) -> &'static str {
    match kind {
        "message" => "msg",
        "reasoning" => "rs",
        "function_call" => "fc",
        "function_call_output" => "fco",
        "custom_tool_call" => "ctc",
        "custom_tool_call_output" => "ctco",
        "compaction" | "compaction_summary" => "cmp",
        _ => "item",
    }
}

/// Ids and JSON texts.
pub(super) fn with_ids<'i>(items: impl IntoIterator<Item = &'i Value>) -> Vec<(String, String)> {
    let with_id = |item: &Value| (item["id"].as_str().unwrap_or_default().to_owned(), item.to_string());
    items.into_iter().map(with_id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_came_has_an_id_and_a_type() {
        let call = json!({ "type": "function_call", "id": "fc_1", "call_id": "a", "name": "f", "arguments": "{}" });
        let items = normalize_input(json!([
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": "Hello", "id": "msg_1" },
            { "type": null, "role": "developer", "content": [{ "type": "input_text", "text": "Be brief." }], "id": "" },
            call,
            { "type": "function_call_output", "call_id": "a", "output": "x" },
        ]));
        let id = |index: usize| items[index]["id"].as_str().unwrap();
        assert!(id(0).starts_with("msg_") && id(2).starts_with("msg_") && id(4).starts_with("fco_"));
        assert_eq!(items[0]["content"], json!([{ "type": "input_text", "text": "hi" }]));
        assert_eq!((id(1), &items[1]["status"]), ("msg_1", &json!("completed")));
        assert_eq!(items[1]["content"][0]["type"], "output_text");
        assert_eq!((&items[2]["type"], &items[2]["role"]), (&json!("message"), &json!("developer")));
        assert_eq!(items[3], call);
        assert_eq!(normalize_input(json!("hi"))[0]["content"], items[0]["content"]);
    }
}
