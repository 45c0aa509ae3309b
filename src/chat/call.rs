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
            match Head::read(&self.held, tools) {
                Head::Cut => return Outcome::Open,
                Head::NoCall => return Outcome::NoCall(std::mem::take(&mut self.held)),
                Head::Named { name, arguments, end } => {
                    deltas.push(Delta::ToolCall { name });
                    self.state = State::Named;
                    if let Some(arguments) = arguments {
                        deltas.push(Delta::Arguments(unwrapped(&self.held[arguments])));
                        self.state = State::Closing;
                    }
                    self.held.drain(..end);
                }
            }
        }
        if let State::Named = self.state {
            match Value::find(&self.held) {
                Value::Cut => return Outcome::Open,
                Value::Object(start) => {
                    self.held.drain(..start);
                    self.state = State::Arguments(Nesting::default());
                }
                Value::Other(value) => {
                    deltas.push(Delta::Arguments(unwrapped(&self.held[value.clone()])));
                    self.held.drain(..value.end);
                    self.state = State::Closing;
                }
                Value::Missing(end) => {
                    deltas.push(Delta::Arguments("{}".to_owned()));
                    self.held.drain(..end);
                    self.state = State::Closing;
                }
            }
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

/// Arguments that are not an object: some models wrap it in a string, some write null.
fn unwrapped(value: &str) -> String {
    match serde_json::from_str::<Option<String>>(value) {
        Ok(Some(text)) => text,
        Ok(None) => "{}".to_owned(),
        Err(_) => value.to_owned(),
    }
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
    Named {
        name: String,
        /// Those that came before the name.
        arguments: Option<Range<usize>>,
        /// Behind the name.
        end: usize,
    },
}

impl Head {
    fn read(text: &str, tools: &[String]) -> Self {
        let mut cursor = Cursor { text, at: 0 };
        let mut arguments = None;
        match cursor.expect(b'{') {
            Found::Yes => {}
            Found::Cut => return Self::Cut,
            Found::No => return Self::NoCall,
        }
        loop {
            let key = match cursor.key() {
                Ok(key) => key,
                Err(Found::Cut) => return Self::Cut,
                Err(_) => return Self::NoCall,
            };
            cursor.skip_space();
            let Some(value) = cursor.value() else { return Self::Cut };
            match key.as_str() {
                "name" => {
                    return match serde_json::from_str::<String>(&text[value.clone()]) {
                        Ok(name) if tools.contains(&name) => Self::Named { name, arguments, end: value.end },
                        _ => Self::NoCall,
                    };
                }
                "arguments" | "parameters" => arguments = Some(value),
                _ => {}
            }
            match cursor.expect(b',') {
                Found::Yes => {}
                Found::Cut => return Self::Cut,
                Found::No => return Self::NoCall,
            }
        }
    }
}

/// The arguments, behind the name.
enum Value {
    Cut,
    /// Where the object begins.
    Object(usize),
    /// Something else, whole.
    Other(Range<usize>),
    /// The object of the call ends without, here.
    Missing(usize),
}

impl Value {
    fn find(text: &str) -> Self {
        let mut cursor = Cursor { text, at: 0 };
        loop {
            match cursor.expect(b',') {
                Found::Yes => {}
                Found::Cut => return Self::Cut,
                Found::No => return Self::Missing(cursor.at),
            }
            let key = match cursor.key() {
                Ok(key) => key,
                Err(Found::Cut) => return Self::Cut,
                Err(_) => return Self::Missing(cursor.at),
            };
            cursor.skip_space();
            match (key.as_str(), text.as_bytes().get(cursor.at)) {
                (_, None) => return Self::Cut,
                ("arguments" | "parameters", Some(b'{')) => return Self::Object(cursor.at),
                ("arguments" | "parameters", Some(_)) => return cursor.value().map_or(Self::Cut, Self::Other),
                (_, Some(_)) => {
                    if cursor.value().is_none() {
                        return Self::Cut;
                    }
                }
            }
        }
    }
}

/// A place in the beginning of a JSON text.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Yes,
    No,
    /// The text ends first.
    Cut,
}

impl Cursor<'_> {
    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\n', '\r', '\t']).len();
    }

    /// This byte, behind white space.
    fn expect(&mut self, wanted: u8) -> Found {
        self.skip_space();
        match self.text.as_bytes().get(self.at) {
            None => Found::Cut,
            Some(byte) if *byte == wanted => {
                self.at += 1;
                Found::Yes
            }
            Some(_) => Found::No,
        }
    }

    /// A string and a colon.
    fn key(&mut self) -> Result<String, Found> {
        self.skip_space();
        match self.text.as_bytes().get(self.at) {
            None => return Err(Found::Cut),
            Some(b'"') => {}
            Some(_) => return Err(Found::No),
        }
        let key = self.value().ok_or(Found::Cut)?;
        let key = serde_json::from_str(&self.text[key]).map_err(|_| Found::No)?;
        match self.expect(b':') {
            Found::Yes => Ok(key),
            not @ (Found::No | Found::Cut) => Err(not),
        }
    }

    /// A value, whole: a string, what stands in braces or brackets, or all up to the next comma or brace.
    fn value(&mut self) -> Option<Range<usize>> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        let is_open = matches!(bytes.get(start)?, b'"' | b'{' | b'[');
        let mut nesting = Nesting::default();
        for (index, byte) in bytes.iter().enumerate().skip(start) {
            if !is_open && matches!(byte, b',' | b'}' | b']' | b'<') {
                self.at = index;
                return Some(start..self.text[..index].trim_end().len().max(start));
            }
            nesting.step(*byte);
            if is_open && nesting.depth == 0 && !nesting.in_string {
                self.at = index + 1;
                return Some(start..self.at);
            }
        }
        None
    }
}
