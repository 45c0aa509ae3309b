//! Calls that mean nothing before they are whole.

use super::{
    MAX_BODY_BYTES, MAX_HEAD_BYTES, NO_ARGUMENTS, Next, Outcome, Region, nesting::Nesting, push_arguments, rest_at,
    spelled,
};
use crate::chat::{
    Delta,
    response_format::{call_shape::Call, coercion::coerced_all, content::Content},
};
use serde_json::Value;

#[derive(Debug)]
pub(in crate::chat::response_format) struct WholeReader {
    /// Of the tool, where the mark has named it.
    name: Option<String>,
    groups: Vec<(String, String)>,
    is_announced: bool,
    body: String,
    /// What may be the closing mark.
    tail: String,
    /// How deep the body is, where nothing else tells its end.
    nesting: Nesting,
    /// The body was too long to be understood and is given out as it is.
    has_spilled: bool,
}

impl WholeReader {
    pub(super) fn new(name: Option<String>, groups: Vec<(String, String)>) -> Self {
        Self {
            name,
            groups,
            is_announced: false,
            body: String::new(),
            tail: String::new(),
            nesting: Nesting::of_python(),
            has_spilled: false,
        }
    }

    pub(super) fn push(&mut self, text: &str, region: Region<'_>, deltas: &mut Vec<Delta>) -> Outcome {
        self.announce(deltas);
        self.tail.push_str(text);
        let end = match &region.field.close {
            None => self.end_of_brackets().map(|end| (end, end)),
            Some(_) => match region.find_end(&self.tail, false, false) {
                Next::Mark(sighting) => Some((sighting.start, rest_at(&sighting))),
                Next::Pending(start) => {
                    self.take(start, deltas);
                    None
                }
                Next::Nothing => {
                    self.take(self.tail.len(), deltas);
                    None
                }
            },
        };
        if let Some((end, rest)) = end {
            let rest = self.tail.split_off(rest);
            let mark = self.tail.split_off(end);
            self.take(end, deltas);
            return match self.close(region, deltas) {
                true => Outcome::Closed(rest),
                false => Outcome::NoCall { text: std::mem::take(&mut self.body) + &mark + &rest, is_first: true },
            };
        }
        let max_bytes = if self.name.is_some() { MAX_BODY_BYTES } else { MAX_HEAD_BYTES };
        let is_too_long = max_bytes < self.body.len();
        if is_too_long && self.name.is_none() {
            let text = std::mem::take(&mut self.body) + &std::mem::take(&mut self.tail);
            return Outcome::NoCall { text, is_first: true };
        }
        if is_too_long {
            self.has_spilled = true;
            push_arguments(std::mem::take(&mut self.body), deltas);
        }
        Outcome::Open
    }

    pub(super) fn finish(mut self, region: Region<'_>, is_cut: bool, deltas: &mut Vec<Delta>) -> Option<Outcome> {
        self.announce(deltas);
        let end = match region.find_end(&self.tail, true, false) {
            Next::Mark(sighting) => Some(sighting.start),
            Next::Nothing | Next::Pending(_) => None,
        };
        self.take(end.unwrap_or(self.tail.len()), deltas);
        if self.name.is_some() {
            let is_complete = end.is_some() || !is_cut && self.calls(region).is_some();
            match is_complete {
                true => self.close(region, deltas),
                false => {
                    push_arguments(self.body, deltas);
                    true
                }
            };
            return None;
        }
        if (!is_cut || end.is_some()) && self.close(region, deltas) {
            return None;
        }
        Some(Outcome::NoCall { text: self.body + &self.tail, is_first: true })
    }

    fn announce(&mut self, deltas: &mut Vec<Delta>) {
        if let Some(name) = self.name.clone().filter(|_| !std::mem::replace(&mut self.is_announced, true)) {
            deltas.push(Delta::ToolCall { name });
        }
    }

    fn take(&mut self, num_bytes: usize, deltas: &mut Vec<Delta>) {
        let more: String = self.tail.drain(..num_bytes).collect();
        match self.has_spilled {
            true => push_arguments(more, deltas),
            false => self.body.push_str(&more),
        }
    }

    /// Where the brackets that the body begins with are closed; what is behind that is not taken.
    fn end_of_brackets(&mut self) -> Option<usize> {
        for (index, byte) in self.tail.bytes().enumerate() {
            self.nesting.step(byte);
            if self.nesting.is_closed() && matches!(byte, b']' | b'}' | b')') {
                return Some(index + 1);
            }
        }
        self.body.push_str(&std::mem::take(&mut self.tail));
        None
    }

    /// The calls that the body holds, if all of them are of tools.
    fn calls(&self, region: Region<'_>) -> Option<Vec<Call>> {
        let body = if matches!(region.field.content, Content::Text { .. }) { &self.body } else { self.body.trim() };
        let content = match body.is_empty() && self.name.is_some() {
            true => Value::Object(serde_json::Map::new()),
            false => region.field.content.value(body)?,
        };
        let calls = region.field.calls.as_ref()?.calls(content, &self.groups)?;
        (!calls.is_empty() && calls.iter().all(|call| region.has_tool(&call.name))).then_some(calls)
    }

    /// Gives out the calls. Whether there are any.
    fn close(&mut self, region: Region<'_>, deltas: &mut Vec<Delta>) -> bool {
        if self.has_spilled {
            deltas.push(Delta::ToolCallEnd);
            return true;
        }
        match (self.calls(region), &self.name) {
            (Some(calls), name) => {
                for Call { name: called, arguments } in calls {
                    if name.is_none() {
                        deltas.push(Delta::ToolCall { name: called.clone() });
                    }
                    deltas.push(Delta::Arguments(arguments_text(coerced_all(region.parameters(&called), arguments))));
                    deltas.push(Delta::ToolCallEnd);
                }
                true
            }
            // What the model wrote is for the client to see.
            (None, Some(_)) => {
                let body = if self.body.trim().is_empty() { NO_ARGUMENTS } else { self.body.trim() };
                deltas.extend([Delta::Arguments(body.to_owned()), Delta::ToolCallEnd]);
                true
            }
            (None, None) => false,
        }
    }
}

fn arguments_text(arguments: Value) -> String {
    match &arguments {
        Value::Null => NO_ARGUMENTS.to_owned(),
        Value::String(text) if text.trim().is_empty() => NO_ARGUMENTS.to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => spelled(&arguments),
    }
}
