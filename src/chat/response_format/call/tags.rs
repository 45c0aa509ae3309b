//! A call whose arguments are tags, `<parameter=city>Oslo</parameter>`: each is given out when it is whole.

use super::{MAX_BODY_BYTES, NO_ARGUMENTS, Next, Outcome, Region, push_arguments, rest_at, spelled};
use crate::chat::{
    Delta,
    response_format::{
        coercion::coerced,
        content::{Content, Tags},
        pattern::{Found, Progress},
    },
};
use std::collections::BTreeSet;

#[derive(Debug)]
pub(in crate::chat::response_format) struct TagsReader {
    name: String,
    is_announced: bool,
    /// Behind the last whole tag.
    held: String,
    /// Where in it a tag may begin, and how far that has been read.
    at: usize,
    progress: Option<Progress>,
    /// What may be the closing mark.
    tail: String,
    /// A parameter that comes again is not one.
    keys: BTreeSet<String>,
}

impl TagsReader {
    pub(super) fn new(name: String) -> Self {
        let (held, tail, keys) = (String::new(), String::new(), BTreeSet::new());
        Self { name, is_announced: false, held, at: 0, progress: None, tail, keys }
    }

    pub(super) fn push(&mut self, text: &str, region: Region<'_>, deltas: &mut Vec<Delta>) -> Outcome {
        if !std::mem::replace(&mut self.is_announced, true) {
            deltas.push(Delta::ToolCall { name: self.name.clone() });
        }
        self.tail.push_str(text);
        match region.find_end(&self.tail, false, false) {
            Next::Nothing => self.take(self.tail.len(), region, deltas),
            Next::Pending(start) => self.take(start, region, deltas),
            Next::Mark(sighting) => {
                let rest = self.tail.split_off(rest_at(&sighting));
                self.take(sighting.start, region, deltas);
                self.end(region, deltas);
                return Outcome::Closed(rest);
            }
        }
        Outcome::Open
    }

    pub(super) fn finish(mut self, region: Region<'_>, is_cut: bool, deltas: &mut Vec<Delta>) {
        let end = match region.find_end(&self.tail, true, false) {
            Next::Mark(sighting) => Some(sighting.start),
            Next::Nothing | Next::Pending(_) => None,
        };
        self.take(end.unwrap_or(self.tail.len()), region, deltas);
        if end.is_some() || !is_cut {
            self.end(region, deltas);
        }
    }

    /// So much of the tail belongs to the call.
    fn take(&mut self, num_bytes: usize, region: Region<'_>, deltas: &mut Vec<Delta>) {
        self.held.extend(self.tail.drain(..num_bytes));
        self.read(region, false, deltas);
        if MAX_BODY_BYTES < self.held.len() {
            // No tag ends any more.
            self.held.clear();
            (self.at, self.progress) = (0, None);
        }
    }

    fn end(&mut self, region: Region<'_>, deltas: &mut Vec<Delta>) {
        self.read(region, true, deltas);
        push_arguments(if self.keys.is_empty() { NO_ARGUMENTS } else { "}" }.to_owned(), deltas);
        deltas.push(Delta::ToolCallEnd);
    }

    fn read(&mut self, region: Region<'_>, is_whole: bool, deltas: &mut Vec<Delta>) {
        let Content::Tags(tags) = &region.field.content else { return };
        let mut done = 0;
        while self.at < self.held.len() {
            let start = self.at;
            if self.progress.is_none() && !self.begins(tags) {
                self.at += 1;
                continue;
            }
            let progress = self.progress.get_or_insert_with(|| tags.tag.begin(start, None));
            match tags.tag.resume(progress, self.held.as_bytes(), is_whole) {
                Found::Pending => break,
                Found::Match(end) if start < end => {
                    self.give_out(tags, start, end, region, deltas);
                    (self.at, self.progress, done) = (end, None, end);
                }
                Found::Match(_) | Found::No => (self.at, self.progress) = (start + 1, None),
            }
        }
        if 0 < done {
            // The text that is still being read moves; its place in it does not.
            self.held.drain(..done);
            self.at -= done;
            self.progress = None;
        }
    }

    fn begins(&self, tags: &Tags) -> bool {
        self.held.is_char_boundary(self.at) && tags.tag.may_begin_with(self.held.as_bytes()[self.at])
    }

    fn give_out(&mut self, tags: &Tags, start: usize, end: usize, region: Region<'_>, deltas: &mut Vec<Delta>) {
        let Some((key, value)) = tags.member(&self.held, start, end) else { return };
        let value = coerced(region.parameters(&self.name), &key, value);
        let before = if self.keys.is_empty() { "{" } else { ", " };
        let member = format!("{before}{}: {}", spelled(&key.as_str().into()), spelled(&value));
        if self.keys.insert(key) {
            push_arguments(member, deltas);
        }
    }
}
