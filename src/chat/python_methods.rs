//! Python's methods, as far as templates may call them: those that change nothing.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Rest, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

/// Calls a method that the engine itself does not know. What the crate for compatibility with Python lacks, or does in
/// its own way, is here.
///
/// # Errors
/// For methods that are unknown, and for arguments that do not fit.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let called = match (value.kind(), value.as_str()) {
        (_, Some(text)) => of_string(text, method, args)?,
        (ValueKind::Seq | ValueKind::Iterable, _) => of_list(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => Some(value.clone()),
        _ => None,
    };
    called.map_or_else(|| pycompat::unknown_method_callback(state, value, method, args), Ok)
}

/// White space as Python sees it.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// `str.strip`, which is also the filter `trim`.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>) -> &'t str {
    text.trim_matches(|character| is_stripped(character, chars))
}

fn is_stripped(character: char, chars: Option<&str>) -> bool {
    chars.map_or_else(|| is_space(character), |chars| chars.contains(character))
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match method {
        "copy" => Some(list.clone()),
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let index = list.try_iter()?.position(|other| other == *item);
            Some(Value::from(index.ok_or_else(|| wrong("the list does not hold the value"))?))
        }
        _ => None,
    })
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let is_stripped = |character| is_stripped(character, chars);
            Value::from(match method {
                "strip" => text.trim_matches(is_stripped),
                "lstrip" => text.trim_start_matches(is_stripped),
                _ => text.trim_end_matches(is_stripped),
            })
        }
        "removeprefix" => Value::from(text.strip_prefix(one_text(args)?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(one_text(args)?).unwrap_or(text)),
        "partition" => {
            let separator = separator(one_text(args)?)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = if before.len() < text.len() { separator } else { "" };
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }
        "rpartition" => {
            let separator = separator(one_text(args)?)?;
            let (before, found, after) =
                text.rsplit_once(separator).map_or(("", "", text), |(before, after)| (before, separator, after));
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }
        "split" | "rsplit" => split(text, method == "split", args)?,
        "splitlines" => lines(text, from_args::<(Option<bool>,)>(args)?.0.unwrap_or(false)),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, method, args)?,
        "startswith" | "endswith" if 1 < args.len() => {
            let (_, within) = within(text, &args[1..])?;
            let (affixes,): (&Value,) = from_args(&args[..1])?;
            let is_there = |affix: &Value| {
                affix.as_str().is_some_and(|affix| match method {
                    "startswith" => within.starts_with(affix),
                    _ => within.ends_with(affix),
                })
            };
            let mut of_tuple = affixes.try_iter().into_iter().flatten().filter(|_| affixes.is_tuple());
            Value::from(is_there(affixes) || of_tuple.any(|affix| is_there(&affix)))
        }
        "ljust" | "rjust" | "center" => justified(text, method, args)?,
        "zfill" => {
            let (width,): (u16,) = from_args(args)?;
            let sign = if text.starts_with(['+', '-']) { 1 } else { 0 };
            let zeros = usize::from(width).saturating_sub(text.chars().count());
            Value::from([&text[..sign], &"0".repeat(zeros), &text[sign..]].concat())
        }
        "title" => Value::from(title(text)),
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "swapcase" => Value::from(text.chars().flat_map(swapped).collect::<String>()),
        "isdecimal" => Value::from(!text.is_empty() && text.chars().all(|character| character.is_ascii_digit())),
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn wrong(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

fn one_text(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

fn separator(text: &str) -> Result<&str, Error> {
    if text.is_empty() { Err(wrong("the separator is empty")) } else { Ok(text) }
}

fn split(text: &str, from_left: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let option = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(named
            .get::<Option<Value>>(name)?
            .or_else(|| positional.get(index).cloned())
            .filter(|value| !value.is_none()))
    };
    let (by, limit) = (option(0, "sep")?, option(1, "maxsplit")?);
    named.assert_all_used()?;
    let limit = limit.map(i64::try_from).transpose()?.and_then(|limit| usize::try_from(limit).ok());
    // So many splits are one part more.
    let max_parts = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let parts: Vec<&str> = match &by {
        None => words(text, from_left, max_parts),
        Some(by) => {
            let by = separator(by.as_str().ok_or_else(|| wrong("the separator is no text"))?)?;
            match from_left {
                true => text.splitn(max_parts, by).collect(),
                false => reversed(text.rsplitn(max_parts, by).collect()),
            }
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn reversed(mut parts: Vec<&str>) -> Vec<&str> {
    parts.reverse();
    parts
}

/// Parts between runs of white space; the last part that is allowed keeps what is in it.
fn words(text: &str, from_left: bool, max_parts: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_left { rest.trim_start_matches(is_space) } else { rest.trim_end_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        let cut = match from_left {
            _ if words.len() + 1 == max_parts => None,
            true => rest.find(is_space).map(|index| (&rest[..index], &rest[index..])),
            false => rest.rfind(is_space).map(|index| {
                let after = index + rest[index..].chars().next().map_or(0, char::len_utf8);
                (&rest[after..], &rest[..after])
            }),
        };
        let (word, others) = cut.unwrap_or((rest, ""));
        words.push(word);
        rest = others;
    }
    if from_left { words } else { reversed(words) }
}

fn lines(text: &str, keeps_ends: bool) -> Value {
    const ENDS: &[char] =
        &['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = match rest.find(ENDS) {
            None => (rest, ""),
            Some(index) => {
                let end = if rest[index..].starts_with("\r\n") {
                    2
                } else {
                    rest[index..].chars().next().map_or(0, char::len_utf8)
                };
                rest.split_at(index + end)
            }
        };
        lines.push(Value::from(if keeps_ends {
            line
        } else {
            line.strip_suffix("\r\n").unwrap_or_else(|| line.strip_suffix(ENDS).unwrap_or(line))
        }));
        rest = after;
    }
    Value::from(lines)
}

/// The part of a text between a start and an end that are counted in characters, and where it starts.
fn within<'t>(text: &'t str, bounds: &[Value]) -> Result<(usize, &'t str), Error> {
    let (start, end): (Option<i64>, Option<i64>) = from_args(bounds)?;
    let num_chars = text.chars().count();
    let place = |bound: Option<i64>, default: usize| {
        let Some(bound) = bound else { return default };
        let magnitude = usize::try_from(bound.unsigned_abs()).unwrap_or(usize::MAX);
        if bound < 0 { num_chars.saturating_sub(magnitude) } else { magnitude.min(num_chars) }
    };
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(index, _)| index);
    let (start, end) = (place(start, 0), place(end, num_chars));
    Ok((start, if start <= end { &text[byte(start)..byte(end)] } else { "" }))
}

fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some((wanted, bounds)) = args.split_first() else { return Err(wrong("a text to look for is missing")) };
    let wanted = wanted.as_str().ok_or_else(|| wrong("what to look for is no text"))?;
    let (start, within) = within(text, bounds)?;
    if method == "count" {
        return Ok(Value::from(within.matches(wanted).count()));
    }
    let found = if method.starts_with('r') { within.rfind(wanted) } else { within.find(wanted) };
    match found {
        Some(index) => Ok(Value::from(start + within[..index].chars().count())),
        None if method.ends_with("index") => Err(wrong("the text does not hold what is looked for")),
        None => Ok(Value::from(-1)),
    }
}

fn justified(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (u16, Option<char>) = from_args(args)?;
    let width = usize::from(width);
    let missing = width.saturating_sub(text.chars().count());
    let before = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Of an odd number, the larger half goes where Python puts it.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
    Ok(Value::from([&fill(before), text, &fill(missing - before)].concat()))
}

/// Each run of letters begins with a capital.
fn title(text: &str) -> String {
    let mut is_inside = false;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        match is_inside {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        is_inside = character.is_alphabetic();
    }
    titled
}

fn swapped(character: char) -> Vec<char> {
    if character.is_uppercase() { character.to_lowercase().collect() } else { character.to_uppercase().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::{Environment, context};

    fn render(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(call);
        environment.render_str(&format!("{{{{ {expression} }}}}"), context! {}).unwrap()
    }

    #[test]
    fn methods_do_what_they_do_in_python() {
        let recorded = [
            (r#""they're".title()"#, "They'Re"),
            (r#""aBc".swapcase()"#, "AbC"),
            (r#""Straße".casefold()"#, "strasse"),
            (r#"" a  b c ".split()"#, "['a', 'b', 'c']"),
            (r#"" a  b c ".split(none, 1)"#, "['a', 'b c ']"),
            (r#"" a  b c ".rsplit(none, 1)"#, "[' a  b', 'c']"),
            (r#""a,b,,c".split(',')"#, "['a', 'b', '', 'c']"),
            (r#""a,b,c".split(sep=',', maxsplit=1)"#, "['a', 'b,c']"),
            (r#""a,b,c".rsplit(',', 1)"#, "['a,b', 'c']"),
            (r#""a=b=c".partition('=')"#, "('a', '=', 'b=c')"),
            (r#""abc".partition('=')"#, "('abc', '', '')"),
            (r#""a=b=c".rpartition('=')"#, "('a=b', '=', 'c')"),
            (r#""abc".rpartition('=')"#, "('', '', 'abc')"),
            (r#""abcab".removeprefix('ab')"#, "cab"),
            (r#""abcab".removesuffix('ab')"#, "abc"),
            (r#""\x1c a\x1f".strip()"#, "a"),
            (r#""xxaxx".lstrip('x')"#, "axx"),
            (r#""xaby".strip('xy')"#, "ab"),
            (r#""a\r\nb\x0bc\u2028d\n".splitlines()"#, "['a', 'b', 'c', 'd']"),
            (r#""a\nb".splitlines(true)"#, r#"['a\n', 'b']"#),
            (r#""aéaé".find('é', 2)"#, "3"),
            (r#""aéaé".rfind('a', 0, -2)"#, "0"),
            (r#""abc".index('c')"#, "2"),
            (r#""aXbX".count('X', 2)"#, "1"),
            (r#""abc".startswith('b', 1)"#, "True"),
            (r#""abc".endswith(('b', 'x'), 0, 2)"#, "True"),
            (r#""-5".zfill(4)"#, "-005"),
            (r#""a".ljust(3) ~ "|""#, "a  |"),
            (r#""a".rjust(3, '*')"#, "**a"),
            (r#""a".center(4) ~ "|""#, " a  |"),
            (r#""ab".center(5) ~ "|""#, "  ab |"),
            ("[3, 1].index(1)", "1"),
            ("[1].copy()", "[1]"),
            ("{'a': 1}.copy()", "{'a': 1}"),
            (r#""12".isdecimal()"#, "True"),
        ];
        for (expression, expected) in recorded {
            assert_eq!(render(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let environment = {
            let mut environment = Environment::new();
            environment.set_unknown_method_callback(call);
            environment
        };
        for expression in
            ["'a'.index('b')", "[1].index(2)", "'a'.split('')", "[1].append(2)", "'a'.encode()", "'a'.zfill(-1)"]
        {
            assert!(environment.render_str(&format!("{{{{ {expression} }}}}"), context! {}).is_err(), "{expression}");
        }
    }
}
