//! Chat Completions and Completions over a fake model.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::{Running, app_state, read_until},
};
use actix_web::test as service;
use ortolan::server::{self, AppState};
use serde_json::{Value, json};

const REPLY: &str = "<think>\nHm.\n</think>\n\nHéllo 👍🏽!";
const CALLS: &str = "Wait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn saying(reply: &str) -> AppState {
    app_state(&[], models(FakeModel::saying(script(reply)), &config(4, 64)))
}

/// Status and body.
async fn post(state: &AppState, uri: &str, body: &Value) -> (u16, String) {
    let app = service::init_service(server::app(state.clone())).await;
    let request = service::TestRequest::post().uri(uri).set_json(body).to_request();
    let response = service::call_service(&app, request).await;
    let status = response.status().as_u16();
    (status, String::from_utf8(service::read_body(response).await.to_vec()).unwrap())
}

async fn plain(state: &AppState, uri: &str, body: &Value) -> Value {
    let (status, answer) = post(state, uri, body).await;
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

/// The chunks of a stream, which ends as it should.
fn chunks(stream: &str) -> Vec<Value> {
    let frames: Vec<&str> = stream.split_terminator("\n\n").filter(|frame| !frame.starts_with(':')).collect();
    let (done, frames) = frames.split_last().unwrap();
    assert_eq!(*done, "data: [DONE]");
    frames.iter().map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

async fn streamed(state: &AppState, uri: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let (status, answer) = post(state, uri, &body).await;
    assert_eq!(status, 200, "{answer}");
    chunks(&answer)
}

fn ask(fields: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": {} } } }])
}

/// What a client makes of the chunks: the choices of the plain reply.
fn add_up(chunks: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        while choices.len() <= index {
            choices.push(json!({ "content": "", "reasoning_content": "", "calls": [], "finish_reason": null }));
        }
        let whole = &mut choices[index];
        let delta = &choice["delta"];
        for key in ["content", "reasoning_content"] {
            let text = whole[key].as_str().unwrap().to_owned() + delta[key].as_str().unwrap_or_default();
            whole[key] = json!(text);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = whole["calls"].as_array_mut().unwrap();
            let place = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if calls.len() <= place {
                assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
                calls.push(json!({ "name": call["function"]["name"], "arguments": "" }));
            }
            let pieces = calls[place]["arguments"].as_str().unwrap().to_owned();
            calls[place]["arguments"] = json!(pieces + call["function"]["arguments"].as_str().unwrap());
        }
        if !choice["finish_reason"].is_null() {
            assert!(whole["finish_reason"].is_null(), "a choice ends once");
            whole["finish_reason"] = choice["finish_reason"].clone();
        }
    }
    choices
}

/// The same of a plain reply.
fn told(completion: &Value) -> Vec<Value> {
    let choice = |choice: &Value| {
        let message = &choice["message"];
        let call =
            |call: &Value| json!({ "name": call["function"]["name"], "arguments": call["function"]["arguments"] });
        let calls: Vec<Value> = message["tool_calls"].as_array().into_iter().flatten().map(call).collect();
        json!({
            "content": message["content"].as_str().unwrap_or_default(),
            "reasoning_content": message["reasoning_content"].as_str().unwrap_or_default(),
            "calls": calls,
            "finish_reason": choice["finish_reason"],
        })
    };
    completion["choices"].as_array().unwrap().iter().map(choice).collect()
}

#[actix_web::test]
async fn a_chat_is_answered() {
    let state = saying(REPLY);
    let completion = plain(&state, CHAT, &ask(json!({}))).await;
    assert!(completion["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&completion["object"], &completion["model"]), (&json!("chat.completion"), &json!("fake")));
    let choice = &completion["choices"][0];
    assert_eq!(choice["message"]["content"], "Héllo 👍🏽!");
    assert_eq!(choice["message"]["reasoning_content"], "Hm.");
    assert_eq!((&choice["message"]["refusal"], &choice["finish_reason"]), (&Value::Null, &json!("stop")));
    let usage = &completion["usage"];
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    assert_ne!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
}

#[actix_web::test]
async fn the_pieces_add_up_to_the_plain_reply_wherever_it_is_cut() {
    for reply in [REPLY, CALLS] {
        for max_tokens in 1..=script(reply).len() {
            let body = ask(json!({ "max_tokens": max_tokens, "tools": tools() }));
            let state = saying(reply);
            let completion = plain(&state, CHAT, &body).await;
            assert_eq!(add_up(&streamed(&state, CHAT, body).await), told(&completion), "{max_tokens} of {reply}");
        }
    }
}

#[actix_web::test]
async fn a_stream_tells_its_usage_where_it_is_asked_for() {
    let state = saying(REPLY);
    let completion = plain(&state, CHAT, &ask(json!({}))).await;
    let chunks = streamed(&state, CHAT, ask(json!({ "stream_options": { "include_usage": true } }))).await;
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &completion["usage"]["total_tokens"]));
    assert!(before.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert!(streamed(&state, CHAT, ask(json!({}))).await.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(before[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
}

#[actix_web::test]
async fn calls_and_their_results_are_messages() {
    let state = saying(CALLS);
    let completion = plain(&state, CHAT, &ask(json!({ "tools": tools() }))).await;
    let choice = &completion["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("Wait.")));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["function"]["arguments"]), (2, &json!("{\"a\": 1}")));
    let result = |id: &Value| json!({ "role": "tool", "tool_call_id": id, "content": "x" });
    let next = |id: &Value| json!({ "messages": [{ "role": "user", "content": "hi" }, choice["message"], result(id)], "tools": tools() });
    assert_eq!(post(&state, CHAT, &next(&calls[0]["id"])).await.0, 200);
    let (status, error) = post(&state, CHAT, &next(&json!("call_other"))).await;
    assert!(status == 400 && error.contains("messages[2].tool_call_id"), "{error}");
    let silent = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    let completion = plain(&saying(silent), CHAT, &ask(json!({ "tools": tools() }))).await;
    assert_eq!(completion["choices"][0]["message"]["content"], Value::Null);
}

#[actix_web::test]
async fn each_choice_is_a_reply_of_its_own() {
    let state = saying("one two");
    let completion = plain(&state, CHAT, &ask(json!({ "n": 3, "seed": 7 }))).await;
    let choices = completion["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "one two"));
    let alone = plain(&state, CHAT, &ask(json!({}))).await;
    let tokens = |completion: &Value, key: &str| completion["usage"][key].as_u64().unwrap();
    assert_eq!(tokens(&completion, "completion_tokens"), 3 * tokens(&alone, "completion_tokens"));
    assert_eq!(tokens(&completion, "prompt_tokens"), tokens(&alone, "prompt_tokens"), "the prompt is one");
    assert_eq!(add_up(&streamed(&state, CHAT, ask(json!({ "n": 3 }))).await), told(&completion));
}

#[actix_web::test]
async fn a_text_is_gone_on_from_as_it_stands() {
    let state = saying("one <think> two");
    let completion = plain(&state, TEXT, &json!({ "prompt": "hi" })).await;
    assert!(completion["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(completion["object"], "text_completion");
    // Nothing is taken for reasoning, and no template stands around it.
    assert_eq!(completion["choices"][0]["text"], "one <think> two");
    let chat = plain(&state, CHAT, &ask(json!({}))).await;
    assert!(completion["usage"]["prompt_tokens"].as_u64() < chat["usage"]["prompt_tokens"].as_u64());
    let echoed = plain(&state, TEXT, &json!({ "prompt": "hi", "echo": true, "max_tokens": 1 })).await;
    let choice = &echoed["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], choice["text"].as_str().unwrap().starts_with("hi")),
        (&json!("length"), true)
    );
    let many = json!({ "prompt": ["a", "b"], "n": 2, "logprobs": 1 });
    let completion = plain(&state, TEXT, &many).await;
    assert_eq!(completion["choices"].as_array().unwrap().len(), 4);
    let logprobs = &completion["choices"][3]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(), "one <think> two");
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), tokens.len());
    let chunks = streamed(&state, TEXT, json!({ "prompt": "hi" })).await;
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "one <think> two");
}

#[actix_web::test]
async fn probabilities_are_of_the_tokens_of_the_answer() {
    let state = saying(REPLY);
    let completion = plain(&state, CHAT, &ask(json!({ "logprobs": true, "top_logprobs": 2 }))).await;
    let content = completion["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes = content.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "Héllo 👍🏽!");
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
}

#[actix_web::test]
async fn a_failure_is_an_error_before_and_a_frame_after_the_first_byte() {
    let failing = |run| app_state(&[], models(FakeModel::failing_from(run), &config(2, 64)));
    let (status, error) = post(&failing(1), CHAT, &ask(json!({}))).await;
    assert!(status == 500 && error.contains("\"code\":\"server_error\""), "{error}");
    let chunks = streamed(&failing(3), CHAT, ask(json!({}))).await;
    let error = chunks.last().unwrap()["error"].as_object().unwrap().clone();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
}

#[actix_web::test]
async fn what_is_wrong_is_named() {
    let state = saying("hi");
    let mut lines = String::new();
    for (uri, body) in [
        (CHAT, json!({})),
        (CHAT, json!({ "messages": [] })),
        (CHAT, json!({ "messages": "hi" })),
        (CHAT, json!({ "messages": [{ "role": "critic", "content": "hi" }] })),
        (CHAT, json!({ "messages": [{ "role": "function", "content": "hi" }] })),
        (CHAT, json!({ "messages": [{ "role": "user" }] })),
        (CHAT, json!({ "messages": [{ "role": "assistant" }] })),
        (CHAT, json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] })),
        (CHAT, json!({ "messages": [{ "role": "tool", "content": "x" }] })),
        (CHAT, ask(json!({ "n": 0 }))),
        (CHAT, ask(json!({ "n": 9 }))),
        (CHAT, ask(json!({ "top_logprobs": 2 }))),
        (CHAT, ask(json!({ "functions": [] }))),
        (CHAT, ask(json!({ "store": true }))),
        (CHAT, ask(json!({ "modalities": ["text", "audio"] }))),
        (CHAT, ask(json!({ "tool_choice": "required" }))),
        (CHAT, ask(json!({ "response_format": { "type": "xml" } }))),
        (CHAT, ask(json!({ "max_tokens": 0 }))),
        (CHAT, ask(json!({ "reasoning_effort": "huge" }))),
        (CHAT, ask(json!({ "model": "other" }))),
        (TEXT, json!({})),
        (TEXT, json!({ "prompt": "" })),
        (TEXT, json!({ "prompt": [] })),
        (TEXT, json!({ "prompt": [1, 2] })),
        (TEXT, json!({ "prompt": ["a", "b", "c"], "n": 8 })),
        (TEXT, json!({ "prompt": "a", "suffix": "b" })),
        (TEXT, json!({ "prompt": "a", "best_of": 2 })),
        (TEXT, json!({ "prompt": "a", "logprobs": 6 })),
        (TEXT, json!({ "prompt": "a", "echo": true, "logprobs": 0 })),
    ] {
        let (status, answer) = post(&state, uri, &body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let error = &answer["error"];
        let (param, code) = (error["param"].as_str().unwrap_or("-"), error["code"].as_str().unwrap());
        lines += &format!("{status} {param} {code}: {}\n", error["message"].as_str().unwrap());
    }
    insta::assert_snapshot!(lines, @r#"
    400 messages missing_required_parameter: `messages` is required
    400 messages invalid_value: `messages` holds no message
    400 messages invalid_type: `messages` must be an array, and it is the string "hi"
    400 messages[0].role invalid_value: `messages[0].role` is `critic`, and it must be one of `system`, `developer`, `user`, `assistant`, `tool`, `function`
    400 messages[0].role unsupported_value: `messages[0].role` is `function`, which `tool` has replaced
    400 messages[0].content missing_required_parameter: `messages[0].content` is required
    400 messages[0].content missing_required_parameter: `messages[0].content` is required
    400 messages[0].content[0].type unsupported_value: `messages[0].content[0].type` is `image_url`, which this version does not support; it reads only text
    400 messages[0].tool_call_id missing_required_parameter: `messages[0].tool_call_id` is required
    400 n invalid_value: `n` must be an integer from 1 to 8, and it is 0
    400 n invalid_value: `n` must be an integer from 1 to 8, and it is 9
    400 top_logprobs invalid_value: `top_logprobs` needs `logprobs: true`
    400 functions unsupported_parameter: `functions` is not supported: `tools` has replaced it
    400 store unsupported_parameter: `store` is not supported: chat completions are not stored; send `store: false`, or use the Responses API
    400 modalities[1] unsupported_value: `modalities[1]` is not `text`, which is all that the model writes
    400 tool_choice invalid_value: `tool_choice` requires a call, and no tool that it allows can be called here
    400 response_format.type invalid_value: `response_format.type` is `xml`, and it must be one of `text`, `json_object`, `json_schema`, `regex`, `grammar`
    400 max_tokens invalid_value: `max_tokens` must be an integer from 1 to 4294967295, and it is 0
    400 reasoning_effort invalid_value: `reasoning_effort` is `huge`, and it must be one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`
    404 model model_not_found: the model `other` is not served here; served: fake
    400 prompt missing_required_parameter: `prompt` is required
    400 prompt invalid_value: `prompt` is empty, and it must have a character
    400 prompt invalid_value: `prompt` holds no text
    400 prompt[0] unsupported_value: `prompt[0]` is of tokens; send the text itself
    400 n invalid_value: `n` asks for more than 16 texts, all prompts together; ask for fewer
    400 suffix unsupported_parameter: `suffix` is not supported: texts are gone on from; leave it out
    400 best_of unsupported_parameter: `best_of` is not supported: all texts are given back; ask for them with `n`
    400 logprobs invalid_value: `logprobs` must be an integer from 0 to 5, and it is 6
    400 echo invalid_value: `echo` cannot be combined with `logprobs` or several prompts: only new tokens have probabilities
    "#);
}

#[test]
fn a_client_that_leaves_frees_all_its_slots() {
    let (model, permits, _) = FakeModel::saying(script(&"word ".repeat(200))[..400].to_vec()).gated();
    let server = Running::start(models(model, &config(2, 64)), &[]);
    let body = ask(json!({ "n": 2, "stream": true, "max_tokens": 450 })).to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut leaving = server.send_raw(&request);
    permits.send(()).unwrap();
    read_until(&mut leaving, "\"content\":\"");
    drop(leaving);
    drop(permits);
    // Both slots are free again, or this would wait for ever.
    let mut next = server.send(&json!({ "input": "hi", "stream": true, "max_output_tokens": 1 }));
    read_until(&mut next, "[DONE]");
    server.signal();
    server.thread.join().unwrap();
}
