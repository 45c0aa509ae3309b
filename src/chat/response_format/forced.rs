//! A format written as a grammar, in llguidance's variant of Lark, for replies that must call or that must follow something
//! when they do.

mod arguments;

use super::{
    FormatCalls, ResponseFormat,
    anchor::Anchor,
    call_shape::Reading,
    content::Content,
    template::{Field, Part, Template},
    translation::is_look_ahead,
};
use crate::{chat::Tool, text::AddedToken};
use arguments::Arguments;
use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::json;
use std::num::NonZeroU32;

/// The calls of a format as rules, among them `region`, calls with the marks around them, and `behind_trigger`, the rest of
/// that once the trigger has been said.
#[derive(Debug)]
pub(in crate::chat) struct ForcedCalls {
    pub(in crate::chat) rules: Vec<(String, String)>,
    /// What makes free text turn into calls.
    pub(in crate::chat) trigger: Trigger,
    /// Whether more regions may follow one: else it holds all calls.
    pub(in crate::chat) repeats: bool,
}

/// What in a free text can only be the beginning of a call.
#[derive(Debug)]
pub(in crate::chat) enum Trigger {
    /// This text, as an expression.
    Text(String),
    /// A token, with what may stand before it, as symbols.
    Token(String),
    /// A reply that begins like this, as an expression.
    Beginning(String),
}

/// Reasoning as rules.
#[derive(Debug)]
pub(in crate::chat) struct ForcedReasoning {
    pub(in crate::chat) open: String,
    /// From behind the opening mark to behind the closing one.
    pub(in crate::chat) rule: (String, String),
    /// An expression of texts that begin with it, where no token tells them apart.
    pub(in crate::chat) beginning: Option<String>,
}

/// Writes grammars of one format.
#[derive(Clone, Copy)]
pub(in crate::chat) struct Writer<'a> {
    template: &'a Template,
    tokens: &'a [AddedToken],
}

/// A part of a mark.
enum Piece {
    Text(String),
    /// Of a tool.
    Name(String),
    Space,
    Pattern(String),
    Optional(Vec<Piece>),
    OneOf(Vec<Vec<Piece>>),
}

impl ResponseFormat {
    /// To write grammars of it, with a tokenizer that has these added tokens.
    pub(in crate::chat) fn writer<'a>(&'a self, calls: FormatCalls, tokens: &'a [AddedToken]) -> Writer<'a> {
        Writer { template: self.template(calls), tokens }
    }
}

impl<'a> Writer<'a> {
    /// Calls of these tools, with what their arguments have to follow, `max` of them at most. None where no grammar can
    /// follow how the format writes calls.
    pub(in crate::chat) fn calls(&self, tools: &[(&Tool, bool)], max: Option<NonZeroU32>) -> Option<ForcedCalls> {
        self.template.fields_of(Part::Calls).find_map(|field| self.calls_in(field, tools, max))
    }

    fn calls_in(&self, field: &Field, tools: &[(&Tool, bool)], max: Option<NonZeroU32>) -> Option<ForcedCalls> {
        let (shape, open) = (field.calls.as_ref()?, field.open.as_ref()?);
        let mut rules = self.call_rules(field, tools)?;
        let is_list = match &shape.reading {
            Reading::Members { is_list, .. } => *is_list,
            Reading::Whole => matches!(field.content, Content::Pythonic),
            Reading::Arguments | Reading::Tags => false,
        };
        let body = match (is_list, &field.content, &field.close) {
            (true, Content::Pythonic, Some(_)) => format!("({} | call)", listed(max)),
            (true, _, _) => listed(max),
            (false, _, _) => "call".to_owned(),
        };
        let group = shape.name_group.as_deref().unwrap_or_default();
        // What the opening mark may name, and what has to follow then.
        let ways: Vec<(Vec<Piece>, String)> = if shape.name_group.is_some() {
            let named = |(number, (tool, _)): (usize, &(&Tool, bool))| {
                (first_choice(pieces_of(open, group, &tool.name)), format!("call_{number}"))
            };
            tools.iter().enumerate().map(named).collect()
        } else {
            vec![(first_choice(pieces_of(open, group, "")), body)]
        };
        let (first, _) = ways.first()?;
        let (trigger, rest, num_said) =
            match first.iter().position(|piece| matches!(piece, Piece::Text(_) | Piece::Name(_))) {
                None => (Trigger::Beginning(if is_list { r"\[" } else { r"\{" }.to_owned()), String::new(), 0),
                Some(index) => match &first[index] {
                    Piece::Text(text) => {
                        let (trigger, rest) = self.trigger(&first[..index], text);
                        (trigger, rest, index + 1)
                    }
                    // The name of a tool, alone on a line.
                    Piece::Name(_) | Piece::Space | Piece::Pattern(_) | Piece::Optional(_) | Piece::OneOf(_) => {
                        let names: Vec<_> = tools.iter().map(|(tool, _)| regex_syntax::escape(&tool.name)).collect();
                        (Trigger::Beginning(format!(r"({})\n", names.join("|"))), String::new(), 0)
                    }
                },
            };
        let close = field.close.as_ref().map(|close| format!("SPACE {}", self.close(close, field.part)));
        let close = close.unwrap_or_default();
        let written = |num_said: usize| {
            let way =
                |(open, body): &(Vec<Piece>, String)| format!("{} SPACE {body} {close}", self.lark(&open[num_said..]));
            ways.iter().map(way).collect::<Vec<_>>().join(" | ")
        };
        rules.push(("region".to_owned(), written(0)));
        rules.push(("behind_trigger".to_owned(), format!("{rest} ({})", written(num_said))));
        Some(ForcedCalls { rules, trigger, repeats: !is_list })
    }

    /// Rules of the call of each tool, and of any.
    fn call_rules(&self, field: &Field, tools: &[(&Tool, bool)]) -> Option<Vec<(String, String)>> {
        let shape = field.calls.as_ref()?;
        let mut arguments = Arguments::new(self);
        let mut calls = Vec::new();
        for (number, (tool, is_enforced)) in tools.iter().enumerate() {
            let call = match (&shape.reading, &field.content) {
                (Reading::Members { name, arguments: key, .. }, _) => {
                    let head = format!("{{{}: {}, {}: ", json!(name), json!(tool.name), json!(key));
                    format!("{} {} SPACE \"}}\"", json!(head), arguments.json(tool, *is_enforced))
                }
                (Reading::Arguments, _) => arguments.json(tool, *is_enforced),
                (Reading::Tags, Content::Tags(tags)) => arguments.tags(tags, tool, *is_enforced),
                (Reading::Whole, Content::Pythonic) => arguments.pythonic(tool, *is_enforced),
                (Reading::Whole, Content::Json(dialect)) if shape.name_group.is_some() => {
                    arguments.dialect(dialect, tool, *is_enforced)?
                }
                (Reading::Tags | Reading::Whole, _) => return None,
            };
            calls.push((format!("call_{number}"), call));
        }
        let any: Vec<String> = calls.iter().map(|(name, _)| name.clone()).collect();
        calls.push(("call".to_owned(), any.join(" | ")));
        Some(arguments.into_rules().into_iter().chain(calls).collect())
    }

    /// What of a text tells that a call begins, and what of it comes behind that.
    fn trigger(&self, before: &[Piece], text: &str) -> (Trigger, String) {
        match self.first_token(text) {
            None => (Trigger::Text(regex_syntax::escape(text)), String::new()),
            Some((start, token)) => {
                // What may stand before it can be tokens, too, which no free text holds.
                let symbols = format!("{} {}", self.lark(before), symbol(token));
                (Trigger::Token(symbols), self.literal(&text[start + token.text.len()..]))
            }
        }
    }

    /// Reasoning, if the format has any.
    pub(in crate::chat) fn reasoning(&self) -> Option<ForcedReasoning> {
        let field = self.template.fields_of(Part::Reasoning).next()?;
        let open = pieces_of(field.open.as_ref()?, "", "");
        let beginning = match (&open[..], field.open.as_ref()?) {
            ([Piece::Text(text)], _) if self.first_token(text).is_none() => Some(regex_syntax::escape(text)),
            _ => None,
        };
        let close = field.close.as_ref()?;
        let rule = match self.plain_texts(close) {
            Some(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
                ("thought[lazy]".to_owned(), format!("/{}/", slashed(&format!(r"(.|\n)*({})", texts.join("|")))))
            }
            None => ("thought".to_owned(), format!("FREE {}", self.close(close, field.part))),
        };
        Some(ForcedReasoning { open: self.lark(&open), rule, beginning })
    }

    /// What stands before a text, and what may behind it, for each kind of text, the answer first; none where text stands
    /// between all marks.
    pub(in crate::chat) fn around_texts(&self) -> Vec<(String, String)> {
        if self.template.implicit.is_some() {
            return Vec::new();
        }
        self.template.fields_of(Part::Text).filter_map(|field| self.around(field)).collect()
    }

    fn around(&self, field: &Field) -> Option<(String, String)> {
        let open = pieces_of(field.open.as_ref()?, "", "");
        let close =
            field.close.as_ref().map(|close| format!("({})?", self.close(close, field.part))).unwrap_or_default();
        Some((self.lark(&open), close))
    }

    /// A closing mark, unless it is a token that ends the reply.
    fn close(&self, close: &Anchor, part: Part) -> String {
        match close {
            Anchor::Literals(literals) => {
                let is_end = |literal: &&String| self.template.ends.contains(literal);
                // What ends the reply can only end the last call; reasoning goes on.
                let may_end = part != Part::Reasoning && literals.iter().any(|literal| is_end(&literal));
                let texts: Vec<String> =
                    literals.iter().filter(|literal| !is_end(literal)).map(|literal| self.literal(literal)).collect();
                match (texts.is_empty(), may_end) {
                    (true, _) => String::new(),
                    (false, true) => format!("({})?", texts.join(" | ")),
                    (false, false) => format!("({})", texts.join(" | ")),
                }
            }
            Anchor::Pattern(pattern) => self.lark(&pieces(pattern.hir(), "", "")),
        }
    }

    /// The texts of a mark, where no token is part of them.
    fn plain_texts(&self, anchor: &Anchor) -> Option<Vec<String>> {
        match anchor {
            Anchor::Literals(literals) if literals.iter().all(|literal| self.first_token(literal).is_none()) => {
                Some(literals.to_vec())
            }
            Anchor::Literals(_) | Anchor::Pattern(_) => None,
        }
    }

    fn lark(&self, pieces: &[Piece]) -> String {
        let one = |piece: &Piece| match piece {
            Piece::Text(text) | Piece::Name(text) => self.literal(text),
            Piece::Space => "SPACE".to_owned(),
            Piece::Pattern(pattern) => format!("/{}/", slashed(pattern)),
            Piece::Optional(pieces) => format!("({})?", self.lark(pieces)),
            Piece::OneOf(choices) => {
                format!("({})", choices.iter().map(|pieces| self.lark(pieces)).collect::<Vec<_>>().join(" | "))
            }
        };
        let parts: Vec<String> = pieces.iter().map(one).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") }
    }

    /// A text, with the special tokens that it spells.
    fn literal(&self, text: &str) -> String {
        let mut symbols = Vec::new();
        let mut rest = text;
        while let Some((start, token)) = self.first_token(rest) {
            if 0 < start {
                symbols.push(json!(rest[..start]).to_string());
            }
            symbols.push(symbol(token));
            rest = &rest[start + token.text.len()..];
        }
        if !rest.is_empty() {
            symbols.push(json!(rest).to_string());
        }
        symbols.join(" ")
    }

    /// The first special token of a text, the longest of those that begin there.
    fn first_token(&self, text: &str) -> Option<(usize, &'a AddedToken)> {
        let special = self.tokens.iter().filter(|token| token.is_special);
        let found = special.filter_map(|token| Some((text.find(&token.text)?, token)));
        found.min_by_key(|(start, token)| (*start, std::cmp::Reverse(token.text.len())))
    }
}

fn symbol(token: &AddedToken) -> String {
    format!("<[{}]>", token.id)
}

/// A mark in pieces, `name` in the place of a group.
fn pieces_of(anchor: &Anchor, group: &str, name: &str) -> Vec<Piece> {
    match anchor {
        Anchor::Literals(literals) => match &literals[..] {
            [literal] => vec![Piece::Text(literal.clone())],
            literals => {
                let literals = literals.iter().map(|literal| vec![Piece::Text(literal.clone())]);
                vec![Piece::OneOf(literals.collect())]
            }
        },
        Anchor::Pattern(pattern) => pieces(pattern.hir(), group, name),
    }
}

/// One way to write a mark, where it has several.
fn first_choice(mut pieces: Vec<Piece>) -> Vec<Piece> {
    match &mut pieces[..] {
        [Piece::OneOf(choices)] if !choices.is_empty() => choices.swap_remove(0),
        _ => pieces,
    }
}

/// All calls in one list.
fn listed(max: Option<NonZeroU32>) -> String {
    match max.map(NonZeroU32::get) {
        None => r#""[" SPACE call (SPACE "," SPACE call)* SPACE "]""#.to_owned(),
        Some(max) => format!(r#""[" SPACE call (SPACE "," SPACE call){{0,{}}} SPACE "]""#, max - 1),
    }
}

/// A regular expression between slashes: those in it are escaped.
pub(in crate::chat) fn slashed(pattern: &str) -> String {
    let mut is_escaped = false;
    let mut slashed = String::with_capacity(pattern.len());
    for character in pattern.chars() {
        if character == '/' && !is_escaped {
            slashed.push('\\');
        }
        is_escaped = character == '\\' && !is_escaped;
        slashed.push(character);
    }
    slashed
}

/// An expression in pieces: what may be missing is left to the model, and white space is free.
fn pieces(hir: &Hir, group: &str, name: &str) -> Vec<Piece> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Vec::new(),
        HirKind::Literal(literal) => vec![Piece::Text(String::from_utf8_lossy(&literal.0).into_owned())],
        HirKind::Class(_) if is_space(hir) => vec![Piece::Space],
        HirKind::Class(_) => vec![Piece::Pattern(hir.to_string())],
        HirKind::Repetition(repetition) if is_space(&repetition.sub) => vec![Piece::Space],
        HirKind::Repetition(repetition) if repetition.min == 0 && repetition.max == Some(1) => {
            vec![Piece::Optional(pieces(&repetition.sub, group, name))]
        }
        HirKind::Repetition(_) => vec![Piece::Pattern(hir.to_string())],
        HirKind::Capture(capture) => match capture.name.as_deref() {
            Some(ahead) if is_look_ahead(ahead) => Vec::new(),
            Some(named) if named == group => vec![Piece::Name(name.to_owned())],
            Some(_) | None => pieces(&capture.sub, group, name),
        },
        HirKind::Concat(parts) => parts.iter().flat_map(|part| pieces(part, group, name)).collect(),
        HirKind::Alternation(choices) => {
            vec![Piece::OneOf(choices.iter().map(|choice| pieces(choice, group, name)).collect())]
        }
    }
}

/// Whether only white space matches.
fn is_space(hir: &Hir) -> bool {
    let is_class = |hir: &Hir| {
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else { return false };
        class.iter().all(|range| (range.start()..=range.end()).all(char::is_whitespace))
    };
    let is_literal = |hir: &Hir| {
        let HirKind::Literal(literal) = hir.kind() else { return false };
        literal.0.iter().all(u8::is_ascii_whitespace)
    };
    is_class(hir) || is_literal(hir)
}
