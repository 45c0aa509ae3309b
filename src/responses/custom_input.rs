//! The input of a custom tool. Models write every call's arguments as JSON, here `{"input": "..."}`; clients want the
//! text alone, as it comes.

/// Reads arguments that are cut anywhere. What is not the expected object is handed on as it is.
#[derive(Debug, Default)]
pub(super) struct CustomInput {
    reading: Reading,
    /// Read, and not yet understood.
    pending: String,
}

#[derive(Clone, Copy, Debug, Default)]
enum Reading {
    /// Up to the quote before the text.
    #[default]
    Head,
    Text,
    /// After the quote that ends the text.
    Tail,
    /// No JSON as it was expected.
    Raw,
}

/// Between these, there may be white space.
const HEAD: [&str; 4] = ["{", "\"input\"", ":", "\""];
const ESCAPE: char = '\\';
/// Of `\u0041`.
const UNICODE_ESCAPE_BYTES: usize = 6;

impl CustomInput {
    /// What more of the input is known. Half an escape is kept for the next piece, and nothing when there is none.
    pub(super) fn push(&mut self, arguments: &str) -> String {
        self.pending.push_str(arguments);
        let mut rest = std::mem::take(&mut self.pending);
        if matches!(self.reading, Reading::Head) {
            match after_head(&rest) {
                Some(Ok(text)) => {
                    rest = text.to_owned();
                    self.reading = Reading::Text;
                }
                Some(Err(NotCustom)) => self.reading = Reading::Raw,
                None => {}
            }
        }
        match self.reading {
            Reading::Head => {
                self.pending = rest;
                String::new()
            }
            Reading::Text => self.unescape(&rest),
            Reading::Tail => String::new(),
            Reading::Raw => rest,
        }
    }

    fn unescape(&mut self, mut rest: &str) -> String {
        let mut text = String::new();
        while let Some(index) = rest.find(['"', ESCAPE]) {
            text.push_str(&rest[..index]);
            rest = &rest[index..];
            if rest.starts_with('"') {
                self.reading = Reading::Tail;
                return text;
            }
            let Some((char, num_bytes)) = read_escape(rest) else {
                rest.clone_into(&mut self.pending);
                return text;
            };
            text.push(char);
            rest = &rest[num_bytes..];
        }
        text + rest
    }
}

struct NotCustom;

/// The text's beginning; none when what there is could still become the head.
fn after_head(arguments: &str) -> Option<Result<&str, NotCustom>> {
    let mut rest = arguments;
    for token in HEAD {
        rest = rest.trim_start();
        match rest.strip_prefix(token) {
            Some(after) => rest = after,
            None if token.starts_with(rest) => return None,
            None => return Some(Err(NotCustom)),
        }
    }
    Some(Ok(rest))
}

/// What the escape at the start stands for, and its length; none when more must come. A backslash that begins no escape
/// stands for itself.
fn read_escape(text: &str) -> Option<(char, usize)> {
    let simple = match text.as_bytes().get(1)? {
        b'n' => '\n',
        b't' => '\t',
        b'r' => '\r',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'u' => return read_unicode_escape(text),
        quoted @ (b'"' | b'\\' | b'/') => char::from(*quoted),
        _ => return Some((ESCAPE, 1)),
    };
    Some((simple, 2))
}

/// Two of them may be one character: halves of a UTF-16 pair. A half alone is replaced.
fn read_unicode_escape(text: &str) -> Option<(char, usize)> {
    let Ok(first) = read_code_unit(text)? else { return Some((ESCAPE, 1)) };
    let units = match first {
        0xD800..0xDC00 => match read_code_unit(&text[UNICODE_ESCAPE_BYTES..])? {
            Ok(second @ 0xDC00..0xE000) => vec![first, second],
            Ok(_) | Err(NoEscape) => vec![first],
        },
        _ => vec![first],
    };
    let char = char::decode_utf16(units.iter().copied()).next()?.unwrap_or(char::REPLACEMENT_CHARACTER);
    Some((char, UNICODE_ESCAPE_BYTES * units.len()))
}

struct NoEscape;

/// Of `\uXXXX`; none when more must come.
fn read_code_unit(text: &str) -> Option<Result<u16, NoEscape>> {
    let mut unit = 0;
    for (index, expected) in ['\\', 'u', 'X', 'X', 'X', 'X'].into_iter().enumerate() {
        let found = char::from(*text.as_bytes().get(index)?);
        match found.to_digit(16) {
            Some(digit) if expected == 'X' => unit = unit << 4 | digit,
            _ if found == expected && expected != 'X' => {}
            _ => return Some(Err(NoEscape)),
        }
    }
    Some(u16::try_from(unit).map_err(|_| NoEscape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read<'a>(pieces: impl IntoIterator<Item = &'a str>) -> String {
        let mut input = CustomInput::default();
        pieces.into_iter().map(|piece| input.push(piece)).collect()
    }

    #[test]
    fn the_text_is_taken_out_of_the_object() {
        let cases = [
            (r#"{"input": "ls -l"}"#, "ls -l"),
            (" {\n\"input\"\t: \"\" , \"more\": \"x\" } ", ""),
            (r#"{"input":"a\n\t\r\b\f\"\\\/b"}"#, "a\n\t\r\u{8}\u{c}\"\\/b"),
            (r#"{"input":"\u00e9\ud83e\udd89\u0041"}"#, "é🦉A"),
            ("{\"input\":\"two\nlines\"}", "two\nlines"),
        ];
        for (arguments, input) in cases {
            assert_eq!(read([arguments]), input, "{arguments}");
        }
    }

    #[test]
    fn broken_json_is_read_as_far_as_it_goes() {
        let cases = [
            (r#"{"input":"a\qb\u12é\uZ\"c"}"#, r#"a\qb\u12é\uZ"c"#),
            (r#"{"input":"\ud83e!\udd89\ud83e\u0041\ud83e\n"}"#, "\u{fffd}!\u{fffd}\u{fffd}A\u{fffd}\n"),
            (r#"{"input":"cut off"#, "cut off"),
            (r#"{"input":"cut off\u00"#, "cut off"),
            (r#"{"inp"#, ""),
        ];
        for (arguments, input) in cases {
            assert_eq!(read([arguments]), input, "{arguments}");
        }
    }

    #[test]
    fn what_is_no_such_object_is_handed_on() {
        for arguments in ["ls -l", "{}", r#"{"input": 5}"#, r#"{"patch": "x"}"#, r#"["input"]"#, " \"ls\"", "é"] {
            assert_eq!(read([arguments]), arguments);
        }
    }

    fn any_arguments() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>().prop_map(|input| json!({ "input": input }).to_string()),
            r#"(\{ ?"input": ")?(\\u(d83e|dd89|00e9|12)|\\["\\nq]|[aé"🦉{:])*"#,
        ]
    }

    proptest! {
        #[test]
        fn any_text_comes_back(input: String) {
            prop_assert_eq!(read([json!({ "input": input }).to_string().as_str()]), input);
        }

        #[test]
        fn any_cut_gives_the_same(arguments in any_arguments(), cuts in prop::collection::vec(1_usize..4, 0..40)) {
            let mut cuts = cuts.into_iter();
            let mut pieces = Vec::new();
            let mut rest = arguments.as_str();
            while !rest.is_empty() {
                let num_chars = cuts.next().unwrap_or(1);
                let (piece, after) = rest.split_at(rest.char_indices().nth(num_chars).map_or(rest.len(), |(at, _)| at));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(read(pieces), read([arguments.as_str()]));
        }
    }
}
