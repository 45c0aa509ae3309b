//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, which is what models were trained to read.

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// On one line, with a space after `,` and `:`.
pub(super) fn to_string(value: &impl Serialize) -> serde_json::Result<String> {
    write(value, OneLine)
}

/// Over several lines.
pub(super) fn to_string_indented(value: &impl Serialize, indent: usize) -> serde_json::Result<String> {
    write(value, PrettyFormatter::with_indent(" ".repeat(indent).as_bytes()))
}

fn write(value: &impl Serialize, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spelled_like_python() {
        let value = json!({ "b": [1, 2.0, "é<&'\u{1f44d}\n"], "a": {}, "c": [], "d": null });
        insta::assert_snapshot!(to_string(&value).unwrap(), @r#"{"b": [1, 2.0, "é<&'👍\n"], "a": {}, "c": [], "d": null}"#);
        insta::assert_snapshot!(to_string_indented(&json!({ "a": [1] }), 4).unwrap(), @r#"
        {
            "a": [
                1
            ]
        }
        "#);
    }
}
