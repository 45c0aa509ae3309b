//! Chat Completions and Completions over a fake model: replies, streams and their ends, refusals.

use crate::{
    auth::{keys, post as post_with},
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::{Running, app_state, assert_leaving_frees_the_slots, read_until},
};
use actix_web::test as service;
use ortolan::{
    engine::EngineConfig,
    server::{self, AppState},
};
use serde_json::{Value, json};
use std::num::NonZeroU32;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const REPLY: &str = "<think>\nHm.\n</think>\n\nHéllo 👍🏽!";
const CALLS: &str = "Wait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";

/// Status and body of the answer of this server.
async fn ask(state: AppState, path: &str, body: &Value) -> (u16, String) {
    let app = service::init_service(server::app(state)).await;
    let request = service::TestRequest::post().uri(path).set_json(body).to_request();
    let response = service::call_service(&app, request).await;
    let status = response.status().as_u16();
    (status, String::from_utf8(service::read_body(response).await.to_vec()).unwrap())
}

async fn ask_model(model: FakeModel, path: &str, body: &Value) -> (u16, String) {
    ask(app_state(&[], models(model, &config(2, 64))), path, body).await
}

/// What a model that says `reply` is asked and answers.
async fn post(reply: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, body) = ask_model(FakeModel::saying(script(reply)), path, body).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// The chunks of the same as a stream, which [DONE] ends.
async fn stream(reply: &str, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    chunks(&ask_model(FakeModel::saying(script(reply)), path, &body).await.1)
}

fn chunks(body: &str) -> Vec<Value> {
    let frames: Vec<&str> = body.split_terminator("\n\n").collect();
    let (done, frames) = frames.split_last().unwrap();
    assert_eq!(*done, "data: [DONE]", "{body}");
    frames.iter().map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

fn chat(fields: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": {} } } }])
}

/// All that the chunks say at this place of one choice.
fn joined(chunks: &[Value], choice: usize, pointer: &str) -> String {
    let choices = chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|told| told["index"] == choice);
    choices.filter_map(|told| told.pointer(pointer).and_then(Value::as_str)).collect()
}

#[actix_web::test]
async fn a_chat_is_answered_in_one_object() {
    let (status, reply) = post(REPLY, CHAT, &chat(json!({ "model": "fake" }))).await;
    assert_eq!((status, &reply["object"], &reply["model"]), (200, &json!("chat.completion"), &json!("fake")));
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["content"], "Héllo 👍🏽!");
    assert_eq!(choice["message"]["reasoning_content"].as_str().unwrap().trim(), "Hm.");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(reply["usage"]["completion_tokens"], script(REPLY).len() - 1);
}

#[actix_web::test]
async fn a_chats_stream_says_the_same_and_ends_with_its_usage() {
    let (_, plain) = post(REPLY, CHAT, &chat(json!({}))).await;
    let chunks = stream(REPLY, CHAT, chat(json!({}))).await;
    let message = &plain["choices"][0]["message"];
    assert_eq!(joined(&chunks, 0, "/delta/role"), "assistant");
    assert_eq!(joined(&chunks, 0, "/delta/content"), *message["content"].as_str().unwrap());
    assert_eq!(joined(&chunks, 0, "/delta/reasoning_content"), *message["reasoning_content"].as_str().unwrap());
    assert_eq!(joined(&chunks, 0, "/finish_reason"), "stop");
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &plain["usage"]));
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));

    let streamed = ask_model(FakeModel::saying(script(REPLY)), CHAT, &chat(json!({ "stream": true }))).await.1;
    assert!(!streamed.contains("usage"), "only who asks is told: {streamed}");
}

#[actix_web::test]
async fn calls_are_told_whole_and_in_pieces() {
    let (_, reply) = post(CALLS, CHAT, &chat(json!({ "tools": tools() }))).await;
    let choice = &reply["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Wait."), &json!("tool_calls")));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let functions: Vec<&Value> = calls.iter().map(|call| &call["function"]).collect();
    let expected = [json!({ "name": "f", "arguments": "{\"a\": 1}" }), json!({ "name": "f", "arguments": "{}" })];
    assert_eq!(functions, expected.iter().collect::<Vec<_>>());
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let chunks = stream(CALLS, CHAT, chat(json!({ "tools": tools() }))).await;
    let pieces: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")).collect();
    for (index, function) in expected.iter().enumerate() {
        let pieces = pieces.iter().filter(|piece| piece["index"] == index);
        let arguments: String = pieces.filter_map(|piece| piece["function"]["arguments"].as_str()).collect();
        assert_eq!(function["arguments"], arguments);
    }
    assert_eq!(joined(&chunks, 0, "/finish_reason"), "tool_calls");
}

#[actix_web::test]
async fn each_choice_is_a_reply_of_its_own() {
    let (_, one) = post(REPLY, CHAT, &chat(json!({}))).await;
    let (_, reply) = post(REPLY, CHAT, &chat(json!({ "n": 3 }))).await;
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]), (&json!(index), &one["choices"][0]["message"]));
    }
    assert_eq!(reply["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(reply["usage"]["completion_tokens"], 3 * (script(REPLY).len() - 1));

    let chunks = stream(REPLY, CHAT, chat(json!({ "n": 3 }))).await;
    for index in 0..3 {
        assert_eq!(joined(&chunks, index, "/delta/content"), "Héllo 👍🏽!");
        assert_eq!(joined(&chunks, index, "/finish_reason"), "stop");
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], reply["usage"]["completion_tokens"]);
}

#[actix_web::test]
async fn a_reply_ends_where_the_request_says() {
    let cases = [
        (json!({ "stop": "two" }), "one ", "stop"),
        (json!({ "stop": ["four", "three"] }), "one two ", "stop"),
        (json!({ "max_completion_tokens": 1 }), "", "length"),
        (json!({ "max_tokens": 1 }), "", "length"),
    ];
    for (fields, content, reason) in cases {
        let (_, reply) = post("one two three", CHAT, &chat(fields.clone())).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], reason, "{fields}");
        let said = choice["message"]["content"].as_str().unwrap();
        assert!("one two three".starts_with(said), "{said}");
        match reason {
            "stop" => assert_eq!(said, content),
            _ => assert_eq!(reply["usage"]["completion_tokens"], 1),
        }
    }
}

#[actix_web::test]
async fn a_prompt_is_gone_on_from_as_it_stands() {
    let (status, reply) = post("and on", TEXT, &json!({ "prompt": "On and on" })).await;
    assert_eq!((status, &reply["object"]), (200, &json!("text_completion")));
    let expected = json!({ "index": 0, "text": "and on", "logprobs": null, "finish_reason": "stop" });
    assert_eq!(reply["choices"], json!([expected]));
    // No template has said anything around it.
    assert_eq!(reply["usage"]["prompt_tokens"], script("On and on").len() - 1);

    let (_, indented) = post("\n  and on \n", TEXT, &json!({ "prompt": "On" })).await;
    assert_eq!(indented["choices"][0]["text"], "\n  and on \n");
    let (_, thinking) = post("<think>\nHm.\n</think>\n\nYes.", TEXT, &json!({ "prompt": "a" })).await;
    assert_eq!(thinking["choices"][0]["text"], "<think>\nHm.\n</think>\n\nYes.", "nothing in it is told apart");

    let (_, spelled) = post("a", TEXT, &json!({ "prompt": "<|im_start|>" })).await;
    assert!(spelled["usage"]["prompt_tokens"].as_u64() > Some(1), "a special token that a client spells is words");

    let chunks = stream("and on", TEXT, json!({ "prompt": "On and on" })).await;
    assert_eq!(joined(&chunks, 0, "/text"), "and on");
    assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
}

#[actix_web::test]
async fn an_echo_repeats_the_prompt_before_each_text() {
    let body = json!({ "prompt": "On ", "echo": true, "n": 2 });
    let (_, reply) = post("and on", TEXT, &body).await;
    let chunks = stream("and on", TEXT, body).await;
    for index in 0..2 {
        assert_eq!(reply["choices"][index]["text"], "On and on");
        assert_eq!(joined(&chunks, index, "/text"), "On and on");
    }
}

#[actix_web::test]
async fn several_prompts_are_gone_on_from_at_once() {
    let body = json!({ "prompt": ["one", "one two"], "n": 2, "max_tokens": 3 });
    let (_, reply) = ask_model(FakeModel::default(), TEXT, &body).await;
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let texts: Vec<&Value> = (0..4).map(|index| &reply["choices"][index]["text"]).collect();
    assert!(texts[0] == texts[1] && texts[2] == texts[3] && texts[1] != texts[2], "{reply}");
    let num_tokens = script("one").len() + script("one two").len() - 2;
    assert_eq!(reply["usage"]["prompt_tokens"], num_tokens, "each prompt once");
    assert_eq!(reply["usage"]["completion_tokens"], 12);
}

#[actix_web::test]
async fn probabilities_are_told_where_they_are_asked_for() {
    let (_, reply) = post("one two", CHAT, &chat(json!({ "logprobs": true, "top_logprobs": 2 }))).await;
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let said: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(said, "one two");
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2), "{reply}");

    let body = json!({ "prompt": "a", "logprobs": 2 });
    let (_, reply) = post("one two", TEXT, &body).await;
    let logprobs = &reply["choices"][0]["logprobs"];
    let said: String = logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!((said.as_str(), &logprobs["text_offset"][0]), ("one two", &json!(0)));
    let chunks = stream("one two", TEXT, body).await;
    let offsets = chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/logprobs/text_offset"));
    let offsets: Vec<&Value> = offsets.flat_map(|offsets| offsets.as_array().unwrap()).collect();
    assert_eq!(offsets, logprobs["text_offset"].as_array().unwrap().iter().collect::<Vec<_>>());
}

#[actix_web::test]
async fn a_model_that_fails_is_an_error_before_and_a_frame_after_the_first_byte() {
    for (path, body) in [(CHAT, chat(json!({}))), (TEXT, json!({ "prompt": "a" }))] {
        let (status, error) = ask_model(FakeModel::failing_from(1), path, &body).await;
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!((status, &error["error"]["code"]), (500, &json!("server_error")));

        let mut body = body;
        body["stream"] = json!(true);
        let (status, streamed) = ask_model(FakeModel::failing_from(3), path, &body).await;
        let chunks = chunks(&streamed);
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!((status, last), (200, &error));
        assert!(!rest.is_empty() && joined(rest, 0, "/finish_reason").is_empty(), "{streamed}");
    }
}

#[actix_web::test]
async fn refusals_have_four_keys_and_name_the_field_as_it_is_called_here() {
    let long = "x ".repeat(400);
    let schema = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "nothing" } } });
    let cases = [
        (CHAT, chat(json!({ "model": "other" })), 404, "model_not_found", "model"),
        (CHAT, json!({ "messages": [] }), 400, "invalid_value", "messages"),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": &long }] }),
            400,
            "context_length_exceeded",
            "messages",
        ),
        (CHAT, chat(json!({ "response_format": schema })), 400, "invalid_json_schema", "response_format"),
        (CHAT, chat(json!({ "logit_bias": { "9999": 1 } })), 400, "invalid_value", "logit_bias"),
        (CHAT, chat(json!({ "store": true })), 400, "unsupported_parameter", "store"),
        (TEXT, json!({ "prompt": "a", "model": "other" }), 404, "model_not_found", "model"),
        (TEXT, json!({ "prompt": [1, 2] }), 400, "unsupported_value", "prompt[0]"),
        (TEXT, json!({ "prompt": [long] }), 400, "context_length_exceeded", "prompt"),
    ];
    for (path, mut body, status, code, param) in cases {
        for is_streamed in [false, true] {
            body["stream"] = json!(is_streamed);
            let (seen, response) = post("hi", path, &body).await;
            let error = response["error"].as_object().unwrap();
            assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
            assert_eq!((seen, &error["code"], &error["param"]), (status, &json!(code), &json!(param)), "{response}");
        }
    }
}

#[actix_web::test]
async fn a_server_that_drains_takes_no_more() {
    for (path, body) in [(CHAT, chat(json!({}))), (TEXT, json!({ "prompt": "a" }))] {
        let state = app_state(&[], models(FakeModel::saying(script("hi")), &config(2, 64)));
        state.start_draining();
        let (status, error) = ask(state, path, &body).await;
        assert!(status == 503 && error.contains("service_unavailable"), "{status} {error}");
    }
}

#[actix_web::test]
async fn the_choices_that_fit_are_given_up_where_not_all_do() {
    let (model, permits, _) = FakeModel::saying(script("hi")).gated();
    let room_for_two = EngineConfig { max_waiting: NonZeroU32::MIN, ..config(1, 64) };
    let state = app_state(&[], models(model, &room_for_two));
    let (status, error) = ask(state.clone(), CHAT, &chat(json!({ "n": 3, "stream": true }))).await;
    assert!(status == 429 && error.contains("rate_limit_exceeded"), "{status} {error}");
    drop(permits);
    // The engine takes a moment to notice.
    while ask(state.clone(), CHAT, &chat(json!({ "n": 2 }))).await.0 == 429 {}
}

#[test]
fn a_client_that_leaves_frees_the_slots_of_all_choices() {
    let endless = |stream: bool| chat(json!({ "n": 2, "stream": stream, "max_tokens": 450 }));
    assert_leaving_frees_the_slots(2, CHAT, &endless(true), Some("\"content\":\"w"));
    assert_leaving_frees_the_slots(2, CHAT, &endless(false), None);
}

#[test]
fn draining_lets_a_stream_finish() {
    let (model, permits, _) = FakeModel::saying(script("one two")).gated();
    let server = Running::start(models(model, &config(1, 64)), &["server.drain_timeout=600"]);
    let mut reply = server.send_to(CHAT, &chat(json!({ "stream": true })));
    let start = read_until(&mut reply, "\"role\"");
    server.signal();
    drop(permits);
    let streamed = start + &read_until(&mut reply, "[DONE]\n");
    assert!(streamed.contains("\"finish_reason\":\"stop\""), "{streamed}");
    server.thread.join().unwrap();
}

#[actix_web::test]
async fn a_key_pays_for_completions_as_for_responses() {
    let limits = [
        ("few", ", requests_per_minute = 2"),
        ("many", ", tokens_per_minute = 60"),
        ("late", ", tokens_per_minute = 30"),
    ];
    let keys = keys(&limits);
    for (path, body) in [(CHAT, chat(json!({}))), (TEXT, json!({ "prompt": "a" }))] {
        let words = script(&"word ".repeat(60))[..100].to_vec();
        let state = app_state(&[&keys], models(FakeModel::saying(words), &config(2, 64)));
        let app = service::init_service(server::app(state)).await;
        let send = async |key: &str, fields: Value| {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let response = service::call_service(&app, post_with(key, path, &body).to_request()).await;
            let status = response.status().as_u16();
            (status, String::from_utf8(service::read_body(response).await.to_vec()).unwrap())
        };
        let refused = async |key: &str, fields: Value, limit: &str| {
            let (status, error) = send(key, fields).await;
            assert!(status == 429 && error.contains(limit), "{path} {key}: {status} {error}");
        };
        for is_streamed in [false, true] {
            assert_eq!(send("few", json!({ "max_tokens": 1, "stream": is_streamed })).await.0, 200);
        }
        refused("few", json!({ "max_tokens": 1 }), "requests_per_minute = 2").await;

        assert_eq!(send("many", json!({ "max_tokens": 10, "stream": true })).await.0, 200);
        refused("many", json!({ "max_tokens": 16, "n": 4 }), "tokens_per_minute = 60").await;
        assert_eq!(send("many", json!({ "max_tokens": 16 })).await.0, 200, "only all choices together were too many");

        assert_eq!(send("late", json!({ "stream": true })).await.0, 200);
        refused("late", json!({ "max_tokens": 10 }), "tokens_per_minute = 30").await;
    }
}
