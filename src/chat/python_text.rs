//! Values as Python prints them, which is what models were trained to read.

use super::markup::is_mark;
use minijinja::{Value, value::ValueKind};
use std::fmt::Write;

/// Lists in lists that are printed. Deeper ones are cut, so that no template can exhaust the stack.
const MAX_DEPTH: usize = 64;

/// `str(value)`.
pub(super) fn to_string(value: &Value) -> String {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => text.to_owned(),
        (ValueKind::Undefined, _) => String::new(),
        _ => {
            let mut text = String::new();
            write_repr(value, MAX_DEPTH, &mut text);
            text
        }
    }
}

fn write_repr(value: &Value, depth: usize, text: &mut String) {
    match value.kind() {
        _ if depth == 0 => text.push_str("..."),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), text),
        ValueKind::Number if !value.is_integer() => text.push_str(&float(value)),
        ValueKind::Undefined => text.push_str("Undefined"),
        ValueKind::Map => {
            let write = |key: Value, text: &mut String| {
                write_repr(&key, depth - 1, text);
                text.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), depth - 1, text);
            };
            write_list(value, "{}", write, text);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let write = |item: Value, text: &mut String| write_repr(&item, depth - 1, text);
            let brackets = if value.is_tuple() { "()" } else { "[]" };
            write_list(value, brackets, write, text);
        }
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Number
        | ValueKind::Bytes
        | ValueKind::Plain
        | ValueKind::Invalid
        | _ => text.push_str(&value.to_string()),
    }
}

fn write_list(value: &Value, brackets: &str, write: impl Fn(Value, &mut String), text: &mut String) {
    text.push_str(&brackets[..1]);
    for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
        if 0 < index {
            text.push_str(", ");
        }
        write(item, text);
    }
    if brackets == "()" && value.len() == Some(1) {
        text.push(',');
    }
    text.push_str(&brackets[1..]);
}

fn write_quoted(quoted: &str, text: &mut String) {
    let quote = if quoted.contains('\'') && !quoted.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in quoted.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            _ if character == quote => text.extend(['\\', quote]),
            _ if is_printable(character) => text.push(character),
            _ => {
                let written = match u32::from(character) {
                    code @ ..=0xFF => write!(text, "\\x{code:02x}"),
                    code @ ..=0xFFFF => write!(text, "\\u{code:04x}"),
                    code => write!(text, "\\U{code:08x}"),
                };
                written.expect("strings take all text");
            }
        }
    }
    text.push(quote);
}

/// The standard library knows, and tells it by what it escapes; but for the first character, which it escapes also
/// where it only belongs to the one before.
fn is_printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        _ if is_mark(character) => true,
        _ => !['a', character].iter().collect::<String>().escape_debug().any(|escaped| escaped == '\\'),
    }
}

/// The shortest digits that mean this number, with an exponent where it is very large or very small.
pub(super) fn float(value: &Value) -> String {
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if number.is_nan() {
        return "nan".to_owned();
    }
    let plain = format!("{number:?}");
    let Some((digits, exponent)) = plain.split_once('e') else { return plain };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_like_python() {
        let numbers = [1.0, -0.0, 0.1, 1e15, 1e16, 123_456_789.125, 1e-4, 1e-5, 1.5e300, 5e-324, f64::INFINITY];
        insta::assert_snapshot!(to_string(&Value::from_iter(numbers)), @"[1.0, -0.0, 0.1, 1000000000000000.0, 1e+16, 123456789.125, 0.0001, 1e-05, 1.5e+300, 5e-324, inf]");
        let texts = ["it's", "\"", "'\"", "\\\n\u{7}\u{a0}\u{200b}", "é👍\u{301}"];
        insta::assert_snapshot!(to_string(&Value::from_iter(texts)), @r#"["it's", '"', '\'"', '\\\n\x07\xa0\u200b', 'é👍́']"#);
        let map = Value::from_pairs([("a", Value::from(())), ("b", Value::from(true)), ("c", Value::from(7))]);
        insta::assert_snapshot!(to_string(&map), @"{'a': None, 'b': True, 'c': 7}");
        assert_eq!(to_string(&Value::from("é\n")), "é\n");
        assert_eq!(to_string(&Value::UNDEFINED), "");
    }

    #[test]
    fn depth_is_limited() {
        let deep = (0..100_000).fold(Value::from(1), |value, _| Value::from(vec![value]));
        assert!(to_string(&deep).len() < 200);
        std::mem::forget(deep); // Taking it apart recurses, too.
    }
}
