//! One tool call, read as it is written: `{"name": "f", "arguments": {…}}` and its closing mark.

use super::Delta;
use std::ops::Range;

pub(super) const CALL_BEGIN: &str = "<tool_call>";
pub(super) const CALL_END: &str = "</tool_call>";

/// Reads the text behind `<tool_call>`.
///
/// The call is opened when its name is known to be that of a tool, and its arguments are given out as they are written.
/// What they hold is not checked: a client sees what the model wrote. Only braces and strings are followed, to know where
/// the arguments end.
#[derive(Debug, Default)]
pub(super) struct CallReader {
    state: State,
    /// Text that cannot be told apart yet.
    held: String,
    /// How far the call's object has been read, as far as its arguments.
    members: Members,
    /// Arguments that came before the name.
    early: Option<Range<usize>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// No tool has been named yet.
    #[default]
    Nameless,
    /// A tool has been named; its arguments have not begun.
    Named,
    /// Inside the object of the arguments.
    Arguments(Nesting),
    /// Behind them.
    Closing,
}

/// A call names its tool within so many bytes. Text that never does is read again as text, where the next call may begin.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What a text of a call turns out to be.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// More text must come.
    Open,
    /// The call has ended; what follows it.
    Closed(String),
    /// It never was a call; its text.
    NoCall(String),
}

impl CallReader {
    /// Takes more text. Only `tools` can be called.
    pub(super) fn push(&mut self, text: &str, tools: &[String], deltas: &mut Vec<Delta>) -> Outcome {
        self.held.push_str(text);
        if let State::Nameless = self.state {
            match self.read_head(tools) {
                Head::Cut => return Outcome::Open,
                Head::NoCall => return Outcome::NoCall(std::mem::take(&mut self.held)),
                Head::Named(name) => {
                    deltas.push(Delta::ToolCall { name });
                    self.state = State::Named;
                    if let Some(arguments) = self.early.take() {
                        deltas.push(Delta::Arguments(unwrapped(&self.held[arguments])));
                        self.state = State::Closing;
                    }
                    self.held.drain(..self.members.at);
                    self.members = Members { step: Step::Separator, ..Members::default() };
                }
            }
        }
        if let State::Named = self.state {
            match self.find_arguments() {
                Value::Cut => return Outcome::Open,
                Value::Object => self.state = State::Arguments(Nesting::default()),
                Value::Other(value) => {
                    deltas.push(Delta::Arguments(unwrapped(&self.held[value])));
                    self.state = State::Closing;
                }
                Value::Missing => {
                    deltas.push(Delta::Arguments(NO_ARGUMENTS.to_owned()));
                    self.state = State::Closing;
                }
            }
            self.held.drain(..self.members.at);
        }
        if let State::Arguments(nesting) = &mut self.state {
            let Some(end) = nesting.end(&self.held) else {
                // The model may break off and close the call; that mark must not be taken for arguments.
                let decided = if nesting.after(&self.held).in_string { self.held.len() } else { undecided(&self.held) };
                let rest = self.held.split_off(decided);
                let said = std::mem::replace(&mut self.held, rest);
                *nesting = nesting.after(&said);
                push_arguments(said, deltas);
                return Outcome::Open;
            };
            let rest = self.held.split_off(end);
            push_arguments(std::mem::replace(&mut self.held, rest), deltas);
            self.state = State::Closing;
        }
        self.close(deltas)
    }

    /// What comes when no more text does: a call that was cut is left open, for its reader to see.
    pub(super) fn finish(self, deltas: &mut Vec<Delta>) -> Option<String> {
        match self.state {
            State::Nameless => return Some(self.held),
            State::Named => {}
            State::Arguments(_) => push_arguments(self.held, deltas),
            State::Closing => deltas.push(Delta::ToolCallEnd),
        }
        None
    }

    /// Reads the object up to where it names a tool.
    fn read_head(&mut self, tools: &[String]) -> Head {
        let head = &self.held[..self.held.floor_char_boundary(MAX_HEAD_BYTES)];
        let cut = if self.held.len() < MAX_HEAD_BYTES { Head::Cut } else { Head::NoCall };
        loop {
            let key = match self.members.key(head) {
                Found::Yes(key) => key.to_owned(),
                Found::Cut => return cut,
                Found::No => return Head::NoCall,
            };
            let Some(value) = self.members.value(head) else { return cut };
            match key.as_str() {
                "name" => {
                    return match serde_json::from_str::<String>(&head[value]) {
                        Ok(name) if tools.contains(&name) => Head::Named(name),
                        _ => Head::NoCall,
                    };
                }
                "arguments" | "parameters" => self.early = Some(value),
                _ => {}
            }
        }
    }

    /// Reads on behind the name, to where the arguments begin or, where they are no object, end.
    fn find_arguments(&mut self) -> Value {
        loop {
            let is_arguments = match self.members.key(&self.held) {
                Found::Yes(key) => matches!(key, "arguments" | "parameters"),
                Found::Cut => return Value::Cut,
                Found::No => return Value::Missing,
            };
            if is_arguments && self.held[self.members.at..].starts_with('{') {
                return Value::Object;
            }
            match self.members.value(&self.held) {
                None => return Value::Cut,
                Some(value) if is_arguments => return Value::Other(value),
                Some(_) => {}
            }
        }
    }

    /// Skips to the closing mark, or to the next call where that is missing.
    fn close(&mut self, deltas: &mut Vec<Delta>) -> Outcome {
        let end = self.held.find(CALL_END).map(|start| start..start + CALL_END.len());
        let next = self.held.find(CALL_BEGIN).map(|start| start..start);
        let Some(mark) = end.into_iter().chain(next).min_by_key(|mark| mark.start) else {
            let undecided = undecided(&self.held);
            self.held.drain(..undecided);
            return Outcome::Open;
        };
        deltas.push(Delta::ToolCallEnd);
        Outcome::Closed(self.held.split_off(mark.end))
    }
}

fn push_arguments(text: String, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(Delta::Arguments(text));
    }
}

/// Where the beginning of a mark starts that more text may complete.
fn undecided(text: &str) -> usize {
    let is_begun = |index: &usize| [CALL_BEGIN, CALL_END].iter().any(|mark| mark.starts_with(&text[*index..]));
    let earliest = text.len().saturating_sub(CALL_END.len());
    let mut starts = text.char_indices().map(|(index, _)| index).filter(|index| earliest <= *index);
    starts.find(is_begun).unwrap_or(text.len())
}

const NO_ARGUMENTS: &str = "{}";

/// Arguments that are not an object: some models wrap it in a string, some write null or nothing.
fn unwrapped(value: &str) -> String {
    let text = match serde_json::from_str::<Option<String>>(value) {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => value.to_owned(),
    };
    if text.trim().is_empty() { NO_ARGUMENTS.to_owned() } else { text }
}

/// How deep a text of JSON is in braces and brackets.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Follows one byte; those that matter are ASCII.
    fn step(&mut self, byte: u8) {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_string => self.is_escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    fn after(mut self, text: &str) -> Self {
        text.bytes().for_each(|byte| self.step(byte));
        self
    }

    /// Where the value ends that is open: behind its last brace, or where a closing mark breaks it off.
    fn end(self, text: &str) -> Option<usize> {
        let mut nesting = self;
        for (index, byte) in text.bytes().enumerate() {
            if byte == b'<'
                && !nesting.in_string
                && [CALL_BEGIN, CALL_END].iter().any(|mark| text[index..].starts_with(mark))
            {
                return Some(index);
            }
            nesting.step(byte);
            if nesting.depth == 0 && !nesting.in_string {
                return Some(index + 1);
            }
        }
        None
    }
}

/// The object up to where it names a tool.
enum Head {
    Cut,
    NoCall,
    Named(String),
}

/// The arguments, behind the name.
enum Value {
    Cut,
    /// An object begins.
    Object,
    /// Something else, whole.
    Other(Range<usize>),
    /// The object of the call ends without.
    Missing,
}

/// Reads the members of an object in a text that grows, each byte once.
#[derive(Debug, Default)]
struct Members {
    /// Behind what is whole.
    at: usize,
    step: Step,
    /// How far the value that begins there has been followed, and how deep it is then.
    followed: usize,
    nesting: Nesting,
}

/// What has to come next.
#[derive(Debug, Default)]
enum Step {
    #[default]
    Brace,
    Separator,
    Key,
    Colon(String),
    /// Of this key.
    Value(String),
}

enum Found<'a> {
    Yes(&'a str),
    No,
    /// The text ends first.
    Cut,
}

impl Members {
    /// The next key. What follows is its value.
    fn key(&mut self, text: &str) -> Found<'_> {
        loop {
            self.skip_space(text);
            let Some(byte) = text.as_bytes().get(self.at) else { return Found::Cut };
            match (&mut self.step, byte) {
                (Step::Value(_), _) => break,
                (Step::Brace, b'{') | (Step::Separator, b',') => {
                    self.at += 1;
                    self.step = Step::Key;
                }
                (Step::Key, b'"') => {
                    let Some(key) = self.value(text) else { return Found::Cut };
                    let Ok(key) = serde_json::from_str(&text[key]) else { return Found::No };
                    self.step = Step::Colon(key);
                }
                (Step::Colon(key), b':') => {
                    self.at += 1;
                    self.step = Step::Value(std::mem::take(key));
                }
                (Step::Brace | Step::Separator | Step::Key | Step::Colon(_), _) => return Found::No,
            }
        }
        match &self.step {
            Step::Value(key) => Found::Yes(key),
            Step::Brace | Step::Separator | Step::Key | Step::Colon(_) => Found::No,
        }
    }

    /// A value, whole: a string, what stands in braces or brackets, or all up to the next comma or brace.
    fn value(&mut self, text: &str) -> Option<Range<usize>> {
        let (start, bytes) = (self.at, text.as_bytes());
        let is_open = matches!(bytes.get(start)?, b'"' | b'{' | b'[');
        for index in self.followed.max(start)..bytes.len() {
            if !is_open && matches!(bytes[index], b',' | b'}' | b']' | b'<') {
                self.pass(index);
                return Some(start..text[..index].trim_end().len().max(start));
            }
            self.nesting.step(bytes[index]);
            if is_open && self.nesting.depth == 0 && !self.nesting.in_string {
                self.pass(index + 1);
                return Some(start..self.at);
            }
        }
        self.followed = bytes.len();
        None
    }

    /// A value ends here.
    fn pass(&mut self, end: usize) {
        *self = Self { at: end, step: Step::Separator, ..Self::default() };
    }

    fn skip_space(&mut self, text: &str) {
        let rest = &text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\n', '\r', '\t']).len();
    }
}
