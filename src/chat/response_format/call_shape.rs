//! Where in the content of a field a call has its name and its arguments.

use super::{FormatError, content::Content};
use serde_json::{Map, Value};

/// How calls are written in a field.
#[derive(Clone, Debug)]
pub(super) struct CallShape {
    pub(super) reading: Reading,
    /// The group of the opening mark that names the tool.
    pub(super) name_group: Option<String>,
    transform: Option<Value>,
    each: bool,
}

/// How calls can be read while they are written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reading {
    /// An object of JSON with these members, or a list of such.
    Members { name: String, arguments: String, is_list: bool },
    /// An object of JSON is the arguments.
    Arguments,
    /// Each tag is an argument.
    Tags,
    /// Not before they are whole.
    Whole,
}

/// A call that is whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Value,
}

impl CallShape {
    pub(super) fn new(
        place: &str,
        transform: Option<Value>,
        each: bool,
        content: &Content,
        open_groups: &[String],
    ) -> Result<Self, FormatError> {
        if let Some(text) = transform.as_ref().and_then(mixed_text) {
            let message = format!("its transform mixes a placeholder with text in `{text}`; use one or the other");
            return Err(FormatError::Field { place: place.to_owned(), message });
        }
        let function = transform.as_ref().map(|transform| transform.get("function").unwrap_or(transform));
        let source = |key: &str| function?.get(key)?.as_str().and_then(placeholder);
        let (name, arguments) = (source("name"), source("arguments"));
        let is_group = |path: &[&str]| path.len() == 1 && open_groups.iter().any(|group| group == path[0]);
        let name_group = name.as_deref().filter(|path| is_group(path)).map(|path| path[0].to_owned());
        let member = |path: &Option<Vec<&str>>| match (path.as_deref(), each) {
            (Some([member]), true) if !is_group(&[member]) => Some((*member).to_owned()),
            (Some(["content", member]), false) => Some((*member).to_owned()),
            _ => None,
        };
        let is_content = !each && arguments.as_deref() == Some(&["content"]);
        let reading = match (content, &name_group, member(&name), member(&arguments)) {
            (Content::Json(dialect), None, Some(name), Some(arguments)) if dialect.is_plain() => {
                Reading::Members { name, arguments, is_list: each }
            }
            (Content::Json(dialect), Some(_), _, _) if dialect.is_plain() && is_content => Reading::Arguments,
            (Content::Tags(tags), Some(_), _, _) if !tags.merges() && is_content => Reading::Tags,
            _ => Reading::Whole,
        };
        Ok(Self { reading, name_group, transform, each })
    }

    /// The calls that a whole content holds; none where it is not what the format says.
    pub(super) fn calls(&self, content: Value, groups: &[(String, String)]) -> Option<Vec<Call>> {
        let groups: Map<String, Value> =
            groups.iter().map(|(name, text)| (name.clone(), Value::String(text.clone()))).collect();
        let message = match &self.transform {
            None => content,
            Some(transform) if self.each => {
                let Value::Array(items) = content else { return None };
                let of_item = |item: Value| {
                    let Value::Object(item) = item else { return None };
                    transformed(transform, &groups.clone().into_iter().chain(item).collect())
                };
                items.into_iter().map(of_item).collect::<Option<_>>()?
            }
            Some(transform) => {
                let mut scope = groups;
                scope.insert("content".to_owned(), content);
                transformed(transform, &scope)?
            }
        };
        let calls = if let Value::Array(calls) = message { calls } else { vec![message] };
        calls.into_iter().map(Call::of).collect()
    }
}

impl Call {
    fn of(mut message: Value) -> Option<Self> {
        let mut function = message.get_mut("function").map(Value::take).unwrap_or(message);
        let arguments = function.get_mut("arguments").map(Value::take).unwrap_or_default();
        Some(Self { name: function.get("name")?.as_str()?.to_owned(), arguments })
    }
}

/// The path that a text such as `{content.name}` stands for.
fn placeholder(text: &str) -> Option<Vec<&str>> {
    let path: Vec<&str> = text.strip_prefix('{')?.strip_suffix('}')?.split('.').collect();
    let is_word = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    path.iter().all(is_word).then_some(path)
}

/// A text of a transform that has a placeholder and more.
fn mixed_text(transform: &Value) -> Option<&str> {
    match transform {
        Value::String(text) => {
            let has_placeholder = text.match_indices('{').any(|(start, _)| {
                let end = text[start..].find('}').map_or(text.len(), |length| start + length + 1);
                placeholder(&text[start..end]).is_some()
            });
            (has_placeholder && placeholder(text).is_none()).then_some(text)
        }
        Value::Array(values) => values.iter().find_map(mixed_text),
        Value::Object(values) => values.values().find_map(mixed_text),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// The transform with what its placeholders stand for; none where one stands for nothing.
fn transformed(transform: &Value, scope: &Map<String, Value>) -> Option<Value> {
    match transform {
        Value::Object(values) => {
            let values = values.iter().map(|(key, value)| Some((key.clone(), transformed(value, scope)?)));
            values.collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        Value::Array(values) => values.iter().map(|value| transformed(value, scope)).collect(),
        Value::String(text) => match placeholder(text) {
            None => Some(transform.clone()),
            Some(path) => {
                let (root, keys) = path.split_first()?;
                keys.iter().try_fold(scope.get(*root)?, |value, key| value.get(*key)).cloned()
            }
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(transform.clone()),
    }
}
