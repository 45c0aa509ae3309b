//! The server over a fake model: refusals, the stream and its end, disconnects, drain.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    stream_validator::events,
};
use actix_web::{test as service, web::Bytes};
use futures::{StreamExt, channel::mpsc as signals, future::pending};
use ortolan::{
    chat::Models,
    config::{Config, Overrides},
    responses::Dialect,
    server::{self, AppState},
    store::Store,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

/// A server that keeps nothing.
pub(crate) fn app_state(settings: &[&str], models: Models) -> AppState {
    app_state_with(settings, models, None)
}

pub(crate) fn app_state_with(settings: &[&str], models: Models, store: Option<Store>) -> AppState {
    let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let (config, _) = Config::load(&Overrides { settings, ..Overrides::default() }).unwrap();
    AppState::new(config.server, Dialect::new(&config.responses).unwrap(), models, store)
}

/// Posts one request to a model that says `reply`; gives status and body.
pub(crate) async fn post_to(model: FakeModel, body: Value) -> (u16, String) {
    let state = app_state(&[], models(model, &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let request = service::TestRequest::post().uri("/v1/responses").set_json(body).to_request();
    let response = service::call_service(&app, request).await;
    let status = response.status().as_u16();
    let body: Bytes = service::read_body(response).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(reply: &str, body: Value) -> (u16, Value) {
    let (status, body) = post_to(FakeModel::saying(script(reply)), body).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Everything but what differs from one response to the next.
fn without_ids(value: &Value) -> Value {
    let mut value = value.clone();
    let object = value.as_object_mut().unwrap();
    for key in ["id", "created_at", "completed_at"] {
        object.remove(key);
    }
    for item in object["output"].as_array_mut().unwrap() {
        item.as_object_mut().unwrap().retain(|key, _| key != "id" && key != "call_id");
    }
    value
}

const REPLY: &str = "<think>\nHm.\n</think>\n\nHéllo 👍🏽!";

#[actix_web::test]
async fn the_tokens_of_a_request_can_be_counted_beforehand() {
    let body = json!({ "input": "hi", "instructions": "Be brief.", "stream": true });
    let state = app_state(&[], models(FakeModel::saying(script("Yes.")), &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let request = service::TestRequest::post().uri("/v1/responses/input_tokens").set_json(&body).to_request();
    let count: Value = service::call_and_read_body_json(&app, request).await;
    let (_, plain) = post("Yes.", json!({ "input": "hi", "instructions": "Be brief." })).await;
    let expected = json!({ "object": "response.input_tokens", "input_tokens": plain["usage"]["input_tokens"] });
    assert_eq!(count, expected);
}

#[actix_web::test]
async fn the_plain_reply_is_the_end_of_the_stream() {
    let (status, plain) = post(REPLY, json!({ "input": "hi" })).await;
    let model = FakeModel::saying(script(REPLY));
    let (_, streamed) = post_to(model, json!({ "input": "hi", "stream": true })).await;
    let events = events(&streamed);
    assert_eq!((status, &events.last().unwrap()["type"]), (200, &json!("response.completed")));
    assert_eq!(without_ids(&plain), without_ids(&events.last().unwrap()["response"]));
    assert_eq!(plain["output"][0]["content"][0]["text"], "Hm.");
    assert_eq!(plain["output"][1]["content"][0]["text"], "Héllo 👍🏽!");
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, "Héllo 👍🏽!");
    let num_tokens = script(REPLY).len() - 1;
    assert_eq!(plain["usage"]["output_tokens"], num_tokens);
    assert_ne!(plain["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
}

#[actix_web::test]
async fn a_reply_ends_at_its_limits() {
    let (_, response) = post("one two three", json!({ "input": "hi", "max_output_tokens": 2 })).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["usage"]["output_tokens"], 2);
    let (_, response) = post("one two three", json!({ "input": "hi", "stop": [" thr", "zzz"] })).await;
    assert_eq!(response["status"], "completed");
    assert_eq!(response["output"][0]["content"][0]["text"], "one two");
}

#[actix_web::test]
async fn a_reply_holds_what_was_asked_for() {
    let include = json!(["reasoning.encrypted_content", "file_search_call.results"]);
    let (status, response) = post(REPLY, json!({ "input": "hi", "include": include })).await;
    assert_eq!(status, 200);
    assert!(response["output"][0]["encrypted_content"].is_string(), "{response}");
    let padded = json!({ "input": "hi", "stream": true, "stream_options": { "include_obfuscation": true } });
    let (_, streamed) = post_to(FakeModel::saying(script(REPLY)), padded).await;
    for event in events(&streamed) {
        let is_delta = event["type"].as_str().unwrap().ends_with(".delta");
        assert_eq!(event.get("obfuscation").is_some(), is_delta, "{event}");
    }
}

#[actix_web::test]
async fn calls_become_items() {
    let reply = "Wait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let tools = json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} } }]);
    let (_, response) = post(reply, json!({ "input": "hi", "tools": tools })).await;
    assert_eq!(response["output"][0]["content"][0]["text"], "Wait.");
    let call = &response["output"][1];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("f")));
    assert_eq!((&call["arguments"], &call["status"]), (&json!("{\"a\": 1}"), &json!("completed")));
}

/// What an agent sends: tools of all kinds, and a history that other servers wrote.
#[actix_web::test]
async fn a_history_with_tools_of_others_is_answered() {
    let tools = json!([
        { "type": "custom", "name": "patch", "format": { "type": "text" } },
        { "type": "namespace", "name": "crm", "description": "", "tools": [{ "type": "function", "name": "find" }] },
        { "type": "web_search" },
    ]);
    let input = json!([
        { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "hi" }] },
        { "type": "reasoning", "id": "rs_1", "summary": [], "content": null, "encrypted_content": "opaque" },
        { "type": "web_search_call", "id": "ws_1", "status": "completed", "action": { "type": "search", "query": "a" } },
        { "type": "custom_tool_call", "call_id": "call_1", "name": "patch", "input": "a" },
        { "type": "custom_tool_call_output", "call_id": "call_1", "output": "done" },
    ]);
    let (status, response) = post("Done.", json!({ "input": input, "tools": tools, "tool_choice": "auto" })).await;
    assert_eq!((status, &response["tools"]), (200, &tools));
    assert_eq!(response["output"][0]["content"][0]["text"], "Done.");
}

#[actix_web::test]
async fn wherever_a_reply_is_cut_its_stream_keeps_the_protocol_and_says_the_same() {
    let call = "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let reply = format!("{REPLY}{call}{call}");
    let tools = json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} } }]);
    for max_output_tokens in 1..=script(&reply).len() {
        let mut body = json!({ "input": "hi", "tools": tools, "max_output_tokens": max_output_tokens });
        let (_, plain) = post(&reply, body.clone()).await;
        body["stream"] = json!(true);
        let (_, streamed) = post_to(FakeModel::saying(script(&reply)), body).await;
        assert_eq!(without_ids(&plain), without_ids(&events(&streamed).last().unwrap()["response"]));
    }
}

#[actix_web::test]
async fn a_model_that_fails_is_an_error_before_and_an_event_after_the_first_byte() {
    let (status, body) = post_to(FakeModel::failing_from(1), json!({ "input": "hi" })).await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["error"]["code"]), (500, &json!("server_error")));
    let (status, body) = post_to(FakeModel::failing_from(3), json!({ "input": "hi", "stream": true })).await;
    let events = events(&body);
    let last: Vec<&Value> = events.iter().rev().take(2).map(|event| &event["type"]).collect();
    assert_eq!((status, last), (200, vec![&json!("response.failed"), &json!("error")]));
    let failed = &events.last().unwrap()["response"];
    assert_eq!((&failed["error"]["code"], &failed["usage"]["output_tokens"]), (&json!("server_error"), &json!(2)));
}

#[actix_web::test]
async fn refusals_have_four_keys_and_a_status() {
    let long = "x ".repeat(400);
    let cases = [
        (json!({ "input": "hi", "model": "other" }), 404, "model_not_found", "model"),
        (json!({ "input": [] }), 400, "invalid_value", "input"),
        (json!({ "input": "hi", "temperature": "hot" }), 400, "invalid_type", "temperature"),
        (json!({ "input": "hi", "background": true }), 400, "unsupported_parameter", "background"),
        (json!({ "input": "hi", "logit_bias": { "9999": 1 } }), 400, "invalid_value", "logit_bias"),
        (
            json!({ "input": "hi", "text": { "format": { "type": "json_schema", "name": "a", "schema": true } } }),
            400,
            "invalid_json_schema",
            "text.format.schema",
        ),
        (json!({ "input": long }), 400, "context_length_exceeded", "input"),
        (json!({ "input": "x".repeat(100_000) }), 400, "context_length_exceeded", "input"),
    ];
    for (body, status, code, param) in cases {
        let (seen, response) = post("hi", body).await;
        let error = response["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!((seen, &error["code"], &error["param"]), (status, &json!(code), &json!(param)), "{response}");
    }
}

/// A server on a thread of its own, until it is signalled.
pub(crate) struct Running {
    address: SocketAddr,
    signals: signals::UnboundedSender<()>,
    failures: signals::UnboundedSender<()>,
    pub(crate) thread: thread::JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(models: Models, settings: &[&str]) -> Self {
        Self::start_with(app_state(settings, models))
    }

    pub(crate) fn start_with(state: AppState) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (signals, received) = signals::unbounded();
        let (failures, mut failed) = signals::unbounded();
        let failure = async move {
            if failed.next().await.is_none() {
                pending::<()>().await;
            }
        };
        let serve = async move { server::serve(listener, state, failure, received.fuse()).await };
        let thread = thread::spawn(|| actix_rt::System::new().block_on(serve).unwrap());
        Self { address, signals, failures, thread }
    }

    pub(crate) fn signal(&self) {
        self.signals.unbounded_send(()).unwrap();
    }

    /// As an engine does that has failed.
    pub(crate) fn fail(&self) {
        // A server that drains listens to none.
        let _ = self.failures.unbounded_send(());
    }

    /// Sends a request and leaves the connection open.
    pub(crate) fn send(&self, body: &Value) -> BufReader<TcpStream> {
        self.send_to("/v1/responses", body)
    }

    /// The same to another path.
    pub(crate) fn send_to(&self, path: &str, body: &Value) -> BufReader<TcpStream> {
        let body = body.to_string();
        self.send_raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    pub(crate) fn send_raw(&self, request: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        BufReader::new(stream)
    }
}

pub(crate) fn read_until(connection: &mut BufReader<TcpStream>, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let read = connection.read_line(&mut seen).unwrap();
        assert_ne!(read, 0, "{text} never came: {seen}");
    }
    seen
}

fn endless(stream: bool) -> Value {
    json!({ "input": "hi", "stream": stream, "max_output_tokens": 450 })
}

/// A client that leaves frees all slots that it has long before its 450 tokens are done: after it has read so far, or
/// without a word.
pub(crate) fn assert_leaving_frees_the_slots(num_slots: u32, path: &str, body: &Value, until: Option<&str>) {
    let (model, permits, runs) = FakeModel::saying(script(&"word ".repeat(200))[..400].to_vec()).gated();
    let server = Running::start(models(model, &config(num_slots, 64)), &[]);
    let mut leaving = server.send_to(path, body);
    permits.send(()).unwrap();
    match until {
        Some(until) => drop(read_until(&mut leaving, until)),
        None => (0..2).for_each(|_| permits.send(()).unwrap()),
    }
    drop(leaving);
    let mut next = server.send(&json!({ "input": "hi", "stream": true, "max_output_tokens": 1 }));
    next.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("[DONE]") {
        // One step, then time to notice who has left.
        let _ = permits.try_send(());
        let mut buffer = [0; 4096];
        if let Ok(read) = next.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..read]);
        }
    }
    events(&String::from_utf8(seen).unwrap());
    let runs = runs.load(std::sync::atomic::Ordering::SeqCst);
    assert!(runs < 300, "{runs} runs");
    drop(permits);
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn a_client_that_leaves_its_stream_frees_the_slot() {
    assert_leaving_frees_the_slots(1, "/v1/responses", &endless(true), Some("response.output_text.delta"));
}

#[test]
fn a_client_that_leaves_before_a_plain_reply_frees_the_slot() {
    assert_leaving_frees_the_slots(1, "/v1/responses", &endless(false), None);
}

#[test]
fn draining_lets_a_reply_finish() {
    let (model, permits, _) = FakeModel::saying(script("one two")).gated();
    let server = Running::start(models(model, &config(1, 64)), &["server.drain_timeout=600"]);
    let mut reply = server.send(&json!({ "input": "hi", "stream": true }));
    // Opened before the drain: new connections are no longer accepted.
    let mut ready = TcpStream::connect(server.address).unwrap();
    ready.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ready.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut ready = BufReader::new(ready);
    assert!(read_until(&mut ready, "\r\n").starts_with("HTTP/1.1 200"));
    permits.send(()).unwrap();
    let start = read_until(&mut reply, "response.output_text.delta");
    server.signal();
    drop(permits);
    let events = events(&(start + &read_until(&mut reply, "[DONE]\n")));
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    server.thread.join().unwrap();
}

#[test]
fn what_is_still_running_after_the_drain_timeout_gets_a_last_event() {
    let (model, permits, _) = FakeModel::saying(script(&"word ".repeat(200))[..400].to_vec()).gated();
    let server = Running::start(models(model, &config(1, 64)), &["server.drain_timeout=1"]);
    let mut reply = server.send(&endless(true));
    permits.send(()).unwrap();
    let start = read_until(&mut reply, "response.output_text.delta");
    server.signal();
    let feeder = thread::spawn(move || feed(&permits));
    let events = events(&(start + &read_until(&mut reply, "[DONE]\n")));
    assert_eq!(events.last().unwrap()["type"], "response.failed");
    server.thread.join().unwrap();
    feeder.join().unwrap();
}

/// A step now and then, until the engine has gone.
fn feed(permits: &mpsc::SyncSender<()>) {
    let (_never, pause) = mpsc::sync_channel::<()>(0);
    while permits.send(()).is_ok() {
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}

/// Head and body of the answer to a raw request.
pub(crate) fn exchange(server: &Running, request: &str) -> (String, String) {
    read_answer(&mut server.send_raw(request))
}

pub(crate) fn read_answer(connection: &mut BufReader<TcpStream>) -> (String, String) {
    let head = read_until(connection, "\r\n\r\n");
    let mut length = 0;
    for line in head.lines() {
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn what_is_wrong_with_a_request_is_told_in_four_keys() {
    let settings = ["server.max_body_bytes=1000", "server.body_timeout=1"];
    let server = Running::start(models(FakeModel::saying(script("hi")), &config(1, 64)), &settings);
    let post = |headers: &str, body: &str| {
        let length = body.len();
        format!("POST /v1/responses HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n{body}")
    };
    let json = "content-type: application/json\r\n";
    let deep = format!("{{\"input\": {}{}}}", "[".repeat(200), "]".repeat(200));
    let cases = [
        (post(json, "{\"input\": "), 400, "invalid_json"),
        (post(json, &deep), 400, "invalid_json"),
        (post(json, ""), 400, "invalid_json"),
        (post(json, "[]"), 400, "invalid_type"),
        (post(json, &" ".repeat(1001)), 413, "request_too_large"),
        (post("content-type: text/plain\r\n", "{}"), 415, "unsupported_content_type"),
        (post(&format!("{json}content-encoding: gzip\r\n"), "{}"), 415, "unsupported_content_encoding"),
        ("GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 405, "method_not_allowed"),
        ("GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_owned(), 403, "host_not_allowed"),
        ("GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 404, "unknown_url"),
        ("GET /v1/models/other HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 404, "model_not_found"),
        // The body is announced and never sent.
        (
            format!("POST /v1/responses HTTP/1.1\r\nhost: localhost\r\n{json}content-length: 9\r\n\r\n"),
            408,
            "request_timeout",
        ),
    ];
    for (request, status, code) in cases {
        let (head, body) = exchange(&server, &request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert!(head.contains("x-request-id: req_") && head.contains("openai-version: 2020-10-01"), "{head}");
        assert!(head.contains("openai-processing-ms: "), "{head}");
        let error: Value = serde_json::from_str(&body).unwrap();
        let error = error["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!(error["code"], code, "{body}");
    }
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn models_and_health_are_told() {
    let server = Running::start(models(FakeModel::default(), &config(1, 64)), &[]);
    let get = |path: &str| exchange(&server, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).1;
    let model = r#"{"id":"fake","object":"model","created":1,"owned_by":"ortolan","context_length":512}"#;
    assert_eq!(get("/v1/models"), format!(r#"{{"object":"list","data":[{model}]}}"#));
    assert_eq!(get("/v1/models/fake"), model);
    assert_eq!(get("/health"), r#"{"status":"ok"}"#);
    let ready: Value = serde_json::from_str(&get("/ready")).unwrap();
    assert_eq!((&ready["status"], &ready["models"][0]["state"]), (&json!("ready"), &json!("ready")));
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn an_engine_that_dies_ends_its_stream_and_turns_ready_off() {
    let (model, permits, _) = FakeModel::panicking_from(3).gated();
    let server = Running::start(models(model, &config(1, 64)), &[]);
    let mut reply = server.send(&json!({ "input": "hi", "stream": true }));
    drop(permits);
    let events = events(&read_until(&mut reply, "[DONE]\n"));
    assert_eq!(events.last().unwrap()["type"], "response.failed");
    let (head, _) = exchange(&server, "GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    server.signal();
    server.thread.join().unwrap();
}
