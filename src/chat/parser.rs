//! A reply's text, told apart into reasoning, text and tool calls, whatever way the text is cut.

use super::Delta;
use serde::Deserialize;
use serde_json::value::RawValue;

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
}

const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL_BEGIN: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// Reads one reply as it comes.
///
/// White space around the marks is the format's, not the reply's: it is dropped at the beginning of a part and before
/// a mark. Reasoning comes before everything else, so a later `<think>` is text. What looks like a call but is not a JSON
/// object that names one of the tools is text.
#[derive(Debug)]
pub struct ReplyParser {
    format: ReplyFormat,
    tools: Vec<String>,
    part: Part,
    /// Text that cannot be told apart yet.
    held: String,
    /// How much of it holds no whole mark, so that a long call is not searched again for each token.
    num_searched: usize,
    /// Whether the open part has said anything.
    has_begun: bool,
    /// Whether the reply has said anything that is not reasoning.
    has_spoken: bool,
    /// What stood before the open call, in case that is only text: white space, and whether text came before it.
    before_call: (String, bool),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Text,
    Reasoning,
    Call,
}

impl Part {
    /// The marks that end this part and what follows them.
    fn marks(self, format: ReplyFormat) -> &'static [(&'static str, Part)] {
        match (self, format) {
            (Self::Text, ReplyFormat { think: true, tool_call: true }) => {
                &[(THINK_BEGIN, Part::Reasoning), (CALL_BEGIN, Part::Call)]
            }
            (Self::Text, ReplyFormat { think: true, tool_call: false }) => &[(THINK_BEGIN, Part::Reasoning)],
            (Self::Text, ReplyFormat { think: false, tool_call: true }) => &[(CALL_BEGIN, Part::Call)],
            (Self::Text, ReplyFormat { think: false, tool_call: false }) => &[],
            (Self::Reasoning, _) => &[(THINK_END, Part::Text)],
            (Self::Call, _) => &[(CALL_END, Part::Text)],
        }
    }
}

impl ReplyParser {
    /// At the beginning of the reply to a prompt that ends in `last_words`, which may have begun the reasoning.
    /// Only calls of `tools` are calls.
    pub fn new(format: ReplyFormat, last_words: &str, tools: Vec<String>) -> Self {
        let format = ReplyFormat { tool_call: format.tool_call && !tools.is_empty(), ..format };
        let is_reasoning = format.think && last_words.trim_end().ends_with(THINK_BEGIN);
        Self {
            format,
            tools,
            part: if is_reasoning { Part::Reasoning } else { Part::Text },
            held: String::new(),
            num_searched: 0,
            has_begun: false,
            has_spoken: false,
            before_call: (String::new(), false),
        }
    }

    /// Whether the reply is inside its reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.part == Part::Reasoning
    }

    /// Takes more text and gives out what can be told apart.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.close_part(&mut deltas) {}
        if self.part != Part::Call {
            let keep_from = self.first_undecided();
            let rest = self.held.split_off(keep_from);
            let decided = std::mem::replace(&mut self.held, rest);
            self.say(decided, &mut deltas);
        }
        deltas
    }

    /// What is left when no more text comes. A call that lacks only its closing mark is one; a call that was cut is the
    /// text it is.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.part == Part::Call {
            match self.parse_call(&self.held) {
                Call::Complete { name, arguments } => {
                    push_call(name, arguments, &mut deltas);
                    self.held.clear();
                }
                Call::Cut | Call::Not => self.reopen_text(&mut deltas),
            }
        }
        let rest = std::mem::take(&mut self.held);
        self.say(rest, &mut deltas);
        deltas
    }

    /// Ends the open part if the held text does.
    fn close_part(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if self.part == Part::Call {
            return self.close_call(deltas);
        }
        let Some((start, mark, next)) = self.first_mark() else { return false };
        let rest = self.held.split_off(start + mark.len());
        self.held.truncate(start);
        let part = std::mem::take(&mut self.held);
        let words = part.trim_end();
        self.say(words.to_owned(), deltas);
        self.before_call = (part[words.len()..].to_owned(), self.has_begun);
        self.open_part(next, rest);
        true
    }

    fn close_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if self.held.trim_start().starts_with(|first| first != '{') {
            self.reopen_text(deltas);
            return true;
        }
        while let Some(start) = self.held[self.num_searched..].find(CALL_END) {
            let start = self.num_searched + start;
            match self.parse_call(&self.held[..start]) {
                Call::Complete { name, arguments } => {
                    push_call(name, arguments, deltas);
                    self.has_spoken = true;
                    let rest = self.held.split_off(start + CALL_END.len());
                    self.open_part(Part::Text, rest);
                    return true;
                }
                Call::Not => {
                    self.reopen_text(deltas);
                    return true;
                }
                // The mark stands inside a string of the JSON.
                Call::Cut => self.num_searched = start + CALL_END.len(),
            }
        }
        let tail = self.held.floor_char_boundary(self.held.len().saturating_sub(CALL_END.len()));
        self.num_searched = self.num_searched.max(tail);
        false
    }

    fn open_part(&mut self, part: Part, held: String) {
        self.part = part;
        self.held = held;
        self.num_searched = 0;
        self.has_begun = false;
    }

    /// What looked like a call is text: it goes on where the text before it ended.
    fn reopen_text(&mut self, deltas: &mut Vec<Delta>) {
        let (space, has_begun) = std::mem::take(&mut self.before_call);
        self.part = Part::Text;
        self.has_begun = has_begun;
        self.say(space + CALL_BEGIN, deltas);
    }

    fn first_mark(&self) -> Option<(usize, &'static str, Part)> {
        let find = |(mark, next): &(&'static str, Part)| self.held.find(mark).map(|start| (start, *mark, *next));
        let is_mark = |(start, _, next): &(usize, &str, Part)| {
            *next != Part::Reasoning || (!self.has_spoken && self.held[..*start].trim().is_empty())
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
        if self.part == Part::Reasoning {
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

    /// A JSON object with the name of a tool and its arguments, which are kept as the model wrote them.
    fn parse_call(&self, text: &str) -> Call {
        #[derive(Deserialize)]
        struct Object<'a> {
            name: String,
            #[serde(borrow, alias = "parameters")]
            arguments: Option<&'a RawValue>,
        }

        let object: Object<'_> = match serde_json::from_str(text.trim()) {
            Ok(object) => object,
            Err(error) if error.is_eof() => return Call::Cut,
            Err(_) => return Call::Not,
        };
        if !self.tools.contains(&object.name) {
            return Call::Not;
        }
        let arguments = object.arguments.map_or("{}", RawValue::get);
        // Some models wrap the object in a string.
        let unwrapped = serde_json::from_str::<String>(arguments);
        Call::Complete { name: object.name, arguments: unwrapped.unwrap_or_else(|_| arguments.to_owned()) }
    }
}

/// What the text of a call may turn out to be.
enum Call {
    Complete {
        name: String,
        arguments: String,
    },
    /// The beginning of JSON.
    Cut,
    /// Neither a call nor the beginning of one.
    Not,
}

fn push_call(name: String, arguments: String, deltas: &mut Vec<Delta>) {
    deltas.extend([Delta::ToolCall { name }, Delta::Arguments(arguments), Delta::ToolCallEnd]);
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
        deltas.extend(parser.finish());
        for delta in deltas {
            match (joined.last_mut(), delta) {
                (Some(Delta::Text(text)), Delta::Text(more))
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
            "<tool_call>\n{\"name\": \"f\"",
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
    fn what_cannot_be_a_call_is_not_held_back() {
        let mut parser = ReplyParser::new(BOTH, "", vec!["f".to_owned()]);
        let said = ["<tool_call>", " is"].map(|text| Delta::Text(text.to_owned()));
        assert_eq!(parser.push("<tool_call> is"), said);
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let mut parser = ReplyParser::new(BOTH, "", Vec::new());
        let deltas = [parser.push(text), parser.finish()].concat();
        assert_eq!(deltas, [Delta::Text(text.to_owned())]);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_gives_the_same(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"é\": \"</\"}}",
                "text", " ", "\n\n", "{\"name\": \"f\", \"arguments\": \"", "{\"name\": \"h\"}", "<", "</t", "é", "<think", "{}",
            ]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let text = parts.concat();
            let boundaries: Vec<usize> = (0..=text.len()).filter(|index| text.is_char_boundary(*index)).collect();
            let mut bounds: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
            bounds.extend([0, text.len()]);
            bounds.sort_unstable();
            let pieces: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse("", &pieces), parse("", &[&text]));
        }
    }
}
