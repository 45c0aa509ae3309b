//! A reply's text, told apart into reasoning, text and tool calls, whatever way the text is cut.

use super::{
    Delta,
    call::{CALL_BEGIN, CallReader, Outcome},
};

/// How a model marks what is not plain text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReplyFormat {
    /// Reasoning stands in `<think>` … `</think>`.
    pub think: bool,
    /// Calls stand in `<tool_call>` … `</tool_call>`, each a JSON object with `name` and `arguments`.
    pub tool_call: bool,
}

impl ReplyFormat {
    /// What a chat template that replays such replies must itself contain.
    pub fn of_template(source: &str) -> Self {
        Self { think: source.contains(THINK_END), tool_call: source.contains(CALL_BEGIN) }
    }

    /// Whether a prompt that ends in these words has begun the reasoning.
    pub fn begins_reasoning(self, last_words: &str) -> bool {
        self.think && last_words.trim_end().ends_with(THINK_BEGIN)
    }
}

pub(super) const THINK_BEGIN: &str = "<think>";
pub(super) const THINK_END: &str = "</think>";

/// Reads one reply as it comes.
///
/// White space around the marks is the format's, not the reply's: it is dropped at the beginning of a part and before
/// a mark. Reasoning comes before everything else, so a later `<think>` is text. What looks like a call but does not name
/// one of the tools is text.
#[derive(Debug)]
pub struct ReplyParser {
    format: ReplyFormat,
    tools: Vec<String>,
    part: Part,
    /// Text that cannot be told apart yet.
    held: String,
    /// Whether the open part has said anything.
    has_begun: bool,
    /// Whether the reply has said anything that is not reasoning.
    has_spoken: bool,
    /// What stood before the open call, in case that is only text: white space, and whether text came before it.
    before_call: (String, bool),
}

#[derive(Debug)]
enum Part {
    Text,
    Reasoning,
    Call(CallReader),
}

/// What a mark begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mark {
    Reasoning,
    Text,
    Call,
}

impl Part {
    /// The marks that end this part.
    fn marks(&self, format: ReplyFormat) -> &'static [(&'static str, Mark)] {
        match (self, format) {
            (Self::Text, ReplyFormat { think: true, tool_call: true }) => {
                &[(THINK_BEGIN, Mark::Reasoning), (CALL_BEGIN, Mark::Call)]
            }
            (Self::Text, ReplyFormat { think: true, tool_call: false }) => &[(THINK_BEGIN, Mark::Reasoning)],
            (Self::Text, ReplyFormat { think: false, tool_call: true }) => &[(CALL_BEGIN, Mark::Call)],
            (Self::Reasoning, _) => &[(THINK_END, Mark::Text)],
            (Self::Text, ReplyFormat { think: false, tool_call: false }) | (Self::Call(_), _) => &[],
        }
    }
}

impl ReplyParser {
    /// At the beginning of the reply to a prompt that ends in `last_words`, which may have begun the reasoning.
    /// Only calls of `tools` are calls.
    pub fn new(format: ReplyFormat, last_words: &str, tools: Vec<String>) -> Self {
        let format = ReplyFormat { tool_call: format.tool_call && !tools.is_empty(), ..format };
        Self {
            format,
            tools,
            part: if format.begins_reasoning(last_words) { Part::Reasoning } else { Part::Text },
            held: String::new(),
            has_begun: false,
            has_spoken: false,
            before_call: (String::new(), false),
        }
    }

    /// Whether the reply is inside its reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.part, Part::Reasoning)
    }

    /// Takes more text and gives out what can be told apart.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let mut more = text.to_owned();
        loop {
            if let Part::Call(call) = &mut self.part {
                match call.push(&more, &self.tools, &mut deltas) {
                    Outcome::Open => return deltas,
                    Outcome::Closed(rest) => {
                        self.has_spoken = true;
                        self.open_part(Part::Text, rest);
                    }
                    Outcome::NoCall(text) => self.reopen_text(text, &mut deltas),
                }
                more = String::new();
            }
            self.held.push_str(&std::mem::take(&mut more));
            if !self.close_part(&mut deltas) {
                break;
            }
            if let Part::Call(_) = self.part {
                more = std::mem::take(&mut self.held);
            }
        }
        let keep_from = self.first_undecided();
        let rest = self.held.split_off(keep_from);
        let decided = std::mem::replace(&mut self.held, rest);
        self.say(decided, &mut deltas);
        deltas
    }

    /// What is left when no more text comes. A call that lacks only its closing mark is one; a call that was cut stays open.
    /// What has not named a tool is the text it is, unless it may only lack the rest because the reply was cut.
    pub fn finish(&mut self, is_cut: bool) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if let Part::Call(call) = std::mem::replace(&mut self.part, Part::Text) {
            match call.finish(&mut deltas) {
                None => return deltas,
                Some(_) if is_cut => return deltas,
                Some(text) => self.reopen_text(text, &mut deltas),
            }
        }
        let rest = std::mem::take(&mut self.held);
        self.say(rest, &mut deltas);
        deltas
    }

    /// Ends the open part, which is no call, if the held text does.
    fn close_part(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let Some((start, text, mark)) = self.first_mark() else { return false };
        let rest = self.held.split_off(start + text.len());
        self.held.truncate(start);
        let part = std::mem::take(&mut self.held);
        let words = part.trim_end();
        self.say(words.to_owned(), deltas);
        self.before_call = (part[words.len()..].to_owned(), self.has_begun);
        let next = match mark {
            Mark::Text => Part::Text,
            Mark::Reasoning => Part::Reasoning,
            Mark::Call => Part::Call(CallReader::default()),
        };
        self.open_part(next, rest);
        true
    }

    fn open_part(&mut self, part: Part, held: String) {
        self.part = part;
        self.held = held;
        self.has_begun = false;
    }

    /// What looked like a call is text: it goes on where the text before it ended.
    fn reopen_text(&mut self, text: String, deltas: &mut Vec<Delta>) {
        let (space, has_begun) = std::mem::take(&mut self.before_call);
        self.open_part(Part::Text, text);
        self.has_begun = has_begun;
        self.say(space + CALL_BEGIN, deltas);
    }

    fn first_mark(&self) -> Option<(usize, &'static str, Mark)> {
        let find = |(text, mark): &(&'static str, Mark)| self.held.find(text).map(|start| (start, *text, *mark));
        let is_mark = |(start, _, mark): &(usize, &str, Mark)| {
            *mark != Mark::Reasoning || (!self.has_spoken && self.held[..*start].trim().is_empty())
        };
        let marks = self.part.marks(self.format).iter();
        marks.filter_map(find).filter(is_mark).min_by_key(|(start, ..)| *start)
    }

    /// Gives out text of the open part.
    fn say(&mut self, text: String, deltas: &mut Vec<Delta>) {
        let text = if self.has_begun { text } else { text.trim_start().to_owned() };
        if text.is_empty() {
            return;
        }
        self.has_begun = true;
        if self.is_reasoning() {
            deltas.push(Delta::Reasoning(text));
        } else {
            self.has_spoken = true;
            deltas.push(Delta::Text(text));
        }
    }

    /// Where white space or the beginning of a mark starts that more text may complete.
    fn first_undecided(&self) -> usize {
        let marks = self.part.marks(self.format);
        let begins_mark = |index: &usize| marks.iter().any(|(mark, _)| mark.starts_with(&self.held[*index..]));
        let longest = marks.iter().map(|(mark, _)| mark.len()).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(index, _)| index).filter(|index| earliest <= *index);
        let decided = starts.find(begins_mark).unwrap_or(self.held.len());
        match marks.is_empty() && self.has_begun {
            true => decided,
            false => self.held[..decided].trim_end().len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: ReplyFormat = ReplyFormat { think: true, tool_call: true };

    /// Deltas with neighbours of one kind joined, so that they do not depend on how the text was cut.
    fn parse(last_words: &str, pieces: &[&str]) -> Vec<Delta> {
        let mut parser = ReplyParser::new(BOTH, last_words, vec!["f".to_owned(), "g".to_owned()]);
        let mut joined: Vec<Delta> = Vec::new();
        let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        deltas.extend(parser.finish(false));
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
        let mut parser = ReplyParser::new(BOTH, "", vec!["f".to_owned()]);
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
        let mut nameless = ReplyParser::new(BOTH, "", vec!["find".to_owned()]);
        assert_eq!(
            [nameless.push("Yes. <tool_call>{\"name\": \"fi"), nameless.finish(true)].concat(),
            [Delta::Text("Yes.".to_owned())]
        );
        let broken_off = parse("", &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": </tool_call>b"]);
        assert_eq!(broken_off, [begun(), vec![Delta::ToolCallEnd, Delta::Text("b".to_owned())]].concat());
    }

    #[test]
    fn what_cannot_be_a_call_is_not_held_back() {
        let mut parser = ReplyParser::new(BOTH, "", vec!["f".to_owned()]);
        let said = ["<tool_call>", " is"].map(|text| Delta::Text(text.to_owned()));
        assert_eq!(parser.push("<tool_call> is"), said);
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let mut parser = ReplyParser::new(BOTH, "", Vec::new());
        let deltas = [parser.push(text), parser.finish(false)].concat();
        assert_eq!(deltas, [Delta::Text(text.to_owned())]);
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
        let long = "{\\\"a\\\": [1]}, ".repeat(12_000);
        let texts = [
            format!("{{\"name\": \"f\", \"arguments\": {{\"a\": \"{long}\"}}}}"),
            format!("{{\"name\": \"f\", \"arguments\": \"{long}\"}}"),
            format!("{{\"name\": \"f\", \"x\": \"{long}\", \"arguments\": {{}}}}"),
            format!("{{\"name\": \"f\", {}}}", "\"x\": 1, ".repeat(20_000)),
            format!("{{\"arguments\": \"{long}\", \"name\": \"f\"}}"),
            format!("{{\"{long}\": 1, \"name\": \"f\"}}"),
            format!("{{\"name\": \"f\", \"arguments\": {}", "[".repeat(200_000)),
            format!("{{\"name\": \"f\", \"arguments\":{}1}}", " ".repeat(200_000)),
            "<tool_call>{\"a\": [".repeat(10_000),
        ];
        let begin = std::time::Instant::now();
        for text in texts {
            let mut parser = ReplyParser::new(BOTH, "", vec!["f".to_owned()]);
            let call = format!("<tool_call>{text}</tool_call>");
            for index in 0..call.len() {
                parser.push(&call[index..=index]);
            }
            parser.finish(false);
        }
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
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
