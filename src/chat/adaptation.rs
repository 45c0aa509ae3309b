//! Conversations for templates that cannot say all of them. What a template can say is left as it is.

use super::{Capabilities, Message, Role, Tool, ToolCall, capabilities::CallForm};
use serde_json::{Map, Value as Json, json};
use std::{borrow::Cow, collections::HashMap};

/// The same conversation in roles and an order that the template takes.
pub(super) fn adapted<'m>(messages: &'m [Message], template: &Capabilities) -> Cow<'m, [Message]> {
    let mut messages = Cow::Borrowed(messages);
    if template.calls.is_some() && !(template.content_beside_calls && template.reasoning_beside_content) {
        messages = messages.iter().flat_map(|message| calls_apart(message, template)).collect::<Vec<_>>().into();
    }
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

/// Words that cannot stand beside a call stand in front of it or, where only the reasoning is in their way, in that.
fn calls_apart(message: &Message, template: &Capabilities) -> Vec<Message> {
    let Message { content, reasoning, tool_calls, .. } = message;
    match reasoning {
        _ if tool_calls.is_empty() || content.is_empty() => vec![message.clone()],
        _ if !template.content_beside_calls => {
            let words = Message { tool_calls: Vec::new(), ..message.clone() };
            vec![words, Message { content: String::new(), reasoning: None, ..message.clone() }]
        }
        Some(reasoning) if !template.reasoning_beside_content => {
            vec![Message { content: String::new(), reasoning: Some(joined(reasoning, content)), ..message.clone() }]
        }
        Some(_) | None => vec![message.clone()],
    }
}

/// Each call is a turn of its own, with its result behind it.
fn one_call_at_a_time(messages: &[Message]) -> Vec<Message> {
    let mut split: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let Some((first, others)) = message.tool_calls.split_first() else {
            // A result belongs behind its call.
            let is_call =
                |other: &Message| other.tool_calls.iter().any(|call| message.tool_call_id.as_ref() == Some(&call.id));
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

/// The user begins; turns of one role that follow each other are one. Templates that want this look at what user and
/// assistant say and pass over calls and results, so a call that was never answered in words gets an empty answer.
fn in_turns(messages: &[Message]) -> Vec<Message> {
    let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
    let is_plain = |message: &Message| message.role == Role::Assistant && message.tool_calls.is_empty();
    let speaks = |message: &&Message| message.role == Role::User || is_plain(message);
    let mut user_has_spoken = false;
    for message in messages {
        let mut message = message.clone();
        user_has_spoken |= message.role == Role::User;
        if is_plain(&message) && !user_has_spoken {
            message = Message::text(Role::User, message.content);
        }
        match turns.last_mut() {
            Some(last) if last.role == message.role && speaks(&&*last) => {
                last.content = joined(&last.content, &message.content);
                last.reasoning = message.reasoning.or_else(|| last.reasoning.take());
                last.tool_calls = message.tool_calls;
            }
            _ => {
                let last = turns.iter().rfind(speaks);
                if message.role == Role::User && last.is_some_and(|last| last.role == Role::User) {
                    turns.push(Message::text(Role::Assistant, ""));
                }
                turns.push(message);
            }
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
            if template.reasoning_field {
                fields.insert("reasoning".to_owned(), json!(reasoning));
            }
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

/// Tools as templates read them. What a tool leaves open is there but empty where the template asks for it.
pub(super) fn tools(tools: &[Tool], template: &Capabilities) -> Vec<Json> {
    let tool = |tool: &Tool| {
        let filled = |value: Option<Json>, empty: Json| value.or((!template.bare_tools).then_some(empty));
        let description = filled(tool.description.as_ref().map(|description| json!(description)), json!(""));
        let parameters = filled(tool.parameters.clone(), json!({ "type": "object", "properties": {} }));
        let fields = [("name", Some(json!(tool.name))), ("description", description), ("parameters", parameters)];
        let function = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        json!({ "type": "function", "function": Map::from_iter(function) })
    };
    tools.iter().map(tool).collect()
}

/// Templates expect an object; what is not one is passed as the text it is.
fn arguments(call: &ToolCall) -> Json {
    let object = serde_json::from_str(&call.arguments).map(Json::Object);
    object.unwrap_or_else(|_| Json::String(call.arguments.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.to_owned(), name: "f".to_owned(), arguments: "{\"a\": 1}".to_owned() }
    }

    /// A letter for each role, then words; `+` for each call and `=` for what a result answers.
    fn conversation(spelled: &str) -> Vec<Message> {
        let message = |turn: &str| {
            let (role, words) = turn.split_at(1);
            let role = match role {
                "s" => Role::System,
                "u" => Role::User,
                "a" => Role::Assistant,
                _ => Role::Tool,
            };
            let (words, answers) =
                words.split_once('=').map_or((words, None), |(words, id)| (words, Some(id.to_owned())));
            let mut parts = words.split('+');
            let mut message = Message::text(role, parts.next().unwrap_or_default());
            message.tool_calls = parts.map(call).collect();
            message.tool_call_id = answers;
            message
        };
        spelled.split(' ').map(message).collect()
    }

    fn spelled(messages: &[Message]) -> String {
        let turn = |message: &Message| {
            let role = serde_json::to_value(message.role).unwrap().as_str().unwrap()[..1].to_owned();
            let thought = message
                .reasoning
                .as_ref()
                .map(|thought| format!("({})", thought.replace("\n\n", "|")))
                .unwrap_or_default();
            let calls: String = message.tool_calls.iter().map(|call| format!("+{}", call.id)).collect();
            let answers = message.tool_call_id.as_ref().map(|id| format!("={id}")).unwrap_or_default();
            format!("{role}{thought}{}{calls}{answers}", message.content.replace("\n\n", "|"))
        };
        messages.iter().map(turn).collect::<Vec<_>>().join(" ")
    }

    fn adapt(change: impl Fn(&mut Capabilities), conversation: &[Message]) -> String {
        let mut template = Capabilities::FULL;
        change(&mut template);
        spelled(&adapted(conversation, &template))
    }

    #[test]
    fn what_a_template_takes_stays_as_it_is() {
        let messages = conversation("a1 s2 u3 u4 a+x+y t5=x t6=y s7");
        assert!(matches!(adapted(&messages, &Capabilities::FULL), Cow::Borrowed(same) if same == messages));
        let late = conversation("s1 u2 a3");
        assert_eq!(adapt(|template| template.late_system = false, &late), "s1 u2 a3");
    }

    #[test]
    fn the_system_speaks_where_it_may() {
        let messages = conversation("s1 u2 a3 s4 u5");
        assert_eq!(adapt(|template| template.late_system = false, &messages), "s1|4 u2 a3 u5");
        assert_eq!(adapt(|template| template.system = false, &messages), "u1|4|2 a3 u5");
        assert_eq!(adapt(|template| template.system = false, &conversation("s1 a2")), "u1 a2");
        assert_eq!(adapt(|template| template.late_system = false, &conversation("u1 s2")), "s2 u1");
    }

    #[test]
    fn roles_take_turns_where_they_must() {
        let in_turns = |messages: &str| adapt(|template| template.any_order = false, &conversation(messages));
        assert_eq!(in_turns("a1 u2 u3 a4 a5 u6"), "u1|2|3 a4|5 u6");
        assert_eq!(in_turns("s0 a1 a2 u3"), "s0 u1|2|3");
        assert_eq!(in_turns("u1 a+x t2=x a3 u4"), "u1 a+x t2=x a3 u4");
        assert_eq!(in_turns("u1 a2 a3+x t4=x a5 u6"), "u1 a2|3+x t4=x a5 u6");
        assert_eq!(in_turns("u1 a+x t2=x u3 u4"), "u1 a+x t2=x a u3|4");
        let neither = |template: &mut Capabilities| (template.system, template.any_order) = (false, false);
        assert_eq!(adapt(neither, &conversation("s1 a2 u3 u4")), "u2|1|3|4");
    }

    #[test]
    fn calls_and_results_are_told_where_they_are_not_shown() {
        let messages = conversation("u1 a2+x t3=x");
        let told = adapt(|template| (template.calls, template.results) = (None, false), &messages);
        insta::assert_snapshot!(told, @r#"
        u1 a2|<tool_call>
        {"name":"f","arguments":{"a":1}}
        </tool_call> u3
        "#);
        assert_eq!(adapt(|template| template.results = false, &messages), "u1 a2+x u3");
    }

    #[test]
    fn calls_stand_alone_where_they_must() {
        let parallel = conversation("u1 a2+x+y t3=x t4=y a5+z t6=z");
        let one_by_one = adapt(|template| template.parallel_calls = false, &parallel);
        assert_eq!(one_by_one, "u1 a2+x t3=x a+y t4=y a5+z t6=z");
        let mut messages = conversation("u1 a2+x");
        messages[1].reasoning = Some("r".to_owned());
        assert_eq!(adapt(|template| template.content_beside_calls = false, &messages), "u1 a(r)2 a+x");
        assert_eq!(adapt(|template| template.reasoning_beside_content = false, &messages), "u1 a(r|2)+x");
    }

    #[test]
    fn what_a_tool_leaves_open_is_empty_where_the_template_asks_for_it() {
        let tool =
            Tool { name: "f".to_owned(), description: None, parameters: None, strict: false, is_enforceable: true };
        let spelled = |template: &Capabilities| Json::from(tools(std::slice::from_ref(&tool), template));
        insta::assert_snapshot!(spelled(&Capabilities::FULL), @r#"[{"type":"function","function":{"name":"f"}}]"#);
        let template = Capabilities { bare_tools: false, ..Capabilities::FULL };
        insta::assert_snapshot!(spelled(&template), @r#"[{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object","properties":{}}}}]"#);
    }

    #[test]
    fn fields_are_in_the_form_that_the_template_wants() {
        let form = CallForm { text_arguments: true, null_content: true, short_ids: true };
        let template = Capabilities { calls: Some(form), content_parts: true, ..Capabilities::FULL };
        let fields = fields(&conversation("u1 a+call_a+call_b t2=call_b"), &template);
        insta::assert_snapshot!(Json::from(fields), @r#"[{"role":"user","content":[{"type":"text","text":"1"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"000000000","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"000000001","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},{"role":"tool","content":[{"type":"text","text":"2"}],"tool_call_id":"000000001","name":"f"}]"#);
    }
}
