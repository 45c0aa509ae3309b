//! Jinja as `transformers` runs it for chat templates.

use super::{python_json, python_methods, python_text};
use chrono::{DateTime, Local};
use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde_json::{Map, Value as Json};
use std::thread;

/// Compiled templates with the extensions that `transformers` gives them: `raise_exception`, `strftime_now`, `tojson`
/// as Python spells it, loop controls, Python's methods, and `{% generation %}` (which only training looks at).
#[derive(Debug)]
pub(super) struct Jinja {
    environment: Environment<'static>,
}

/// Long chains of operators recurse in the compiler, and lists in lists where they are taken apart. Only what is used of it
/// takes memory.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// What any template may spend (one unit is about one instruction), and what each byte of its input adds.
const BASE_FUEL: u64 = 200_000;
const FUEL_PER_BYTE: u64 = 2;

impl Jinja {
    /// Compiles a template under each of these names; `now` is what `strftime_now` tells.
    ///
    /// # Errors
    /// In the words of the compiler.
    pub(super) fn compile(sources: Vec<(String, String)>, now: fn() -> DateTime<Local>) -> Result<Self, String> {
        let compile = || {
            let mut environment = environment(now);
            for (name, source) in sources {
                environment.add_template_owned(name, without_generation_tags(&source.replace("\r\n", "\n")))?;
            }
            Ok(environment)
        };
        Ok(Self { environment: on_large_stack(compile)? })
    }

    /// The text that the template of this name makes of its variables.
    ///
    /// # Errors
    /// What the template raises, in its own words, or why it cannot go on.
    pub(super) fn render(&self, name: &str, context: &Map<String, Json>) -> Result<String, String> {
        on_large_stack(|| {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(BASE_FUEL + FUEL_PER_BYTE * num_bytes(context)));
            environment.get_template(name)?.render(Value::from(Serde(context)))
        })
    }
}

fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work).map_err(|error| error.to_string())?;
        let done = thread.join().map_err(|_| "the template engine panicked on it".to_owned())?;
        done.map_err(|error| describe(&error))
    })
}

fn environment(now: fn() -> DateTime<Local>) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("only the handling of white space differs from the default"));
    environment.set_unknown_method_callback(python_methods::call);
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python_text::to_string(value))?));
    environment.add_filter("string", |value: &Value| python_text::to_string(value));
    environment.add_filter("tojson", python_json::to_json);
    environment.add_filter("trim", |value: &Value, chars: Option<String>| {
        python_methods::strip(&python_text::to_string(value), chars.as_deref()).to_owned()
    });
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: &str| strftime(now(), format));
    environment
}

/// Strings and mappings are sequences too, iterators are none.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some(),
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Number
        | ValueKind::Bytes
        | ValueKind::Plain
        | ValueKind::Invalid
        | _ => false,
    }
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn strftime(now: DateTime<Local>, format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", now.format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(Error::new(ErrorKind::InvalidOperation, "strftime_now does not know this format")),
    }
}

/// The error's own words, which for `raise_exception` are the template's.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it takes more steps than messages of this size may need".to_owned();
    }
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match (error.kind(), error.line()) {
        (ErrorKind::InvalidOperation, _) | (_, None) => message,
        (_, Some(line)) => format!("{message} (line {line})"),
    }
}

/// Jinja blocks that only mark text for training, replaced by blocks that always apply.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let replaced = match inside.trim_matches(['-', '+']).trim() {
            "generation" => inside.replacen("generation", "if true", 1),
            "endgeneration" => inside.replacen("endgeneration", "endif", 1),
            _ => inside.to_owned(),
        };
        text.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    text + rest
}

fn num_bytes(context: &Map<String, Json>) -> u64 {
    fn strings(value: &Json) -> u64 {
        match value {
            Json::String(text) => text.len() as u64,
            Json::Array(values) => values.iter().map(|value| 16 + strings(value)).sum(),
            Json::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + 16 + strings(value)).sum(),
            Json::Null | Json::Bool(_) | Json::Number(_) => 8,
        }
    }
    context.values().map(strings).sum()
}
