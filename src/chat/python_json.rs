//! JSON as Python's `json.dumps` writes it, which is what models were trained to read.

use super::{markup::is_mark, python_text};
use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, Serde, ValueKind},
};
use serde_json::Value as Json;
use std::fmt::Write;

/// Values in values. Clients' are not as deep; no template may exhaust the stack.
const MAX_DEPTH: usize = 256;

/// How it is laid out.
struct Style {
    ensure_ascii: bool,
    /// What stands for each level; none is one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` of `transformers`.
///
/// # Errors
/// Where the value is not JSON, or an option is not one.
pub(super) fn to_json(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let option = |index: usize, name: &str| -> Result<Value, Error> {
        let named: Option<Value> = named.get(name)?;
        Ok(named.or_else(|| positional.get(index).cloned()).unwrap_or_else(|| Value::from(())))
    };
    let (ensure_ascii, indent) = (option(0, "ensure_ascii")?.is_true(), option(1, "indent")?);
    let (separators, sort_keys) = (option(2, "separators")?, option(3, "sort_keys")?.is_true());
    named.assert_all_used()?;
    let indent = match (indent.is_none(), indent.as_str()) {
        (true, _) => None,
        (false, Some(indent)) => Some(indent.to_owned()),
        (false, None) => Some(" ".repeat(u8::try_from(indent)?.into())),
    };
    let (item_separator, key_separator) = if separators.is_none() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        let separator = |index: usize| separators.get_item_by_index(index).map(|value| python_text::to_string(&value));
        (separator(0)?, separator(1)?)
    };
    let style = Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut writer = Writer { style, text: String::new() };
    writer.write(value, 0)?;
    Ok(Value::from(writer.text))
}

/// On one line, with a space behind `,` and `:`.
pub(super) fn to_string(value: &Json) -> String {
    let (item_separator, key_separator) = (", ".to_owned(), ": ".to_owned());
    let style = Style { ensure_ascii: false, indent: None, item_separator, key_separator, sort_keys: false };
    let mut writer = Writer { style, text: String::new() };
    match writer.write(&Value::from(Serde(value)), 0) {
        Ok(()) => writer.text,
        // Nested too deeply to be laid out.
        Err(_) => value.to_string(),
    }
}

struct Writer {
    style: Style,
    text: String,
}

impl Writer {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if MAX_DEPTH < depth {
            return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                let member = |key: Value| Ok((Some(key_name(&key)?), value.get_item(&key)?));
                let members: Vec<_> = keys.into_iter().map(member).collect::<Result<_, Error>>()?;
                self.write_items(members, "{}", depth)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.write_items(value.try_iter()?.map(|item| (None, item)), "[]", depth)?;
            }
            ValueKind::None | ValueKind::Bool | ValueKind::Number => self.text.push_str(&scalar(value)),
            ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
                let message = format!("a value of kind `{}` is not JSON", value.kind());
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    /// The members of an object have names.
    fn write_items(
        &mut self,
        items: impl IntoIterator<Item = (Option<String>, Value)>,
        brackets: &str,
        depth: usize,
    ) -> Result<(), Error> {
        self.text.push_str(&brackets[..1]);
        let mut is_empty = true;
        for (name, item) in items {
            if !is_empty {
                self.text.push_str(&self.style.item_separator);
            }
            is_empty = false;
            self.break_line(depth + 1);
            if let Some(name) = name {
                self.write_string(&name);
                self.text.push_str(&self.style.key_separator);
            }
            self.write(&item, depth + 1)?;
        }
        if !is_empty {
            self.break_line(depth);
        }
        self.text.push_str(&brackets[1..]);
        Ok(())
    }

    fn break_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&mut self, string: &str) {
        self.text.push('"');
        for character in string.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                _ if character < ' ' || self.style.ensure_ascii && '~' < character && !is_mark(character) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(self.text, "\\u{unit:04x}").expect("strings take all text");
                    }
                }
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }
}

/// Names are strings, so other keys are spelled.
fn key_name(key: &Value) -> Result<String, Error> {
    match (key.kind(), key.as_str()) {
        (_, Some(name)) => Ok(name.to_owned()),
        (ValueKind::None | ValueKind::Bool | ValueKind::Number, _) => Ok(scalar(key)),
        (kind, _) => Err(Error::new(ErrorKind::BadSerialization, format!("a key of kind `{kind}` is not JSON"))),
    }
}

/// Of a number, a truth value or nothing.
fn scalar(value: &Value) -> String {
    if value.is_none() {
        return "null".to_owned();
    }
    if value.kind() == ValueKind::Bool || value.is_integer() {
        return value.to_string().to_lowercase();
    }
    match python_text::float(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        number => number.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::{Environment, context, value::Serde};
    use serde_json::json;

    fn dump(expression: &str) -> String {
        let value =
            json!({ "b": [1, 2.0, 1e-7, 1e16, "é<&'\u{1f44d}\n\u{1}"], "a": {}, "c": [], "d": null, "e": true });
        let mut environment = Environment::new();
        environment.add_filter("tojson", to_json);
        let text =
            environment.render_str(&format!("{{{{ {expression} }}}}"), context! { v => Value::from(Serde(value)) });
        text.unwrap_or_else(|error| format!("error: {}", error.detail().unwrap_or_default()))
    }

    #[test]
    fn spelled_like_python() {
        insta::assert_snapshot!(dump("v | tojson"), @r#"{"b": [1, 2.0, 1e-07, 1e+16, "é<&'👍\n\u0001"], "a": {}, "c": [], "d": null, "e": true}"#);
        insta::assert_snapshot!(dump("v | tojson(ensure_ascii=true, sort_keys=true)"), @r#"{"a": {}, "b": [1, 2.0, 1e-07, 1e+16, "\u00e9<&'\ud83d\udc4d\n\u0001"], "c": [], "d": null, "e": true}"#);
        insta::assert_snapshot!(dump("v | tojson(separators=(',', ':'))"), @r#"{"b":[1,2.0,1e-07,1e+16,"é<&'👍\n\u0001"],"a":{},"c":[],"d":null,"e":true}"#);
        insta::assert_snapshot!(dump("[v.a, [1, {'x': []}]] | tojson(indent=2)"), @r#"
        [
          {},
          [
            1,
            {
              "x": []
            }
          ]
        ]
        "#);
        insta::assert_snapshot!(dump("{1: 2, none: v.b[1:2]} | tojson(false, none)"), @r#"{"1": 2, "null": [2.0]}"#);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        insta::assert_snapshot!(dump("nothing | tojson"), @"error: a value of kind `undefined` is not JSON");
        insta::assert_snapshot!(dump("{(1, 2): 3} | tojson"), @"error: a key of kind `sequence` is not JSON");
        insta::assert_snapshot!(dump("v | tojson(colour=1)"), @"error: unknown keyword argument 'colour'");
    }
}
