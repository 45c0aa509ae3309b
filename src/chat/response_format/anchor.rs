//! The marks between which a part of a reply stands.

use super::{
    FormatError,
    pattern::{Captured, Found, Pattern},
};
use std::sync::Arc;

/// What a part begins or ends with.
#[derive(Clone, Debug)]
pub(super) enum Anchor {
    /// One of these, the longest first.
    Literals(Arc<[String]>),
    /// Whatever this matches.
    Pattern(Arc<Pattern>),
}

/// What a mark means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mark {
    /// The field with this number begins.
    Open(usize),
    /// The open field ends.
    Close,
    /// A special token in a place where it means nothing.
    Stray,
}

/// Marks that are looked for together.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    marks: Vec<(Mark, Anchor)>,
    /// Whether one of them may begin with a byte.
    begins: Box<[bool; 256]>,
}

/// A text to look for marks in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Haystack<'t> {
    pub(super) text: &'t str,
    /// The byte before it.
    pub(super) before: Option<u8>,
    /// Whether no more of it comes.
    pub(super) is_whole: bool,
}

/// A mark in a text.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) mark: Mark,
    pub(super) start: usize,
    pub(super) captured: Captured,
}

/// Where the first mark of a text is.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing here is one.
    Nothing,
    /// From here on it may be one.
    Pending(usize),
    Mark(Sighting),
}

/// A mark is no longer than this. Longer ones, which only expressions have, are decided by what they have matched so far.
const MAX_MARK_BYTES: usize = 512;
/// Each is compared at every place that it may begin at.
const MAX_LITERALS: usize = 64;

impl Anchor {
    pub(super) fn literals(place: &str, mut literals: Vec<String>) -> Result<Self, FormatError> {
        if literals.is_empty() || literals.iter().any(String::is_empty) {
            return Err(FormatError::Field { place: place.to_owned(), message: "a mark cannot be empty".to_owned() });
        }
        if MAX_LITERALS < literals.len() || literals.iter().any(|literal| MAX_MARK_BYTES < literal.len()) {
            let message = format!("it has more than {MAX_LITERALS} marks, or one of more than {MAX_MARK_BYTES} bytes");
            return Err(FormatError::Field { place: place.to_owned(), message });
        }
        literals.sort_by_key(|literal| std::cmp::Reverse(literal.len()));
        Ok(Self::Literals(literals.into()))
    }

    pub(super) fn as_pattern(&self) -> Option<&Pattern> {
        match self {
            Self::Literals(_) => None,
            Self::Pattern(pattern) => Some(pattern),
        }
    }

    fn may_begin_with(&self, byte: u8) -> bool {
        match self {
            Self::Literals(literals) => literals.iter().any(|literal| literal.as_bytes()[0] == byte),
            Self::Pattern(pattern) => pattern.may_begin_with(byte),
        }
    }

    /// What stands at a place.
    fn at(&self, text: &[u8], place: usize, before: Option<u8>, is_whole: bool) -> Found {
        match self {
            Self::Literals(literals) => {
                let rest = &text[place..];
                for literal in literals.iter().map(|literal| literal.as_bytes()) {
                    if rest.starts_with(literal) {
                        return Found::Match(place + literal.len());
                    }
                    if !is_whole && literal.starts_with(rest) {
                        return Found::Pending;
                    }
                }
                Found::No
            }
            Self::Pattern(pattern) => {
                let end = text.len().min(place + MAX_MARK_BYTES);
                pattern.at(&text[..end], place, before, is_whole || end < text.len())
            }
        }
    }

    /// Behind the last such mark of a text.
    pub(super) fn last_end(&self, text: &str) -> Option<usize> {
        let watch = Watch::new(vec![(Mark::Close, self.clone())]);
        let mut last = None;
        let mut from = 0;
        let within = Haystack { text, before: None, is_whole: true };
        while let Next::Mark(sighting) = watch.find(within, from, |_, _| true) {
            last = Some(sighting.captured.end);
            let next = text[sighting.start..].chars().next().map_or(1, char::len_utf8);
            from = sighting.captured.end.max(sighting.start + next);
            if text.len() <= from {
                break;
            }
        }
        last
    }
}

impl Watch {
    pub(super) fn new(marks: Vec<(Mark, Anchor)>) -> Self {
        let mut begins = Box::new([false; 256]);
        for byte in 0..=u8::MAX {
            begins[usize::from(byte)] = marks.iter().any(|(_, anchor)| anchor.may_begin_with(byte));
        }
        Self { marks, begins }
    }

    /// The first mark from a place on: of those that begin there the longest, of these the first in the list. A mark counts
    /// only where `counts` says so.
    pub(super) fn find(&self, within: Haystack<'_>, from: usize, counts: impl Fn(Mark, usize) -> bool) -> Next {
        for (start, byte) in within.text.bytes().enumerate().skip(from) {
            if self.begins[usize::from(byte)] && within.text.is_char_boundary(start) {
                match self.at(within, start, &counts) {
                    Next::Nothing => {}
                    next @ (Next::Pending(_) | Next::Mark(_)) => return next,
                }
            }
        }
        Next::Nothing
    }

    /// The mark that begins at a place.
    pub(super) fn at(&self, within: Haystack<'_>, start: usize, counts: impl Fn(Mark, usize) -> bool) -> Next {
        let bytes = within.text.as_bytes();
        if !self.begins[usize::from(bytes[start])] {
            return Next::Nothing;
        }
        let before = start.checked_sub(1).map_or(within.before, |index| Some(bytes[index]));
        let mut best: Option<(usize, Mark, &Anchor)> = None;
        for (mark, anchor) in self.marks.iter().filter(|(mark, _)| counts(*mark, start)) {
            match anchor.at(bytes, start, before, within.is_whole) {
                Found::No => {}
                Found::Pending => return Next::Pending(start),
                Found::Match(end) if best.is_none_or(|(longest, ..)| longest < end) => {
                    best = Some((end, *mark, anchor));
                }
                Found::Match(_) => {}
            }
        }
        let Some((end, mark, anchor)) = best else { return Next::Nothing };
        let captured = match anchor {
            Anchor::Literals(_) => Captured { end, groups: Vec::new() },
            Anchor::Pattern(pattern) => pattern.captures(within.text, start, end),
        };
        Next::Mark(Sighting { mark, start, captured })
    }
}
