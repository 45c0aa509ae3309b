//! The arguments of a call that is forced, in the ways that formats write them.

use super::{Piece, Writer, pieces, slashed};
use crate::chat::{
    Tool,
    grammar::{arguments, json_rule},
    response_format::content::{Dialect, Tags},
};
use regex_syntax::hir::{Hir, HirKind};
use serde_json::{Map, Value, json};

/// Writes arguments, and the rules that they need.
pub(super) struct Arguments<'w, 'a> {
    writer: &'w Writer<'a>,
    rules: Vec<(String, String)>,
}

/// How deep a schema is followed where its values are not written in JSON.
const MAX_DEPTH: usize = 8;

impl<'w, 'a> Arguments<'w, 'a> {
    pub(super) fn new(writer: &'w Writer<'a>) -> Self {
        Self { writer, rules: Vec::new() }
    }

    pub(super) fn into_rules(self) -> Vec<(String, String)> {
        self.rules
    }

    /// As JSON.
    pub(super) fn json(&mut self, tool: &Tool, is_enforced: bool) -> String {
        arguments(tool, is_enforced)
    }

    /// Each as a tag: texts as they are, all else as JSON.
    pub(super) fn tags(&mut self, tags: &Tags, tool: &Tool, is_enforced: bool) -> String {
        let (before, after) = around_value(tags.tag.hir());
        let after_pieces: Vec<Piece> = after.iter().flat_map(|part| pieces(part, "", "")).collect();
        let end = self.writer.lark(&after_pieces);
        let raw = match self.writer.first_token(&literals(&after)) {
            Some(_) => format!("FREE {end}"),
            None => {
                let after = Hir::concat(after.iter().map(|part| (*part).clone()).collect());
                self.rule_once("raw[lazy]", format!("/{}/", slashed(&format!(r"(.|\n)*({after})"))));
                "raw".to_owned()
            }
        };
        let begin = |key: &str| {
            let pieces: Vec<Piece> = before.iter().flat_map(|part| pieces(part, "key", key)).collect();
            self.writer.lark(&pieces)
        };
        let Some((properties, required)) = properties(tool.parameters.as_ref().filter(|_| is_enforced)) else {
            let pieces: Vec<Piece> = before.iter().flat_map(|part| pieces(part, "", "")).collect();
            return format!("(SPACE {} {raw})*", self.writer.lark(&pieces));
        };
        let members = properties.iter().map(|(key, schema)| {
            let value = match kind(schema) {
                Kind::Text(None) => raw.clone(),
                Kind::Text(Some(texts)) => format!("({}) {end}", self.one_of(&texts, |text| text.to_owned())),
                Kind::Other => format!("{} {end}", json_rule(&with_definitions(schema, tool.parameters.as_ref()))),
            };
            let member = format!("SPACE {} {value}", begin(key));
            if required.contains(&key.as_str()) { member } else { format!("({member})?") }
        });
        let members: Vec<String> = members.collect();
        if members.is_empty() { "\"\"".to_owned() } else { members.join(" ") }
    }

    /// As Python's keyword arguments.
    pub(super) fn pythonic(&mut self, tool: &Tool, is_enforced: bool) -> String {
        let name = json!(format!("{}(", tool.name));
        let Some((properties, required)) = properties(tool.parameters.as_ref().filter(|_| is_enforced)) else {
            self.rule_once("python_argument", format!(r#"/[A-Za-z_][A-Za-z_0-9]*/ "=" {}"#, json_rule(&json!({}))));
            return format!(r#"{name} (python_argument ("," SPACE python_argument)*)? ")""#);
        };
        let member = |key: &str, schema: &Value| {
            let value = match schema["type"].as_str() {
                Some("boolean") if schema.get("enum").is_none() => r#"("True" | "False")"#.to_owned(),
                Some("null") => "\"None\"".to_owned(),
                _ => json_rule(&with_definitions(schema, tool.parameters.as_ref())),
            };
            format!("{} {value}", json!(format!("{key}=")))
        };
        let members: Vec<(bool, String)> =
            properties.iter().map(|(key, schema)| (required.contains(&key.as_str()), member(key, schema))).collect();
        format!("{name} {} \")\"", separated(members))
    }

    /// As JSON with marks of its own.
    pub(super) fn dialect(&mut self, dialect: &Dialect, tool: &Tool, is_enforced: bool) -> Option<String> {
        let (open, close) = dialect.string_delims.first()?;
        let text = match self.writer.first_token(close) {
            Some(_) => format!("{} FREE {}", self.writer.literal(open), self.writer.literal(close)),
            None => {
                self.rule_once(
                    "delimited[lazy]",
                    format!("/{}/", slashed(&format!(r"(.|\n)*{}", regex_syntax::escape(close)))),
                );
                format!("{} delimited", self.writer.literal(open))
            }
        };
        let key = if dialect.unquoted_keys { "/[A-Za-z_][A-Za-z_0-9]*/" } else { r#"/"[^"\\]*"/"# };
        self.rule_once("dialect_text", text);
        let scalar = r#"/-?[0-9]+(\.[0-9]+)?/ | "true" | "false" | "null""#;
        self.rule_once("dialect_value", format!("dialect_text | {scalar} | dialect_list | dialect_object"));
        self.rule_once("dialect_list", r#""[" (dialect_value ("," dialect_value)*)? "]""#.to_owned());
        let member = format!(r#"{key} ":" dialect_value"#);
        self.rule_once("dialect_object", format!(r#""{{" ({member} ("," {member})*)? "}}""#));
        let schema = tool.parameters.as_ref().filter(|_| is_enforced);
        Some(schema.map_or_else(|| "dialect_object".to_owned(), |schema| self.dialect_object(dialect, schema, 0)))
    }

    fn dialect_object(&self, dialect: &Dialect, schema: &Value, depth: usize) -> String {
        let Some((properties, required)) = properties(Some(schema)).filter(|_| depth < MAX_DEPTH) else {
            return "dialect_object".to_owned();
        };
        let spelled = |key: &str| if dialect.unquoted_keys { format!("{key}:") } else { format!("{}:", json!(key)) };
        let member = |(key, schema): (&String, &Value)| {
            let value = format!("{} {}", json!(spelled(key)), self.dialect_value(dialect, schema, depth + 1));
            (required.contains(&key.as_str()), value)
        };
        format!("\"{{\" {} \"}}\"", separated(properties.iter().map(member).collect()))
    }

    fn dialect_value(&self, dialect: &Dialect, schema: &Value, depth: usize) -> String {
        match (kind(schema), schema["type"].as_str()) {
            (Kind::Text(Some(texts)), Some("string")) => {
                let (open, close) = &dialect.string_delims[0];
                let choices = self.one_of(&texts, |text| format!("{open}{text}{close}"));
                format!("({choices})")
            }
            (_, Some("string")) => "dialect_text".to_owned(),
            (_, Some("integer")) => "/-?[0-9]+/".to_owned(),
            (_, Some("number")) => r"/-?[0-9]+(\.[0-9]+)?/".to_owned(),
            (_, Some("boolean")) => r#"("true" | "false")"#.to_owned(),
            (_, Some("null")) => "\"null\"".to_owned(),
            (_, Some("array")) => {
                let item = self.dialect_value(dialect, &schema["items"], depth + 1);
                let item = if MAX_DEPTH < depth { "dialect_value".to_owned() } else { item };
                format!(r#""[" ({item} ("," {item})*)? "]""#)
            }
            (_, Some("object")) => self.dialect_object(dialect, schema, depth),
            (_, _) => "dialect_value".to_owned(),
        }
    }

    fn one_of(&self, texts: &[String], spell: impl Fn(&str) -> String) -> String {
        texts.iter().map(|text| self.writer.literal(&spell(text))).collect::<Vec<_>>().join(" | ")
    }

    fn rule_once(&mut self, name: &str, body: String) {
        if self.rules.iter().all(|(known, _)| known != name) {
            self.rules.push((name.to_owned(), body));
        }
    }
}

/// What stands in a tag before and behind its value.
fn around_value(tag: &Hir) -> (Vec<&Hir>, Vec<&Hir>) {
    let parts: Vec<&Hir> = if let HirKind::Concat(parts) = tag.kind() { parts.iter().collect() } else { vec![tag] };
    let is_value =
        |part: &&Hir| matches!(part.kind(), HirKind::Capture(capture) if capture.name.as_deref() == Some("value"));
    match parts.iter().position(is_value) {
        Some(index) => (parts[..index].to_vec(), parts[index + 1..].to_vec()),
        None => (parts, Vec::new()),
    }
}

/// The literal texts of an expression, to look for tokens in.
fn literals(parts: &[&Hir]) -> String {
    let literal = |part: &&Hir| {
        let HirKind::Literal(literal) = part.kind() else { return None };
        Some(String::from_utf8_lossy(&literal.0).into_owned())
    };
    parts.iter().filter_map(literal).collect()
}

/// The properties of an object, and which of them must be there; none where any may be.
fn properties(schema: Option<&Value>) -> Option<(&Map<String, Value>, Vec<&str>)> {
    let schema = schema?;
    let properties = schema.get("properties")?.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    Some((properties, required))
}

/// How a value is written outside of JSON.
enum Kind {
    /// As it is, or as one of these.
    Text(Option<Vec<String>>),
    /// In JSON.
    Other,
}

fn kind(schema: &Value) -> Kind {
    let is_text = schema["type"] == "string" || schema["type"].is_null() && schema.get("$ref").is_none();
    let texts = schema["enum"]
        .as_array()
        .map(|texts| texts.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>());
    match texts {
        Some(texts) if is_text && !texts.is_empty() => Kind::Text(Some(texts)),
        _ if schema["type"] == "string" => Kind::Text(None),
        _ => Kind::Other,
    }
}

/// A part of a schema, with the definitions of the whole that it may refer to.
fn with_definitions(part: &Value, whole: Option<&Value>) -> Value {
    let mut part = part.clone();
    if let (Some(members), Some(whole)) = (part.as_object_mut(), whole) {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = whole.get(key) {
                members.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}

/// Members with commas between them: those that must be there come first, so that the others only ever follow one.
fn separated(members: Vec<(bool, String)>) -> String {
    let (required, optional): (Vec<_>, Vec<_>) = members.into_iter().partition(|(is_required, _)| *is_required);
    let required: Vec<String> = required.into_iter().map(|(_, member)| member).collect();
    let optional: Vec<String> = optional.into_iter().map(|(_, member)| member).collect();
    let following =
        |members: &[String]| -> String { members.iter().map(|member| format!(" (\",\" SPACE {member})?")).collect() };
    if !required.is_empty() {
        return required.join(" \",\" SPACE ") + &following(&optional);
    }
    if optional.is_empty() {
        return "\"\"".to_owned();
    }
    let from = |index: usize| format!("{}{}", optional[index], following(&optional[index + 1..]));
    format!("({})?", (0..optional.len()).map(from).collect::<Vec<_>>().join(" | "))
}
