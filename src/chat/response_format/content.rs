//! What the text of a field means.

use super::{FormatError, pattern::Pattern, python, template::spells};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A kind of content, with what it leaves open.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Text {
        strip: bool,
    },
    Integer,
    Float,
    Bool,
    Json(Dialect),
    /// `xml-inline`
    Tags(Arc<Tags>),
    /// `kv-lines`
    Lines(Box<Lines>),
    /// Calls in the syntax of Python, `[f(a=1), g()]`: what transformers' language lacks.
    Pythonic,
}

/// How JSON is spelled.
#[derive(Clone, Debug, Default)]
pub(super) struct Dialect {
    pub(super) unquoted_keys: bool,
    /// What strings stand between, beside quotes.
    pub(super) string_delims: Vec<(String, String)>,
    allow_non_json: bool,
}

/// Tags with a key and a value each.
#[derive(Debug)]
pub(super) struct Tags {
    pub(super) tag: Pattern,
    value: Option<Content>,
    merge_duplicates: bool,
}

/// Lines with a key and a value each.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    line_sep: String,
    kv_sep: String,
    strip: bool,
    value: Option<Content>,
}

/// How deep values may be made of others.
const MAX_DEPTH: usize = 4;

impl Content {
    pub(super) fn new(place: &str, kind: &str, args: &Map<String, Value>) -> Result<Self, FormatError> {
        Self::nested(place, kind, args, 0)
    }

    fn nested(place: &str, kind: &str, args: &Map<String, Value>, depth: usize) -> Result<Self, FormatError> {
        let error = |message: String| FormatError::Field { place: place.to_owned(), message };
        if MAX_DEPTH < depth {
            return Err(error("its values are nested too deep".to_owned()));
        }
        let flag = |key: &str, default| args.get(key).and_then(Value::as_bool).unwrap_or(default);
        let text = |key: &str| args.get(key).and_then(Value::as_str);
        let value = || match args.get("value_parser") {
            None | Some(Value::Null) => Ok(None),
            Some(parser) => {
                let name = parser.get("name").and_then(Value::as_str).unwrap_or("text");
                let args = parser.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
                Self::nested(place, name, &args, depth + 1).map(Some)
            }
        };
        Ok(match kind {
            "text" => Self::Text { strip: flag("strip", true) },
            "int" => Self::Integer,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "json" => {
                let delims: Vec<(String, String)> = match args.get("string_delims") {
                    None => Vec::new(),
                    Some(delims) => serde_json::from_value(delims.clone())
                        .map_err(|cause| error(format!("`string_delims` must be pairs of texts: {cause}")))?,
                };
                if delims.iter().any(|(open, close)| open.is_empty() || close.is_empty()) {
                    return Err(error("`string_delims` cannot be empty".to_owned()));
                }
                let unquoted_keys = flag("unquoted_keys", false);
                Self::Json(Dialect {
                    unquoted_keys,
                    string_delims: delims,
                    allow_non_json: flag("allow_non_json", false),
                })
            }
            "xml-inline" => {
                let tag = text("tag_pattern").ok_or_else(|| error("`xml-inline` needs a `tag_pattern`".to_owned()))?;
                let tag = Pattern::new(&format!("{place}, `tag_pattern`"), tag)?;
                if !tag.has_group("key") {
                    return Err(error("its `tag_pattern` needs a group named `key`".to_owned()));
                }
                Self::Tags(Arc::new(Tags { tag, value: value()?, merge_duplicates: flag("merge_duplicates", false) }))
            }
            "kv-lines" if ["line_sep", "kv_sep"].iter().any(|key| text(key) == Some("")) => {
                return Err(error("`line_sep` and `kv_sep` cannot be empty".to_owned()));
            }
            "kv-lines" => Self::Lines(Box::new(Lines {
                line_sep: text("line_sep").unwrap_or("\n").to_owned(),
                kv_sep: text("kv_sep").unwrap_or(":").to_owned(),
                strip: flag("strip", true),
                value: value()?,
            })),
            "pythonic" => Self::Pythonic,
            _ => {
                let known = "text, int, float, bool, json, xml-inline, kv-lines, pythonic";
                return Err(error(format!("its content `{kind}` is not known; known are {known}")));
            }
        })
    }

    /// Whether white space around it is the format's.
    pub(super) fn is_stripped(&self) -> bool {
        !matches!(self, Self::Text { strip: false })
    }

    /// Whether a special token is part of how it is written.
    pub(super) fn spells(&self, token: &str) -> bool {
        match self {
            Self::Json(dialect) => {
                dialect.string_delims.iter().any(|(open, close)| open.contains(token) || close.contains(token))
            }
            Self::Tags(tags) => spells(tags.tag.hir(), token),
            Self::Text { .. } | Self::Integer | Self::Float | Self::Bool | Self::Lines(_) | Self::Pythonic => false,
        }
    }

    /// The value of a whole text; none where it is not of this kind.
    pub(super) fn value(&self, text: &str) -> Option<Value> {
        match self {
            Self::Text { strip } => Some(json!(if *strip { text.trim() } else { text })),
            Self::Integer => text.trim().parse::<i64>().ok().map(Value::from),
            Self::Float => text.trim().parse::<f64>().ok().map(Value::from),
            Self::Bool => Some(Value::Bool(matches!(text.trim().to_lowercase().as_str(), "true" | "1"))),
            Self::Json(dialect) => dialect.value(text),
            Self::Tags(tags) => tags.value(text),
            Self::Lines(lines) => lines.value(text),
            Self::Pythonic => python::calls(text),
        }
    }
}

impl Dialect {
    /// Whether it is JSON as everybody writes it.
    pub(super) fn is_plain(&self) -> bool {
        !self.unquoted_keys && self.string_delims.is_empty() && !self.allow_non_json
    }

    fn value(&self, text: &str) -> Option<Value> {
        let parsed = match self.unquoted_keys || !self.string_delims.is_empty() {
            true => serde_json::from_str(&self.standard(text)),
            false => serde_json::from_str(text),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(_) if self.allow_non_json => Some(json!(text.trim())),
            Err(_) => None,
        }
    }

    /// The same in standard JSON.
    fn standard(&self, text: &str) -> String {
        let mut standard = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(character) = text[at..].chars().next() {
            let rest = &text[at..];
            if let Some((string, length)) = self.delimited(rest) {
                standard.push_str(&json!(string).to_string());
                at += length;
                continue;
            }
            let length = match character {
                '"' => quoted_length(rest),
                _ => character.len_utf8(),
            };
            standard.push_str(&rest[..length]);
            at += length;
            if self.unquoted_keys && matches!(character, '{' | ',') {
                at += push_key(&text[at..], &mut standard);
            }
        }
        standard
    }

    /// A string between delimiters of its own, and its length with them.
    fn delimited<'t>(&self, text: &'t str) -> Option<(&'t str, usize)> {
        self.string_delims.iter().find_map(|(open, close)| {
            let rest = text.strip_prefix(open.as_str())?;
            let length = rest.find(close.as_str())?;
            Some((&rest[..length], open.len() + length + close.len()))
        })
    }
}

/// Bytes of a quoted string with its quotes, or of all that is there.
fn quoted_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Quotes the key that a text begins with, if it does; the bytes it took.
fn push_key(text: &str, standard: &mut String) -> usize {
    let word = text.trim_start();
    let length = word.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(word.len());
    if length == 0 || !word[length..].trim_start().starts_with(':') {
        return 0;
    }
    standard.push_str(&json!(word[..length]).to_string());
    text.len() - word.len() + length
}

impl Tags {
    pub(super) fn merges(&self) -> bool {
        self.merge_duplicates
    }

    /// Key and value of a tag.
    pub(super) fn member(&self, text: &str, start: usize, end: usize) -> Option<(String, Value)> {
        let (mut key, mut raw) = (None, String::new());
        for (group, text) in self.tag.captures(text, start, end).groups {
            match group.as_str() {
                "key" => key = Some(text),
                "value" => raw = text,
                _ => {}
            }
        }
        Some((key?, sub_value(self.value.as_ref(), raw)?))
    }

    fn value(&self, text: &str) -> Option<Value> {
        let mut members = Map::new();
        for (start, end) in self.tag.matches(text) {
            let (key, value) = self.member(text, start, end)?;
            self.insert(&mut members, key, value);
        }
        Some(Value::Object(members))
    }

    fn insert(&self, members: &mut Map<String, Value>, key: String, value: Value) {
        match members.get_mut(&key) {
            Some(Value::Array(values)) if self.merge_duplicates => values.push(value),
            Some(first) if self.merge_duplicates => *first = json!([first.take(), value]),
            Some(_) | None => {
                members.insert(key, value);
            }
        }
    }
}

impl Lines {
    fn value(&self, text: &str) -> Option<Value> {
        let strip = |text: &str| if self.strip { text.trim().to_owned() } else { text.to_owned() };
        let mut members = Map::new();
        for line in text.split(self.line_sep.as_str()).map(strip) {
            if let Some((key, value)) = line.split_once(self.kv_sep.as_str()) {
                members.insert(strip(key), sub_value(self.value.as_ref(), strip(value))?);
            }
        }
        Some(Value::Object(members))
    }
}

fn sub_value(kind: Option<&Content>, raw: String) -> Option<Value> {
    kind.map_or_else(|| Some(Value::String(raw.clone())), |kind| kind.value(&raw))
}
