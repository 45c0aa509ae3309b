//! `messages` → the turns of a chat.

use crate::{
    chat::{Message, Role, ToolCall},
    responses::{Field, InvalidRequest, Object, excerpt, parse_name},
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
        return message.require("content").map(|_| unreachable!("it is not there"));
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

/// A string, or the texts of its parts, with nothing between them.
fn parse_content(field: &Field) -> Result<String, InvalidRequest> {
    if let Some(text) = field.value().as_str() {
        return Ok(text.to_owned());
    }
    let mut texts = String::new();
    for part in field.elements().map_err(|_| field.wrong_type("a string or an array"))? {
        let part = part.object()?;
        let kind = part.require("type")?;
        let text = match kind.text()? {
            "text" => part.require("text")?,
            "refusal" => part.require("refusal")?,
            other => {
                let other = excerpt(other);
                return Err(
                    kind.unsupported(format!("is `{other}`, which this version does not support; it reads only text"))
                );
            }
        };
        texts.push_str(text.text()?);
    }
    Ok(texts)
}
