//! Replies in formats whose marks are special tokens, and calls that are forced in one, as clients get them.

use crate::{
    fake_loader::{FakeLoader, models_of},
    http::app_state,
    stream_validator::events,
};
use actix_web::{test as service, web::Bytes};
use ortolan::server;
use serde_json::{Value, json};

/// The stream that a request gets.
async fn stream(loader: FakeLoader, mut body: Value) -> Vec<Value> {
    let app = service::init_service(server::app(app_state(&[], models_of(loader)))).await;
    body["stream"] = json!(true);
    let request = service::TestRequest::post().uri("/v1/responses").set_json(body).to_request();
    let response = service::call_service(&app, request).await;
    let status = response.status();
    let body: Bytes = service::read_body(response).await;
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(status, 200, "{body}");
    events(&body)
}

/// All that events of one kind say, joined.
fn said(events: &[Value], kind: &str) -> String {
    events.iter().filter(|event| event["type"] == kind).map(|event| event["delta"].as_str().unwrap()).collect()
}

fn tool(parameters: &Value) -> Value {
    json!({ "type": "function", "name": "f", "parameters": parameters, "strict": false })
}

/// Marks of Mistral's models, which are special tokens there.
const MISTRAL: &[(&str, &str)] =
    &[("<think>", "[THINK]"), ("</think>", "[/THINK]"), ("<tool_call>", "[TOOL_CALLS]"), ("</tool_call>", "[ARGS]")];

#[actix_web::test]
async fn marks_that_are_special_tokens_are_heard_and_never_said() {
    let reply =
        "[THINK]It may rain.[/THINK]Let me see.[ARGS] Yes.[TOOL_CALLS]f[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]h[ARGS]{}";
    let tools = json!([tool(&json!({ "type": "object" }))]);
    let events =
        stream(FakeLoader::saying_in("mistral", MISTRAL, reply), json!({ "input": "Rain?", "tools": tools })).await;
    assert_eq!(said(&events, "response.reasoning_text.delta"), "It may rain.");
    assert_eq!(said(&events, "response.function_call_arguments.delta"), "{\"city\": \"Oslo\"}");
    assert_eq!(
        said(&events, "response.output_text.delta"),
        "Let me see. Yes.h{}",
        "a stray mark, and a call of no tool"
    );
    let response = &events.last().unwrap()["response"];
    let kinds: Vec<&str> =
        response["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(
        (response["status"].as_str(), &kinds[..]),
        (Some("completed"), &["reasoning", "message", "function_call", "message"][..])
    );
    assert!(0 < response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap());
}

#[actix_web::test]
async fn a_call_is_forced_in_the_format_of_the_model() {
    let parameters = json!({
        "type": "object",
        "properties": { "unit": { "type": "string", "enum": ["C"] }, "dry": { "type": "boolean" } },
        "required": ["unit", "dry"],
        "additionalProperties": false,
    });
    for (format, special) in [("qwen3-coder", &[][..]), ("mistral", MISTRAL)] {
        let body = json!({ "input": "Rain?", "tools": [tool(&parameters)], "tool_choice": "required",
                           "parallel_tool_calls": false, "reasoning": { "effort": "none" } });
        let events = stream(FakeLoader::saying_in(format, special, "No."), body).await;
        let output = &events.last().unwrap()["response"]["output"];
        assert_eq!((&output[0]["name"], output.as_array().unwrap().len()), (&json!("f"), 1), "{format}: {output}");
        let arguments: Value = serde_json::from_str(output[0]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["unit"] == "C" && arguments["dry"].is_boolean(), "{format}: {arguments}");
    }
}
