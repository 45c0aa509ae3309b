//! Regular expressions in Python's syntax, in that of the library, which has neither look-around nor back-references.

/// The one kind of look-around that is understood, at the end of an alternative, becomes a group with this name.
const AHEAD: &str = "lookahead__";

/// Whether a group stands for text that is looked at and not taken.
pub(super) fn is_look_ahead(group: &str) -> bool {
    group.starts_with(AHEAD)
}

/// What `\\w`, `\\d` and `\\s` stand for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Alphabet {
    Unicode,
    /// For expressions that would be too large else.
    Ascii,
}

/// The same expression for the library.
///
/// # Errors
/// What cannot be expressed, and what to do.
pub(super) fn translated(python: &str, alphabet: Alphabet) -> Result<String, String> {
    let chars = python.chars().collect();
    let translation = Translation { chars, at: 0, rust: "(?s)".to_owned(), open: Vec::new(), num_aheads: 0, alphabet };
    translation.run()
}

struct Translation {
    chars: Vec<char>,
    at: usize,
    rust: String,
    /// For each open parenthesis, whether it is a look-ahead.
    open: Vec<bool>,
    num_aheads: usize,
    alphabet: Alphabet,
}

impl Translation {
    fn run(mut self) -> Result<String, String> {
        let mut follows_quantifier = false;
        while let Some(character) = self.next() {
            let is_quantified = std::mem::take(&mut follows_quantifier);
            match character {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '(' => self.group()?,
                ')' => self.end_of_group()?,
                '{' => follows_quantifier = self.brace(),
                '}' => self.rust.push_str(r"\}"),
                '+' if is_quantified => {
                    return Err("it has a possessive quantifier; leave out the second `+`".to_owned());
                }
                '*' | '+' | '?' => {
                    self.rust.push(character);
                    follows_quantifier = character != '?' || !is_quantified;
                }
                '$' => self.rust.push_str(r"\z"),
                _ => self.rust.push(character),
            }
        }
        Ok(self.rust)
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += 1;
        Some(character)
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let escaped = self.next().ok_or("it ends in a backslash")?;
        match escaped {
            'Z' => self.rust.push_str(r"\z"),
            'w' | 'd' | 's' if self.alphabet == Alphabet::Ascii => {
                let class = if escaped == 'w' {
                    "word"
                } else if escaped == 'd' {
                    "digit"
                } else {
                    "space"
                };
                self.rust.push_str(&if in_class { format!("[:{class}:]") } else { format!("[[:{class}:]]") });
            }
            'b' | 'B' => self.rust.push_str(&format!(r"(?-u:\{escaped})")),
            '1'..='9' => return Err("it has a back-reference; spell out what it repeats".to_owned()),
            _ if escaped.is_ascii_alphanumeric() || regex_syntax::is_meta_character(escaped) => {
                self.rust.extend(['\\', escaped]);
            }
            _ => self.rust.push(escaped),
        }
        Ok(())
    }

    /// A class of characters, in which the library has operators that Python lacks.
    fn class(&mut self) -> Result<(), String> {
        self.rust.push('[');
        if self.peek() == Some('^') {
            self.at += 1;
            self.rust.push('^');
        }
        let start = self.at;
        while let Some(character) = self.next() {
            match character {
                ']' if start + 1 < self.at => break,
                '\\' => {
                    self.escape(true)?;
                    continue;
                }
                '[' | ']' | '&' | '~' => self.rust.push('\\'),
                _ => {}
            }
            self.rust.push(character);
        }
        self.rust.push(']');
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        let rest: String = self.chars[self.at..].iter().take(4).collect();
        let is_ahead = rest.starts_with("?=");
        if is_ahead && self.open.is_empty() {
            self.rust.push_str(&format!("(?P<{AHEAD}{}>", self.num_aheads));
            self.num_aheads += 1;
            self.at += 2;
        } else if let Some(what) = unsupported(&rest) {
            return Err(what.to_owned());
        } else {
            self.rust.push('(');
        }
        self.open.push(is_ahead);
        Ok(())
    }

    fn end_of_group(&mut self) -> Result<(), String> {
        self.rust.push(')');
        if self.open.pop() == Some(true) && !matches!(self.peek(), None | Some('|')) {
            return Err("a look-ahead can only stand at the end of an alternative; put it there".to_owned());
        }
        Ok(())
    }

    /// A brace that counts, or is one: whether it counts.
    fn brace(&mut self) -> bool {
        let length = self.chars[self.at..].iter().position(|character| *character == '}');
        let body: String = self.chars[self.at..].iter().take(length.unwrap_or(0)).collect();
        let is_part = |character: char| character.is_ascii_digit() || character == ',';
        let counts = body.contains(|character: char| character.is_ascii_digit())
            && body.chars().all(is_part)
            && body.matches(',').count() < 2;
        if counts {
            let from = if body.starts_with(',') { "0" } else { "" };
            self.rust.push_str(&format!("{{{from}{body}}}"));
            self.at += body.len() + 1;
        } else {
            self.rust.push_str(r"\{");
        }
        counts
    }
}

/// What stands behind an open parenthesis that cannot be expressed.
fn unsupported(rest: &str) -> Option<&'static str> {
    let begins = |begin: &str| rest.starts_with(begin);
    if begins("?=") || begins("?!") || begins("?<=") || begins("?<!") {
        return Some("it has look-around inside it; only a look-ahead `(?=…)` at the end of an alternative is known");
    }
    if begins("?P=") {
        return Some("it has a back-reference; spell out what it repeats");
    }
    begins("?>").then_some("it has an atomic group; use `(?:…)`")
}
