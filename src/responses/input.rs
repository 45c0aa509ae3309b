//! `input` → messages.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    tools::parse_name,
};
use crate::chat::{Message, Role, ToolCall};
use std::collections::HashSet;

/// A text, or the items of a conversation in order.
pub(super) fn parse_input(field: &Field) -> Result<Vec<Message>, InvalidRequest> {
    if let Some(text) = field.value().as_str() {
        if text.is_empty() {
            return Err(field.invalid("is empty, and it must have a character"));
        }
        return Ok(vec![Message::text(Role::User, text)]);
    }
    let mut conversation = Conversation::default();
    for item in field.elements().map_err(|_| field.wrong_type("a string or an array"))? {
        conversation.push_item(&item)?;
    }
    if conversation.messages.is_empty() {
        return Err(field.invalid("holds no message"));
    }
    Ok(conversation.messages)
}

/// Items become turns: what one assistant turn consists of comes as several items.
#[derive(Default)]
struct Conversation<'a> {
    messages: Vec<Message>,
    /// Thinking whose turn has not come yet.
    reasoning: Option<String>,
    call_ids: HashSet<&'a str>,
}

impl<'a> Conversation<'a> {
    fn push_item(&mut self, field: &Field<'a>) -> Result<(), InvalidRequest> {
        let item = field.object()?;
        let Some(kind) = item.get("type") else {
            // Messages need no type, and nothing else has a role.
            return if item.get("role").is_some() { self.push_message(&item) } else { item.require("type").map(drop) };
        };
        match kind.text()? {
            "message" => self.push_message(&item),
            "reasoning" => self.push_reasoning(&item),
            "function_call" => self.push_call(&item),
            "function_call_output" => self.push_call_output(&item),
            other => Err(kind.unsupported(format!(
                "is `{}`, which this version does not support; it reads `message`, `reasoning`, `function_call` and \
                 `function_call_output` items",
                excerpt(other)
            ))),
        }
    }

    fn push_message(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let role = parse_role(&item.require("role")?)?;
        let content = parse_content(&item.require("content")?)?;
        let reasoning = self.reasoning.take().filter(|_| role == Role::Assistant);
        self.messages.push(Message { reasoning, ..Message::text(role, content) });
        Ok(())
    }

    /// The text itself, or its summary when that is all there is.
    fn push_reasoning(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let content = item.optional("content", parse_texts)?.unwrap_or_default();
        let summary = item.optional("summary", parse_texts)?.unwrap_or_default();
        let text = if content.is_empty() { summary } else { content };
        match &mut self.reasoning {
            _ if text.is_empty() => {}
            Some(earlier) => {
                earlier.push_str("\n\n");
                earlier.push_str(&text);
            }
            none => *none = Some(text),
        }
        Ok(())
    }

    /// Joins the turn before it, unless new thinking says that another turn has begun.
    fn push_call(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let id = item.require("call_id")?.text()?;
        let call = ToolCall {
            id: id.to_owned(),
            name: parse_name(item)?,
            arguments: item.require("arguments")?.text()?.to_owned(),
        };
        self.call_ids.insert(id);
        let reasoning = self.reasoning.take();
        match self.messages.last_mut() {
            Some(turn) if turn.role == Role::Assistant && reasoning.is_none() => turn.tool_calls.push(call),
            _ => {
                let tool_calls = vec![call];
                self.messages.push(Message { reasoning, tool_calls, ..Message::text(Role::Assistant, "") });
            }
        }
        Ok(())
    }

    fn push_call_output(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let field = item.require("call_id")?;
        let call_id = field.text()?;
        if !self.call_ids.contains(call_id) {
            let message = format!("No tool call found for function call output with call_id {}.", excerpt(call_id));
            return Err(InvalidRequest { message, ..field.invalid("") });
        }
        let content = parse_content(&item.require("output")?)?;
        self.reasoning = None;
        self.messages.push(Message { tool_call_id: Some(call_id.to_owned()), ..Message::text(Role::Tool, content) });
        Ok(())
    }
}

fn parse_role(field: &Field) -> Result<Role, InvalidRequest> {
    match field.text()? {
        "tool" => Err(field.invalid("is `tool`; send a tool's result as a `function_call_output` item")),
        _ => Ok(match field.choice(&["user", "assistant", "system", "developer"], &[])? {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::System,
        }),
    }
}

/// A string, or the texts of its parts.
fn parse_content(field: &Field) -> Result<String, InvalidRequest> {
    match field.value().as_str() {
        Some(text) => Ok(text.to_owned()),
        None if field.value().is_array() => parse_texts(field),
        None => Err(field.wrong_type("a string or an array")),
    }
}

/// Nothing is put between the parts: they may well be cut inside a word.
fn parse_texts(field: &Field) -> Result<String, InvalidRequest> {
    let mut texts = String::new();
    for part in field.elements()? {
        let part = part.object()?;
        let kind = part.require("type")?;
        let text = match kind.text()? {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => part.require("text")?,
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
