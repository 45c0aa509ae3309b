//! What a chat template can say, found out by rendering small conversations.

use super::{Message, Role, Tool, ToolCall};
use serde_json::json;
use std::fmt;

/// What a template says of a conversation, and the forms in which it wants it. What it cannot say is told to it in
/// another way (`adaptation.rs`); what it can say is left alone.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Capabilities {
    /// Contents are lists of parts; else they are texts.
    pub content_parts: bool,
    /// A system message at the beginning.
    pub system: bool,
    /// System messages further down.
    pub late_system: bool,
    /// Roles in any order; else user and assistant take turns, and the user begins.
    pub any_order: bool,
    /// Descriptions of tools.
    pub tools: bool,
    /// Tools without description or parameters.
    pub bare_tools: bool,
    /// Calls of tools, and how; none where it does not show them.
    pub calls: Option<CallForm>,
    /// Words in the same turn as a call.
    pub content_beside_calls: bool,
    /// Reasoning in a turn that has words and a call.
    pub reasoning_beside_content: bool,
    /// Several calls in one turn.
    pub parallel_calls: bool,
    /// Results of tools.
    pub results: bool,
    /// The reasoning of an assistant's turn.
    pub reasoning: bool,
    /// It reads that as `reasoning`; else as `reasoning_content` or `thinking`, which all templates are given.
    pub reasoning_field: bool,
}

/// The form in which a template wants calls.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CallForm {
    /// Arguments are JSON text; else they are an object.
    pub text_arguments: bool,
    /// The content beside a call is null where it is empty.
    pub null_content: bool,
    /// Ids are nine letters or digits.
    pub short_ids: bool,
}

impl CallForm {
    /// All of them, those that change least first.
    fn all() -> impl Iterator<Item = Self> {
        (0..8_u8).map(|bits| Self {
            text_arguments: bits & 1 != 0,
            null_content: bits & 2 != 0,
            short_ids: bits & 4 != 0,
        })
    }
}

impl Capabilities {
    /// Of a template that says everything as it is.
    pub(super) const FULL: Self = Self {
        content_parts: false,
        system: true,
        late_system: true,
        any_order: true,
        tools: true,
        bare_tools: true,
        calls: Some(CallForm { text_arguments: false, null_content: false, short_ids: false }),
        content_beside_calls: true,
        reasoning_beside_content: true,
        parallel_calls: true,
        results: true,
        reasoning: true,
        reasoning_field: false,
    };

    /// Renders conversations of telling words, as they are, under these capabilities. A capability is there if all of
    /// the words are in the prompt.
    pub(super) fn probe(render: impl Fn(&Self, &[Message], &[Tool]) -> Option<String>) -> Self {
        let mut found = Self::FULL;
        let says = |capabilities: &Self, messages: &[Message], tools: &[Tool], words: &[&str]| {
            let prompt = render(capabilities, messages, tools);
            prompt.is_some_and(|prompt| words.iter().all(|word| prompt.contains(word)))
        };
        let user = || Message::text(Role::User, USER);
        let assistant = || Message::text(Role::Assistant, ASSISTANT);
        let system = || Message::text(Role::System, SYSTEM);

        let parts = Self { content_parts: true, ..Self::FULL };
        found.content_parts = !says(&found, &[user()], &[], &[USER]) && says(&parts, &[user()], &[], &[USER]);
        found.system = says(&found, &[system(), user()], &[], &[SYSTEM, USER]);
        let late = [user(), assistant(), system(), user()];
        found.late_system = says(&found, &late, &[], &[SYSTEM, USER, ASSISTANT]);
        let other_order = [assistant(), Message::text(Role::User, OTHER), user(), assistant(), assistant(), user()];
        found.any_order = says(&found, &other_order, &[], &[OTHER, USER, ASSISTANT]);
        found.tools = says(&found, &[user()], &[tool()], &[TOOL]);
        let bare = Tool { description: None, parameters: None, ..tool() };
        found.bare_tools = says(&found, &[user()], &[bare], &[USER]) || !found.tools;

        let calling = || Message { tool_calls: vec![call(1)], ..Message::text(Role::Assistant, "") };
        let result = |number| Message { tool_call_id: Some(call(number).id), ..Message::text(Role::Tool, RESULT) };
        let called = [user(), calling(), result(1)];
        let forms = || CallForm::all().map(|form| Self { calls: Some(form), ..found.clone() });
        let shows_calls = |words: &[&str]| forms().find(|form| says(form, &called, &[tool()], words));
        let form = shows_calls(&[TOOL, ARGUMENT, RESULT]).or_else(|| shows_calls(&[TOOL, ARGUMENT]));
        found.calls = form.and_then(|form| form.calls);
        found.results = says(&found, &called, &[tool()], &[RESULT]);
        let telling = || Message { content: ASSISTANT.to_owned(), ..calling() };
        found.content_beside_calls = says(&found, &[user(), telling(), result(1)], &[tool()], &[ARGUMENT]);
        let thinking_and_telling = Message { reasoning: Some(REASONING.to_owned()), ..telling() };
        found.reasoning_beside_content =
            says(&found, &[user(), thinking_and_telling, result(1)], &[tool()], &[ARGUMENT]);
        let calling_twice = Message { tool_calls: vec![call(1), call(2)], ..calling() };
        found.parallel_calls = says(&found, &[user(), calling_twice, result(1), result(2)], &[tool()], &[ARGUMENT]);
        let thinking = Message { reasoning: Some(REASONING.to_owned()), ..calling() };
        let thought = Message { reasoning: Some(REASONING.to_owned()), ..assistant() };
        let reasons = |capabilities: &Self| {
            says(capabilities, &[user(), thought.clone()], &[], &[REASONING])
                || says(capabilities, &[user(), thinking.clone(), result(1)], &[tool()], &[REASONING])
        };
        let other_field = Self { reasoning_field: true, ..found.clone() };
        found.reasoning_field = !reasons(&found) && reasons(&other_field);
        found.reasoning = found.reasoning_field || reasons(&found);
        found
    }
}

/// What is there, as a list for the operator.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = self.calls.unwrap_or_default();
        let facts = [
            (self.content_parts, "content in parts"),
            (self.system && self.late_system, "system messages anywhere"),
            (self.system && !self.late_system, "a system message first"),
            (self.any_order, "roles in any order"),
            (self.tools, "tools"),
            (!self.bare_tools, "no tools without parameters"),
            (self.calls.is_some(), "calls"),
            (form.text_arguments, "arguments as text"),
            (form.null_content, "null beside calls"),
            (form.short_ids, "ids of nine characters"),
            (self.calls.is_some() && !self.content_beside_calls, "no words beside calls"),
            (self.calls.is_some() && !self.reasoning_beside_content, "no reasoning beside words and calls"),
            (self.calls.is_some() && self.parallel_calls, "parallel calls"),
            (self.results, "results"),
            (self.reasoning, "reasoning"),
        ];
        let facts: Vec<&str> = facts.iter().filter(|(is_there, _)| *is_there).map(|(_, fact)| *fact).collect();
        f.write_str(&facts.join(", "))
    }
}

const USER: &str = "Whistle";
const OTHER: &str = "Marble";
const ASSISTANT: &str = "Lantern";
const SYSTEM: &str = "Pebble";
const TOOL: &str = "juggle";
const ARGUMENT: &str = "walnut";
const RESULT: &str = "Thimble";
const REASONING: &str = "Gravel";

fn call(number: u8) -> ToolCall {
    let arguments = json!({ "what": ARGUMENT }).to_string();
    ToolCall { id: format!("call_{number:024}"), name: TOOL.to_owned(), arguments }
}

fn tool() -> Tool {
    Tool {
        name: TOOL.to_owned(),
        description: Some("Throws things up.".to_owned()),
        parameters: Some(json!({ "type": "object", "properties": { "what": { "type": "string" } } })),
        strict: false,
        is_enforceable: true,
    }
}
