//! Response formats: what transformers' own parser makes of the same replies, any cut of them, and what no model should say.

use ortolan::chat::{Delta, FormatCalls, ReplyParser, ResponseFormat, Tool};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, time::Instant};

#[derive(Deserialize)]
struct Golden {
    differences: BTreeMap<String, String>,
    tools: Vec<Value>,
    templates: BTreeMap<String, Value>,
    replies: Vec<Reply>,
}

#[derive(Deserialize)]
struct Reply {
    format: String,
    prefix: String,
    text: String,
    transformers: Option<Heard>,
    differs: Option<String>,
    here: Option<Heard>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Heard {
    reasoning: String,
    content: String,
    calls: Vec<Call>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Call {
    name: String,
    arguments: Value,
}

impl Golden {
    fn load() -> Self {
        serde_json::from_slice(&fs::read("tests/golden/response_formats.json").unwrap()).unwrap()
    }

    fn tools(&self) -> Vec<Tool> {
        let tool = |tool: &Value| Tool {
            name: tool["function"]["name"].as_str().unwrap().to_owned(),
            description: None,
            parameters: Some(tool["function"]["parameters"].clone()),
            strict: false,
            is_enforceable: true,
        };
        self.tools.iter().map(tool).collect()
    }

    fn format(&self, name: &str) -> ResponseFormat {
        match self.templates.get(name) {
            Some(template) => ResponseFormat::pick(None, "", Some(template), "auto").unwrap(),
            None => ResponseFormat::named(name).unwrap(),
        }
    }
}

/// Deltas with neighbours of one kind joined, so that they do not depend on how the text was cut.
pub(crate) fn parse<'t>(parser: &mut ReplyParser, pieces: impl IntoIterator<Item = &'t str>) -> Vec<Delta> {
    let mut deltas: Vec<Delta> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish(false));
    let mut joined: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), delta) {
            (Some(Delta::Text(text)), Delta::Text(more))
            | (Some(Delta::Arguments(text)), Delta::Arguments(more))
            | (Some(Delta::Reasoning(text)), Delta::Reasoning(more)) => text.push_str(&more),
            (_, delta) => joined.push(delta),
        }
    }
    joined
}

fn heard(deltas: &[Delta]) -> Heard {
    let (mut reasoning, mut content, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => reasoning.push(text.trim()),
            Delta::Text(text) => content.push(text.trim()),
            Delta::ToolCall { name } => calls.push(Call { name: name.clone(), arguments: Value::Null }),
            Delta::Arguments(text) => {
                // What is no JSON is given on as it is.
                let arguments = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
                calls.last_mut().unwrap().arguments = arguments;
            }
            Delta::ToolCallEnd => {}
        }
    }
    Heard { reasoning: reasoning.join("\n\n"), content: content.join("\n\n"), calls }
}

#[test]
fn replies_are_heard_as_transformers_hears_them() {
    let golden = Golden::load();
    let tools = golden.tools();
    let mut formats: BTreeMap<&str, ResponseFormat> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Reply { format: name, prefix, text, transformers, differs, here } in &golden.replies {
        let format = formats.entry(name).or_insert_with(|| golden.format(name));
        let parser = || ReplyParser::new(format, FormatCalls::Own, prefix, tools.clone());
        let whole = parse(&mut parser(), [text.as_str()]);
        let heard = heard(&whole);
        let expected = match differs {
            None => transformers,
            Some(reason) => {
                assert!(golden.differences.contains_key(reason), "{reason} is explained");
                here
            }
        };
        let Some(expected) = expected else { panic!("{text}: nothing is expected") };
        // What transformers joins, a client gets in items of their own.
        let trimmed = |text: &str| {
            text.replace(" | ", "\n\n").split("\n\n").map(str::trim).collect::<Vec<_>>().join("\n\n").trim().to_owned()
        };
        let is_same = heard.calls == expected.calls
            && trimmed(&heard.reasoning) == trimmed(&expected.reasoning)
            && trimmed(&heard.content) == trimmed(&expected.content);
        if !is_same {
            wrong.push(format!("{name}: {text:?}\n  heard    {heard:?}\n  expected {expected:?}"));
        }
        let single: Vec<&str> = text.split("").filter(|character| !character.is_empty()).collect();
        assert_eq!(parse(&mut parser(), single), whole, "{name} {text:?}");
        for (index, _) in text.char_indices().skip(1) {
            let (one, other) = text.split_at(index);
            assert_eq!(parse(&mut parser(), [one, other]), whole, "{name} {one:?} {other:?}");
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ResponseFormat::names().count() <= formats.len(), "built-in formats are missing: {:?}", formats.keys());
    eprintln!("response formats: {} replies of {} formats", golden.replies.len(), formats.len());
}

/// Fragments of what models say in any format, to be put together wrongly.
pub(crate) const FRAGMENTS: &[&str] = &[
    "text",
    " ",
    "\n",
    "\n\n",
    "é",
    "<",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "\\",
    "(",
    ")",
    ",",
    ":",
    ";",
    "=",
    "```",
    "</",
    "|>",
    "<|",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "{\"name\": \"f\", \"arguments\": {\"a\": [1, \"</\"]}}",
    "{\"name\": \"f\", ",
    "\"parameters\": ",
    "{\"a\": \"",
    "\"}",
    "null",
    "<function=f>",
    "<function=h>",
    "</function>",
    "<parameter=a>",
    "1",
    "</parameter>",
    "<arg_key>a</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<tool_call>f",
    "[TOOL_CALLS]",
    "f[ARGS]",
    "[{\"name\": \"f\", \"arguments\": {}}",
    ", {\"name\": \"h\"}",
    "[THINK]",
    "[/THINK]",
    "<|python_tag|>",
    "[f(a=1",
    ", b='x')",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|python_start|>",
    "```tool_code\n",
    "<|tool_call>call:f",
    "{a:<|\"|>x<|\"|>",
    "<tool_call|>",
    "<|channel>thought\n",
    "<channel|>",
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    "<|call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function<｜tool▁sep｜>f\n```json\n",
    "f<｜tool▁sep｜>",
    "\n```",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "functools",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "{\"tool_name\": \"f\", \"parameters\": {}}",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>",
    "<minimax:tool_call>",
    "<invoke name=\"f\">",
    "<parameter name=\"a\">",
    "</invoke>",
];

pub(crate) fn tools() -> Vec<Tool> {
    let parameters = json!({ "properties": { "a": { "type": "integer" } } });
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        description: None,
        parameters: Some(parameters.clone()),
        strict: false,
        is_enforceable: true,
    };
    ["f", "g"].map(tool).into()
}

/// Calls begin with a name, then come arguments and the end, each at most once.
pub(crate) fn is_in_order(deltas: &[Delta]) -> bool {
    let mut in_call = false;
    deltas.iter().enumerate().all(|(index, delta)| match delta {
        Delta::ToolCall { .. } => !std::mem::replace(&mut in_call, true),
        Delta::Arguments(_) => matches!(deltas[index - 1], Delta::ToolCall { .. }),
        Delta::ToolCallEnd => std::mem::replace(&mut in_call, false),
        Delta::Text(text) | Delta::Reasoning(text) => !in_call && !text.is_empty(),
    })
}

fn formats() -> Vec<ResponseFormat> {
    let golden = Golden::load();
    let others = golden.templates.keys().map(|name| golden.format(name));
    ResponseFormat::names().map(|name| golden.format(name)).chain(others).collect()
}

#[test]
fn any_cut_of_any_reply_gives_the_same_in_every_format() {
    let formats = formats();
    let reply = (
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..14),
        prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    );
    proptest!(ProptestConfig::with_cases(400), |((parts, cuts) in reply)| {
        let text = parts.concat();
        let boundaries: Vec<usize> = (0..=text.len()).filter(|index| text.is_char_boundary(*index)).collect();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
        bounds.extend([0, text.len()]);
        bounds.sort_unstable();
        let pieces: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        for format in &formats {
            let parser = || ReplyParser::new(format, FormatCalls::Own, "", tools());
            let whole = parse(&mut parser(), [text.as_str()]);
            prop_assert!(is_in_order(&whole), "{} {:?}", format.name(), whole);
            prop_assert_eq!(parse(&mut parser(), pieces.iter().copied()), &whole[..], "{}", format.name());
            let single = text.split("").filter(|character| !character.is_empty());
            prop_assert_eq!(parse(&mut parser(), single), whole, "{}", format.name());
        }
    });
}

/// Reading costs about the same for each byte, whatever is almost a mark. Reading from the beginning for each piece would
/// take minutes.
#[test]
fn what_is_almost_a_mark_is_read_at_once() {
    let near_marks = [
        "<tool_cal",
        "<function=<function=",
        "<|channel|>comment",
        "[TOOL_CALLS",
        "<arg_key><arg_value>",
        "\n \n",
        "{\"name\"",
        "[f(a=",
        "<｜tool▁call▁begin｜>f<｜tool▁sep",
        "<think",
        "<parameter=a>",
        "call:f{a:",
        "```",
    ];
    let begin = Instant::now();
    for format in formats() {
        for near_mark in near_marks {
            let text = near_mark.repeat((1 << 14) / near_mark.len());
            let mut parser = ReplyParser::new(&format, FormatCalls::Own, "", tools());
            let pieces = text.char_indices().map(|(index, character)| &text[index..index + character.len_utf8()]);
            parse(&mut parser, pieces);
        }
    }
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}
