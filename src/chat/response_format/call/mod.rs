//! One region of calls, read as it is written.

mod json;
mod nesting;
mod tags;
mod whole;

use super::{
    anchor::{Haystack, Mark, Next, Sighting, Watch},
    call_shape::Reading,
    template::Field,
};
use crate::chat::{Delta, Tool, python_json};
use json::JsonReader;
use serde_json::Value;
use tags::TagsReader;
use whole::WholeReader;

/// Reads what stands behind the opening mark of calls.
#[derive(Debug)]
pub(super) enum CallReader {
    Json(JsonReader),
    Tags(TagsReader),
    Whole(WholeReader),
}

/// What a reader needs to know of its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region<'a> {
    pub(super) field: &'a Field,
    /// The closing mark, and the opening marks of calls.
    pub(super) watch: &'a Watch,
    /// Only these can be called.
    pub(super) tools: &'a [Tool],
}

/// What a text of calls turns out to be.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// More text must come.
    Open,
    /// The calls have ended; what follows them.
    Closed(String),
    /// From here on it never was a call; the text, and whether there was no call before.
    NoCall { text: String, is_first: bool },
}

/// A call names its tool within so many bytes. Text that never does is read again as text, where the next call may begin.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Of arguments that cannot be given out before they are whole.
const MAX_BODY_BYTES: usize = 1 << 20;
/// A call without arguments has these.
const NO_ARGUMENTS: &str = "{}";
/// What stands before a text that a reader holds; only word boundaries ask.
const BEFORE: Option<u8> = Some(b'\n');

impl CallReader {
    /// For a mark that has named a tool, or has not.
    pub(super) fn new(field: &Field, name: Option<&str>, groups: Vec<(String, String)>) -> Self {
        let name = name.map(str::to_owned);
        match field.calls.as_ref().map(|calls| &calls.reading) {
            Some(Reading::Members { .. } | Reading::Arguments) => Self::Json(JsonReader::new(name)),
            Some(Reading::Tags) => Self::Tags(TagsReader::new(name.unwrap_or_default())),
            Some(Reading::Whole) | None => Self::Whole(WholeReader::new(name, groups)),
        }
    }

    /// Takes more text.
    pub(super) fn push(&mut self, text: &str, region: Region<'_>, deltas: &mut Vec<Delta>) -> Outcome {
        match self {
            Self::Json(reader) => reader.push(text, region, deltas),
            Self::Tags(reader) => reader.push(text, region, deltas),
            Self::Whole(reader) => reader.push(text, region, deltas),
        }
    }

    /// What comes when no more text does: a call that was cut is left open, for its reader to see. Text that never was a
    /// call comes back, and what follows a call that has ended after all.
    pub(super) fn finish(self, region: Region<'_>, is_cut: bool, deltas: &mut Vec<Delta>) -> Option<Outcome> {
        match self {
            Self::Json(reader) => reader.finish(deltas),
            Self::Tags(reader) => reader.finish(region, is_cut, deltas),
            Self::Whole(reader) => reader.finish(region, is_cut, deltas),
        }
    }
}

impl Region<'_> {
    fn has_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool.name == name)
    }

    fn parameters(&self, name: &str) -> Option<&Value> {
        self.tools.iter().find(|tool| tool.name == name)?.parameters.as_ref()
    }

    /// The first closing mark, or opening mark of calls if `or_open`.
    fn find_end(&self, text: &str, is_whole: bool, or_open: bool) -> Next {
        let within = Haystack { text, before: BEFORE, is_whole };
        self.watch.find(within, 0, |mark, _| mark == Mark::Close || or_open && is_open(mark))
    }

    /// Whether a mark begins at a place that ends calls, or may once more text comes.
    fn end_at(&self, text: &str, place: usize, is_whole: bool) -> Next {
        let within = Haystack { text, before: BEFORE, is_whole };
        self.watch.at(within, place, |mark, _| mark == Mark::Close || is_open(mark))
    }
}

fn is_open(mark: Mark) -> bool {
    matches!(mark, Mark::Open(_))
}

/// Where the text goes on behind a mark that ends calls: the next call is not a part of this one.
fn rest_at(sighting: &Sighting) -> usize {
    if sighting.mark == Mark::Close { sighting.captured.end } else { sighting.start }
}

fn push_arguments(text: String, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(Delta::Arguments(text));
    }
}

/// JSON as models are used to it.
fn spelled(value: &Value) -> String {
    python_json::to_string(value)
}
