//! Conversations that are made short, and go on.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::{app_state, post_to},
    stream_validator::events,
};
use actix_web::test as service;
use ortolan::server;
use serde_json::{Value, json};

fn conversation() -> Value {
    json!([
        { "role": "user", "content": "First." },
        { "role": "assistant", "content": "Yes." },
        { "role": "user", "content": [{ "type": "input_text", "text": "Second." }] },
    ])
}

#[actix_web::test]
async fn a_window_takes_the_place_of_a_conversation() {
    let state = app_state(&[], models(FakeModel::saying(script("<think>Hm.</think>They agreed.")), &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let post = |path: &str, body: Value| service::TestRequest::post().uri(path).set_json(body).to_request();
    let body = json!({ "model": "fake", "input": conversation() });
    let window: Value = service::call_and_read_body_json(&app, post("/v1/responses/compact", body)).await;
    assert_eq!(window["object"], "response.compaction");
    assert!(window["usage"]["output_tokens"].as_u64().unwrap() > 0);
    let items = window["output"].as_array().unwrap();
    assert_eq!(
        items.iter().map(|item| item["type"].as_str().unwrap()).collect::<Vec<_>>(),
        ["message", "message", "compaction"]
    );
    assert_eq!(items[0]["content"], json!([{ "type": "input_text", "text": "First." }]));
    assert_eq!(items[1]["content"], json!([{ "type": "input_text", "text": "Second." }]));
    assert!(!window.to_string().contains("agreed"), "the summary is sealed");

    let nameless = post("/v1/responses/compact", json!({ "input": conversation() }));
    assert_eq!(service::call_service(&app, nameless).await.status(), 400, "it has to name the model");

    // The window counts as many tokens as what it stands for.
    let count = async |input: Value| {
        let body = json!({ "input": input });
        let count: Value = service::call_and_read_body_json(&app, post("/v1/responses/input_tokens", body)).await;
        count["input_tokens"].as_u64().unwrap()
    };
    let spelled = json!([
        { "role": "user", "content": "First." },
        { "role": "user", "content": "Second." },
        { "role": "assistant", "content": "Summary of our conversation so far:\nThey agreed." },
    ]);
    assert_eq!(count(window["output"].clone()).await, count(spelled).await);
}

#[actix_web::test]
async fn a_trigger_is_answered_with_one_compaction() {
    let mut input = conversation();
    input.as_array_mut().unwrap().push(json!({ "type": "compaction_trigger" }));
    let model = FakeModel::saying(script("They agreed."));
    let (status, body) = post_to(model, json!({ "input": input, "stream": true })).await;
    let events = events(&body);
    let names: Vec<&str> =
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect();
    assert_eq!(
        (status, &names[..]),
        (200, &["created", "in_progress", "output_item.added", "output_item.done", "completed"][..])
    );
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!((output[0]["type"].as_str(), output[1].is_null()), (Some("compaction"), true));
    assert_eq!(output[0], events[3]["item"]);
}

#[actix_web::test]
async fn a_conversation_is_not_exchanged_for_an_empty_summary() {
    let mut input = conversation();
    input.as_array_mut().unwrap().push(json!({ "type": "compaction_trigger" }));
    for said in ["<think>Let me think.</think>", ""] {
        let (_, body) = post_to(FakeModel::saying(script(said)), json!({ "input": input, "stream": true })).await;
        let events = events(&body);
        assert_eq!(events.last().unwrap()["type"], "response.failed");
        assert_eq!(events.last().unwrap()["response"]["output"], json!([]));
    }
}

/// The answer to a conversation of four turns, the first of which says so many words, where more than 1000 tokens are
/// compacted.
async fn answer(num_words: usize) -> Value {
    let user = |content: String| json!({ "role": "user", "content": content });
    let mut input = vec![json!({ "role": "system", "content": "Be brief." }), user("Well? ".repeat(num_words))];
    for _ in 0..3 {
        input.extend([json!({ "role": "assistant", "content": "Yes." }), user("And now?".to_owned())]);
    }
    let managed = json!([{ "type": "compaction", "compact_threshold": 1000 }]);
    let model = FakeModel::saying(script("They agreed.")).with_context_tokens(8192);
    let (status, body) = post_to(model, json!({ "input": input, "context_management": managed, "stream": true })).await;
    assert_eq!(status, 200, "{body}");
    events(&body).pop().unwrap()["response"].clone()
}

#[actix_web::test]
async fn a_conversation_beyond_its_threshold_is_compacted_and_answered() {
    let kinds = |response: &Value| -> Vec<Value> {
        response["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect()
    };
    let (short, long) = (answer(10).await, answer(1000).await);
    assert_eq!(kinds(&short), ["message"], "it is not as long as that");
    assert_eq!(kinds(&long), ["compaction", "message"]);
    assert_eq!(long["output"][1]["content"][0]["text"], "They agreed.");
    assert!(long["usage"]["input_tokens"].as_u64().unwrap() < 200, "{}", long["usage"]);
}
