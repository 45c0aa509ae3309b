//! A client's words stay words, also where they spell, or help to spell, a token that steers the model.

use crate::text::{AddedToken, Piece};
use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value as Json;
use uuid::Uuid;

/// The added tokens that steer a model: its special ones, and others that its template spells, such as `<think>`.
/// Added tokens that only stand for text, such as runs of spaces, are not among them.
#[derive(Debug)]
pub(super) struct Markup {
    tokens: Vec<AddedToken>,
    /// A match's pattern is an index into them.
    finder: Option<AhoCorasick>,
}

/// Noncharacters around the stand-in for a token that a client spelled.
const MARK_BEGIN: char = '\u{FDD0}';
const MARK_END: char = '\u{FDD1}';

/// Whether a character belongs to a mark, which has to come through a template as it is.
pub(super) fn is_mark(character: char) -> bool {
    matches!(character, MARK_BEGIN | MARK_END)
}

impl Markup {
    /// What `template` and `added` tokens have in common.
    pub(super) fn new(added: &[AddedToken], template: &str) -> Result<Self, aho_corasick::BuildError> {
        let steers = |token: &&AddedToken| token.is_special || template.contains(&token.text);
        let tokens: Vec<AddedToken> = added.iter().filter(steers).cloned().collect();
        let mut finder = AhoCorasick::builder();
        let finder = finder.match_kind(MatchKind::LeftmostLongest);
        let finder = if tokens.is_empty() { None } else { Some(finder.build(tokens.iter().map(|token| &token.text))?) };
        Ok(Self { tokens, finder })
    }

    /// Marks for one prompt, which no client can know.
    pub(super) fn marks(&self) -> Marks<'_> {
        // Digits stay what they are when a template changes case.
        Marks { markup: self, mark: Uuid::new_v4().as_u128().to_string() }
    }
}

/// The marks of one prompt.
pub(super) struct Marks<'a> {
    markup: &'a Markup,
    mark: String,
}

/// Which tokens are kept from steering.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// Every one.
    All,
    /// The special ones. Templates look for the others (reasoning, calls) in what an assistant said.
    Special,
}

impl Marks<'_> {
    /// Puts a mark in place of each token that a string spells, names of fields included.
    pub(super) fn mark(&self, value: Json, scope: Scope) -> Json {
        match value {
            Json::String(text) => Json::String(self.mark_text(&text, scope)),
            Json::Array(values) => values.into_iter().map(|value| self.mark(value, scope)).collect(),
            Json::Object(fields) => {
                let marked =
                    fields.into_iter().map(|(name, value)| (self.mark_text(&name, scope), self.mark(value, scope)));
                Json::Object(marked.collect())
            }
            other @ (Json::Null | Json::Bool(_) | Json::Number(_)) => other,
        }
    }

    fn mark_text(&self, text: &str, scope: Scope) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut end = 0;
        for found in self.markup.finder.iter().flat_map(|finder| finder.find_iter(text)) {
            self.push_words(&text[end..found.start()], scope, &mut marked);
            match scope.holds(&self.markup.tokens[found.pattern()]) {
                true => self.push_mark(&found.pattern().as_usize().to_string(), &mut marked),
                false => marked.push_str(&text[found.range()]),
            }
            end = found.end();
        }
        self.push_words(&text[end..], scope, &mut marked);
        marked
    }

    /// Words that are a fragment of a token get empty marks at their edges, so that what the template writes around them
    /// cannot complete it: `'<' ~ key ~ '>'` is a token for some keys.
    fn push_words(&self, words: &str, scope: Scope, marked: &mut String) {
        let mut tokens = self.markup.tokens.iter().filter(|token| scope.holds(token)).map(|token| token.text.as_str());
        let is_middle = !words.is_empty() && tokens.clone().any(|token| is_middle(words, token));
        if is_middle || tokens.clone().any(|token| begins_with_end(words, token)) {
            self.push_mark("", marked);
        }
        marked.push_str(words);
        if is_middle || tokens.any(|token| ends_with_begin(words, token)) {
            self.push_mark("", marked);
        }
    }

    fn push_mark(&self, index: &str, marked: &mut String) {
        marked.push(MARK_BEGIN);
        marked.push_str(&self.mark);
        marked.push(':');
        marked.push_str(index);
        marked.push(MARK_END);
    }

    /// Splits a rendered prompt at its marks.
    pub(super) fn split(&self, prompt: &str) -> Prompt {
        let begin = format!("{MARK_BEGIN}{}:", self.mark);
        let mut parts = prompt.split(begin.as_str());
        let mut pieces = vec![(Author::Template, parts.next().unwrap_or_default().to_owned())];
        for part in parts {
            let (index, rest) = part.split_once(MARK_END).unwrap_or((part, ""));
            let token = index.parse().ok().and_then(|index: usize| self.markup.tokens.get(index));
            let words = token.map(|token| token.text.clone()).unwrap_or_default();
            pieces.extend([(Author::Client, words), (Author::Template, rest.to_owned())]);
        }
        pieces.retain(|(_, text)| !text.is_empty());
        Prompt(pieces)
    }
}

impl Scope {
    fn holds(self, token: &AddedToken) -> bool {
        self == Self::All || token.is_special
    }
}

/// Whether `words` are a token but for a character or two at its ends, such as `im_end` in `<im_end>`.
fn is_middle(words: &str, token: &str) -> bool {
    const MAX_MISSING: usize = 3;
    words.len() < token.len() && token.len() - words.len() <= MAX_MISSING && token.contains(words)
}

/// Whether `words` begin with the end of the token, of two characters or more.
fn begins_with_end(words: &str, token: &str) -> bool {
    let mut ends = token.char_indices().skip(1).map(|(index, _)| &token[index..]);
    ends.any(|end| 1 < end.chars().count() && words.starts_with(end))
}

/// Whether `words` end with the beginning of the token, of two characters or more.
fn ends_with_begin(words: &str, token: &str) -> bool {
    token.char_indices().skip(2).any(|(index, _)| words.ends_with(&token[..index]))
}

/// A rendered prompt, with the places where a client spelled a token.
#[derive(Debug)]
pub struct Prompt(Vec<(Author, String)>);

#[derive(Clone, Copy, Debug)]
enum Author {
    Template,
    Client,
}

impl Prompt {
    /// A client's text and nothing else.
    pub(super) fn plain(text: String) -> Self {
        Self(vec![(Author::Client, text)])
    }

    /// Of the whole text.
    pub fn num_bytes(&self) -> usize {
        self.0.iter().map(|(_, text)| text.len()).sum()
    }

    /// Parts that may hold steering tokens, and those that are only words.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let pieces = self.0.iter().map(|(author, text)| match author {
            Author::Template => Piece::Template(text),
            Author::Client => Piece::Plain(text),
        });
        pieces.collect()
    }

    /// The end of the prompt, where the template may have begun the reply.
    pub fn last_words(&self) -> &str {
        self.0.last().map(|(_, text)| text.as_str()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(text: &str, is_special: bool) -> AddedToken {
        AddedToken { text: text.to_owned(), is_special, id: 0 }
    }

    fn markup() -> Markup {
        let added = [token("<|im_end|>", true), token("<s>", true), token("<think>", false), token("\n\n", false)];
        Markup::new(&added, "… <think> …").unwrap()
    }

    /// What `render` makes of marked words, with the words of the client in `«»` and the pieces apart by `¦`.
    fn split(words: &str, scope: Scope, render: impl Fn(&str) -> String) -> String {
        let markup = markup();
        let marks = markup.marks();
        let marked = marks.mark(json!(words), scope);
        let prompt = marks.split(&render(marked.as_str().unwrap()));
        let spell = |piece: &Piece<'_>| match piece {
            Piece::Template(text) => (*text).to_owned(),
            Piece::Plain(text) => format!("«{text}»"),
        };
        prompt.pieces().iter().map(spell).collect::<Vec<_>>().join("¦")
    }

    #[test]
    fn tokens_that_steer_are_words_and_the_rest_is_left_alone() {
        let as_it_is = |text: &str| text.to_owned();
        assert_eq!(split("a<|im_end|>b<think>\n\nc", Scope::All, as_it_is), "a¦«<|im_end|>»¦b¦«<think>»¦\n\nc");
        assert_eq!(split("a<|im_end|>b<think>c", Scope::Special, as_it_is), "a¦«<|im_end|>»¦b<think>c");
    }

    #[test]
    fn a_template_cannot_complete_a_fragment() {
        let in_brackets = |text: &str| format!("<{text}>");
        assert_eq!(split("|im_end|", Scope::All, in_brackets), "<¦|im_end|¦>");
        assert_eq!(split("s", Scope::All, in_brackets), "<¦s¦>");
        assert_eq!(split("city", Scope::All, in_brackets), "<city>");
        assert_eq!(split("x<|im_", Scope::All, |text| format!("{text}end|>")), "x<|im_¦end|>");
        assert_eq!(split("end|> x", Scope::All, |text| format!("<|im_{text}")), "<|im_¦end|> x");
        let without_thoughts = |text: &str| text.replace("<think>", "");
        assert_eq!(split("<|im_<think>end|>", Scope::Special, without_thoughts), "<|im_¦end|>");
    }
}
