//! A folder's own response template comes from strangers: whatever it holds, it is refused or it hears replies.

use crate::response_formats::{FRAGMENTS, is_in_order, parse, tools};
use ortolan::chat::{FormatCalls, ReplyParser, ResponseFormat};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};
use std::fs;

fn built_in() -> Vec<Value> {
    let files = fs::read_dir("config/response_formats").unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files.iter().map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
}

/// What takes the place of a value.
fn odd_value() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        " ",
        "<",
        "<tool_call>",
        "{content}",
        "{nothing.at.all}",
        "(",
        "a*",
        ".*",
        "$",
        "(?P<name>.*)",
        "(?=x)",
        "(?<!x)y",
        "(a{1000}){1000}",
        "\\pL{500}",
        "(a|b|)*",
        "json",
        "xml-inline",
        "kv-lines",
        "pythonic",
        "text",
        "int",
    ];
    prop_oneof![
        prop::sample::select(texts.to_vec()).prop_map(|text| json!(text)),
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(-1),
            json!([]),
            json!({}),
            json!(["a", "ab"]),
            json!([1])
        ]),
        "\\PC{0,6}".prop_map(|text| json!(text)),
    ]
}

/// Every value in a tree, each by the way to it.
fn ways(value: &Value, way: &str, ways_in: &mut Vec<String>) {
    ways_in.push(way.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| ways(value, &format!("{way}/{}", escaped(key)), ways_in));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| ways(value, &format!("{way}/{index}"), ways_in));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn a_template_that_was_tampered_with_is_refused_or_hears_replies() {
    let built_in = built_in();
    let change = (any::<Index>(), any::<Index>(), odd_value(), any::<bool>());
    let changes = prop::collection::vec(change, 1..4);
    let parts = prop::collection::vec(prop::sample::select(FRAGMENTS), 0..10);
    proptest!(ProptestConfig::with_cases(300), |(format in any::<Index>(), changes in changes, parts in parts)| {
        let mut template = format.get(&built_in).clone();
        for (at, from, odd, copies) in changes {
            let mut all = Vec::new();
            ways(&template, "", &mut all);
            let value = if copies { template.pointer(from.get(&all[..]).as_str()).cloned().unwrap() } else { odd };
            *template.pointer_mut(at.get(&all[..]).as_str()).unwrap() = value;
        }
        if let Ok(format) = ResponseFormat::pick(None, "", Some(&template), "auto") {
            let text = parts.concat();
            let parser = || ReplyParser::new(&format, FormatCalls::Own, "", tools());
            let whole = parse(&mut parser(), [text.as_str()]);
            prop_assert!(is_in_order(&whole), "{template} {text:?} {whole:?}");
            let single = text.split("").filter(|character| !character.is_empty());
            prop_assert_eq!(parse(&mut parser(), single), whole, "{}", template);
        }
    });
}
