//! Conversations for templates that cannot say all of them. What a template can say is left as it is.

use super::{Capabilities, Message, Role, ToolCall, capabilities::CallForm};
use serde_json::{Map, Value as Json, json};
use std::{borrow::Cow, collections::HashMap};

/// The same conversation in roles and an order that the template takes.
pub(super) fn adapted<'m>(messages: &'m [Message], template: &Capabilities) -> Cow<'m, [Message]> {
    let mut messages = Cow::Borrowed(messages);
    if !template.parallel_calls && template.calls.is_some() {
        messages = one_call_at_a_time(&messages).into();
    }
    if template.calls.is_none() || !template.results {
        messages = messages.iter().map(|message| without_tools(message, template)).collect::<Vec<_>>().into();
    }
    if !template.system {
        messages = system_as_user(&messages).into();
    } else if !template.late_system {
        messages = system_first(&messages).into();
    }
    if !template.any_order {
        messages = in_turns(&messages).into();
    }
    messages
}

/// Each call is a turn of its own, with its result behind it.
fn one_call_at_a_time(messages: &[Message]) -> Vec<Message> {
    let mut split: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let Some((first, others)) = message.tool_calls.split_first() else {
            // A result belongs behind its call.
            let is_call = |other: &Message| other.tool_calls.iter().any(|call| message.tool_call_id.as_ref() == Some(&call.id));
            let call = split.iter().rposition(is_call).filter(|_| message.role == Role::Tool);
            split.insert(call.map_or(split.len(), |call| call + 1), message.clone());
            continue;
        };
        split.push(Message { tool_calls: vec![first.clone()], ..message.clone() });
        let turn = |call: &ToolCall| Message { tool_calls: vec![call.clone()], ..Message::text(Role::Assistant, "") };
        split.extend(others.iter().map(turn));
    }
    split
}

/// Calls as text, in the most common form, and results as a user's words, where the template does not show them.
fn without_tools(message: &Message, template: &Capabilities) -> Message {
    let mut told = message.clone();
    if template.calls.is_none() {
        for call in std::mem::take(&mut told.tool_calls) {
            let spelled = json!({ "name": call.name, "arguments": arguments(&call) });
            append(&mut told.content, &format!("<tool_call>\n{spelled}\n</tool_call>"));
        }
    }
    if !template.results && told.role == Role::Tool {
        told = Message::text(Role::User, told.content);
    }
    told
}

/// What the system says stands in front of the first words of the user.
fn system_as_user(messages: &[Message]) -> Vec<Message> {
    let (words, mut others) = without_system(messages);
    match others.iter_mut().find(|message| message.role == Role::User) {
        Some(user) if !words.is_empty() => user.content = joined(&words, &user.content),
        None if !words.is_empty() => others.insert(0, Message::text(Role::User, words)),
        Some(_) | None => {}
    }
    others
}

/// All that the system says stands at the beginning.
fn system_first(messages: &[Message]) -> Vec<Message> {
    let num_first = messages.iter().take_while(|message| message.role == Role::System).count();
    if num_first <= 1 && messages[num_first..].iter().all(|message| message.role != Role::System) {
        return messages.to_vec();
    }
    let (words, mut others) = without_system(messages);
    others.insert(0, Message::text(Role::System, words));
    others
}

fn without_system(messages: &[Message]) -> (String, Vec<Message>) {
    let (system, others): (Vec<&Message>, Vec<&Message>) =
        messages.iter().partition(|message| message.role == Role::System);
    let mut words = String::new();
    for message in system {
        append(&mut words, &message.content);
    }
    (words, others.into_iter().cloned().collect())
}

/// The user begins; turns of one role that follow each other are one.
fn in_turns(messages: &[Message]) -> Vec<Message> {
    let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
    let mut user_has_spoken = false;
    for message in messages {
        let mut message = message.clone();
        let is_plain = |message: &Message| message.role == Role::Assistant && message.tool_calls.is_empty();
        if is_plain(&message) && !user_has_spoken {
            message = Message::text(Role::User, message.content);
        }
        user_has_spoken |= message.role == Role::User;
        match turns.last_mut() {
            Some(last) if last.role == message.role && (is_plain(last) && is_plain(&message) || last.role == Role::User) => {
                last.content = joined(&last.content, &message.content);
                last.reasoning = message.reasoning.or_else(|| last.reasoning.take());
            }
            _ => turns.push(message),
        }
    }
    turns
}

fn joined(first: &str, second: &str) -> String {
    let mut words = first.to_owned();
    append(&mut words, second);
    words
}

/// With a blank line between.
fn append(words: &mut String, more: &str) {
    if !words.is_empty() && !more.is_empty() {
        words.push_str("\n\n");
    }
    words.push_str(more);
}

/// Messages as templates read them: the fields of `transformers`, in its order.
pub(super) fn fields(messages: &[Message], template: &Capabilities) -> Vec<Json> {
    let form = template.calls.unwrap_or_default();
    let calls = messages.iter().flat_map(|message| &message.tool_calls);
    let calls: HashMap<&str, (usize, &str)> =
        calls.enumerate().map(|(index, call)| (call.id.as_str(), (index, call.name.as_str()))).collect();
    let id = |id: &str| match calls.get(id) {
        Some((index, _)) if form.short_ids => format!("{index:09}"),
        _ => id.to_owned(),
    };
    let message = |message: &Message| {
        let mut fields = Map::new();
        let reasoning = message.reasoning.as_ref().filter(|_| message.role == Role::Assistant);
        if let Some(reasoning) = reasoning {
            fields.insert("thinking".to_owned(), json!(reasoning));
        }
        fields.insert("role".to_owned(), json!(message.role));
        fields.insert("content".to_owned(), content(message, template, form));
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| tool_call(call, id(&call.id), form));
            fields.insert("tool_calls".to_owned(), calls.collect());
        }
        if let Some(call_id) = &message.tool_call_id {
            fields.insert("tool_call_id".to_owned(), json!(id(call_id)));
            if let Some((_, name)) = calls.get(call_id.as_str()) {
                fields.insert("name".to_owned(), json!(name));
            }
        }
        if let Some(reasoning) = reasoning {
            fields.insert("reasoning_content".to_owned(), json!(reasoning));
            fields.insert("reasoning".to_owned(), json!(reasoning));
        }
        Json::Object(fields)
    };
    messages.iter().map(message).collect()
}

fn content(message: &Message, template: &Capabilities, form: CallForm) -> Json {
    if form.null_content && message.content.is_empty() && !message.tool_calls.is_empty() {
        return Json::Null;
    }
    match template.content_parts {
        true => json!([{ "type": "text", "text": message.content }]),
        false => json!(message.content),
    }
}

fn tool_call(call: &ToolCall, id: String, form: CallForm) -> Json {
    let arguments = if form.text_arguments { json!(call.arguments) } else { arguments(call) };
    json!({ "id": id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

/// Templates expect an object; what is not one is passed as the text it is.
fn arguments(call: &ToolCall) -> Json {
    let object = serde_json::from_str(&call.arguments).map(Json::Object);
    object.unwrap_or_else(|_| Json::String(call.arguments.clone()))
}
