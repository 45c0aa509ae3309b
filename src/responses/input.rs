//! `input` → messages.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
    hosted_item::HostedItem,
    tools::{CUSTOM_INPUT, flat_name, parse_name},
};
use crate::chat::{Message, Role, ToolCall};
use serde_json::{Value, json};
use std::collections::HashSet;

/// What was said before, then a text or the items of a conversation in order. Who goes on from something need not add to it.
pub(super) fn parse_input(history: &[Value], body: &Object) -> Result<Vec<Message>, InvalidRequest> {
    let mut conversation = Conversation::default();
    for (index, item) in history.iter().enumerate() {
        conversation.push_item(&Field::at(format!("history[{index}]"), item))?;
    }
    conversation.is_history = false;
    let field = match body.get("input") {
        Some(field) => field,
        None if history.is_empty() => body.require("input")?,
        None => return Ok(conversation.messages),
    };
    if let Some(text) = field.value().as_str() {
        if text.is_empty() {
            return Err(field.invalid("is empty, and it must have a character"));
        }
        conversation.messages.push(Message::text(Role::User, text));
        return Ok(conversation.messages);
    }
    for item in field.elements().map_err(|_| field.wrong_type("a string or an array"))? {
        conversation.push_item(&item)?;
    }
    if conversation.messages.is_empty() {
        return Err(field.invalid("holds no message"));
    }
    conversation.log_left_out();
    Ok(conversation.messages)
}

/// Items become turns: what one assistant turn consists of comes as several items.
struct Conversation<'a> {
    messages: Vec<Message>,
    /// Whether what comes was said before, of which the client may have deleted a part.
    is_history: bool,
    /// Thinking whose turn has not come yet.
    reasoning: Option<String>,
    call_ids: HashSet<&'a str>,
    /// Types of items that say nothing to a model.
    left_out: Vec<&'a str>,
}

impl Default for Conversation<'_> {
    fn default() -> Self {
        Self { messages: Vec::new(), is_history: true, reasoning: None, call_ids: HashSet::new(), left_out: Vec::new() }
    }
}

impl<'a> Conversation<'a> {
    fn push_item(&mut self, field: &Field<'a>) -> Result<(), InvalidRequest> {
        let item = field.object()?;
        let Some(kind) = item.get("type") else {
            // Messages need no type, and nothing else has a role. References need none either, and have only an id.
            return match (item.get("role"), item.get("id")) {
                (Some(_), _) => self.push_message(&item),
                (None, Some(id)) => Err(id.unsupported("refers to an item that is not stored; send the item itself")),
                (None, None) => item.require("type").map(drop),
            };
        };
        match kind.text()? {
            "message" => self.push_message(&item),
            "reasoning" => self.push_reasoning(&item),
            "function_call" => {
                let arguments = item.require("arguments")?.text()?.to_owned();
                self.push_named_call(&item, arguments)
            }
            "custom_tool_call" => {
                let input = json!({ CUSTOM_INPUT: item.require("input")?.text()? });
                self.push_named_call(&item, input.to_string())
            }
            "function_call_output" | "custom_tool_call_output" => self.push_call_output(&item),
            "item_reference" => {
                Err(kind.unsupported("is `item_reference`, of an item that is not stored; send the item itself"))
            }
            // One that this server can open is a message by now.
            compaction @ ("compaction" | "compaction_summary") => Err(kind.invalid(format!(
                "is `{compaction}`, which this server cannot open: another one sealed it, or `responses.encryption_key` has \
                 changed; send the items themselves"
            ))),
            "compaction_trigger" => Err(kind.invalid("is `compaction_trigger`, which can only be the last item")),
            other => {
                self.push_hosted_item(other, field);
                Ok(())
            }
        }
    }

    /// The text of an assistant that has just called tools belongs to the turn of these calls: results come next.
    fn push_message(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let role = parse_role(&item.require("role")?)?;
        let content = parse_content(&item.require("content")?)?;
        let reasoning = self.reasoning.take().filter(|_| role == Role::Assistant);
        match self.messages.last_mut() {
            Some(turn) if role == Role::Assistant && reasoning.is_none() && !turn.tool_calls.is_empty() => {
                push_paragraph(&mut turn.content, &content);
            }
            _ => self.messages.push(Message { reasoning, ..Message::text(role, content) }),
        }
        Ok(())
    }

    /// The text itself, or its summary when that is all there is. What is only there encrypted cannot be read.
    fn push_reasoning(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let content = item.optional("content", parse_texts)?.unwrap_or_default();
        let summary = item.optional("summary", parse_texts)?.unwrap_or_default();
        let text = if content.is_empty() { summary } else { content };
        if !text.is_empty() {
            push_paragraph(self.reasoning.get_or_insert_default(), &text);
        }
        Ok(())
    }

    fn push_named_call(&mut self, item: &Object<'a>, arguments: String) -> Result<(), InvalidRequest> {
        let id = item.require("call_id")?.text()?;
        let namespace = item.optional("namespace", Field::text)?;
        let name = flat_name(namespace, &parse_name(item)?);
        self.push_call(id, name, arguments);
        Ok(())
    }

    /// Joins the turn before it, unless new thinking says that another turn has begun.
    fn push_call(&mut self, id: &'a str, name: String, arguments: String) {
        self.call_ids.insert(id);
        let call = ToolCall { id: id.to_owned(), name, arguments };
        let reasoning = self.reasoning.take();
        match self.messages.last_mut() {
            Some(turn) if turn.role == Role::Assistant && reasoning.is_none() => turn.tool_calls.push(call),
            _ => {
                let tool_calls = vec![call];
                self.messages.push(Message { reasoning, tool_calls, ..Message::text(Role::Assistant, "") });
            }
        }
    }

    fn push_call_output(&mut self, item: &Object<'a>) -> Result<(), InvalidRequest> {
        let field = item.require("call_id")?;
        let call_id = field.text()?;
        if !self.call_ids.contains(call_id) {
            if self.is_history {
                self.left_out.push("function_call_output");
                return Ok(());
            }
            let message = format!("No tool call found for function call output with call_id {}.", excerpt(call_id));
            return Err(InvalidRequest { message, ..field.invalid("") });
        }
        let output = parse_content(&item.require("output")?)?;
        self.push_result(call_id, output);
        Ok(())
    }

    fn push_result(&mut self, call_id: &str, content: String) {
        self.reasoning = None;
        self.messages.push(Message { tool_call_id: Some(call_id.to_owned()), ..Message::text(Role::Tool, content) });
    }

    /// A history is the work of other servers as well, so whatever it holds is no error.
    fn push_hosted_item(&mut self, kind: &'a str, field: &Field<'a>) {
        match HostedItem::read(kind, field.value()) {
            Some(HostedItem::Call { id, name, arguments, result }) => {
                self.push_call(id, name, arguments);
                if let Some(result) = result {
                    self.push_result(id, result);
                }
            }
            Some(HostedItem::Result { call_id, text }) if self.call_ids.contains(call_id) => {
                self.push_result(call_id, text);
            }
            Some(HostedItem::Result { .. }) | None => self.left_out.push(kind),
        }
    }

    fn log_left_out(&self) {
        const MAX_LOGGED: usize = 16;
        if !self.left_out.is_empty() {
            let types: Vec<String> = self.left_out.iter().take(MAX_LOGGED).map(|kind| excerpt(kind)).collect();
            let (count, types) = (self.left_out.len(), types.join(", "));
            tracing::warn!(count, types, "input items that say nothing to a model are left out");
        }
    }
}

fn push_paragraph(text: &mut String, paragraph: &str) {
    if !text.is_empty() && !paragraph.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(paragraph);
}

fn parse_role(field: &Field) -> Result<Role, InvalidRequest> {
    match field.text()? {
        "tool" => Err(field.invalid("is `tool`; send a tool's result as a `function_call_output` item")),
        _ => Ok(match field.choice(&["user", "assistant", "system", "developer"])? {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::System,
        }),
    }
}

/// A string, or the texts of its parts, by the names of any protocol.
pub(crate) fn parse_content(field: &Field) -> Result<String, InvalidRequest> {
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

#[cfg(test)]
mod tests {
    use crate::{
        chat::Message,
        responses::request::tests::{begin, errors},
    };
    use insta::assert_snapshot;
    use serde_json::{Value, json};

    /// One line for each turn.
    fn tell(messages: &[Message]) -> String {
        let line = |message: &Message| {
            let calls: Vec<String> =
                message.tool_calls.iter().map(|call| format!("{} {}{}", call.id, call.name, call.arguments)).collect();
            let Message { role, content, reasoning, tool_call_id, .. } = message;
            format!("{role:?} {content:?} thinks {reasoning:?} calls {calls:?} answers {tool_call_id:?}\n")
        };
        messages.iter().map(line).collect()
    }

    #[test]
    fn items_are_checked() {
        let item = |item: Value| json!({ "input": [{ "role": "user", "content": "hi" }, item] });
        let bodies = [
            item(json!("hi")),
            item(json!({ "content": "hi" })),
            item(json!({ "role": "user" })),
            item(json!({ "role": "tool", "content": "hi" })),
            item(json!({ "role": "critic", "content": "hi" })),
            item(json!({ "role": "user", "content": 3 })),
            item(
                json!({ "role": "user", "content": [{ "type": "input_text", "text": "a" }, { "type": "input_image" }] }),
            ),
            item(json!({ "role": "user", "content": [{ "type": "input_text" }] })),
            item(json!({ "type": "item_reference", "id": "msg_1" })),
            item(json!({ "type": null, "id": "msg_1" })),
            item(json!({ "type": "compaction", "encrypted_content": "x" })),
            item(json!({ "type": "custom_tool_call", "call_id": "a", "name": "patch" })),
            item(json!({ "type": "custom_tool_call_output", "call_id": "nobody's", "output": "" })),
            item(json!({ "type": "function_call", "name": "find", "arguments": "{}" })),
            item(json!({ "type": "function_call", "call_id": "a", "name": "find", "arguments": {} })),
            item(json!({ "type": "function_call_output", "call_id": "nobody's", "output": "" })),
        ];
        assert_snapshot!(errors(&bodies), @r#"
        input[1] invalid_type: `input[1]` must be an object, and it is the string "hi"
        input[1].type missing_required_parameter: `input[1].type` is required
        input[1].content missing_required_parameter: `input[1].content` is required
        input[1].role invalid_value: `input[1].role` is `tool`; send a tool's result as a `function_call_output` item
        input[1].role invalid_value: `input[1].role` is `critic`, and it must be one of `user`, `assistant`, `system`, `developer`
        input[1].content invalid_type: `input[1].content` must be a string or an array, and it is 3
        input[1].content[1].type unsupported_value: `input[1].content[1].type` is `input_image`, which this version does not support; it reads only text
        input[1].content[0].text missing_required_parameter: `input[1].content[0].text` is required
        input[1].type unsupported_value: `input[1].type` is `item_reference`, of an item that is not stored; send the item itself
        input[1].id unsupported_value: `input[1].id` refers to an item that is not stored; send the item itself
        input[1].type invalid_value: `input[1].type` is `compaction`, which this server cannot open: another one sealed it, or `responses.encryption_key` has changed; send the items themselves
        input[1].input missing_required_parameter: `input[1].input` is required
        input[1].call_id invalid_value: No tool call found for function call output with call_id nobody's.
        input[1].call_id missing_required_parameter: `input[1].call_id` is required
        input[1].arguments invalid_type: `input[1].arguments` must be a string, and it is an object
        input[1].call_id invalid_value: No tool call found for function call output with call_id nobody's.
        "#);
    }

    #[test]
    fn items_become_turns() {
        let (_, chat) = begin(&json!({
            "instructions": "Be brief.",
            "input": [
                { "role": "developer", "content": "Use tools." },
                { "type": "message", "role": "user", "content": [
                    { "type": "input_text", "text": "Where is" }, { "type": "input_text", "text": " it?" },
                ] },
                { "type": "reasoning", "id": "rs_1", "summary": [{ "type": "summary_text", "text": "Look." }] },
                { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                    { "type": "output_text", "text": "I look.", "annotations": [] },
                ] },
                { "type": "function_call", "call_id": "a", "name": "find", "arguments": "{}" },
                { "type": "function_call", "call_id": "b", "name": "list", "arguments": "{}" },
                { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "Dropped." }] },
                { "type": "function_call_output", "call_id": "b", "output": [{ "type": "input_text", "text": "x" }] },
                { "type": "function_call_output", "call_id": "a", "output": "y" },
                { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Again." }] },
                { "type": "function_call", "call_id": "c", "name": "find", "arguments": "" },
                { "type": "function_call_output", "call_id": "c", "output": "z" },
                { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Lost." }] },
                { "role": "user", "content": "Well?" },
                { "role": "assistant", "content": [{ "type": "refusal", "refusal": "No." }] },
            ],
        }));
        assert_snapshot!(tell(&chat.messages), @r#"
        System "Be brief." thinks None calls [] answers None
        System "Use tools." thinks None calls [] answers None
        User "Where is it?" thinks None calls [] answers None
        Assistant "I look." thinks Some("Look.") calls ["a find{}", "b list{}"] answers None
        Tool "x" thinks None calls [] answers Some("b")
        Tool "y" thinks None calls [] answers Some("a")
        Assistant "" thinks Some("Again.") calls ["c find"] answers None
        Tool "z" thinks None calls [] answers Some("c")
        User "Well?" thinks None calls [] answers None
        Assistant "No." thinks None calls [] answers None
        "#);
    }

    #[test]
    fn what_agents_send_back_is_read() {
        let (_, chat) = begin(&json!({ "input": [
            { "role": "user", "content": "Mend it.", "phase": null },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": null, "encrypted_content": "opaque" },
            { "type": "function_call", "id": "fc_1", "call_id": "a", "namespace": "crm", "name": "look", "arguments": "{}",
              "status": "completed" },
            { "type": "message", "role": "assistant", "phase": "commentary", "content": [
                { "type": "output_text", "text": "I look.", "annotations": [], "logprobs": [] },
            ] },
            { "type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "say \"x\"" },
            { "type": "message", "role": "assistant", "content": "And patch." },
            { "type": "function_call_output", "call_id": "a", "output": "seen" },
            { "type": "custom_tool_call_output", "call_id": "b", "output": [{ "type": "input_text", "text": "done" }] },
            { "type": "web_search_call", "id": "ws_1", "status": "completed", "action": { "type": "search" } },
            { "type": "message", "role": "assistant", "phase": "final_answer", "content": "Mended." },
            { "type": null, "role": "user", "content": "Thanks." },
        ] }));
        assert_snapshot!(tell(&chat.messages), @r#"
        User "Mend it." thinks None calls [] answers None
        Assistant "I look.\n\nAnd patch." thinks None calls ["a crm__look{}", "b patch{\"input\":\"say \\\"x\\\"\"}"] answers None
        Tool "seen" thinks None calls [] answers Some("a")
        Tool "done" thinks None calls [] answers Some("b")
        Assistant "Mended." thinks None calls [] answers None
        User "Thanks." thinks None calls [] answers None
        "#);
    }
}
