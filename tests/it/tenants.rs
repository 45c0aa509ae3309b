//! What is one tenant's is to another as if it were not there: over every route that takes an id, and every place in a body.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::app_state_with,
    state::open,
};
use actix_http::Request;
use actix_web::{
    Error,
    body::MessageBody,
    dev::{Service, ServiceResponse},
    http::{Method, header::AUTHORIZATION},
    test as service,
};
use ortolan::server::{self, KeyHash, Methods, ROUTES};
use serde_json::{Value, json};

const REPLY: &str = "<think>\nHm.\n</think>\n\nYes.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";

fn keys() -> String {
    let entry = |name: &str| format!("{{ name = {name:?}, sha256 = \"{}\" }}", KeyHash::of(name.as_bytes()));
    format!("server.api_keys=[{}, {}]", entry("ann"), entry("bob"))
}

/// One exchange of whoever has the key: the status and the body.
async fn send<B: MessageBody>(
    app: &impl Service<Request, Response = ServiceResponse<B>, Error = Error>,
    key: &str,
    (method, uri): (Method, &str),
    body: Option<Value>,
) -> (u16, String) {
    let request = service::TestRequest::default().method(method).uri(uri);
    let request = request.insert_header((AUTHORIZATION, format!("Bearer {key}")));
    let request = match body {
        Some(body) => request.set_json(body),
        None => request,
    };
    let response = service::call_service(app, request.to_request()).await;
    let status = response.status().as_u16();
    (status, String::from_utf8(service::read_body(response).await.to_vec()).unwrap())
}

/// All ids that Ann has ever seen, each with what it names.
struct Ids {
    responses: Vec<String>,
    conversation: String,
    conversation_items: Vec<String>,
    others: Vec<String>,
}

impl Ids {
    fn all(&self) -> Vec<&str> {
        let lists = [&self.responses, &self.conversation_items, &self.others];
        lists.into_iter().flatten().chain([&self.conversation]).map(String::as_str).collect()
    }
}

/// Every text in a value that looks like an id.
fn ids_in(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.find('_').is_some_and(|place| text.len() == place + 33) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| ids_in(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| ids_in(value, found)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Ann makes one of everything.
async fn make<B: MessageBody>(app: &impl Service<Request, Response = ServiceResponse<B>, Error = Error>) -> Ids {
    let post = async |uri: &str, body: Value| {
        let (status, body) = send(app, "ann", (Method::POST, uri), Some(body)).await;
        assert_eq!(status, 200, "{uri}: {body}");
        body
    };
    let parsed = |body: &str| -> Value { serde_json::from_str(body).unwrap() };
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let tools = json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": {} } }]);
    let plain = parsed(&post("/v1/responses", json!({ "input": "hi", "tools": tools })).await);
    let queued = parsed(&post("/v1/responses", json!({ "input": "hi", "background": true })).await);
    let streamed = post("/v1/responses", json!({ "input": "hi", "tools": tools, "stream": true })).await;
    let deleted = parsed(&post("/v1/responses", json!({ "input": "hi" })).await);
    send(app, "ann", (Method::DELETE, &format!("/v1/responses/{}", id(&deleted))), None).await;
    let first = json!({ "items": [{ "role": "user", "content": "one" }] });
    let conversation = parsed(&post("/v1/conversations", first).await);
    let items = format!("/v1/conversations/{}/items", id(&conversation));
    let items = parsed(&send(app, "ann", (Method::GET, &items), None).await.1);
    let mut others = Vec::new();
    for event in streamed.lines().filter_map(|line| line.strip_prefix("data: {")) {
        ids_in(&parsed(&format!("{{{event}")), &mut others);
    }
    ids_in(&plain["output"], &mut others);
    let mut conversation_items = Vec::new();
    ids_in(&items["data"], &mut conversation_items);
    let responses = vec![id(&plain), id(&queued), id(&deleted)];
    Ids { responses, conversation: id(&conversation), conversation_items, others }
}

/// What nobody ever had: of the right form, and of none.
fn strangers() -> Vec<String> {
    let well_formed = ["resp", "conv", "msg", "rs", "fc", "call"].map(|prefix| format!("{prefix}_{}", "0".repeat(32)));
    let malformed = ["x", "resp_", "resp_1'--", "%25", "%2e%2e", "..%2fann", "%00", "%e2%98%83", "RESP_1"];
    let malformed = malformed.iter().map(|id| (*id).to_owned());
    well_formed.into_iter().chain(malformed).chain(["z".repeat(300)]).collect()
}

#[actix_web::test]
async fn nothing_of_another_tenant_can_be_told_from_nothing_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(FakeModel::saying(script(REPLY)), &config(4, 64));
    let state = app_state_with(&[&keys()], models, Some(open(&folder).await));
    let app = service::init_service(server::app(state)).await;
    let ids = make(&app).await;
    let strangers = strangers();
    let tried: Vec<&str> = ids.all().into_iter().chain(strangers.iter().map(String::as_str)).collect();
    assert!(20 < ids.all().len(), "every id of every event is among them");

    let mut num_tried = 0;
    for route in ROUTES.iter().filter(|route| route.path.contains("{id}")) {
        let method = match route.methods {
            Methods::Get => Method::GET,
            Methods::Post => Method::POST,
            Methods::Delete => Method::DELETE,
            Methods::WebSocket => continue,
        };
        // A body that would be good.
        let body = (method == Method::POST && !route.path.ends_with("/cancel"))
            .then(|| json!({ "metadata": { "a": "b" }, "items": [{ "role": "user", "content": "hi" }] }));
        for id in &tried {
            for item in if route.path.contains("{item}") { &tried[..] } else { &["-"][..] } {
                let uri = route.path.replace("{id}", id).replace("{item}", item);
                for query in ["", "?stream=true&starting_after=0", "?include[]=reasoning.encrypted_content&limit=1"] {
                    let (status, answer) =
                        send(&app, "bob", (method.clone(), &format!("{uri}{query}")), body.clone()).await;
                    assert_eq!(status, 404, "{method} {uri}: {answer}");
                    let stranger = uri.replacen(id, &"y".repeat(id.len()), 1);
                    let (_, expected) =
                        send(&app, "bob", (method.clone(), &format!("{stranger}{query}")), body.clone()).await;
                    if !id.contains(['%', '\'']) && id.len() <= 64 {
                        assert_eq!(answer.replacen(id, &"y".repeat(id.len()), 1), expected, "{method} {uri}");
                    }
                    num_tried += 1;
                }
            }
        }
    }
    assert!(1000 < num_tried, "{num_tried}");
}

/// A place in a body: its name, a body with an id in it, and the status and code of the refusal.
type Place = (&'static str, fn(&str) -> Value, u16, &'static str);

#[actix_web::test]
async fn no_body_reaches_what_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(FakeModel::saying(script(REPLY)), &config(4, 64));
    let state = app_state_with(&[&keys()], models, Some(open(&folder).await));
    let app = service::init_service(server::app(state)).await;
    let ids = make(&app).await;
    let strangers = strangers();
    let places: [Place; 5] = [
        (
            "previous_response_id",
            |id| json!({ "input": "hi", "previous_response_id": id }),
            400,
            "previous_response_not_found",
        ),
        ("conversation", |id| json!({ "input": "hi", "conversation": id }), 404, "conversation_not_found"),
        ("conversation.id", |id| json!({ "input": "hi", "conversation": { "id": id } }), 404, "conversation_not_found"),
        ("reference", |id| json!({ "input": [{ "type": "item_reference", "id": id }] }), 404, "item_not_found"),
        ("untyped reference", |id| json!({ "input": [{ "id": id }] }), 404, "item_not_found"),
    ];
    for uri in ["/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"] {
        for (place, body, status, code) in places {
            let answer = async |id: &str| {
                let mut body = body(id);
                body["model"] = json!("fake");
                send(&app, "bob", (Method::POST, uri), Some(body)).await
            };
            let (_, expected) = answer(&"y".repeat(37)).await;
            for id in ids.all().into_iter().chain(strangers.iter().map(String::as_str)) {
                let (found, told) = answer(id).await;
                let error: Value = serde_json::from_str(&told).unwrap();
                // An id of an impossible length is no id.
                if id.len() <= 256 {
                    assert_eq!((found, &error["error"]["code"]), (status, &json!(code)), "{uri} {place} {id}: {told}");
                }
                if id.len() == 37 {
                    assert_eq!(told.replace(id, &"y".repeat(37)), expected, "{uri} {place}");
                }
            }
        }
    }
    // What was tried has changed nothing, and Ann has what is hers.
    let own = |id: &str| json!({ "input": "hi", "conversation": id });
    let (status, told) = send(&app, "ann", (Method::POST, "/v1/responses"), Some(own(&ids.conversation))).await;
    assert_eq!(status, 200, "{told}");
    let (status, _) = send(&app, "ann", (Method::GET, &format!("/v1/responses/{}", ids.responses[0])), None).await;
    assert_eq!(status, 200);
}
