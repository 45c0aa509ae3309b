//! What outlives a request, over a fake model: stored responses, chains, conversations, background work.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::app_state_with,
    stream_validator::events,
};
use actix_http::Request;
use actix_web::{
    Error,
    body::MessageBody,
    dev::{Service, ServiceResponse},
    http::Method,
    test as service,
};
use ortolan::{
    server::{self, AppState},
    store::Store,
};
use serde_json::{Value, json};
use std::sync::mpsc;
use tempfile::TempDir;

const REPLY: &str = "<think>\nHm.\n</think>\n\nYes.";

/// A server and the folder of its store.
struct Fixture {
    state: AppState,
    folder: TempDir,
}

impl Fixture {
    async fn new(model: FakeModel) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        Self { state: app_state_with(&[], models(model, &config(4, 64)), Some(store)), folder }
    }

    async fn saying(reply: &str) -> Self {
        Self::new(FakeModel::saying(script(reply))).await
    }

    /// The same, with a worker.
    async fn working(model: FakeModel) -> Self {
        let fixture = Self::new(model).await;
        actix_rt::spawn(fixture.state.responder().clone().work());
        fixture
    }
}

pub(crate) async fn open(folder: &TempDir) -> Store {
    let toml = include_str!("../../config/default.toml");
    let source = ::config::File::from_str(toml, ::config::FileFormat::Toml);
    let built = ::config::Config::builder().add_source(source);
    let built = built.set_override("store.path", folder.path().to_str().unwrap()).unwrap();
    let built = built.set_override("store.min_free_bytes", 0).unwrap().build().unwrap();
    Store::open(&built.get("store").unwrap(), |_| None).await.unwrap().unwrap()
}

/// One exchange: the status and the body.
async fn send<B: MessageBody>(
    app: &impl Service<Request, Response = ServiceResponse<B>, Error = Error>,
    method: Method,
    uri: &str,
    body: Option<Value>,
) -> (u16, String) {
    let mut request = service::TestRequest::default().method(method).uri(uri);
    if let Some(body) = body {
        request = request.set_json(body);
    }
    let response = service::call_service(app, request.to_request()).await;
    let status = response.status().as_u16();
    let body = service::read_body(response).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

macro_rules! client {
    ($state:expr, $call:ident) => {
        let app = service::init_service(server::app($state.clone())).await;
        let $call = async |method: Method, uri: &str, body: Option<Value>| -> (u16, Value) {
            let (status, body) = send(&app, method, uri, body).await;
            (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
        };
    };
}

fn get(id: &Value, rest: &str) -> String {
    format!("/v1/responses/{}{rest}", id.as_str().unwrap())
}

#[actix_web::test]
async fn a_response_is_kept_unless_it_is_not_to_be() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let (status, made) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi" }))).await;
    assert_eq!((status, &made["store"]), (200, &json!(true)), "{made}");
    assert_eq!(call(Method::GET, &get(&made["id"], ""), None).await, (200, made.clone()));
    let (_, items) = call(Method::GET, &get(&made["id"], "/input_items"), None).await;
    assert_eq!(items["data"][0]["content"], json!([{ "type": "input_text", "text": "hi" }]));
    assert_eq!((&items["object"], &items["has_more"]), (&json!("list"), &json!(false)));
    let deleted = json!({ "id": made["id"], "object": "response", "deleted": true });
    assert_eq!(call(Method::DELETE, &get(&made["id"], ""), None).await, (200, deleted));
    for (method, rest) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/input_items"), (Method::POST, "/cancel")]
    {
        let (status, error) = call(method, &get(&made["id"], rest), None).await;
        assert_eq!((status, &error["error"]["code"]), (404, &json!("response_not_found")), "{error}");
    }
    let (_, unkept) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "store": false }))).await;
    assert_eq!((call(Method::GET, &get(&unkept["id"], ""), None).await.0, &unkept["store"]), (404, &json!(false)));
}

#[actix_web::test]
async fn a_chain_says_what_the_whole_conversation_would() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let first = json!({ "input": "one", "instructions": "Be brief.", "stream": true });
    let (_, streamed) = call(Method::POST, "/v1/responses", Some(first)).await;
    let first = events(streamed.as_str().unwrap()).last().unwrap()["response"].clone();
    let input = json!([{ "role": "user", "content": "two" }]);
    let second = json!({ "input": input, "previous_response_id": first["id"] });
    let (_, second) = call(Method::POST, "/v1/responses", Some(second)).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({ "input": "three", "previous_response_id": second["id"] });
    let (_, chained) = call(Method::POST, "/v1/responses/input_tokens", Some(third.clone())).await;
    let whole: Vec<Value> = [json!({ "role": "user", "content": "one" })]
        .into_iter()
        .chain(first["output"].as_array().unwrap().clone())
        .chain([json!({ "role": "user", "content": "two" })])
        .chain(second["output"].as_array().unwrap().clone())
        .chain([json!({ "role": "user", "content": "three" })])
        .collect();
    let (_, told) = call(Method::POST, "/v1/responses/input_tokens", Some(json!({ "input": whole }))).await;
    assert_eq!(chained["input_tokens"], told["input_tokens"], "instructions are not inherited");
    let (_, third) = call(Method::POST, "/v1/responses", Some(third)).await;
    assert!(0 < third["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap(), "{third}");
    call(Method::DELETE, &get(&first["id"], ""), None).await;
    let broken = json!({ "input": "four", "previous_response_id": third["id"] });
    let (status, error) = call(Method::POST, "/v1/responses", Some(broken)).await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("previous_response_not_found")));
}

#[actix_web::test]
async fn results_of_calls_are_checked_against_the_chain() {
    let reply = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    let fixture = Fixture::saying(reply).await;
    client!(fixture.state, call);
    let tools = json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} } }]);
    let (_, made) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "tools": tools }))).await;
    let output = |call_id: &Value| json!([{ "type": "function_call_output", "call_id": call_id, "output": "x" }]);
    let next = |input: Value| Some(json!({ "input": input, "previous_response_id": made["id"], "tools": tools }));
    let (status, _) = call(Method::POST, "/v1/responses", next(output(&made["output"][0]["call_id"]))).await;
    let (refused, error) = call(Method::POST, "/v1/responses", next(output(&json!("call_other")))).await;
    assert_eq!((status, refused), (200, 400));
    assert_eq!(error["error"]["param"], "input[0].call_id", "the place is one of the request's own");
}

#[actix_web::test]
async fn items_of_outputs_can_be_named() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let (_, made) = call(Method::POST, "/v1/responses", Some(json!({ "input": "one" }))).await;
    let message = &made["output"][1];
    let count = async |item: Value| {
        let input = json!([{ "role": "user", "content": "one" }, item, { "role": "user", "content": "two" }]);
        call(Method::POST, "/v1/responses/input_tokens", Some(json!({ "input": input }))).await
    };
    let whole = count(message.clone()).await;
    assert_eq!(count(json!({ "type": "item_reference", "id": message["id"] })).await, whole);
    assert_eq!(count(json!({ "id": message["id"] })).await, whole);
    let (status, error) = count(json!({ "type": "item_reference", "id": "msg_other" })).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("item_not_found")));
}

#[actix_web::test]
async fn a_conversation_gets_what_is_said() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let first = json!({ "items": [{ "role": "developer", "content": "Be brief." }], "metadata": { "topic": "a" } });
    let (status, made) = call(Method::POST, "/v1/conversations", Some(first)).await;
    assert_eq!((status, &made["object"], &made["metadata"]), (200, &json!("conversation"), &json!({ "topic": "a" })));
    let uri = format!("/v1/conversations/{}", made["id"].as_str().unwrap());
    assert_eq!(call(Method::GET, &uri, None).await, (200, made.clone()));
    for conversation in [made["id"].clone(), json!({ "id": made["id"] })] {
        let (status, said) =
            call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "conversation": conversation }))).await;
        assert_eq!((status, &said["conversation"]), (200, &json!({ "id": made["id"] })), "{said}");
    }
    let kinds = |page: &Value| -> String {
        let kind = |item: &Value| item["role"].as_str().or(item["type"].as_str()).unwrap()[..1].to_owned();
        page["data"].as_array().unwrap().iter().map(kind).collect()
    };
    let list = async |query: &str| call(Method::GET, &format!("{uri}/items?{query}"), None).await.1;
    assert_eq!(kinds(&list("order=asc").await), "duraura");
    assert_eq!(kinds(&list("").await), "aruarud");
    let page = list("order=asc&limit=3").await;
    assert_eq!((kinds(&page).as_str(), &page["has_more"]), ("dur", &json!(true)));
    let rest = list(&format!("order=asc&limit=4&after={}", page["last_id"].as_str().unwrap())).await;
    assert_eq!((kinds(&rest).as_str(), &rest["has_more"]), ("aura", &json!(false)));
    let item = format!("{uri}/items/{}", page["first_id"].as_str().unwrap());
    assert_eq!(call(Method::GET, &item, None).await, (200, page["data"][0].clone()));
    assert_eq!(call(Method::DELETE, &item, None).await, (200, made.clone()));
    assert_eq!(call(Method::GET, &item, None).await.0, 404);
    let added = json!({ "items": [{ "role": "user", "content": "more" }] });
    assert_eq!(kinds(&call(Method::POST, &format!("{uri}/items"), Some(added)).await.1), "u");
    assert_eq!(kinds(&list("order=asc").await), "uraurau");
    let (_, updated) = call(Method::POST, &uri, Some(json!({ "metadata": { "topic": "b" } }))).await;
    assert_eq!(updated["metadata"], json!({ "topic": "b" }));
    assert_eq!(call(Method::DELETE, &uri, None).await.1["object"], "conversation.deleted");
    for (method, path) in [(Method::GET, uri.clone()), (Method::GET, format!("{uri}/items")), (Method::DELETE, uri)] {
        let (status, error) = call(method, &path, None).await;
        assert_eq!((status, &error["error"]["code"]), (404, &json!("conversation_not_found")));
    }
}

#[actix_web::test]
async fn what_no_model_could_be_told_is_no_item_of_a_conversation() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let many = vec![json!({ "role": "user", "content": "hi" }); 21];
    let twice = vec![json!({ "role": "user", "content": "hi", "id": "msg_1" }); 2];
    for (items, param) in [
        (json!([{ "role": "user" }]), "items[0].content"),
        (json!([{ "type": "function_call_output", "call_id": "a", "output": "" }]), "items[0].call_id"),
        (json!(many), "items"),
        (json!(twice), "items[1]"),
    ] {
        let (status, error) = call(Method::POST, "/v1/conversations", Some(json!({ "items": items }))).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{error}");
    }
}

/// Asks until the response has ended.
async fn wait_for_end(fixture: &Fixture, id: &Value) -> Value {
    client!(fixture.state, call);
    let mut changes = fixture.state.responder().store().unwrap().changes();
    loop {
        let (status, response) = call(Method::GET, &get(id, ""), None).await;
        assert_eq!(status, 200, "{response}");
        if !["queued", "in_progress"].contains(&response["status"].as_str().unwrap()) {
            return response;
        }
        changes.any().await;
    }
}

#[actix_web::test]
async fn background_work_is_done_and_can_be_followed_from_anywhere() {
    let fixture = Fixture::working(FakeModel::saying(script(REPLY))).await;
    client!(fixture.state, call);
    let (status, queued) =
        call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "background": true }))).await;
    assert_eq!((status, &queued["status"], &queued["background"]), (200, &json!("queued"), &json!(true)));
    let ended = wait_for_end(&fixture, &queued["id"]).await;
    assert_eq!((&ended["status"], &ended["created_at"]), (&json!("completed"), &queued["created_at"]));
    assert_eq!(ended["output"][1]["content"][0]["text"], "Yes.");
    let follow = async |query: &str| {
        let (_, body) = call(Method::GET, &get(&queued["id"], &format!("?stream=true{query}")), None).await;
        body.as_str().unwrap().to_owned()
    };
    let all = events(&follow("").await);
    assert_eq!(all.last().unwrap()["response"], ended);
    for after in [0, 3, all.len() - 2] {
        let body = follow(&format!("&starting_after={after}")).await;
        let rest: Vec<Value> = body
            .lines()
            .filter_map(|line| line.strip_prefix("data: {"))
            .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
            .collect();
        assert_eq!(rest, all[after + 1..], "after {after}");
    }
    assert_eq!(follow(&format!("&starting_after={}", all.len())).await, "data: [DONE]\n\n");
    let (_, cancelled) = call(Method::POST, &get(&queued["id"], "/cancel"), None).await;
    assert_eq!(cancelled, ended, "it is too late");
    let next = json!({ "input": "two", "previous_response_id": queued["id"] });
    assert_eq!(call(Method::POST, "/v1/responses", Some(next)).await.0, 200);
}

#[actix_web::test]
async fn a_streamed_background_response_is_followed_at_once() {
    let fixture = Fixture::working(FakeModel::saying(script(REPLY))).await;
    client!(fixture.state, call);
    let body = json!({ "input": "hi", "background": true, "stream": true });
    let (_, streamed) = call(Method::POST, "/v1/responses", Some(body)).await;
    let events = events(streamed.as_str().unwrap());
    assert_eq!(events[0]["response"]["status"], "queued");
    assert_eq!(events.last().unwrap()["type"], "response.completed");
}

#[actix_web::test]
async fn cancelling_ends_the_work() {
    let (model, permits, _) = FakeModel::saying(script(&"word ".repeat(200))[..400].to_vec()).gated();
    let fixture = Fixture::working(model).await;
    client!(fixture.state, call);
    let body = json!({ "input": "hi", "background": true });
    let (_, queued) = call(Method::POST, "/v1/responses", Some(body)).await;
    let mut changes = fixture.state.responder().store().unwrap().changes();
    while call(Method::GET, &get(&queued["id"], ""), None).await.1["status"] == "queued" {
        changes.any().await;
    }
    let unfinished = json!({ "input": "two", "previous_response_id": queued["id"] });
    assert_eq!(call(Method::POST, "/v1/responses", Some(unfinished)).await.0, 400);
    let (status, cancelled) = call(Method::POST, &get(&queued["id"], "/cancel"), None).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    assert_eq!(call(Method::POST, &get(&queued["id"], "/cancel"), None).await, (200, cancelled), "twice is once");
    let (_, stream) = call(Method::GET, &get(&queued["id"], "?stream=true"), None).await;
    assert!(stream.as_str().unwrap().ends_with("data: [DONE]\n\n"));
    // The engine is free again: a request gets its reply, with as many steps as it needs.
    let feeder = std::thread::spawn(move || feed(&permits));
    let (status, _) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "max_output_tokens": 1 }))).await;
    assert_eq!(status, 200);
    let (_, foreground) =
        call(Method::POST, "/v1/responses", Some(json!({ "input": "a", "max_output_tokens": 1 }))).await;
    let (status, error) = call(Method::POST, &get(&foreground["id"], "/cancel"), None).await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("response_not_background")));
    fixture.state.responder().stop();
    drop(fixture);
    drop(feeder);
}

fn feed(permits: &mpsc::SyncSender<()>) {
    while permits.send(()).is_ok() {}
}

#[actix_web::test]
async fn what_cannot_be_done_in_the_background_fails_and_says_why() {
    let fixture = Fixture::working(FakeModel::saying(script(REPLY))).await;
    client!(fixture.state, call);
    let body = json!({ "input": "x ".repeat(400), "background": true });
    let (_, queued) = call(Method::POST, "/v1/responses", Some(body)).await;
    let ended = wait_for_end(&fixture, &queued["id"]).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("invalid_prompt")));
    assert!(ended["error"]["message"].as_str().unwrap().contains("tokens"), "{ended}");
}

#[actix_web::test]
async fn work_that_a_process_left_is_done_by_the_next() {
    let fixture = Fixture::saying(REPLY).await;
    client!(fixture.state, call);
    let (_, queued) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi", "background": true }))).await;
    // As if its process had died in the middle of it.
    let store = fixture.state.responder().store().unwrap();
    let job = store.claim("fake").await.unwrap().unwrap();
    assert!(store.record(&job, &[(0, json!({ "type": "response.created" }).to_string())]).await.unwrap());
    store.release(&job).await.unwrap();
    assert_eq!(call(Method::GET, &get(&queued["id"], ""), None).await.1["status"], "in_progress");
    let next = Fixture {
        state: app_state_with(
            &[],
            models(FakeModel::saying(script(REPLY)), &config(4, 64)),
            Some(open(&fixture.folder).await),
        ),
        folder: tempfile::tempdir().unwrap(),
    };
    actix_rt::spawn(next.state.responder().clone().work());
    let ended = wait_for_end(&next, &queued["id"]).await;
    assert_eq!((&ended["status"], &ended["id"]), (&json!("completed"), &queued["id"]));
}

#[actix_web::test]
async fn a_stored_reply_is_told_anew() {
    let reply =
        "<think>\nHm.\n</think>\n\nYes.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let fixture = Fixture::saying(reply).await;
    client!(fixture.state, call);
    let tools = json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} } }]);
    for limit in [2, 6, 100] {
        let body = json!({ "input": "hi", "tools": tools, "max_output_tokens": limit });
        let (_, made) = call(Method::POST, "/v1/responses", Some(body)).await;
        let (_, told) = call(Method::GET, &get(&made["id"], "?stream=true"), None).await;
        // Which also checks the order of the events.
        assert_eq!(events(told.as_str().unwrap()).last().unwrap()["response"], made);
    }
}

#[actix_web::test]
async fn without_a_store_nothing_is_promised() {
    let model = FakeModel::saying(script(REPLY));
    let state = app_state_with(&[], models(model, &config(4, 64)), None);
    client!(state, call);
    let (status, made) = call(Method::POST, "/v1/responses", Some(json!({ "input": "hi" }))).await;
    assert_eq!((status, &made["store"]), (200, &json!(false)));
    for (body, code) in [
        (json!({ "store": true }), "unsupported_parameter"),
        (json!({ "background": true }), "unsupported_parameter"),
        (json!({ "conversation": "conv_1" }), "unsupported_parameter"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_not_found"),
    ] {
        let mut asked = json!({ "input": "hi" });
        asked.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let (status, error) = call(Method::POST, "/v1/responses", Some(asked)).await;
        assert_eq!((status, &error["error"]["code"]), (400, &json!(code)), "{error}");
    }
}

#[actix_web::test]
async fn a_conversation_that_was_compacted_goes_on() {
    let fixture = Fixture::saying("Yes.").await;
    client!(fixture.state, call);
    let (_, made) = call(Method::POST, "/v1/conversations", None).await;
    let ask = |input: Value| Some(json!({ "input": input, "conversation": made["id"] }));
    let trigger = json!([{ "role": "user", "content": "one" }, { "type": "compaction_trigger" }]);
    let (status, compacted) = call(Method::POST, "/v1/responses", ask(trigger)).await;
    assert_eq!((status, &compacted["output"][0]["type"]), (200, &json!("compaction")), "{compacted}");
    let items = format!("/v1/conversations/{}/items", made["id"].as_str().unwrap());
    let more = json!({ "items": [{ "role": "user", "content": "two" }, compacted["output"][0]] });
    let (status, refused) = call(Method::POST, &items, Some(more)).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("items[1]")), "it is there already: {refused}");
    let mut again = compacted["output"][0].clone();
    again.as_object_mut().unwrap().remove("id");
    let more = json!({ "items": [{ "role": "user", "content": "two" }, again] });
    assert_eq!(call(Method::POST, &items, Some(more)).await.0, 200);
    assert_eq!(call(Method::POST, "/v1/responses", ask(json!("three"))).await.0, 200);
}
