//! A reply's text, told apart into reasoning, text and tool calls, whatever way the text is cut.

use super::{
    FormatCalls, ResponseFormat,
    anchor::{Haystack, Mark, Next, Sighting},
    call::{CallReader, Outcome, Region},
    template::{Begun, Field, Part, Template},
};
use crate::chat::{Delta, Tool};
use std::sync::Arc;

/// Reads one reply as it comes.
///
/// White space around the marks is the format's, not the reply's: it is dropped at the beginning of a part and before
/// a mark. What looks like a call but does not name one of the tools is text.
#[derive(Debug)]
pub struct ReplyParser {
    format: Arc<Template>,
    tools: Vec<Tool>,
    place: Place,
    /// Text that cannot be told apart yet.
    held: String,
    /// White space before it that no mark begins with.
    space: String,
    /// The byte before all that.
    before: Option<u8>,
    /// Whether the open part has said anything.
    has_begun: bool,
    /// Whether the reply has said anything that is not reasoning.
    has_spoken: bool,
    /// What was said last, unless it was a call.
    last: Option<Part>,
    /// What stood before the open call and its mark, in case that is only text.
    before_call: BeforeCall,
}

#[derive(Debug)]
enum Place {
    /// Between the fields.
    Between,
    /// In this field of text.
    Field(usize),
    /// In this field of calls.
    Calls(usize, CallReader),
}

#[derive(Debug, Default)]
struct BeforeCall {
    space: String,
    has_begun: bool,
    mark: String,
}

impl ReplyParser {
    /// At the beginning of the reply to a prompt that ends in `last_words`, which may have begun a part of it. Only calls
    /// of `tools` are calls.
    pub fn new(format: &ResponseFormat, calls: FormatCalls, last_words: &str, tools: Vec<Tool>) -> Self {
        let mut parser = Self {
            format: Arc::clone(format.template(calls)),
            tools,
            place: Place::Between,
            held: String::new(),
            space: String::new(),
            before: None,
            has_begun: false,
            has_spoken: false,
            last: None,
            before_call: BeforeCall::default(),
        };
        let template = Arc::clone(&parser.format);
        match template.begun_by(last_words) {
            Begun::Field(field) => parser.place = field.map_or(Place::Between, Place::Field),
            Begun::Text(text) => parser.begin_with(text),
        }
        parser
    }

    /// Reads the part of the prompt that belongs to the reply. What that says, the client has said itself.
    fn begin_with(&mut self, text: &str) {
        self.push(text);
        if let Place::Calls(..) = self.place {
            self.place = Place::Between;
        }
        self.space.clear();
        // A mark that the prompt has begun goes on in the reply.
        self.before = text.bytes().last();
        (self.has_begun, self.has_spoken, self.last) = (false, false, None);
    }

    /// Whether the reply is inside its reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.part() == Part::Reasoning
    }

    /// Whether text was taken that has not been given out, and may be.
    pub fn holds_text(&self) -> bool {
        let holds_space = self.has_begun && !self.space.is_empty();
        holds_space || !self.held.is_empty() || matches!(self.place, Place::Calls(..))
    }

    /// Takes more text and gives out what can be told apart.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let mut rest = text;
        // What is behind a mark is moved, so long texts are read in pieces.
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.floor_char_boundary(MAX_PIECE_BYTES));
            self.read(piece, false, &mut deltas);
            rest = more;
        }
        deltas
    }

    /// What is left when no more text comes. A call that lacks only its closing mark is one; a call that was cut stays
    /// open. What has not named a tool is the text it is, unless it may only lack the rest because the reply was cut.
    pub fn finish(&mut self, is_cut: bool) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let format = Arc::clone(&self.format);
        self.read("", true, &mut deltas);
        while matches!(self.place, Place::Calls(..)) {
            let Place::Calls(field, reader) = std::mem::replace(&mut self.place, Place::Between) else { break };
            match reader.finish(region(&format, field, &self.tools), is_cut, &mut deltas) {
                Some(Outcome::NoCall { text, is_first }) if !is_cut => {
                    self.reopen_text(field, text, is_first, &mut deltas);
                }
                Some(Outcome::Closed(rest)) => self.behind_calls(rest),
                Some(Outcome::NoCall { .. } | Outcome::Open) | None => return deltas,
            }
            self.read("", true, &mut deltas);
        }
        let rest = std::mem::take(&mut self.space) + &std::mem::take(&mut self.held);
        self.say(rest, &mut deltas);
        deltas
    }

    fn read(&mut self, text: &str, is_whole: bool, deltas: &mut Vec<Delta>) {
        let format = Arc::clone(&self.format);
        let mut more = text.to_owned();
        let mut idle_marks = 0;
        loop {
            if let Place::Calls(field, reader) = &mut self.place {
                let field = *field;
                let outcome = reader.push(&std::mem::take(&mut more), region(&format, field, &self.tools), deltas);
                match outcome {
                    Outcome::Open => return,
                    Outcome::Closed(rest) => self.behind_calls(rest),
                    Outcome::NoCall { text, is_first } => self.reopen_text(field, text, is_first, deltas),
                }
            }
            self.held.push_str(&std::mem::take(&mut more));
            match self.next(&format, is_whole) {
                Next::Mark(sighting) => {
                    idle_marks = if sighting.captured.end == 0 { idle_marks + 1 } else { 0 };
                    match idle_marks <= MAX_IDLE_MARKS {
                        true => self.pass(&format, sighting, deltas),
                        false => self.give_out(self.held.chars().next().map_or(0, char::len_utf8), deltas),
                    }
                }
                Next::Nothing => return self.give_out(self.held.len(), deltas),
                Next::Pending(start) => return self.give_out(start, deltas),
            }
            if let Place::Calls(..) = self.place {
                more = std::mem::take(&mut self.held);
            }
        }
    }

    fn next(&self, format: &Template, is_whole: bool) -> Next {
        let field = match self.place {
            Place::Field(field) => Some(field),
            Place::Between | Place::Calls(..) => None,
        };
        let begins = |field: &Field, start: usize| {
            // A call does not stand in the way of the next one.
            let is_first = !self.has_spoken || (field.part == Part::Calls && self.last.is_none() && !self.has_begun);
            is_first && self.held[..start].trim().is_empty()
        };
        let counts = |mark: Mark, start: usize| match mark {
            Mark::Open(field) => !format.fields[field].leads || begins(&format.fields[field], start),
            Mark::Close | Mark::Stray => true,
        };
        let within = Haystack { text: &self.held, before: self.before, is_whole };
        format.watch(field).find(within, 0, counts)
    }

    /// Goes on behind a mark.
    fn pass(&mut self, format: &Template, sighting: Sighting, deltas: &mut Vec<Delta>) {
        let Sighting { mark, start, captured } = sighting;
        let rest = self.held.split_off(captured.end);
        let text = self.held[start..].to_owned();
        self.give_out(start, deltas);
        self.before = text.bytes().last().or(self.before);
        self.held.clear();
        let space = std::mem::take(&mut self.space);
        match mark {
            Mark::Stray => {
                // It means nothing, so the part goes on.
                self.space = space;
                self.held = rest;
            }
            Mark::Close => self.open(Place::Between, rest),
            Mark::Open(field) => match &format.fields[field] {
                Field { part: Part::Calls, calls, .. } => {
                    let group = calls.as_ref().and_then(|calls| calls.name_group.as_deref());
                    let named = captured.groups.iter().find(|(name, _)| Some(name.as_str()) == group);
                    let name = named.map(|(_, name)| name.trim());
                    let is_callable = match name {
                        Some(name) => self.tools.iter().any(|tool| tool.name == name),
                        None => !self.tools.is_empty(),
                    };
                    let reader = CallReader::new(&format.fields[field], name, captured.groups.clone());
                    self.before_call = BeforeCall { space, has_begun: self.has_begun, mark: text };
                    match is_callable {
                        true => self.open(Place::Calls(field, reader), rest),
                        false => self.reopen_text(field, rest, true, deltas),
                    }
                }
                _ => self.open(Place::Field(field), rest),
            },
        }
    }

    fn open(&mut self, place: Place, held: String) {
        self.place = place;
        self.held = held;
        self.space.clear();
        self.has_begun = false;
    }

    fn behind_calls(&mut self, rest: String) {
        (self.has_spoken, self.last) = (true, None);
        self.open(Place::Between, rest);
    }

    /// What looked like a call is text: it goes on where the text before it ended.
    fn reopen_text(&mut self, field: usize, mut text: String, is_first: bool, deltas: &mut Vec<Delta>) {
        let BeforeCall { space, has_begun, mark } = std::mem::take(&mut self.before_call);
        let place = if self.format.implicit.is_some() { Place::Between } else { Place::Field(field) };
        if !is_first {
            (self.has_spoken, self.last) = (true, None);
            self.open(place, text);
            return;
        }
        let mut said = self.format.special_tokens.iter().fold(mark.clone(), |said, token| said.replace(token, ""));
        if mark.is_empty() {
            // The mark only looked ahead, and must not do so again.
            let first = text.chars().next().map_or(0, char::len_utf8);
            said = text.drain(..first).collect();
        }
        self.open(place, text);
        self.has_begun = has_begun;
        self.say(space + &said, deltas);
    }

    /// Gives out held text up to here, but for white space at its end, which may stand before a mark.
    fn give_out(&mut self, end: usize, deltas: &mut Vec<Delta>) {
        if end == 0 {
            return;
        }
        self.before = Some(self.held.as_bytes()[end - 1]);
        let is_stripped = self.field().is_none_or(|field| field.content.is_stripped());
        let words = if is_stripped { self.held[..end].trim_end().len() } else { end };
        let said = if words == 0 { String::new() } else { std::mem::take(&mut self.space) + &self.held[..words] };
        self.space.push_str(&self.held[words..end]);
        self.held.drain(..end);
        self.say(said, deltas);
    }

    /// Gives out text of the open part.
    fn say(&mut self, text: String, deltas: &mut Vec<Delta>) {
        let is_stripped = self.field().is_none_or(|field| field.content.is_stripped());
        let mut text = if self.has_begun || !is_stripped { text } else { text.trim_start().to_owned() };
        if text.is_empty() {
            return;
        }
        let part = self.part();
        if !self.has_begun && self.last == Some(part) {
            let join = self.field().and_then(|field| field.join.as_deref()).unwrap_or(PARAGRAPH);
            text.insert_str(0, join);
        }
        self.has_begun = true;
        match part {
            Part::Reasoning => deltas.push(Delta::Reasoning(text)),
            Part::Text | Part::Calls => {
                self.has_spoken = true;
                deltas.push(Delta::Text(text));
            }
            Part::Aside => return,
        }
        self.last = Some(part);
    }

    fn field(&self) -> Option<&Field> {
        let index = match self.place {
            Place::Field(field) => Some(field),
            Place::Between => self.format.implicit,
            Place::Calls(..) => None,
        };
        index.map(|index| &self.format.fields[index])
    }

    /// What the open part is; calls that turned out to be none are text.
    fn part(&self) -> Part {
        self.field().map_or(Part::Aside, |field| if field.part == Part::Calls { Part::Text } else { field.part })
    }
}

/// Of text that is read at once.
const MAX_PIECE_BYTES: usize = 4096;
/// Marks in a row that take no text; more of them would go on for ever.
const MAX_IDLE_MARKS: usize = 4;
/// What stands between two parts of one kind, where the format does not say.
const PARAGRAPH: &str = "\n\n";

fn region<'a>(format: &'a Template, field: usize, tools: &'a [Tool]) -> Region<'a> {
    Region { field: &format.fields[field], watch: format.watch(Some(field)), tools }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A parser of the format with the most to take care of.
    fn hermes(last_words: &str, tools: &[&str]) -> ReplyParser {
        let tools = tools.iter().map(|name| tool(name)).collect();
        ReplyParser::new(&ResponseFormat::named("hermes").unwrap(), FormatCalls::Own, last_words, tools)
    }

    fn tool(name: &str) -> Tool {
        Tool { name: name.to_owned(), description: None, parameters: None, strict: false, is_enforceable: true }
    }

    /// Deltas with neighbours of one kind joined, so that they do not depend on how the text was cut.
    fn parse(last_words: &str, pieces: &[&str]) -> Vec<Delta> {
        let mut parser = hermes(last_words, &["f", "g"]);
        let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        deltas.extend(parser.finish(false));
        joined(deltas)
    }

    fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
        let mut joined: Vec<Delta> = Vec::new();
        for delta in deltas {
            match (joined.last_mut(), delta) {
                (Some(Delta::Text(text)), Delta::Text(more))
                | (Some(Delta::Arguments(text)), Delta::Arguments(more))
                | (Some(Delta::Reasoning(text)), Delta::Reasoning(more)) => {
                    text.push_str(&more);
                }
                (_, delta) => joined.push(delta),
            }
        }
        joined
    }

    #[test]
    fn the_parts_of_a_reply() {
        let calls = "<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n\
                     </tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": \"{}\"}\n</tool_call>";
        insta::assert_debug_snapshot!(parse("", &[calls]), @r#"
        [
            Reasoning(
                "Hm.",
            ),
            Text(
                "Let me see.",
            ),
            ToolCall {
                name: "f",
            },
            Arguments(
                "{\"a\": 1}",
            ),
            ToolCallEnd,
            ToolCall {
                name: "g",
            },
            Arguments(
                "{}",
            ),
            ToolCallEnd,
        ]
        "#);
    }

    #[test]
    fn the_template_may_have_begun_the_reasoning() {
        let expected = [Delta::Reasoning("Hm.".to_owned()), Delta::Text("Yes.".to_owned())];
        assert_eq!(parse("<|im_start|>assistant\n<think>\n", &["Hm.\n</think>\n\nYes."]), expected);
    }

    #[test]
    fn what_is_no_call_is_text() {
        let texts = [
            "<tool_call>oops</tool_call>",
            "a <tool_call>oops</tool_call> b",
            "<tool_call>\n{\"name\": \"f",
            "<tool_call>{\"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": 1}</tool_call>",
            "1 < 2 <tool",
            "</think> x",
            "Write <think> first, then </think>.",
        ];
        for text in texts {
            assert_eq!(parse("", &[text]), [Delta::Text(text.to_owned())]);
        }
    }

    #[test]
    fn a_call_may_lack_its_closing_mark_or_hold_it_in_a_string() {
        let call = |arguments: &str| {
            let arguments = Delta::Arguments(arguments.to_owned());
            [Delta::ToolCall { name: "f".to_owned() }, arguments, Delta::ToolCallEnd]
        };
        assert_eq!(parse("", &["<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n"]), call("{\"a\": 1}"));
        let quoted = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>";
        assert_eq!(parse("", &[quoted]), call("{\"a\": \"</tool_call>\"}"));
    }

    #[test]
    fn arguments_come_as_they_are_written() {
        let mut parser = hermes("", &["f"]);
        let delta = |text: &str| Delta::Arguments(text.to_owned());
        assert_eq!(parser.push("<tool_call>\n{\"name\": \"f\""), [Delta::ToolCall { name: "f".to_owned() }]);
        assert_eq!(parser.push(", \"arguments\": {\"a\""), [delta("{\"a\"")]);
        assert_eq!(parser.push(": [1, \"</tool"), [delta(": [1, \"</tool")]);
        assert_eq!(parser.push("_call>\"]"), [delta("_call>\"]")]);
        assert_eq!(parser.push("}}\n</tool"), [delta("}")]);
        assert_eq!(parser.push("_call>\nDone."), [Delta::ToolCallEnd, Delta::Text("Done.".to_owned())]);
    }

    #[test]
    fn a_call_may_be_spelled_in_other_ways() {
        let says = |text: &str| match &parse("", &[text])[..] {
            [Delta::ToolCall { name }, Delta::Arguments(arguments), rest @ ..] => {
                format!("{name}{arguments}{}", rest.len())
            }
            other => format!("{other:?}"),
        };
        let calls = [
            "<tool_call>{\"arguments\": {\"a\": \"}\"}, \"name\": \"f\"}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}</tool_call>",
            "<tool_call>{\"id\": [1, {}], \"name\": \"f\", \"x\": null, \"arguments\": \"{\\\"a\\\": \\\"}\\\"}\"}</tool_call>",
        ];
        for call in calls {
            assert_eq!(says(call), "f{\"a\": \"}\"}1");
        }
        for call in ["<tool_call>{\"name\": \"g\"}</tool_call>", "<tool_call>{\"name\": \"g\", \"arguments\": null}"] {
            assert_eq!(says(call), "g{}1");
        }
    }

    #[test]
    fn a_call_that_is_cut_or_broken_off_stays_what_it_is() {
        let begun = || vec![Delta::ToolCall { name: "f".to_owned() }, Delta::Arguments("{\"a\": ".to_owned())];
        assert_eq!(parse("", &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": "]), begun());
        let mut nameless = hermes("", &["find"]);
        assert_eq!(
            [nameless.push("Yes. <tool_call>{\"name\": \"fi"), nameless.finish(true)].concat(),
            [Delta::Text("Yes.".to_owned())]
        );
        let broken_off = parse("", &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": </tool_call>b"]);
        assert_eq!(broken_off, [begun(), vec![Delta::ToolCallEnd, Delta::Text("b".to_owned())]].concat());
    }

    #[test]
    fn what_cannot_be_a_call_is_not_held_back() {
        let mut parser = hermes("", &["f"]);
        let said = ["<tool_call>", " is"].map(|text| Delta::Text(text.to_owned()));
        assert_eq!(parser.push("<tool_call> is"), said);
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let mut parser = hermes("", &[]);
        let deltas = [parser.push(text), parser.finish(false)].concat();
        let said = |delta: &Delta| if let Delta::Text(text) = delta { text.clone() } else { panic!("{delta:?}") };
        assert_eq!(deltas.iter().map(said).collect::<String>(), text);
    }

    #[test]
    fn a_call_without_arguments_has_an_empty_object() {
        for arguments in ["\"\"", "\" \"", "null", "", "\"{}\""] {
            let text = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}}}</tool_call>");
            let name = "f".to_owned();
            let expected = [Delta::ToolCall { name }, Delta::Arguments("{}".to_owned()), Delta::ToolCallEnd];
            assert_eq!(parse("", &[&text]), expected, "{arguments}");
        }
    }

    #[test]
    fn what_names_no_tool_for_long_is_text_and_the_next_call_is_one() {
        let endless = format!("<tool_call>{{\"arguments\": [\"{}", "é".repeat(100_000));
        let text = format!("{endless}<tool_call>{{\"name\": \"f\", \"arguments\": {{}}}}</tool_call>");
        let name = "f".to_owned();
        let arguments = Delta::Arguments("{}".to_owned());
        let expected = [Delta::Text(endless), Delta::ToolCall { name }, arguments, Delta::ToolCallEnd];
        assert_eq!(parse("", &[&text]), expected);
        let pieces: Vec<&str> = text.split_inclusive('é').collect();
        assert_eq!(parse("", &pieces), expected);
    }

    /// Whatever is long, reading costs about the same for each byte. Reading from the beginning for each piece would take
    /// minutes.
    #[test]
    fn long_calls_are_read_in_linear_time() {
        let long = "{\\\"a\\\": [1]}, ".repeat(6_000);
        let texts = [
            format!("{{\"name\": \"f\", \"arguments\": {{\"a\": \"{long}\"}}}}"),
            format!("{{\"name\": \"f\", \"arguments\": \"{long}\"}}"),
            format!("{{\"name\": \"f\", \"x\": \"{long}\", \"arguments\": {{}}}}"),
            format!("{{\"name\": \"f\", {}}}", "\"x\": 1, ".repeat(10_000)),
            format!("{{\"arguments\": \"{long}\", \"name\": \"f\"}}"),
            format!("{{\"{long}\": 1, \"name\": \"f\"}}"),
            format!("{{\"name\": \"f\", \"arguments\": {}", "[".repeat(100_000)),
            format!("{{\"name\": \"f\", \"arguments\":{}1}}", " ".repeat(100_000)),
            "<tool_call>{\"a\": [".repeat(5_000),
        ];
        let begin = std::time::Instant::now();
        for text in texts {
            let mut parser = hermes("", &["f"]);
            let call = format!("<tool_call>{text}</tool_call>");
            for index in 0..call.len() {
                parser.push(&call[index..=index]);
            }
            parser.finish(false);
        }
        assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    }

    /// Replies with calls as models write them, and with what they get wrong.
    fn reply() -> impl Strategy<Value = String> {
        let value = prop::sample::select(vec![
            "1",
            "null",
            "-1e9",
            "[]",
            "{}",
            "[[{}]]",
            "\"\"",
            "\"é\\n\\\"\"",
            "\"</tool_call>\"",
            "\"<tool_call>\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud800\"",
            "\"}\"",
            "\"\\\\\"",
            "{\"a\": {\"b\": [\"]\"]}}",
            "\"👍🏽\"",
        ]);
        let object = prop::collection::vec(value, 0..4).prop_map(|values| {
            let members = values.iter().enumerate().map(|(number, value)| format!("\"k{number}\": {value}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        });
        let wrapped = object.clone().prop_map(|object| serde_json::to_string(&object).unwrap());
        let arguments = prop_oneof![4 => object, 1 => wrapped, 1 => Just("null".to_owned()), 1 => Just("7".to_owned())];
        let name = prop::sample::select(vec!["f", "g", "h", ""]);
        let space = prop::sample::select(vec!["", " ", "\n", "\n\n  "]);
        let call = (name, arguments, 0..4_u8, space.clone()).prop_map(|(name, arguments, order, space)| {
            let object = match order {
                0 => format!("{{\"arguments\": {arguments}, \"name\": \"{name}\"}}"),
                1 => format!("{{\"id\": [1], \"name\": \"{name}\", \"x\": {{}}, \"parameters\": {arguments}}}"),
                _ => format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}"),
            };
            format!("<tool_call>{space}{object}{space}</tool_call>{space}")
        });
        let thought = prop::sample::select(vec!["", "<think>Hm.</think>", "<think>\nA <tool_call>\n</think>\n\n"]);
        let words = prop::sample::select(vec!["", "Let me see.\n", "a < b </think> ", "é"]);
        let parts = (thought, prop::collection::vec(prop_oneof![3 => call, 1 => words.prop_map(str::to_owned)], 0..4));
        parts.prop_map(|(thought, parts)| thought.to_owned() + &parts.concat())
    }

    /// A place, how many characters go there, and what comes instead.
    fn mutation() -> impl Strategy<Value = (prop::sample::Index, usize, &'static str)> {
        let instead =
            vec!["", "\"", "\\", "{", "}", "]", ",", ":", "<", "</tool_call>", "<tool_call>", "<think>", " ", "é"];
        (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(instead))
    }

    fn mutated(text: &str, mutations: &[(prop::sample::Index, usize, &str)]) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for (place, num_gone, instead) in mutations {
            let start = place.index(chars.len() + 1);
            let end = (start + num_gone).min(chars.len());
            chars.splice(start..end, instead.chars());
        }
        chars.into_iter().collect()
    }

    fn pieces<'t>(text: &'t str, cuts: &[prop::sample::Index]) -> Vec<&'t str> {
        let boundaries: Vec<usize> = (0..=text.len()).filter(|index| text.is_char_boundary(*index)).collect();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
        bounds.extend([0, text.len()]);
        bounds.sort_unstable();
        bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
    }

    /// Calls begin with a name, then come arguments and the end, each at most once.
    fn is_in_order(deltas: &[Delta]) -> bool {
        let mut in_call = false;
        deltas.iter().enumerate().all(|(index, delta)| match delta {
            Delta::ToolCall { .. } => !std::mem::replace(&mut in_call, true),
            Delta::Arguments(_) => matches!(deltas[index - 1], Delta::ToolCall { .. }),
            Delta::ToolCallEnd => std::mem::replace(&mut in_call, false),
            Delta::Text(text) | Delta::Reasoning(text) => !in_call && !text.is_empty(),
        })
    }

    /// Formats whose marks are special tokens, these tokens, and what else is said between them.
    const SPECIAL: &[(&str, &[&str], &[&str])] = &[
        (
            "gpt-oss",
            &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"],
            &["analysis", "final", "commentary", " to=functions.f", "assistant", "{}", "{\"a\": 1}", "json", "x", " "],
        ),
        (
            "mistral",
            &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"],
            &["f", "h", "{}", "[{\"name\": \"f\", \"arguments\": {}}]", "x1", " ", "text", "\n"],
        ),
        (
            "gemma-4",
            &["<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>", "<|\"|>"],
            &["call:f", "call:h", "{a:", "}", "thought\n", "x", " "],
        ),
    ];

    #[test]
    fn special_tokens_are_never_said() {
        let with_marks = |(name, tokens, _): &(&str, &[&str], _)| {
            ResponseFormat::named(name).unwrap().with_special_tokens(tokens.iter().copied())
        };
        let formats: Vec<ResponseFormat> = SPECIAL.iter().map(with_marks).collect();
        let parts = prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..16);
        let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..8);
        proptest!(|(format in 0..SPECIAL.len(), parts in parts, cuts in cuts)| {
            let (_, tokens, words) = SPECIAL[format];
            let text: String = parts.iter().map(|(is_token, index)| *index.get(if *is_token { tokens } else { words })).collect();
            let parse = |pieces: &[&str]| {
                let mut parser = ReplyParser::new(&formats[format], FormatCalls::Own, "", vec![tool("f")]);
                let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
                deltas.extend(parser.finish(false));
                joined(deltas)
            };
            let whole = parse(&[&text]);
            prop_assert!(is_in_order(&whole), "{:?}", whole);
            prop_assert_eq!(parse(&pieces(&text, &cuts)), &whole[..]);
            for delta in &whole {
                if let Delta::Text(said) | Delta::Reasoning(said) = delta {
                    prop_assert!(tokens.iter().all(|token| !said.contains(token)), "{:?}", whole);
                }
            }
        });
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_gives_the_same(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"é\": \"</\"}}",
                "text", " ", "\n\n", "{\"name\": \"f\", ", "\"arguments\": ", "{\"a\": [", "]}", "}", "\"", "\\", ", \"b\": 1", "null", "{\"name\": \"f\", \"arguments\": \"", "{\"name\": \"h\"}", "<", "</t", "é", "<think", "{}",
            ]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let text = parts.concat();
            prop_assert_eq!(parse("", &pieces(&text, &cuts)), parse("", &[&text]));
        }

        #[test]
        fn any_cut_of_a_reply_with_faults_gives_the_same(
            reply in reply(),
            mutations in prop::collection::vec(mutation(), 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            last_words in prop::sample::select(vec!["", "<think>\n"]),
        ) {
            let text = mutated(&reply, &mutations);
            let whole = parse(last_words, &[&text]);
            prop_assert!(is_in_order(&whole), "{:?}", whole);
            prop_assert_eq!(parse(last_words, &pieces(&text, &cuts)), &whole[..]);
            let single: Vec<String> = text.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            prop_assert_eq!(parse(last_words, &single), whole);
        }
    }
}
