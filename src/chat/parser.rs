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
/// a mark. What looks like a call but is not valid JSON with a name is text.
#[derive(Debug)]
pub struct ReplyParser {
    format: ReplyFormat,
    part: Part,
    /// Text that cannot be told apart yet.
    held: String,
    /// How much of it holds no whole mark, so that a long call is not searched again for each token.
    num_searched: usize,
    /// Whether the open part has said anything.
    has_begun: bool,
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
    /// Calls are looked for only where there are tools to call.
    pub fn new(format: ReplyFormat, last_words: &str, has_tools: bool) -> Self {
        let format = ReplyFormat { tool_call: format.tool_call && has_tools, ..format };
        let is_reasoning = format.think && last_words.trim_end().ends_with(THINK_BEGIN);
        let part = if is_reasoning { Part::Reasoning } else { Part::Text };
        Self { format, part, held: String::new(), num_searched: 0, has_begun: false }
    }

    /// Whether the reply is inside its reasoning.
    pub fn is_reasoning(&self) -> bool {
        self.part == Part::Reasoning
    }

    /// Takes more text and gives out what can be told apart.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while let Some((start, mark, next)) = self.first_mark() {
            let rest = self.held.split_off(start + mark.len());
            self.held.truncate(start);
            self.close_part(&mut deltas);
            self.held = rest;
            self.num_searched = 0;
            self.part = next;
            self.has_begun = false;
        }
        self.num_searched = self.held.len();
        if self.part != Part::Call {
            self.num_searched = 0;
            let keep_from = self.first_undecided();
            let rest = self.held.split_off(keep_from);
            let decided = std::mem::replace(&mut self.held, rest);
            self.say(decided, &mut deltas);
        }
        deltas
    }

    /// What is left when no more text comes. A call that was cut is given out as the text it is.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let rest = std::mem::take(&mut self.held);
        match self.part {
            Part::Call => {
                self.part = Part::Text;
                self.say(format!("{CALL_BEGIN}{rest}"), &mut deltas);
            }
            Part::Text | Part::Reasoning => self.say(rest, &mut deltas),
        }
        deltas
    }

    fn first_mark(&self) -> Option<(usize, &'static str, Part)> {
        let marks = self.part.marks(self.format);
        let longest = marks.iter().map(|(mark, _)| mark.len()).max()?;
        let begin = self.held.floor_char_boundary(self.num_searched.saturating_sub(longest));
        let find = |(mark, next): &(&'static str, Part)| {
            self.held[begin..].find(mark).map(|start| (begin + start, *mark, *next))
        };
        marks.iter().filter_map(find).min_by_key(|(start, ..)| *start)
    }

    /// Ends the open part, whose last text is held.
    fn close_part(&mut self, deltas: &mut Vec<Delta>) {
        let text = std::mem::take(&mut self.held);
        match self.part {
            Part::Text | Part::Reasoning => self.say(text.trim_end().to_owned(), deltas),
            Part::Call => match parse_call(&text) {
                Some((name, arguments)) => {
                    deltas.extend([Delta::ToolCall { name }, Delta::Arguments(arguments), Delta::ToolCallEnd]);
                }
                None => {
                    self.part = Part::Text;
                    self.say(format!("{CALL_BEGIN}{text}{CALL_END}"), deltas);
                }
            },
        }
    }

    /// Gives out text of the open part.
    fn say(&mut self, text: String, deltas: &mut Vec<Delta>) {
        let text = if self.has_begun { text } else { text.trim_start().to_owned() };
        if text.is_empty() {
            return;
        }
        self.has_begun = true;
        deltas.push(if self.part == Part::Reasoning { Delta::Reasoning(text) } else { Delta::Text(text) });
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

/// Name and arguments of a call; the arguments as the model wrote them.
fn parse_call(text: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Call<'a> {
        name: String,
        #[serde(borrow, alias = "parameters")]
        arguments: Option<&'a RawValue>,
    }

    let call: Call<'_> = serde_json::from_str(text.trim()).ok()?;
    let arguments = call.arguments.map_or("{}", RawValue::get);
    // Some models wrap the object in a string.
    let unwrapped = serde_json::from_str::<String>(arguments);
    Some((call.name, unwrapped.unwrap_or_else(|_| arguments.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: ReplyFormat = ReplyFormat { think: true, tool_call: true };

    /// Deltas with neighbours of one kind joined, so that they do not depend on how the text was cut.
    fn parse(last_words: &str, pieces: &[&str]) -> Vec<Delta> {
        let mut parser = ReplyParser::new(BOTH, last_words, true);
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
        for text in ["<tool_call>oops</tool_call>", "<tool_call>\n{\"name\": \"f\"", "1 < 2 <tool", "</think> x"] {
            assert_eq!(parse("", &[text]), [Delta::Text(text.to_owned())]);
        }
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let mut parser = ReplyParser::new(BOTH, "", false);
        let deltas = [parser.push(text), parser.finish()].concat();
        assert_eq!(deltas, [Delta::Text(text.to_owned())]);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_gives_the_same(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"é\": \"</\"}}",
                "text", " ", "\n\n", "<", "</t", "é", "<think", "{}",
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
