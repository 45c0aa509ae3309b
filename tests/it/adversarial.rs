//! What a model should not say: broken calls, marks in wrong places, cuts anywhere. Each reply is still a valid stream, and
//! the plain reply is its end.

use crate::{
    engine::config,
    fake_loader::{FakeLoader, models, models_of, script},
    fake_model::FakeModel,
    http::app_state,
    stream_validator::events,
};
use actix_web::{test as service, web::Bytes};
use ortolan::{chat::Models, server};
use serde_json::{Value, json};
use std::{collections::BTreeMap, iter};

const GOOD: &str = "{\"name\": \"f\", \"arguments\": {\"a\": [1, \"é\"]}}";
/// Put alone, between marks of calls, between marks of reasoning, and behind a call.
const FRAGMENTS: &[&str] = &[
    "",
    " \n\t ",
    "\u{feff}é👍🏽\u{200d}",
    GOOD,
    "{",
    "{}",
    "[]",
    "null",
    "\"",
    "\\",
    "{\"name\"",
    "{\"name\": \"f",
    "{\"name\": \"f\"",
    "{\"name\": \"f\"}",
    "{\"name\": \"f\", ",
    "{\"name\": \"f\", \"arguments\": ",
    "{\"name\": \"f\", \"arguments\": {\"a\": \"",
    "{\"name\": \"f\", \"arguments\": {\"a\": 1",
    "{\"name\": \"f\", \"arguments\": {\"a\": ]}}",
    "{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}",
    "{\"name\": \"f\", \"arguments\": \"\"}",
    "{\"name\": \"f\", \"arguments\": [1]}",
    "{\"name\": \"f\", \"arguments\": 7}",
    "{\"name\": \"f\", \"arguments\": null}",
    "{\"name\": \"f\", \"arguments\": }",
    "{\"name\": \"f\", \"arguments\": {}, \"arguments\": {\"b\": 2}}",
    "{\"name\": \"f\", \"name\": \"g\", \"arguments\": {}}",
    "{\"arguments\": {\"a\": 1}, \"name\": \"g\"}",
    "{\"arguments\": {\"a\": 1}}",
    "{\"name\": \"unknown\", \"arguments\": {}}",
    "{\"name\": \"\", \"arguments\": {}}",
    "{\"name\": [\"f\"], \"arguments\": {}}",
    "{\"name\": \"\\u0066\", \"arguments\": {\"a\": \"\\ud83d\\ude00\"}}",
    "{\"name\": \"\\ud800\", \"arguments\": {}}",
    "{\"name\": \"f\", \"arguments\": {\"a\": \"\\ud800\"}}",
    "{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}",
    "{\"name\": \"f\", \"arguments\": {\"a\": \"<tool_call>\"}}",
    "{\"name\": \"f\", \"arguments\": {\"a\": \"</think>\"}}",
    "{\"name\": \"f\", \"arguments\": {\"a\": </tool_call>",
    "{\"name\": \"f\", \"arguments\": {}}}}}",
    "{\"name\": \"f\", \"arguments\": {}} and so on",
    "<tool_call>",
    "</tool_call>",
    "<tool_call",
    "<think>",
    "</think>",
    "</thi",
    "<think><tool_call></think></tool_call>",
    "</tool_call><tool_call></tool_call>",
];
/// What goes around a fragment.
const FRAMES: &[(&str, &str)] = &[
    ("", ""),
    ("<tool_call>", "</tool_call>"),
    ("<tool_call>\n", ""),
    ("<think>", "</think>Yes."),
    ("<think>\n", ""),
    ("Well. <tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>\n<tool_call>", "</tool_call> Done."),
];

fn replies() -> Vec<String> {
    let framed =
        FRAMES.iter().flat_map(|(begin, end)| FRAGMENTS.iter().map(move |words| format!("{begin}{words}{end}")));
    let brackets = "[".repeat(400);
    let long = [
        brackets.clone(),
        format!("<tool_call>{{\"name\": \"f\", \"arguments\": {brackets}"),
        format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{\"a\": {brackets}"),
        format!("<tool_call>{{\"{}\": 1, \"name\": \"f\"}}</tool_call>", "n".repeat(200)),
        "<tool_call>{\"a\": [".repeat(20),
        "\n".repeat(200),
    ];
    framed.chain(long).collect()
}

/// The stream's end, after a look at everything before it.
fn checked(events: &[Value]) -> &Value {
    let mut items: Vec<(Value, BTreeMap<&str, String>)> = Vec::new();
    let mut open = false;
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
        let name = event["type"].as_str().unwrap().trim_start_matches("response.");
        if !event["output_index"].is_null() && name != "output_item.added" {
            assert!(open && event["output_index"] == items.len() - 1, "{event}");
        }
        match name {
            "output_item.added" => {
                assert!(!std::mem::replace(&mut open, true) && event["output_index"] == items.len(), "{event}");
                items.push((event["item"].clone(), BTreeMap::new()));
            }
            "output_item.done" => {
                open = false;
                let (item, _) = items.last_mut().unwrap();
                assert_eq!((&item["id"], &item["type"]), (&event["item"]["id"], &event["item"]["type"]));
                *item = event["item"].clone();
            }
            _ => {}
        }
        if let Some(kind) = name.strip_suffix(".delta") {
            let said = items.last_mut().unwrap().1.entry(kind).or_default();
            assert_ne!(event["delta"], "");
            said.push_str(event["delta"].as_str().unwrap());
        }
        let whole = ["text", "arguments"].iter().find_map(|key| event[*key].as_str());
        if let (Some(kind), Some(whole)) = (name.strip_suffix(".done"), whole) {
            assert_eq!(items.last().unwrap().1.get(kind).map_or("", String::as_str), whole, "{event}");
        }
        let is_last = number + 1 == events.len();
        assert_eq!(is_last, ["completed", "incomplete", "failed"].contains(&name), "{event}");
    }
    let end = &events.last().unwrap()["response"];
    assert!(!open);
    assert_eq!(end["output"], Value::from_iter(items.into_iter().map(|(item, _)| item)));
    end
}

/// An item in a few words.
fn gist(item: &Value) -> (String, String) {
    let of_part = |part: &Value| part["text"].as_str().unwrap().to_owned();
    let said = match item["arguments"].as_str() {
        Some(arguments) => format!("{} {arguments}", item["name"]),
        None => item["content"].as_array().unwrap().iter().map(of_part).collect(),
    };
    (format!("{} {}", item["type"], item["status"]), said)
}

/// What a model that says so is heard to say, with and without a stream.
async fn heard(tokens: &[u32], body: Value) -> (Value, Vec<(String, String)>) {
    heard_from(models(FakeModel::saying(tokens.to_vec()), &config(2, 64)), body).await
}

async fn heard_from(models: Models, body: Value) -> (Value, Vec<(String, String)>) {
    let state = app_state(&[], models);
    let app = service::init_service(server::app(state)).await;
    let mut ends = Vec::new();
    for stream in [true, false] {
        let mut body = body.clone();
        body["stream"] = json!(stream);
        let request = service::TestRequest::post().uri("/v1/responses").set_json(body).to_request();
        let response = service::call_service(&app, request).await;
        assert_eq!(response.status(), 200);
        let text: Bytes = service::read_body(response).await;
        let text = String::from_utf8(text.to_vec()).unwrap();
        ends.push(if stream { checked(&events(&text)).clone() } else { serde_json::from_str(&text).unwrap() });
    }
    let gists = |end: &Value| end["output"].as_array().unwrap().iter().map(gist).collect::<Vec<_>>();
    assert_eq!((gists(&ends[0]), &ends[0]["status"]), (gists(&ends[1]), &ends[1]["status"]));
    (ends[0]["status"].clone(), gists(&ends[0]))
}

fn request(effort: &str, max_output_tokens: usize) -> Value {
    let tool = |name| json!({ "type": "function", "name": name, "parameters": { "type": "object" } });
    json!({ "input": "hi", "tools": [tool("f"), tool("g")], "reasoning": { "effort": effort },
            "max_output_tokens": max_output_tokens })
}

/// What was heard, without white space, is part of what was said, in its order.
fn is_within(heard: &[(String, String)], said: &str) -> bool {
    let mut rest = said;
    heard.iter().filter(|(kind, _)| !kind.contains("function_call")).all(|(_, text)| match rest.find(text.trim()) {
        Some(start) => {
            rest = &rest[start + text.trim().len()..];
            true
        }
        None => false,
    })
}

#[actix_web::test]
async fn whatever_a_model_says_the_stream_is_valid() {
    let replies = replies();
    assert!(200 <= replies.len());
    for reply in replies {
        let is_mark = |character: char| "</think>".contains(character) || character.is_whitespace();
        let only_marks = reply.trim_matches(is_mark).is_empty();
        for effort in ["low", "none"] {
            let (_, items) = heard(&script(&reply), request(effort, 420)).await;
            assert!(is_within(&items, &reply), "{reply:?} {items:?}");
            assert!(only_marks || !items.is_empty(), "{reply:?}: nothing is lost");
        }
    }
}

/// What goes around a fragment in other formats.
const OTHER_FRAMES: &[(&str, &str, &str)] = &[
    ("qwen3-coder", "<tool_call>\n<function=f>\n<parameter=a>\n", "\n</parameter>\n</function>\n</tool_call>"),
    ("glm-4", "<tool_call>f\n<arg_key>a</arg_key><arg_value>", "</arg_value></tool_call>"),
    ("mistral", "[THINK]Hm.[/THINK][TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]g[ARGS]{}"),
    ("llama-3", "{\"name\": \"f\", \"parameters\": ", "}"),
    ("gemma-4", "<|tool_call>call:f{a:<|\"|>", "<|\"|>}<tool_call|>"),
    ("lfm2", "<|tool_call_start|>[f(a=", ")]<|tool_call_end|>Done."),
];

#[actix_web::test]
async fn whatever_a_model_says_in_another_format_the_stream_is_valid() {
    for (format, begin, end) in OTHER_FRAMES {
        for (number, words) in FRAGMENTS.iter().enumerate() {
            let reply = if number % 2 == 0 { format!("{begin}{words}{end}") } else { format!("{begin}{words}") };
            let loader = FakeLoader::saying_in(format, &[], &reply);
            let (_, items) = heard_from(models_of(loader), request("low", 420)).await;
            assert!(!items.is_empty(), "{reply:?}: nothing is lost");
        }
    }
}

#[actix_web::test]
async fn a_reply_can_be_cut_behind_every_token() {
    let reply =
        format!("<think>\nHm.\n</think>\n\nWait 👍🏽\n<tool_call>\n{GOOD}\n</tool_call>\n<tool_call>{GOOD}</tool_call>");
    let tokens = script(&reply);
    let (status, whole) = heard(&tokens, request("low", tokens.len())).await;
    assert_eq!((status, whole.len()), (json!("completed"), 4));
    for max_output_tokens in 1..tokens.len() - 1 {
        let (status, items) = heard(&tokens, request("low", max_output_tokens)).await;
        assert_eq!(status, "incomplete");
        for ((_, cut), (kind, uncut)) in iter::zip(&items, &whole) {
            assert!(
                uncut.starts_with(cut.trim_end()) || cut.contains("<t") || cut.contains('\u{fffd}'),
                "{kind} {cut:?}"
            );
        }
    }
}
