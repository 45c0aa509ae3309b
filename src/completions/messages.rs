//! `messages` → the turns of a chat.

use crate::{
    chat::{Message, Role, ToolCall},
    responses::{Field, InvalidRequest, Object, excerpt, parse_content, parse_name},
};
use std::collections::HashSet;

/// At least one.
pub(super) fn parse_messages(field: &Field) -> Result<Vec<Message>, InvalidRequest> {
    let mut messages = Vec::new();
    let mut call_ids = HashSet::new();
    for element in field.elements()? {
        messages.push(parse_message(&element.object()?, &mut call_ids)?);
    }
    if messages.is_empty() {
        return Err(field.invalid("holds no message"));
    }
    Ok(messages)
}

fn parse_message<'a>(message: &Object<'a>, call_ids: &mut HashSet<&'a str>) -> Result<Message, InvalidRequest> {
    let field = message.require("role")?;
    let role = match field.choice(&["system", "developer", "user", "assistant", "tool", "function"])? {
        "user" => Role::User,
        "assistant" => return parse_assistant(message, call_ids),
        "tool" => return parse_result(message, call_ids),
        "function" => return Err(field.unsupported("is `function`, which `tool` has replaced")),
        _ => Role::System,
    };
    Ok(Message::text(role, parse_content(&message.require("content")?)?))
}

/// Whatever it said, thought or called.
fn parse_assistant<'a>(message: &Object<'a>, call_ids: &mut HashSet<&'a str>) -> Result<Message, InvalidRequest> {
    if let Some(call) = message.get("function_call") {
        return Err(call.unsupported("is not supported: `tool_calls` has replaced it"));
    }
    let content = message.optional("content", parse_content)?;
    let refusal = message.optional("refusal", Field::text)?;
    // Servers disagree on what it is called.
    let reasoning = message.optional("reasoning_content", Field::text)?.or(message.optional("reasoning", Field::text)?);
    let mut tool_calls = Vec::new();
    for element in message.optional("tool_calls", Field::elements)?.into_iter().flatten() {
        let call = element.object()?;
        call.optional("type", |kind| kind.choice(&["function"]))?;
        let function = call.require("function")?.object()?;
        let id = call.require("id")?.text()?;
        call_ids.insert(id);
        let arguments = function.require("arguments")?.text()?.to_owned();
        tool_calls.push(ToolCall { id: id.to_owned(), name: parse_name(&function)?, arguments });
    }
    if content.is_none() && refusal.is_none() && tool_calls.is_empty() {
        message.require("content")?;
    }
    let content = content.or(refusal.map(str::to_owned)).unwrap_or_default();
    let reasoning = reasoning.filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Message { reasoning, tool_calls, ..Message::text(Role::Assistant, content) })
}

fn parse_result(message: &Object, call_ids: &HashSet<&str>) -> Result<Message, InvalidRequest> {
    let field = message.require("tool_call_id")?;
    let id = field.text()?;
    if !call_ids.contains(id) {
        return Err(field.invalid(format!("is `{}`, and no message before it has a call of that id", excerpt(id))));
    }
    let content = parse_content(&message.require("content")?)?;
    Ok(Message { tool_call_id: Some(id.to_owned()), ..Message::text(Role::Tool, content) })
}

#[cfg(test)]
mod tests {
    use crate::completions::request::tests::{begin, errors, with};
    use insta::assert_snapshot;
    use serde_json::{Value, json};

    #[test]
    fn turns_of_all_roles_reach_the_chat() {
        let messages = json!([
            { "role": "system", "content": "Be brief.", "name": "boss" },
            { "role": "developer", "content": [{ "type": "text", "text": "Be " }, { "type": "text", "text": "kind." }] },
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [
                { "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{}" } },
            ] },
            { "role": "tool", "tool_call_id": "call_1", "content": [{ "type": "text", "text": "21" }] },
            { "role": "assistant", "refusal": "No.", "reasoning": "" },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "Never." }], "tool_calls": [] },
        ]);
        let (_, chats) = begin(&with(json!({ "messages": messages })));
        let lines: Vec<String> = chats[0].messages.iter().map(|message| format!("{message:?}")).collect();
        assert_snapshot!(lines.join("\n"), @r#"
        Message { role: System, content: "Be brief.", reasoning: None, tool_calls: [], tool_call_id: None }
        Message { role: System, content: "Be kind.", reasoning: None, tool_calls: [], tool_call_id: None }
        Message { role: User, content: "hi", reasoning: None, tool_calls: [], tool_call_id: None }
        Message { role: Assistant, content: "", reasoning: Some("Hm."), tool_calls: [ToolCall { id: "call_1", name: "f", arguments: "{}" }], tool_call_id: None }
        Message { role: Tool, content: "21", reasoning: None, tool_calls: [], tool_call_id: Some("call_1") }
        Message { role: Assistant, content: "No.", reasoning: None, tool_calls: [], tool_call_id: None }
        Message { role: Assistant, content: "Never.", reasoning: None, tool_calls: [], tool_call_id: None }
        "#);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let after_a_call = |message: Value| {
            let call = json!({ "id": "call_1", "function": { "name": "f", "arguments": "{}" } });
            json!([{ "role": "assistant", "tool_calls": [call] }, message])
        };
        let with_calls = |call: Value| json!([{ "role": "assistant", "content": "", "tool_calls": [call] }]);
        let cases = [
            json!("hi"),
            json!([]),
            json!(["hi"]),
            json!([{ "content": "hi" }]),
            json!([{ "role": "robot", "content": "hi" }]),
            json!([{ "role": "function", "name": "f", "content": "21" }]),
            json!([{ "role": "user" }]),
            json!([{ "role": "user", "content": 5 }]),
            json!([{ "role": "user", "content": ["hi"] }]),
            json!([{ "role": "user", "content": [{ "type": "text" }] }]),
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:," } }] }]),
            json!([{ "role": "assistant" }]),
            json!([{ "role": "assistant", "content": null, "tool_calls": [] }]),
            json!([{ "role": "assistant", "function_call": { "name": "f", "arguments": "" } }]),
            with_calls(json!({})),
            with_calls(json!({ "id": "a", "type": "custom", "custom": { "name": "f", "input": "" } })),
            with_calls(json!({ "function": { "name": "f", "arguments": "{}" } })),
            with_calls(json!({ "id": "a", "function": { "name": "f" } })),
            with_calls(json!({ "id": "a", "function": { "name": "f", "arguments": {} } })),
            with_calls(json!({ "id": "a", "function": { "name": "a b", "arguments": "{}" } })),
            after_a_call(json!({ "role": "tool", "content": "21" })),
            after_a_call(json!({ "role": "tool", "content": "21", "tool_call_id": "call_2" })),
            after_a_call(json!({ "role": "tool", "tool_call_id": "call_1" })),
        ];
        assert_snapshot!(errors(&cases.map(|messages| with(json!({ "messages": messages })))), @r#"
        messages invalid_type: `messages` must be an array, and it is the string "hi"
        messages invalid_value: `messages` holds no message
        messages[0] invalid_type: `messages[0]` must be an object, and it is the string "hi"
        messages[0].role missing_required_parameter: `messages[0].role` is required
        messages[0].role invalid_value: `messages[0].role` is `robot`, and it must be one of `system`, `developer`, `user`, `assistant`, `tool`, `function`
        messages[0].role unsupported_value: `messages[0].role` is `function`, which `tool` has replaced
        messages[0].content missing_required_parameter: `messages[0].content` is required
        messages[0].content invalid_type: `messages[0].content` must be a string or an array, and it is 5
        messages[0].content[0] invalid_type: `messages[0].content[0]` must be an object, and it is the string "hi"
        messages[0].content[0].text missing_required_parameter: `messages[0].content[0].text` is required
        messages[0].content[0].type unsupported_value: `messages[0].content[0].type` is `image_url`, which this version does not support; it reads only text
        messages[0].content missing_required_parameter: `messages[0].content` is required
        messages[0].content missing_required_parameter: `messages[0].content` is required
        messages[0].function_call unsupported_value: `messages[0].function_call` is not supported: `tool_calls` has replaced it
        messages[0].tool_calls[0].function missing_required_parameter: `messages[0].tool_calls[0].function` is required
        messages[0].tool_calls[0].type invalid_value: `messages[0].tool_calls[0].type` is `custom`, and it must be one of `function`
        messages[0].tool_calls[0].id missing_required_parameter: `messages[0].tool_calls[0].id` is required
        messages[0].tool_calls[0].function.arguments missing_required_parameter: `messages[0].tool_calls[0].function.arguments` is required
        messages[0].tool_calls[0].function.arguments invalid_type: `messages[0].tool_calls[0].function.arguments` must be a string, and it is an object
        messages[0].tool_calls[0].function.name invalid_value: `messages[0].tool_calls[0].function.name` is `a b`, and it must be 1 to 64 letters, digits, `_` or `-`
        messages[1].tool_call_id missing_required_parameter: `messages[1].tool_call_id` is required
        messages[1].tool_call_id invalid_value: `messages[1].tool_call_id` is `call_2`, and no message before it has a call of that id
        messages[1].content missing_required_parameter: `messages[1].content` is required
        "#);
    }
}
