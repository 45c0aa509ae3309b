//! Regular expressions of a response format, in the syntax of Python, run in linear time.

use super::{
    FormatError,
    translation::{Alphabet, is_look_ahead, translated},
};
use regex_automata::{
    Anchored, Input, MatchKind,
    dfa::{Automaton, StartKind, dense},
    meta,
    nfa::thompson,
    util::start,
};
use regex_syntax::hir::Hir;

/// A compiled expression.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Tells with each byte whether there can still be a match.
    automaton: dense::DFA<Vec<u32>>,
    /// Finds the groups of a match whose place is known.
    groups: meta::Regex,
    hir: Hir,
}

/// What stands at one place of a text that may grow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// Not what is looked for.
    No,
    /// More text may complete it.
    Pending,
    /// It is there, up to this byte.
    Match(usize),
}

/// A match, with what it does not take and the named groups that took part.
#[derive(Debug, Default)]
pub(super) struct Captured {
    /// Where the text goes on: a look-ahead is not part of the match.
    pub(super) end: usize,
    pub(super) groups: Vec<(String, String)>,
}

/// Of an expression as it is written.
const MAX_BYTES: usize = 4096;
/// Of a compiled automaton, and of what compiling takes.
const MAX_AUTOMATON_BYTES: usize = 4 << 20;
const MAX_COMPILE_BYTES: usize = 16 << 20;

impl Pattern {
    /// Compiles an expression of `place` in a format.
    pub(super) fn new(place: &str, python: &str) -> Result<Self, FormatError> {
        if MAX_BYTES < python.len() {
            return Err(FormatError::Pattern { place: place.to_owned(), message: "it is too long".to_owned() });
        }
        Self::compiled(python, Alphabet::Unicode)
            .or_else(|message| Self::compiled(python, Alphabet::Ascii).map_err(|_| message))
            .map_err(|message| FormatError::Pattern { place: place.to_owned(), message })
    }

    fn compiled(python: &str, alphabet: Alphabet) -> Result<Self, String> {
        let rust = translated(python, alphabet)?;
        let hir = regex_syntax::parse(&rust).map_err(|cause| last_line(&cause.to_string()))?;
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::LeftmostFirst)
            .dfa_size_limit(Some(MAX_AUTOMATON_BYTES))
            .determinize_size_limit(Some(MAX_COMPILE_BYTES));
        // Repetitions of repetitions would take any memory before the limits above are looked at.
        let states = thompson::Config::new().nfa_size_limit(Some(MAX_AUTOMATON_BYTES));
        let automaton = dense::Builder::new().configure(config).thompson(states).build(&rust);
        let automaton = automaton.map_err(|cause| format!("{cause}; write a shorter or more exact one"))?;
        let groups = meta::Regex::new(&rust).map_err(|cause| cause.to_string())?;
        Ok(Self { automaton, groups, hir })
    }

    /// The expression as a tree.
    pub(super) fn hir(&self) -> &Hir {
        &self.hir
    }

    /// Whether a group has this name.
    pub(super) fn has_group(&self, name: &str) -> bool {
        self.group_names().any(|group| group == name)
    }

    pub(super) fn group_names(&self) -> impl Iterator<Item = &str> {
        let info = self.groups.group_info();
        info.pattern_names(regex_automata::PatternID::ZERO).flatten().filter(|name| !is_look_ahead(name))
    }

    /// Whether a match may begin with this byte.
    pub(super) fn may_begin_with(&self, byte: u8) -> bool {
        let state = self.start(None);
        !self.automaton.is_dead_state(self.automaton.next_state(state, byte))
    }

    /// Looks at one place, behind the byte `before`, if there is one. Text that `is_whole` does not grow.
    pub(super) fn at(&self, text: &[u8], place: usize, before: Option<u8>, is_whole: bool) -> Found {
        let mut progress = self.begin(place, before);
        self.resume(&mut progress, text, is_whole)
    }

    /// At the beginning of a match that may be long.
    pub(super) fn begin(&self, place: usize, before: Option<u8>) -> Progress {
        Progress { state: self.start(before), at: place, end: None }
    }

    /// Reads on to where a match is decided, each byte once.
    pub(super) fn resume(&self, progress: &mut Progress, text: &[u8], is_whole: bool) -> Found {
        let decided = |end: Option<usize>| end.map_or(Found::No, Found::Match);
        while let Some(byte) = text.get(progress.at) {
            progress.state = self.automaton.next_state(progress.state, *byte);
            if self.automaton.is_match_state(progress.state) {
                progress.end = Some(progress.at); // Matches are told one byte late.
            } else if self.automaton.is_dead_state(progress.state) {
                return decided(progress.end);
            }
            progress.at += 1;
        }
        if !is_whole {
            return self.settled(*progress, text.len()).unwrap_or(Found::Pending);
        }
        if self.automaton.is_match_state(self.automaton.next_eoi_state(progress.state)) {
            return Found::Match(text.len());
        }
        decided(progress.end)
    }

    /// What is found whatever the next byte is, if that is so: a mark that ends in a text of its own need not wait for it.
    fn settled(&self, progress: Progress, end: usize) -> Option<Found> {
        let is_dead_end =
            |state| (0..=u8::MAX).all(|byte| self.automaton.is_dead_state(self.automaton.next_state(state, byte)));
        let first = self.automaton.next_state(progress.state, 0);
        let goes_one_way = (1..=u8::MAX).all(|byte| self.automaton.next_state(progress.state, byte) == first);
        if !goes_one_way {
            return None;
        }
        if self.automaton.is_dead_state(first) {
            return Some(progress.end.map_or(Found::No, Found::Match));
        }
        (self.automaton.is_match_state(first) && is_dead_end(first)).then_some(Found::Match(end))
    }

    /// Where a whole text matches, from left to right.
    pub(super) fn matches<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, usize)> + 't {
        self.groups.find_iter(text).map(|found| (found.start(), found.end()))
    }

    /// The groups of a match that [`Self::at`] has found.
    pub(super) fn captures(&self, text: &str, start: usize, end: usize) -> Captured {
        let mut captures = self.groups.create_captures();
        let input = Input::new(&text[..end]).range(start..end).anchored(Anchored::Yes);
        self.groups.captures(input, &mut captures);
        let mut captured = Captured { end, groups: Vec::new() };
        for name in self.groups.group_info().pattern_names(regex_automata::PatternID::ZERO).flatten() {
            let Some(span) = captures.get_group_by_name(name) else { continue };
            match is_look_ahead(name) {
                true => captured.end = captured.end.min(span.start),
                false => captured.groups.push((name.to_owned(), text[span.range()].to_owned())),
            }
        }
        captured
    }

    fn start(&self, before: Option<u8>) -> regex_automata::util::primitives::StateID {
        let config = start::Config::new().anchored(Anchored::Yes).look_behind(before);
        self.automaton.start_state(&config).expect("anchored searches are compiled, and no byte quits")
    }
}

/// How far a match has been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    state: regex_automata::util::primitives::StateID,
    at: usize,
    /// Of the best match so far.
    end: Option<usize>,
}

fn last_line(message: &str) -> String {
    message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(python: &str) -> Pattern {
        Pattern::new("a field", python).unwrap()
    }

    #[test]
    fn a_match_is_told_when_no_more_text_can_change_it() {
        let pattern = pattern(r"<f=(?P<name>\w+)>");
        let at = |text: &str, is_whole| pattern.at(text.as_bytes(), 0, None, is_whole);
        assert_eq!(at("<f=ab", false), Found::Pending);
        assert_eq!(at("<f=ab", true), Found::No);
        assert_eq!(at("<f=ab>", true), Found::Match(6));
        assert_eq!(at("<f=ab>", false), Found::Match(6));
        assert_eq!(at("<f=ab>c", false), Found::Match(6));
        assert_eq!(at("<f= ", false), Found::No);
        let captured = pattern.captures("<f=ab>c", 0, 6);
        assert_eq!((captured.end, captured.groups), (6, vec![("name".to_owned(), "ab".to_owned())]));
    }

    #[test]
    fn what_is_looked_ahead_for_is_not_taken() {
        let pattern = pattern(r"</s>|\s*(?=\[TOOL\])|$");
        let end = |text: &str| match pattern.at(text.as_bytes(), 0, None, true) {
            Found::Match(end) => Some(pattern.captures(text, 0, end).end),
            Found::No | Found::Pending => None,
        };
        assert_eq!(
            [end("</s>x"), end("[TOOL]x"), end(" [TOOL]"), end("x"), end("")],
            [Some(4), Some(0), Some(1), None, Some(0)]
        );
    }

    #[test]
    fn what_would_be_huge_is_refused_at_once() {
        for huge in [
            "(a{1000}){1000}",
            "a{1000}{1000}{1000}{1000}",
            "((\\w{99}){99}){99}",
            "(.*a.{30})",
            &"(".repeat(2000),
            &"a".repeat(5000),
        ] {
            assert!(Pattern::new("a field", huge).is_err(), "{huge}");
        }
    }

    #[test]
    fn pythons_syntax_is_meant() {
        for (python, text) in [
            (r"call:\w+{", "call:f{"),
            (r"a{,2}b", "aab"),
            (r"\<a\>\'\Z", "<a>'"),
            (r"[[a&&~]+x", "[&a~x"),
            (r"[]a]+x", "]ax"),
            (r"a.b", "a\nb"),
            (r"a{1}}", "a}"),
            (r"[\w-]{1,64}\s?\d", "a-_b 2"),
        ] {
            assert_eq!(pattern(python).at(text.as_bytes(), 0, None, true), Found::Match(text.len()), "{python}");
        }
    }

    #[test]
    fn what_cannot_be_expressed_says_what_to_do() {
        let error = |python: &str| Pattern::new("field `tool_calls`, `close_pattern`", python).unwrap_err().to_string();
        insta::assert_snapshot!(error("(?<!a)b"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: it has look-around inside it; only a look-ahead `(?=…)` at the end of an alternative is known");
        insta::assert_snapshot!(error("a(?=b)c"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: a look-ahead can only stand at the end of an alternative; put it there");
        insta::assert_snapshot!(error(r"(a)\1"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: it has a back-reference; spell out what it repeats");
        insta::assert_snapshot!(error("a++"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: it has a possessive quantifier; leave out the second `+`");
        insta::assert_snapshot!(error("(a"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: unclosed group");
        insta::assert_snapshot!(error("[ab]*a[ab]{40}"), @"the response template cannot be used: the expression of field `tool_calls`, `close_pattern` cannot be followed: DFA exceeded size limit of 4194304 during determinization; write a shorter or more exact one");
    }
}
