//! How a model marks reasoning and tool calls, as data.
//!
//! A format is what newer tokenizers carry as their `response_template`: fields of a message (`content`,
//! `reasoning_content`, `tool_calls`), each with the marks that open and close it and the kind of its content. Nothing in
//! the code knows a model; those that have no such template use one of `config/response_formats/*.json`, in the same
//! language. Which one, the model's folder, the config or the words of its chat template decide ([`pick`]).
//!
//! The same data is read in three ways:
//!
//! | | what it does with a format |
//! |---|---|
//! | [`template`], [`anchor`], [`pattern`], [`content`], [`call_shape`] | check and compile it, once per load |
//! | [`parser`], [`call`] | tell a reply apart while it comes |
//! | [`forced`] | write the grammar of a call, for replies that have to make one |
//!
//! The parser is at one of three places: between fields, where opening marks are looked for and text belongs to the field
//! without an opening mark; inside a field of text, where only its closing mark is looked for; or in a region of calls,
//! which has a reader of its own. There are three readers, since that is how far calls can be told before they are whole:
//! JSON streams byte by byte, tags one by one, and all else (Python, JSON with odd strings, lines) at its end.
//!
//! What a server needs and transformers' language lacks, each a key or value that old formats do not have:
//!
//! - `ends`: texts of tokens that end a reply, beside those that the model's configuration names.
//! - `leads` of a field: it begins only where nothing has been said, calls where nothing but calls. A later `<think>` is text.
//! - `content: "pythonic"`: calls in the syntax of Python.
//! - `tool_calls.list`, `content.preamble`: what follows a dot tells fields apart that make one key of the message.
//! - `models`, `detect`: what a built-in format is for, and texts of which a chat template holds all of one list.
//! - `start_anchor` may be missing, or not be found. Then only a mark at the very end of the prompt has begun a field.
//!
//! What is deliberately not as in transformers, since a stream cannot take back what it has said, and a server must not
//! refuse what a model has said: see `DIFFERENCES` in `scripts/record-response-formats`.

mod anchor;
mod call;
mod call_shape;
mod coercion;
mod content;
mod forced;
mod parser;
mod pattern;
mod pick;
mod python;
mod template;
mod translation;

pub(super) use forced::{ForcedCalls, Trigger, Writer, slashed};
pub use parser::ReplyParser;

use std::sync::Arc;
use template::Template;

/// How a model marks what is not plain text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ResponseFormat {
    name: Arc<str>,
    template: Arc<Template>,
    /// With calls in any case.
    calling: Arc<Template>,
}

/// Which calls are heard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FormatCalls {
    /// Those of the format.
    Own,
    /// Those of the format or, where it has none, of one that any model can be held to.
    OwnOrOurs,
}

/// Why a format cannot be used; the operator should change it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// No such format.
    #[error("there is no response format `{name}`; known are {known}, and `auto`")]
    Unknown {
        /// As configured.
        name: String,
        /// Names joined by commas.
        known: String,
    },
    /// The template as a whole.
    #[error("the response template cannot be read: {0}; correct it, or name a format in `response_format`")]
    Shape(String),
    /// One of its fields.
    #[error("the response template cannot be used: {place}: {message}")]
    Field {
        /// Which.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// A regular expression.
    #[error("the response template cannot be used: the expression of {place} cannot be followed: {message}")]
    Pattern {
        /// Whose.
        place: String,
        /// What is wrong with it, and what to do.
        message: String,
    },
}

impl ResponseFormat {
    fn new(name: &str, template: Template) -> Self {
        let calling = match template.fields_of(template::Part::Calls).next() {
            Some(_) => template.clone(),
            None => template.clone().with_calls_of(&pick::fallback().template),
        };
        Self { name: name.into(), template: Arc::new(template), calling: Arc::new(calling) }
    }

    /// As the config names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Texts of tokens that end a reply, whatever else does.
    pub fn ends(&self) -> impl Iterator<Item = &str> {
        self.template.ends.iter().map(String::as_str)
    }

    /// Whether a token is part of a mark, so that what follows it may belong to the reply.
    pub fn is_mark(&self, token: &str) -> bool {
        self.template.spells(token)
    }

    fn has(&self, part: template::Part) -> bool {
        self.template.fields_of(part).next().is_some()
    }

    /// For a tokenizer with these special tokens: those that marks are made of are part of a reply's text, and never of
    /// what a client gets.
    pub(super) fn with_special_tokens<'t>(self, tokens: impl Iterator<Item = &'t str> + Clone) -> Self {
        let with_tokens = |template: &Template| Arc::new(template.clone().with_special_tokens(tokens.clone()));
        Self { template: with_tokens(&self.template), calling: with_tokens(&self.calling), name: self.name }
    }

    /// Special tokens that marks are made of.
    pub(super) fn special_tokens(&self) -> &[String] {
        &self.calling.special_tokens
    }

    fn template(&self, calls: FormatCalls) -> &Arc<Template> {
        match calls {
            FormatCalls::Own => &self.template,
            FormatCalls::OwnOrOurs => &self.calling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{ChatTemplate, Delta, Message, Role, Tool, ToolCall};
    use serde_json::{Value, json};
    use std::{collections::BTreeMap, fmt::Write};

    const REASONING: &str = "The user wants to know.\nI look.";
    const WORDS: &str = "Let me see.";

    /// A reply, as a message of the model.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Said {
        reasoning: String,
        words: String,
        calls: Vec<(String, Value)>,
    }

    impl Said {
        /// Whether it says so much: reasoning, words, and how many calls with these arguments.
        fn new(reasons: bool, speaks: bool, calls: &[&Value]) -> Self {
            let name = |number: usize| if number == 0 { "look_up" } else { "move-it" };
            Self {
                reasoning: if reasons { REASONING } else { "" }.to_owned(),
                words: if speaks { WORDS } else { "" }.to_owned(),
                calls: calls
                    .iter()
                    .enumerate()
                    .map(|(number, call)| (name(number).to_owned(), (*call).clone()))
                    .collect(),
            }
        }

        fn message(&self) -> Message {
            let call = |(number, (name, arguments)): (usize, &(String, Value))| ToolCall {
                id: format!("call_{number:024}"),
                name: name.clone(),
                arguments: arguments.to_string(),
            };
            Message {
                reasoning: Some(self.reasoning.clone()).filter(|reasoning| !reasoning.is_empty()),
                tool_calls: self.calls.iter().enumerate().map(call).collect(),
                ..Message::text(Role::Assistant, self.words.clone())
            }
        }

        /// What a parser hears.
        fn heard(mut parser: ReplyParser, reply: &str) -> Self {
            let mut said = Self::default();
            let mut spelled = Vec::new();
            for delta in [parser.push(reply), parser.finish(false)].concat() {
                match delta {
                    Delta::Reasoning(text) => said.reasoning += &text,
                    Delta::Text(text) => said.words += &text,
                    Delta::ToolCall { name } => spelled.push((name, String::new())),
                    Delta::Arguments(text) => spelled.last_mut().unwrap().1 += &text,
                    Delta::ToolCallEnd => {}
                }
            }
            said.words.truncate(said.words.trim_end().len());
            let value = |text: &str| serde_json::from_str(text).unwrap_or(json!(text));
            said.calls = spelled.into_iter().map(|(name, arguments)| (name, value(&arguments))).collect();
            said
        }
    }

    fn tools() -> Vec<Tool> {
        let parameters = json!({ "type": "object", "properties": {
            "text": { "type": "string" }, "count": { "type": "integer" }, "ratio": { "type": "number" },
            "sure": { "type": "boolean" }, "list": { "type": "array" }, "map": { "type": "object" },
            "nothing": { "type": "object" },
        } });
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            description: Some("Does something.".to_owned()),
            parameters: Some(parameters.clone()),
            strict: false,
            is_enforceable: true,
        };
        vec![tool("look_up"), tool("move-it")]
    }

    /// What a model is trained to write for a message: the end of its prompt, and the reply up to the token that ends it.
    /// None where the template refuses the message.
    fn trained(template: &ChatTemplate, format: &ResponseFormat, said: &Said) -> Option<(String, String)> {
        let asked = Message::text(Role::User, "Whistle");
        let tools = tools();
        let prompt = template.transcript(std::slice::from_ref(&asked), &tools, true)?;
        let whole = template.transcript(&[asked, said.message()], &tools, false)?;
        let same = prompt.bytes().zip(whole.bytes()).take_while(|(one, other)| one == other).count();
        let mut begin = whole.floor_char_boundary(same);
        // A reply that the prompt does not lead to has another beginning, and no mark is cut.
        if begin < prompt.len()
            && let Some(mark) = whole[..begin].rfind('<').filter(|mark| !whole[*mark..begin].contains(['>', '\n']))
        {
            begin = mark;
        }
        let begins_reasoning = !said.reasoning.is_empty() && whole[begin..].starts_with(&said.reasoning);
        let prompt = if begins_reasoning { prompt } else { String::new() };
        // Without reasoning, a prompt may end it before it has begun.
        for mark in ["</think>", "</mm:think>"] {
            begin += if whole[begin..].starts_with(mark) { mark.len() } else { 0 };
        }
        let token = pattern::Pattern::new("", r"^(?:<[^<>\s]+>|\[\|?[a-zA-Z_]+\|?\]|\[e~\[)").unwrap();
        let behind = template.end_of_turn().unwrap_or_default();
        let mut end = behind.as_str();
        let mut ends: Vec<&str> = format.ends().chain(["</s>"]).collect();
        while let Some((_, length)) = token.matches(end).next() {
            let text = &end[..length];
            ends.extend((!format.is_mark(text)).then_some(text));
            end = if format.is_mark(text) { end[length..].trim_start() } else { "" };
        }
        let reply = &whole[begin..];
        let end = ends.iter().filter_map(|end| reply.find(end)).min().unwrap_or(reply.len());
        let prompt = if prompt.is_empty() { whole[..begin].to_owned() } else { prompt };
        Some((prompt, reply[..end].to_owned()))
    }

    #[test]
    fn what_a_model_is_trained_to_write_is_heard() {
        let plain = json!({ "text": "Z\u{fc}rich", "count": 3 });
        let odd = json!({
            "text": "\"Hi\" & <b>'you'</b>\n\\ {x} [1] \u{1f44d}, a: b", "count": -3, "ratio": 0.5, "sure": true,
            "list": [1, "two", { "a": [] }], "map": { "a": { "b": [true, "c"] }, "c": {} }, "nothing": {},
        });
        let none = json!({});
        let folder = format!("{}/tests/templates", env!("CARGO_MANIFEST_DIR"));
        let mut report = String::new();
        let (mut num_replies, mut num_calls) = (0, 0);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
        files.sort();
        let mark = pattern::Pattern::new("", r"<[|\x{ff5c}][^<>\s]+>|<[^<>\s]+[|\x{ff5c}]>|\[/?[A-Z_]+\]").unwrap();
        for path in &files {
            let name = path.file_stem().unwrap().display();
            let source = std::fs::read_to_string(path).unwrap();
            let eos = [("bos_token", "<s>"), ("eos_token", "</s>")];
            let eos: BTreeMap<_, _> = eos.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
            let template = ChatTemplate::new(source.as_str(), eos, &[]).unwrap();
            let format = ResponseFormat::pick(None, &source, None, "auto").unwrap();
            let tokens: Vec<&str> = mark.matches(&source).map(|(start, end)| &source[start..end]).collect();
            let with_tokens = format.clone().with_special_tokens(tokens.into_iter());
            let mut failures = Vec::new();
            for (reasons, speaks) in [(false, false), (false, true), (true, false), (true, true)] {
                for calls in [&[][..], &[&plain], &[&odd], &[&none], &[&none, &plain], &[&odd, &plain]] {
                    let said = Said::new(reasons, speaks, calls);
                    let Some((prompt, reply)) = trained(&template, &format, &said) else { continue };
                    let expected = Said {
                        reasoning: if reply.contains(REASONING) { said.reasoning } else { String::new() },
                        words: if reply.contains(WORDS) { said.words } else { String::new() },
                        calls: said.calls.into_iter().filter(|(name, _)| reply.contains(name)).collect(),
                    };
                    if expected == Said::default() {
                        continue;
                    }
                    num_replies += 1;
                    num_calls += expected.calls.len();
                    let parser = ReplyParser::new(&with_tokens, FormatCalls::Own, &prompt, tools());
                    let mut heard = Said::heard(parser, &reply);
                    if format.name() == "gpt-oss" && !calls.is_empty() && !reasons && speaks {
                        // The template says these words as reasoning.
                        std::mem::swap(&mut heard.words, &mut heard.reasoning);
                    }
                    if heard != expected {
                        let end = &prompt[prompt.ceil_char_boundary(prompt.len().saturating_sub(40))..];
                        failures.push(format!("{end:?} {reply:?}\n    {heard:?}"));
                    }
                }
            }
            if let Some(failure) = failures.first() {
                writeln!(report, "{name} ({}): {} failures: {failure}", format.name(), failures.len()).unwrap();
            }
        }
        eprintln!("chat templates: {num_replies} replies with {num_calls} calls of {} templates", files.len());
        assert!(report.is_empty(), "{report}");
        assert!(750 < num_replies && 550 < num_calls, "{num_replies} {num_calls}");
    }
}
