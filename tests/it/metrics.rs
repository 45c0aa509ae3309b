//! What `/metrics` says after known requests, and that dashboards and alerts ask for nothing that it does not say.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::{Running, app_state_with, exchange, read_until},
    state::open,
};
use actix_web::{http::Method, test as service};
use ortolan::server::{self, AppState};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Series and their values. Whatever is not as the format has it is a failure.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("# TYPE ") {
            family = header.split(' ').next().unwrap().to_owned();
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(name.starts_with(&family), "{line} is not of the family {family}");
        assert!(series.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} is there twice");
    }
    series
}

async fn scrape(state: &AppState) -> BTreeMap<String, f64> {
    let app = service::init_service(server::app(state.clone())).await;
    let request = service::TestRequest::get().uri("/metrics").to_request();
    let response = service::call_service(&app, request).await;
    assert_eq!(response.headers().get("content-type").unwrap(), "text/plain; version=0.0.4; charset=utf-8");
    parse(std::str::from_utf8(&service::read_body(response).await).unwrap())
}

async fn send(state: &AppState, method: Method, uri: &str, body: Option<serde_json::Value>) -> u16 {
    let app = service::init_service(server::app(state.clone())).await;
    let mut request = service::TestRequest::default().method(method).uri(uri);
    if let Some(body) = body {
        request = request.set_json(body);
    }
    let response = service::call_service(&app, request.to_request()).await;
    let status = response.status().as_u16();
    service::read_body(response).await;
    status
}

#[actix_web::test]
async fn what_was_done_is_counted_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(FakeModel::saying(script("one two three")), &config(2, 64));
    let state = app_state_with(&[], models, Some(open(&folder).await));
    for _ in 0..2 {
        assert_eq!(send(&state, Method::POST, "/v1/responses", Some(json!({ "input": "hi" }))).await, 200);
    }
    let cut = json!({ "input": "hi", "max_output_tokens": 1, "store": false });
    assert_eq!(send(&state, Method::POST, "/v1/responses", Some(cut)).await, 200);
    assert_eq!(send(&state, Method::POST, "/v1/responses", Some(json!({ "input": 3 }))).await, 400);
    assert_eq!(send(&state, Method::POST, "/v1/responses", Some(json!({ "input": "hi", "model": "x" }))).await, 404);
    assert_eq!(send(&state, Method::GET, "/v1/responses/resp_1", None).await, 404);
    assert_eq!(send(&state, Method::GET, "/nowhere/at/all", None).await, 404);

    let series = scrape(&state).await;
    let value = |name: &str| *series.get(name).unwrap_or_else(|| panic!("{name} is not there: {series:#?}"));
    let num_tokens = 2.0 * f64::from(u32::try_from(script("one two three").len()).unwrap());
    for (native, vllm, expected) in [
        ("ortolan_requests_running{model=\"fake\"}", "vllm:num_requests_running{model_name=\"fake\"}", 0.0),
        ("ortolan_requests_waiting{model=\"fake\"}", "vllm:num_requests_waiting{model_name=\"fake\"}", 0.0),
        ("ortolan_kv_cache_usage_ratio{model=\"fake\"}", "vllm:kv_cache_usage_perc{model_name=\"fake\"}", 0.0),
        (
            "ortolan_generation_tokens_total{model=\"fake\"}",
            "vllm:generation_tokens_total{model_name=\"fake\"}",
            num_tokens + 1.0,
        ),
        (
            "ortolan_time_to_first_token_seconds_count{model=\"fake\"}",
            "vllm:time_to_first_token_seconds_count{model_name=\"fake\"}",
            3.0,
        ),
        (
            "ortolan_request_e2e_seconds_count{model=\"fake\"}",
            "vllm:e2e_request_latency_seconds_count{model_name=\"fake\"}",
            3.0,
        ),
        (
            "ortolan_replies_total{model=\"fake\",finish_reason=\"stop\"}",
            "vllm:request_success_total{model_name=\"fake\",finished_reason=\"stop\"}",
            2.0,
        ),
        (
            "ortolan_replies_total{model=\"fake\",finish_reason=\"length\"}",
            "vllm:request_success_total{model_name=\"fake\",finished_reason=\"length\"}",
            1.0,
        ),
    ] {
        assert_eq!((value(native), value(vllm)), (expected, expected), "{native}");
    }
    let cached = value("ortolan_prefix_cache_hit_tokens_total{model=\"fake\"}");
    assert!(0.0 < cached && cached < value("ortolan_prefix_cache_queried_tokens_total{model=\"fake\"}"));
    assert_eq!(value("ortolan_requests_total{route=\"/v1/responses\",status=\"200\"}"), 3.0);
    assert_eq!(value("ortolan_requests_total{route=\"/v1/responses/{id}\",status=\"404\"}"), 1.0);
    assert_eq!(value("ortolan_requests_total{route=\"unknown\",status=\"404\"}"), 1.0);
    assert_eq!(value("ortolan_rejected_total{reason=\"invalid_type\"}"), 1.0);
    assert_eq!(value("ortolan_rejected_total{reason=\"model_not_found\"}"), 1.0);
    assert_eq!(value("ortolan_model_state{model=\"fake\",state=\"ready\"}"), 1.0);
    assert_eq!(value("ortolan_requests_in_flight"), 1.0, "the scrape itself");
    assert!(2.0 <= value("ortolan_store_commits_total"), "two replies were stored");
    assert!(0.0 < value("process_resident_memory_bytes") && 0.0 < value("process_open_fds"));
}

#[actix_web::test]
async fn names_of_others_can_be_left_out() {
    let models = models(FakeModel::default(), &config(2, 64));
    let state = app_state_with(&["server.metrics_compat=[]"], models, None);
    let series = scrape(&state).await;
    assert!(series.keys().all(|name| name.starts_with("ortolan_") || name.starts_with("process_")), "{series:#?}");
}

#[test]
fn a_client_that_leaves_is_counted_and_its_slot_is_free_again() {
    let (model, permits, _) = FakeModel::saying(script(&"word ".repeat(200))[..400].to_vec()).gated();
    let server = Running::start(models(model, &config(1, 64)), &[]);
    let body = json!({ "input": "hi", "stream": true, "max_output_tokens": 450 });
    let series = || parse(&exchange(&server, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").1);
    let running = "ortolan_requests_running{model=\"fake\"}";
    let mut leaving = server.send(&body);
    permits.send(()).unwrap();
    read_until(&mut leaving, "response.output_text.delta");
    assert_eq!((series()[running], series()["ortolan_kv_cache_usage_ratio{model=\"fake\"}"]), (1.0, 1.0));
    let _waiting = server.send(&body);
    while series()["ortolan_requests_waiting{model=\"fake\"}"] != 1.0 {}
    assert!(0.0 < series()["ortolan_queued_prompt_tokens{model=\"fake\"}"]);
    drop((leaving, _waiting));
    drop(permits);
    while series()[running] != 0.0 {}
    let aborted = "ortolan_replies_total{model=\"fake\",finish_reason=\"abort\"}";
    while series()[aborted] != 2.0 {}
    server.signal();
    server.thread.join().unwrap();
}

/// Names of metrics that an expression of Prometheus asks for.
fn asked_for(expression: &str) -> BTreeSet<String> {
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == ':';
    let names = expression.split(|char| !is_name(char));
    names.filter(|name| name.starts_with("ortolan_") || name.starts_with("process_")).map(str::to_owned).collect()
}

#[actix_web::test]
async fn dashboards_and_alerts_ask_for_nothing_that_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(FakeModel::saying(script("one")), &config(2, 64));
    let state = app_state_with(&[], models, Some(open(&folder).await));
    // So that each counter of labels has one.
    send(&state, Method::POST, "/v1/responses", Some(json!({ "input": 3 }))).await;
    let told: BTreeSet<String> =
        scrape(&state).await.into_keys().map(|name| name.split('{').next().unwrap().to_owned()).collect();
    for path in ["docker/grafana/ortolan.json", "docker/prometheus/rules.yml"] {
        let asked = asked_for(&fs::read_to_string(path).unwrap());
        assert!(5 < asked.len(), "{path}");
        let missing: Vec<&String> = asked.difference(&told).collect();
        assert!(missing.is_empty(), "{path} asks for {missing:?}, and there is {told:#?}");
    }
}
