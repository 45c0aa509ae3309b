//! Calls in JSON: `{"name": "f", "arguments": {…}}`, a list of such, or only the arguments of a tool that is named before.

use super::{
    MAX_HEAD_BYTES, NO_ARGUMENTS, Next, Outcome, Reading, Region,
    nesting::{End, Nesting},
    push_arguments, rest_at,
};
use crate::chat::Delta;
use std::ops::Range;

/// The call is opened when its name is known to be that of a tool, and its arguments are given out as they are written.
/// What they hold is not checked: a client sees what the model wrote. Only brackets and strings are followed, to know
/// where the arguments end.
#[derive(Debug)]
pub(in crate::chat::response_format) struct JsonReader {
    state: State,
    /// Of a tool that the mark has named.
    name: Option<String>,
    /// Text that cannot be told apart yet.
    held: String,
    /// What stood before it, in case that no call follows.
    lead: String,
    is_list: bool,
    num_calls: usize,
    /// How far the call's object has been read, as far as its arguments.
    members: Members,
    /// Arguments that came before the name.
    early: Option<Range<usize>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// At the beginning.
    Start,
    /// At an item of a list, or its end.
    Between,
    /// No tool has been named yet.
    Nameless,
    /// A tool has been named; its arguments have not begun.
    Named,
    /// Inside the object of the arguments.
    Arguments(Nesting),
    /// Behind them, in the object of the call.
    Rest(Nesting),
    /// Behind all; whether the last call is still open.
    Closing { is_open: bool },
}

/// Whether to go on.
enum Step {
    Next(State),
    Wait,
    End(Outcome),
}

impl JsonReader {
    pub(super) fn new(name: Option<String>) -> Self {
        Self {
            state: State::Start,
            name,
            held: String::new(),
            lead: String::new(),
            is_list: false,
            num_calls: 0,
            members: Members::default(),
            early: None,
        }
    }

    pub(super) fn push(&mut self, text: &str, region: Region<'_>, deltas: &mut Vec<Delta>) -> Outcome {
        self.held.push_str(text);
        loop {
            let step = match self.state {
                State::Start => self.start(region, deltas),
                State::Between => self.item(region),
                State::Nameless => self.head(region, deltas),
                State::Named => self.before_arguments(region, deltas),
                State::Arguments(nesting) => self.arguments(nesting, region, deltas),
                State::Rest(nesting) => self.rest(nesting, region, deltas),
                State::Closing { is_open } => self.close(is_open, region, deltas),
            };
            match step {
                Step::Next(state) => self.state = state,
                Step::Wait => return Outcome::Open,
                Step::End(outcome) => return outcome,
            }
        }
    }

    pub(super) fn finish(mut self, deltas: &mut Vec<Delta>) -> Option<Outcome> {
        match self.state {
            State::Nameless => return Some(self.no_call()),
            State::Start | State::Between if self.num_calls == 0 => return Some(self.no_call()),
            State::Start | State::Between | State::Named => {}
            State::Arguments(_) => push_arguments(self.held, deltas),
            State::Rest(_) | State::Closing { is_open: true } => deltas.push(Delta::ToolCallEnd),
            State::Closing { is_open: false } => {}
        }
        None
    }

    fn no_call(&mut self) -> Outcome {
        let text = std::mem::take(&mut self.lead) + &std::mem::take(&mut self.held);
        Outcome::NoCall { text, is_first: self.num_calls == 0 }
    }

    /// Drops white space; whether anything follows.
    fn skip_space(&mut self) -> bool {
        let space = self.held.len() - self.held.trim_start().len();
        self.pass(space);
        !self.held.is_empty()
    }

    fn pass(&mut self, num_bytes: usize) {
        if self.num_calls == 0 {
            self.lead.push_str(&self.held[..num_bytes]);
        }
        self.held.drain(..num_bytes);
    }

    fn start(&mut self, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        if MAX_HEAD_BYTES < self.lead.len() + self.held.len() && self.held.trim_start().is_empty() {
            return Step::End(self.no_call());
        }
        if !self.skip_space() {
            return Step::Wait;
        }
        let Some(name) = &self.name else {
            // Some models write a single call without the list, and others a list around it.
            self.is_list = self.held.starts_with('[');
            return Step::Next(if self.is_list { State::Between } else { State::Nameless });
        };
        let begins = self.held.starts_with(['{', '"']);
        let ends = match region.end_at(&self.held, 0, false) {
            Next::Pending(_) if !begins => return Step::Wait,
            Next::Mark(_) => true,
            Next::Nothing | Next::Pending(_) => false,
        };
        if !begins && !ends {
            return Step::End(self.no_call());
        }
        deltas.push(Delta::ToolCall { name: name.clone() });
        self.num_calls += 1;
        if begins {
            return Step::Next(State::Named);
        }
        deltas.push(Delta::Arguments(NO_ARGUMENTS.to_owned()));
        Step::Next(State::Closing { is_open: true })
    }

    fn item(&mut self, region: Region<'_>) -> Step {
        if !self.skip_space() {
            return Step::Wait;
        }
        match self.held.as_bytes()[0] {
            b'[' if self.num_calls == 0 && !self.lead.trim_start().starts_with('[') => self.pass(1),
            b',' if 0 < self.num_calls => self.pass(1),
            b'{' => {
                self.members = Members::default();
                return Step::Next(State::Nameless);
            }
            b']' if 0 < self.num_calls => {
                self.pass(1);
                return self.after_calls(region);
            }
            _ if self.num_calls == 0 => return Step::End(self.no_call()),
            _ => return self.after_calls(region),
        }
        Step::Next(State::Between)
    }

    fn after_calls(&mut self, region: Region<'_>) -> Step {
        match region.field.close {
            Some(_) => Step::Next(State::Closing { is_open: false }),
            None => Step::End(Outcome::Closed(std::mem::take(&mut self.held))),
        }
    }

    /// Reads the object up to where it names a tool.
    fn head(&mut self, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        match self.find_name(region) {
            Head::Cut => return Step::Wait,
            Head::NoCall => return Step::End(self.no_call()),
            Head::Named(name) => deltas.push(Delta::ToolCall { name }),
        }
        self.num_calls += 1;
        self.lead.clear();
        let early = self.early.take().map(|arguments| unwrapped(&self.held[arguments]));
        self.held.drain(..self.members.at);
        match early {
            Some(arguments) => {
                deltas.push(Delta::Arguments(arguments));
                Step::Next(self.behind_arguments(region))
            }
            None => {
                self.members = Members { step: MemberStep::Separator, ..Members::default() };
                Step::Next(State::Named)
            }
        }
    }

    fn find_name(&mut self, region: Region<'_>) -> Head {
        let head = &self.held[..self.held.floor_char_boundary(MAX_HEAD_BYTES)];
        let cut = if self.held.len() < MAX_HEAD_BYTES { Head::Cut } else { Head::NoCall };
        loop {
            let key = match self.members.key(head) {
                Found::Yes(key) => key.to_owned(),
                Found::Cut => return cut,
                Found::No => return Head::NoCall,
            };
            let Some(value) = self.members.value(head) else { return cut };
            if is_name(&key, region) {
                return match serde_json::from_str::<String>(&head[value]) {
                    Ok(name) if region.has_tool(&name) => Head::Named(name),
                    _ => Head::NoCall,
                };
            }
            if is_arguments(&key, region) {
                self.early = Some(value);
            }
        }
    }

    /// Reads on behind the name, to where the arguments begin or, where they are no object, end.
    fn before_arguments(&mut self, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        let value = if self.name.is_some() { self.own_value() } else { self.find_arguments(region) };
        let state = match value {
            Value::Cut => return Step::Wait,
            Value::Object => State::Arguments(Nesting::default()),
            Value::Other(value) => {
                deltas.push(Delta::Arguments(unwrapped(&self.held[value])));
                self.behind_arguments(region)
            }
            Value::Missing => {
                deltas.push(Delta::Arguments(NO_ARGUMENTS.to_owned()));
                self.behind_arguments(region)
            }
        };
        self.held.drain(..self.members.at);
        Step::Next(state)
    }

    /// The arguments are all there is.
    fn own_value(&mut self) -> Value {
        match self.held.starts_with('{') {
            true => Value::Object,
            false => self.members.value(&self.held).map_or(Value::Cut, Value::Other),
        }
    }

    fn find_arguments(&mut self, region: Region<'_>) -> Value {
        loop {
            let is_arguments = match self.members.key(&self.held) {
                Found::Yes(key) => is_arguments(key, region),
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

    fn arguments(&mut self, nesting: Nesting, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        let (decided, state) = match nesting.end(&self.held, region) {
            End::At(end) => (end, Some(self.behind_arguments(region))),
            // The model may break off and close the call; that mark must not be taken for arguments.
            End::Broken(end) => (end, Some(State::Closing { is_open: true })),
            End::Open(decided, nesting) => {
                self.state = State::Arguments(nesting);
                (decided, None)
            }
        };
        let rest = self.held.split_off(decided);
        push_arguments(std::mem::replace(&mut self.held, rest), deltas);
        state.map_or(Step::Wait, Step::Next)
    }

    /// Where the object of the call is followed to its end, or its mark is enough.
    fn behind_arguments(&self, region: Region<'_>) -> State {
        match (&self.name, &region.field.close) {
            (None, Some(_)) if !self.is_list => State::Closing { is_open: true },
            (None, _) => State::Rest(Nesting::inside_object()),
            (Some(_), _) => State::Closing { is_open: true },
        }
    }

    fn rest(&mut self, nesting: Nesting, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        match nesting.end(&self.held, region) {
            End::Open(decided, nesting) => {
                self.held.drain(..decided);
                self.state = State::Rest(nesting);
                return Step::Wait;
            }
            End::Broken(end) => {
                self.held.drain(..end);
                return Step::Next(State::Closing { is_open: true });
            }
            End::At(end) => self.held.drain(..end),
        };
        deltas.push(Delta::ToolCallEnd);
        match self.is_list {
            true => Step::Next(State::Between),
            false => self.after_calls(region),
        }
    }

    /// Skips to the closing mark, or to the next call where that is missing.
    fn close(&mut self, is_open: bool, region: Region<'_>, deltas: &mut Vec<Delta>) -> Step {
        if region.field.close.is_none() {
            deltas.extend(is_open.then_some(Delta::ToolCallEnd));
            return Step::End(Outcome::Closed(std::mem::take(&mut self.held)));
        }
        match region.find_end(&self.held, false, true) {
            Next::Nothing => self.held.clear(),
            Next::Pending(start) => drop(self.held.drain(..start)),
            Next::Mark(sighting) => {
                deltas.extend(is_open.then_some(Delta::ToolCallEnd));
                return Step::End(Outcome::Closed(self.held.split_off(rest_at(&sighting))));
            }
        }
        Step::Wait
    }
}

fn is_name(key: &str, region: Region<'_>) -> bool {
    matches!(region.field.calls.as_ref().map(|calls| &calls.reading), Some(Reading::Members { name, .. }) if name == key)
}

/// Models mix up what the formats call them.
fn is_arguments(key: &str, region: Region<'_>) -> bool {
    let reading = region.field.calls.as_ref().map(|calls| &calls.reading);
    matches!(key, "arguments" | "parameters")
        || matches!(reading, Some(Reading::Members { arguments, .. }) if arguments == key)
}

/// Arguments that are not an object: some models wrap it in a string, some write null or nothing.
fn unwrapped(value: &str) -> String {
    let text = match serde_json::from_str::<Option<String>>(value) {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => value.to_owned(),
    };
    if text.trim().is_empty() { NO_ARGUMENTS.to_owned() } else { text }
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
    step: MemberStep,
    /// How far the value that begins there has been followed, and how deep it is then.
    followed: usize,
    nesting: Nesting,
}

/// What has to come next.
#[derive(Debug, Default)]
enum MemberStep {
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
                (MemberStep::Value(_), _) => break,
                (MemberStep::Brace, b'{') | (MemberStep::Separator, b',') => {
                    self.at += 1;
                    self.step = MemberStep::Key;
                }
                (MemberStep::Key, b'"') => {
                    let Some(key) = self.value(text) else { return Found::Cut };
                    let Ok(key) = serde_json::from_str(&text[key]) else { return Found::No };
                    self.step = MemberStep::Colon(key);
                }
                (MemberStep::Colon(key), b':') => {
                    self.at += 1;
                    self.step = MemberStep::Value(std::mem::take(key));
                }
                (MemberStep::Brace | MemberStep::Separator | MemberStep::Key | MemberStep::Colon(_), _) => {
                    return Found::No;
                }
            }
        }
        match &self.step {
            MemberStep::Value(key) => Found::Yes(key),
            MemberStep::Brace | MemberStep::Separator | MemberStep::Key | MemberStep::Colon(_) => Found::No,
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
            if is_open && self.nesting.is_closed() {
                self.pass(index + 1);
                return Some(start..self.at);
            }
        }
        self.followed = bytes.len();
        None
    }

    /// A value ends here.
    fn pass(&mut self, end: usize) {
        *self = Self { at: end, step: MemberStep::Separator, ..Self::default() };
    }

    fn skip_space(&mut self, text: &str) {
        let rest = &text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\n', '\r', '\t']).len();
    }
}
