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
use std::{collections::BTreeSet, ops::Range};

/// Marks inside of a tag are part of its value, as long as the tag ends: a value may hold anything.
#[derive(Debug)]
pub(in crate::chat::response_format) struct TagsReader {
    name: String,
    is_announced: bool,
    /// Behind the last whole tag.
    held: String,
    /// Where in it a tag or a mark may begin.
    at: usize,
    /// How far the tag has been read that begins there.
    progress: Option<Progress>,
    /// No tag ends any more.
    is_without_tags: bool,
    /// A parameter that comes again is not one.
    keys: BTreeSet<String>,
}

impl TagsReader {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            is_announced: false,
            held: String::new(),
            at: 0,
            progress: None,
            is_without_tags: false,
            keys: BTreeSet::new(),
        }
    }

    pub(super) fn push(&mut self, text: &str, region: Region<'_>, deltas: &mut Vec<Delta>) -> Outcome {
        self.announce(deltas);
        self.held.push_str(text);
        if let Some(rest) = self.read(region, false, deltas) {
            return Outcome::Closed(rest);
        }
        if MAX_BODY_BYTES < self.held.len() {
            self.is_without_tags = true;
            self.progress = None;
            self.held.drain(..self.at);
            self.at = 0;
        }
        Outcome::Open
    }

    /// Of a tag that never ends, a mark may be the end of the call after all.
    pub(super) fn finish(mut self, region: Region<'_>, is_cut: bool, deltas: &mut Vec<Delta>) -> Option<Outcome> {
        self.announce(deltas);
        let rest = self.read(region, !is_cut, deltas);
        if rest.is_none() && !is_cut {
            self.end(deltas);
        }
        rest.map(Outcome::Closed)
    }

    fn announce(&mut self, deltas: &mut Vec<Delta>) {
        if !std::mem::replace(&mut self.is_announced, true) {
            deltas.push(Delta::ToolCall { name: self.name.clone() });
        }
    }

    fn end(&self, deltas: &mut Vec<Delta>) {
        push_arguments(if self.keys.is_empty() { NO_ARGUMENTS } else { "}" }.to_owned(), deltas);
        deltas.push(Delta::ToolCallEnd);
    }

    /// Gives out the tags that are whole. What follows the call, if that ends.
    fn read(&mut self, region: Region<'_>, is_whole: bool, deltas: &mut Vec<Delta>) -> Option<String> {
        let Content::Tags(tags) = &region.field.content else { return None };
        let mut done = 0;
        while self.at < self.held.len() {
            let start = self.at;
            if self.progress.is_none() && self.held.is_char_boundary(start) {
                match region.end_at(&self.held, start, is_whole) {
                    Next::Nothing => {}
                    Next::Pending(_) => break,
                    Next::Mark(sighting) => {
                        self.end(deltas);
                        return Some(self.held.split_off(rest_at(&sighting)));
                    }
                }
            }
            if self.progress.is_none() && !self.begins(tags) {
                self.at += 1;
                continue;
            }
            let progress = self.progress.get_or_insert_with(|| tags.tag.begin(start, None));
            match tags.tag.resume(progress, self.held.as_bytes(), is_whole) {
                Found::Pending => break,
                Found::Match(end) if start < end => {
                    self.give_out(tags, start..end, region, deltas);
                    (self.at, self.progress, done) = (end, None, end);
                }
                Found::Match(_) | Found::No => {
                    (self.at, self.progress) = (start + 1, None);
                    self.is_without_tags |= is_whole;
                }
            }
        }
        if 0 < done {
            self.held.drain(..done);
            self.at -= done;
            self.progress = None; // Its place in the text has moved.
        }
        None
    }

    fn begins(&self, tags: &Tags) -> bool {
        !self.is_without_tags
            && self.held.is_char_boundary(self.at)
            && tags.tag.may_begin_with(self.held.as_bytes()[self.at])
    }

    fn give_out(&mut self, tags: &Tags, tag: Range<usize>, region: Region<'_>, deltas: &mut Vec<Delta>) {
        let Some((key, value)) = tags.member(&self.held, tag.start, tag.end) else { return };
        let value = coerced(region.parameters(&self.name), &key, value);
        let before = if self.keys.is_empty() { "{" } else { ", " };
        let member = format!("{before}{}: {}", spelled(&key.as_str().into()), spelled(&value));
        if self.keys.insert(key) {
            push_arguments(member, deltas);
        }
    }
}
