//! JSON as Python's `json.dumps` writes it, which is what models were trained to read.

use super::python_text;
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
    let mut text = String::new();
    style.write(value, 0, &mut text)?;
    Ok(Value::from(text))
}

/// On one line, with a space behind `,` and `:`.
pub(super) fn to_string(value: &Json) -> String {
    let (item_separator, key_separator) = (", ".to_owned(), ": ".to_owned());
    let style = Style { ensure_ascii: false, indent: None, item_separator, key_separator, sort_keys: false };
    let mut text = String::new();
    match style.write(&Value::from(Serde(value)), 0, &mut text) {
        Ok(()) => text,
        // Nested too deeply to be laid out.
        Err(_) => value.to_string(),
    }
}

impl Style {
    fn write(&self, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        if MAX_DEPTH < depth {
            return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), text),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let write = |key: Value, text: &mut String| {
                    self.write_string(&key_name(&key)?, text);
                    text.push_str(&self.key_separator);
                    self.write(&value.get_item(&key)?, depth + 1, text)
                };
                self.write_list(keys, "{}", depth, write, text)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let write = |item: Value, text: &mut String| self.write(&item, depth + 1, text);
                self.write_list(value.try_iter()?, "[]", depth, write, text)?;
            }
            ValueKind::None | ValueKind::Bool | ValueKind::Number => text.push_str(&scalar(value)),
            ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
                let message = format!("a value of kind `{}` is not JSON", value.kind());
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn write_list(
        &self,
        items: impl IntoIterator<Item = Value>,
        brackets: &str,
        depth: usize,
        write: impl Fn(Value, &mut String) -> Result<(), Error>,
        text: &mut String,
    ) -> Result<(), Error> {
        text.push_str(&brackets[..1]);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                text.push_str(&self.item_separator);
            }
            is_empty = false;
            self.break_line(depth + 1, text);
            write(item, text)?;
        }
        if !is_empty {
            self.break_line(depth, text);
        }
        text.push_str(&brackets[1..]);
        Ok(())
    }

    fn break_line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, string: &str, text: &mut String) {
        text.push('"');
        for character in string.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                _ if character < ' ' || self.ensure_ascii && '~' < character => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(text, "\\u{unit:04x}").expect("strings take all text");
                    }
                }
                _ => text.push(character),
            }
        }
        text.push('"');
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
    match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Number if !value.is_integer() => match python_text::float(value).as_str() {
            "nan" => "NaN".to_owned(),
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            number => number.to_owned(),
        },
        _ => value.to_string().to_lowercase(),
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
