//! Calls in the syntax of Python: `[get_weather(city="Oslo", days=[1, 2]), now()]`.

use serde_json::{Map, Value, json};

/// How deep lists and dictionaries may be nested.
const MAX_DEPTH: usize = 64;

/// The calls of a text, in brackets or not, each as an object with `name` and `arguments`. None where there is anything
/// else, or where an argument has no name.
pub(super) fn calls(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim() };
    let is_list = reader.take('[');
    let mut calls = Vec::new();
    loop {
        if is_list && reader.take(']') {
            break;
        }
        calls.push(reader.call(0)?);
        let goes_on = reader.take(',') || reader.take(';');
        if !is_list && reader.is_at_end() {
            break;
        }
        // Without brackets, each call may stand on a line of its own.
        if is_list && !goes_on {
            reader.take(']').then_some(())?;
            break;
        }
    }
    reader.is_at_end().then_some(Value::Array(calls))
}

/// The value that a text writes; none where there is anything else.
pub(super) fn value(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim() };
    let value = reader.value(0)?;
    reader.is_at_end().then_some(value)
}

struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_space();
        self.rest.is_empty()
    }

    fn take(&mut self, character: char) -> bool {
        self.skip_space();
        self.rest.strip_prefix(character).map(|rest| self.rest = rest).is_some()
    }

    fn name(&mut self) -> Option<&'t str> {
        self.skip_space();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let length = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(length);
        let begins_well = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        begins_well.then(|| self.rest = rest)?;
        Some(name)
    }

    fn call(&mut self, depth: usize) -> Option<Value> {
        let name = self.name()?;
        self.take('(').then_some(())?;
        if name == "print" && depth == 0 {
            // Some models show what they call.
            let call = self.call(1)?;
            return self.take(')').then_some(call);
        }
        let mut arguments = Map::new();
        while !self.take(')') {
            let key = self.name()?;
            (self.take('=') || self.take(':')).then_some(())?;
            arguments.insert(key.to_owned(), self.value(0)?);
            if !self.take(',') {
                self.take(')').then_some(())?;
                break;
            }
        }
        Some(json!({ "name": name, "arguments": arguments }))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        (depth < MAX_DEPTH).then_some(())?;
        self.skip_space();
        match self.rest.chars().next()? {
            '"' | '\'' => self.string().map(Value::String),
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '{' => self.dictionary(depth),
            '-' | '+' | '.' | '0'..='9' => self.number(),
            _ => match self.name()? {
                "True" | "true" => Some(json!(true)),
                "False" | "false" => Some(json!(false)),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<Value> {
        self.take(open);
        let mut values = Vec::new();
        while !self.take(close) {
            values.push(self.value(depth + 1)?);
            if !self.take(',') {
                self.take(close).then_some(())?;
                break;
            }
        }
        Some(Value::Array(values))
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.take('{');
        let mut members = Map::new();
        while !self.take('}') {
            let key = self.value(depth + 1)?;
            let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            self.take(':').then_some(())?;
            members.insert(key, self.value(depth + 1)?);
            if !self.take(',') {
                self.take('}').then_some(())?;
                break;
            }
        }
        Some(Value::Object(members))
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
        let length = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        let digits = digits.replace('_', "");
        match digits.parse::<i64>() {
            Ok(number) => Some(json!(number)),
            // What is not finite has no JSON.
            Err(_) => digits.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number),
        }
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let triple: String = [quote; 3].iter().collect();
        let end = if self.rest.starts_with(&triple) { triple } else { quote.to_string() };
        self.rest = &self.rest[end.len()..];
        let mut text = String::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix(end.as_str()) {
                self.rest = rest;
                return Some(text);
            }
            let character = self.next_char()?;
            match character {
                '\\' => self.escape(&mut text)?,
                _ => text.push(character),
            }
        }
    }

    fn next_char(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let character = chars.next()?;
        self.rest = chars.as_str();
        Some(character)
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let character = self.next_char()?;
        match character {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            '\n' => {}
            '\\' | '\'' | '"' => text.push(character),
            'x' => text.push(self.code(2)?),
            'u' => {
                let code = self.code_point(4)?;
                // JSON's way to write what Python writes as one: two halves.
                let low = (0xD800..0xDC00).contains(&code).then(|| self.rest.strip_prefix("\\u")).flatten();
                let code = match low {
                    Some(rest) => {
                        self.rest = rest;
                        0x10000 + ((code - 0xD800) << 10) + self.code_point(4)?.checked_sub(0xDC00)?
                    }
                    None => code,
                };
                text.push(char::from_u32(code)?);
            }
            'U' => text.push(self.code(8)?),
            _ => text.extend(['\\', character]),
        }
        Some(())
    }

    fn code(&mut self, num_digits: usize) -> Option<char> {
        self.code_point(num_digits).and_then(char::from_u32)
    }

    fn code_point(&mut self, num_digits: usize) -> Option<u32> {
        let digits = self.rest.get(..num_digits)?;
        self.rest = &self.rest[num_digits..];
        u32::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_python_reads_them() {
        let text = r#"[f(a="x, )]", b=-1.5e3, c=[1, (2, 3)], d={'k': None, 1: True}), g( ), mod.h(s='it\'s\n\u00e9\ud83d\ude00', )]"#;
        let expected = json!([
            { "name": "f", "arguments": { "a": "x, )]", "b": -1500.0, "c": [1, [2, 3]], "d": { "k": null, "1": true } } },
            { "name": "g", "arguments": {} },
            { "name": "mod.h", "arguments": { "s": "it's\né😀" } },
        ]);
        assert_eq!(calls(text), Some(expected));
        assert_eq!(calls("print(f(a=1))\ng()").unwrap().as_array().unwrap().len(), 2);
        assert_eq!(calls("f(a='''two\nlines''')"), Some(json!([{ "name": "f", "arguments": { "a": "two\nlines" } }])));
    }

    #[test]
    fn what_is_no_call_is_none() {
        for text in [
            "",
            "f",
            "f(",
            "f(1)",
            "f(a=1",
            "[f(a=1)",
            "[1, 2]",
            "f(a=b)",
            "f(a=1) and so on",
            "f(a='x",
            "f(a='\\u12')",
            "f(a=inf)",
        ] {
            assert_eq!(calls(text), None, "{text}");
        }
        assert_eq!(calls(&format!("f(a={}", "[".repeat(100_000))), None);
        assert_eq!(calls("[]"), Some(json!([])));
    }
}
