//! A response format as it is written down: the `response_template` of a tokenizer, and what the built-in ones add to it.

use super::{
    FormatError,
    anchor::{Anchor, Mark, Watch},
    call_shape::CallShape,
    content::Content,
    pattern::Pattern,
};
use regex_syntax::hir::{Hir, HirKind};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A format that is ready to be read with.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) fields: Vec<Field>,
    /// The field of what stands between marks; without one, that is dropped.
    pub(super) implicit: Option<usize>,
    /// Where in the prompt the reply begins.
    start: Option<Anchor>,
    /// Texts of tokens that end a reply.
    pub(super) ends: Vec<String>,
    /// Special tokens that are part of a mark, by their text.
    pub(super) special_tokens: Vec<String>,
    /// What ends each field, and what can begin between them.
    watches: Vec<Watch>,
    free: Watch,
}

/// One key of the message that a reply is.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) part: Part,
    pub(super) open: Option<Anchor>,
    pub(super) close: Option<Anchor>,
    pub(super) content: Content,
    /// Stands between two of its kind.
    pub(super) join: Option<String>,
    /// Begins only where nothing has been said.
    pub(super) leads: bool,
    /// How calls are written in it; only of calls.
    pub(super) calls: Option<CallShape>,
}

/// What a field is to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Reasoning,
    Text,
    Calls,
    /// Nothing: it is read and dropped.
    Aside,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    #[serde(default = "known_version")]
    version: u64,
    #[serde(default, rename = "defaults")]
    _defaults: Map<String, Value>,
    fields: Map<String, Value>,
    start_anchor: Option<Literals>,
    start_anchor_pattern: Option<String>,
    #[serde(default)]
    ends: Vec<String>,
    #[serde(default, rename = "models")]
    _models: String,
    #[serde(default, rename = "detect")]
    _detect: Vec<Vec<String>>,
    #[serde(default, rename = "model_types")]
    _model_types: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldData {
    open: Option<Literals>,
    open_pattern: Option<String>,
    close: Option<Literals>,
    close_pattern: Option<String>,
    #[serde(default = "text")]
    content: String,
    #[serde(default)]
    content_args: Map<String, Value>,
    #[serde(default)]
    repeats: bool,
    join: Option<String>,
    /// What is missing is not for a server to refuse: the reply is there.
    #[serde(default, rename = "optional")]
    _optional: IgnoredAny,
    transform: Option<Value>,
    #[serde(default)]
    transform_each: bool,
    #[serde(default)]
    leads: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Literals {
    One(String),
    Many(Vec<String>),
}

fn known_version() -> u64 {
    1
}

fn text() -> String {
    "text".to_owned()
}

/// Fields, and characters of an expression, that a format may have.
const MAX_FIELDS: usize = 32;

impl Template {
    /// Reads a format.
    ///
    /// # Errors
    /// What is wrong with which field, and what to do.
    pub(super) fn new(json: &Value) -> Result<Self, FormatError> {
        let data = Data::deserialize(json).map_err(|cause| FormatError::Shape(cause.to_string()))?;
        if data.version != known_version() {
            return Err(FormatError::Shape(format!("its version is {} and only 1 is known", data.version)));
        }
        if data.fields.is_empty() || MAX_FIELDS < data.fields.len() {
            return Err(FormatError::Shape(format!("it must have 1 to {MAX_FIELDS} fields")));
        }
        let fields: Vec<Field> =
            data.fields.iter().map(|(name, field)| Field::new(name, field)).collect::<Result<_, _>>()?;
        let mut implicit = (0..fields.len()).filter(|index| fields[*index].open.is_none());
        let first = implicit.next();
        if implicit.next().is_some() {
            return Err(FormatError::Shape("more than one field has neither `open` nor `open_pattern`".to_owned()));
        }
        let start = anchor("the format", "start_anchor", data.start_anchor, data.start_anchor_pattern)?;
        let template = Self {
            fields,
            implicit: first,
            start,
            ends: data.ends,
            special_tokens: Vec::new(),
            watches: Vec::new(),
            free: Watch::new(Vec::new()),
        };
        Ok(template.watched())
    }

    /// For a tokenizer with these special tokens. Those that no mark is made of never become text.
    pub(super) fn with_special_tokens<'t>(mut self, tokens: impl Iterator<Item = &'t str>) -> Self {
        self.special_tokens = tokens.filter(|token| self.spells(token)).map(str::to_owned).collect();
        self.watched()
    }

    /// Whether a special token is part of how a field is marked or written.
    pub(super) fn spells(&self, token: &str) -> bool {
        self.fields.iter().any(|field| field.spells(token))
    }

    /// With calls of another format beside its own fields.
    pub(super) fn with_calls_of(mut self, other: &Self) -> Self {
        self.fields.extend(other.fields.iter().filter(|field| field.part == Part::Calls).cloned());
        self.watched()
    }

    /// Without reasoning whose marks a chat template does not know.
    pub(super) fn without_unknown_reasoning(mut self, template_source: &str) -> Self {
        let is_known = |field: &Field| field.part != Part::Reasoning || field.is_spelled_in(template_source);
        if self.implicit.is_none_or(|index| self.fields[index].part == Part::Text) {
            self.fields.retain(is_known);
            self.implicit = self.fields.iter().position(|field| field.open.is_none());
        }
        self.watched()
    }

    fn watched(mut self) -> Self {
        let stray = match &self.special_tokens[..] {
            [] => Vec::new(),
            tokens => {
                Anchor::literals("", tokens.to_vec()).map(|anchor| vec![(Mark::Stray, anchor)]).unwrap_or_default()
            }
        };
        let close = |field: &Field| field.close.clone().map(|close| (Mark::Close, close));
        let opens = |part: Option<Part>| -> Vec<(Mark, Anchor)> {
            let fields = self.fields.iter().enumerate().filter(|(_, field)| part.is_none_or(|part| field.part == part));
            fields.filter_map(|(index, field)| Some((Mark::Open(index), field.open.clone()?))).collect()
        };
        let watch = |field: &Field| {
            // A closing mark that is missing must not swallow the next call.
            let opens = if field.part == Part::Calls { opens(Some(Part::Calls)) } else { Vec::new() };
            Watch::new(close(field).into_iter().chain(opens).chain(stray.clone()).collect())
        };
        let implicit_close = self.implicit.and_then(|index| close(&self.fields[index]));
        let free = Watch::new(opens(None).into_iter().chain(implicit_close).chain(stray.clone()).collect());
        self.watches = self.fields.iter().map(watch).collect();
        self.free = free;
        self
    }

    /// The marks to look for in a field, or between the fields.
    pub(super) fn watch(&self, field: Option<usize>) -> &Watch {
        field.map_or(&self.free, |index| &self.watches[index])
    }

    /// The fields of a kind.
    pub(super) fn fields_of(&self, part: Part) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| field.part == part)
    }

    /// The end of a prompt as far as it belongs to the reply.
    pub(super) fn begun_by<'p>(&self, last_words: &'p str) -> Begun<'p> {
        match self.start.as_ref().and_then(|start| start.last_end(last_words)) {
            Some(end) => Begun::Text(&last_words[end..]),
            None => Begun::Field(self.fields.iter().position(|field| field.is_opened_at_the_end_of(last_words))),
        }
    }
}

/// What a prompt has begun.
pub(super) enum Begun<'p> {
    /// This much of the reply.
    Text(&'p str),
    /// This field, if any.
    Field(Option<usize>),
}

impl Field {
    fn new(name: &str, json: &Value) -> Result<Self, FormatError> {
        let place = format!("field `{name}`");
        let error = |message: String| FormatError::Field { place: place.clone(), message };
        let data = FieldData::deserialize(json).map_err(|cause| error(cause.to_string()))?;
        if data.join.is_some() && !data.repeats {
            return Err(error("`join` needs `repeats`".to_owned()));
        }
        if data.transform_each && data.transform.is_none() {
            return Err(error("`transform_each` needs a `transform`".to_owned()));
        }
        let open = anchor(&place, "open", data.open, data.open_pattern)?;
        let close = anchor(&place, "close", data.close, data.close_pattern)?;
        let groups = |anchor: &Option<Anchor>| -> Vec<String> {
            let pattern = anchor.as_ref().and_then(Anchor::as_pattern);
            pattern.into_iter().flat_map(Pattern::group_names).map(str::to_owned).collect()
        };
        let (open_groups, close_groups) = (groups(&open), groups(&close));
        if data.transform.is_none() && !(open_groups.is_empty() && close_groups.is_empty()) {
            return Err(error("its marks have named groups, which only a `transform` can use".to_owned()));
        }
        let content = Content::new(&place, &data.content, &data.content_args)?;
        let part = Part::named(name);
        let calls = match part {
            Part::Calls => Some(CallShape::new(&place, data.transform, data.transform_each, &content, &open_groups)?),
            Part::Reasoning | Part::Text | Part::Aside => None,
        };
        Ok(Self { part, open, close, content, join: data.join, leads: data.leads, calls })
    }

    fn is_opened_at_the_end_of(&self, prompt: &str) -> bool {
        match (&self.open, self.part) {
            (Some(Anchor::Literals(literals)), Part::Reasoning | Part::Text) => {
                literals.iter().any(|literal| prompt.trim_end().ends_with(literal.trim_end()))
            }
            (Some(pattern @ Anchor::Pattern(_)), Part::Reasoning | Part::Text) => {
                pattern.last_end(prompt).is_some_and(|end| prompt[end..].trim().is_empty())
            }
            (Some(_), Part::Calls | Part::Aside) | (None, _) => false,
        }
    }

    fn anchors(&self) -> impl Iterator<Item = &Anchor> {
        self.open.iter().chain(&self.close)
    }

    /// Whether a special token is part of how the field is marked or written.
    fn spells(&self, token: &str) -> bool {
        let in_anchor = |anchor: &Anchor| match anchor {
            Anchor::Literals(literals) => literals.iter().any(|literal| literal.contains(token)),
            Anchor::Pattern(pattern) => spells(pattern.hir(), token),
        };
        self.anchors().any(in_anchor) || self.content.spells(token)
    }

    /// Whether a chat template holds one of the marks.
    fn is_spelled_in(&self, source: &str) -> bool {
        let in_source = |anchor: &Anchor| match anchor {
            Anchor::Literals(literals) => literals.iter().any(|literal| source.contains(literal.trim())),
            Anchor::Pattern(_) => true,
        };
        self.close.iter().chain(&self.open).any(in_source)
    }
}

/// Whether an expression holds a text as it is.
pub(super) fn spells(hir: &Hir, token: &str) -> bool {
    match hir.kind() {
        HirKind::Literal(literal) => std::str::from_utf8(&literal.0).is_ok_and(|text| text.contains(token)),
        HirKind::Repetition(repetition) => spells(&repetition.sub, token),
        HirKind::Capture(capture) => spells(&capture.sub, token),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(|part| spells(part, token)),
        HirKind::Empty | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

impl Part {
    /// Several fields may make one key of the message: what follows a dot tells them apart.
    fn named(field: &str) -> Self {
        match field.split('.').next().unwrap_or_default() {
            "reasoning_content" | "reasoning" | "thinking" => Self::Reasoning,
            "content" => Self::Text,
            "tool_calls" => Self::Calls,
            _ => Self::Aside,
        }
    }
}

fn anchor(
    place: &str,
    key: &str,
    literals: Option<Literals>,
    pattern: Option<String>,
) -> Result<Option<Anchor>, FormatError> {
    let of_key = |suffix: &str| format!("{place}, `{key}{suffix}`");
    match (literals, pattern) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            let message = format!("it has both `{key}` and `{key}_pattern`; leave out one");
            Err(FormatError::Field { place: place.to_owned(), message })
        }
        (Some(Literals::One(literal)), None) => Anchor::literals(&of_key(""), vec![literal]).map(Some),
        (Some(Literals::Many(literals)), None) => Anchor::literals(&of_key(""), literals).map(Some),
        (None, Some(pattern)) => {
            let pattern = Pattern::new(&of_key("_pattern"), &pattern)?;
            Ok(Some(Anchor::Pattern(Arc::new(pattern))))
        }
    }
}
