//! How a model marks reasoning and tool calls, as data.
//!
//! A format is what newer tokenizers carry as their `response_template`: fields of a message (`content`,
//! `reasoning_content`, `tool_calls`), each with the marks that open and close it and the kind of its content. Nothing in
//! the code knows a model; those that have no such template use one of `config/response_formats/*.json`, in the same
//! language. Which one, the model's folder, the config or the words of its chat template decide ([`pick`]).
//!
//! The same data is read in three ways:
//!
//! | | what it does with a format |
//! |---|---|
//! | [`template`], [`anchor`], [`pattern`], [`content`], [`call_shape`] | check and compile it, once per load |
//! | [`parser`], [`call`] | tell a reply apart while it comes |
//! | [`forced`] | write the grammar of a call, for replies that have to make one |
//!
//! The parser is at one of three places: between fields, where opening marks are looked for and text belongs to the field
//! without an opening mark; inside a field of text, where only its closing mark is looked for; or in a region of calls,
//! which has a reader of its own. There are three readers, since that is how far calls can be told before they are whole:
//! JSON streams byte by byte, tags one by one, and all else (Python, JSON with odd strings, lines) at its end.
//!
//! What a server needs and transformers' language lacks, each a key or value that old formats do not have:
//!
//! - `ends`: texts of tokens that end a reply, beside those that the model's configuration names.
//! - `leads` of a field: it begins only where nothing has been said. A later `<think>` is text.
//! - `content: "pythonic"`: calls in the syntax of Python.
//! - `tool_calls.list`, `content.preamble`: what follows a dot tells fields apart that make one key of the message.
//! - `models`, `detect`: what a built-in format is for, and texts of which a chat template holds all of one list.
//! - `start_anchor` may be missing, or not be found. Then only a mark at the very end of the prompt has begun a field.
//!
//! What is deliberately not as in transformers, since a stream cannot take back what it has said, and a server must not
//! refuse what a model has said: see `DIFFERENCES` in `scripts/record-response-formats`.

mod anchor;
mod call;
mod call_shape;
mod coercion;
mod content;
mod forced;
mod parser;
mod pattern;
mod pick;
mod python;
mod template;
mod translation;

pub(super) use forced::{ForcedCalls, Trigger, Writer, slashed};
pub use parser::ReplyParser;

use std::sync::Arc;
use template::Template;

/// How a model marks what is not plain text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ResponseFormat {
    name: Arc<str>,
    template: Arc<Template>,
    /// With calls in any case.
    calling: Arc<Template>,
}

/// Which calls are heard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FormatCalls {
    /// Those of the format.
    Own,
    /// Those of the format or, where it has none, of one that any model can be held to.
    OwnOrOurs,
}

/// Why a format cannot be used; the operator should change it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// No such format.
    #[error("there is no response format `{name}`; known are {known}, and `auto`")]
    Unknown {
        /// As configured.
        name: String,
        /// Names joined by commas.
        known: String,
    },
    /// The template as a whole.
    #[error("the response template cannot be read: {0}; correct it, or name a format in `response_format`")]
    Shape(String),
    /// One of its fields.
    #[error("the response template cannot be used: {place}: {message}")]
    Field {
        /// Which.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// A regular expression.
    #[error("the response template cannot be used: the expression of {place} cannot be followed: {message}")]
    Pattern {
        /// Whose.
        place: String,
        /// What is wrong with it, and what to do.
        message: String,
    },
}

impl ResponseFormat {
    fn new(name: &str, template: Template) -> Self {
        let calling = match template.fields_of(template::Part::Calls).next() {
            Some(_) => template.clone(),
            None => template.clone().with_calls_of(&pick::fallback().template),
        };
        Self { name: name.into(), template: Arc::new(template), calling: Arc::new(calling) }
    }

    /// As the config names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Texts of tokens that end a reply, whatever else does.
    pub fn ends(&self) -> impl Iterator<Item = &str> {
        self.template.ends.iter().map(String::as_str)
    }

    /// For a tokenizer with these special tokens: those that marks are made of are part of a reply's text, and never of
    /// what a client gets.
    pub(super) fn with_special_tokens<'t>(self, tokens: impl Iterator<Item = &'t str> + Clone) -> Self {
        let with_tokens = |template: &Template| Arc::new(template.clone().with_special_tokens(tokens.clone()));
        Self { template: with_tokens(&self.template), calling: with_tokens(&self.calling), name: self.name }
    }

    /// Special tokens that marks are made of.
    pub(super) fn special_tokens(&self) -> &[String] {
        &self.calling.special_tokens
    }

    fn template(&self, calls: FormatCalls) -> &Arc<Template> {
        match calls {
            FormatCalls::Own => &self.template,
            FormatCalls::OwnOrOurs => &self.calling,
        }
    }
}
