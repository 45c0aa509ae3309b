//! What `/metrics` says after known requests, and that dashboards and alerts ask for nothing that it does not say.

use crate::{
    engine::config,
    fake_loader::{FakeLoader, entry, models, script},
    fake_model::FakeModel,
    http::{Running, app_state_with, exchange, read_until},
    state::open,
};
use actix_web::{http::Method, test as service};
use ortolan::{
    chat::{LoadTime, Models},
    server::{self, AppState, KeyHash, ROUTES},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, Write},
    sync::Arc,
};

/// Series and their values. Whatever is not as version 0.0.4 of the text format has it is a failure.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line ends, too");
    let (mut series, mut families) = (BTreeMap::new(), BTreeSet::new());
    // Each family begins with its help.
    for family in text.split("# HELP ").skip(1) {
        let (help, rest) = family.split_once('\n').unwrap();
        let (name, _) = help.split_once(' ').unwrap_or_else(|| panic!("{help} helps nobody"));
        assert!(is_name(name) && families.insert(name), "{name} is no name, or there twice");
        let (kind, samples) = rest.split_once('\n').unwrap();
        let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap_or_else(|| panic!("{kind} of {name}"));
        let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in samples.lines() {
            let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let value: f64 = value.parse().unwrap();
            let (sample, labels) = split_labels(key);
            match (kind, sample.strip_prefix(name)) {
                ("counter", Some("")) => assert!(name.ends_with("_total") && 0.0 <= value, "{line}"),
                ("gauge", Some("")) => assert!(!name.ends_with("_total"), "{line}"),
                ("histogram", Some("_sum" | "_count")) => {}
                ("histogram", Some("_bucket")) => {
                    let (others, bound) = labels.split_at(labels.len() - 1);
                    assert_eq!(bound[0].0, "le", "{line}");
                    let bound = bound[0].1.replace("+Inf", "inf").parse().unwrap();
                    buckets.entry(format!("{others:?}")).or_default().push((bound, value));
                }
                _ => panic!("{line} is no {kind} of {name}"),
            }
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} is there twice");
        }
        for (labels, buckets) in buckets {
            assert!(
                buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1),
                "{name} {labels}: {buckets:?}"
            );
            let (bound, all) = *buckets.last().unwrap();
            let counts = series.iter().filter(|(key, _)| key.starts_with(&format!("{name}_count")));
            let counts: Vec<f64> = counts.map(|(_, count)| *count).collect();
            assert!(bound.is_infinite() && counts.contains(&all), "{name} {labels}: {buckets:?}, and {counts:?}");
        }
    }
    series
}

fn is_name(name: &str) -> bool {
    let is_letter = |char: char| char.is_ascii_alphabetic() || char == '_' || char == ':';
    name.starts_with(is_letter) && name.chars().all(|char| is_letter(char) || char.is_ascii_digit())
}

/// The name of a series, and its labels with their values, which are JSON strings but for the escapes that they lack.
fn split_labels(series: &str) -> (&str, Vec<(String, String)>) {
    let Some((name, rest)) = series.split_once('{') else { return (series, Vec::new()) };
    let mut rest = rest.strip_suffix('}').unwrap();
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, value) = rest.split_once('=').unwrap();
        assert!(is_name(label) && !label.contains(':'), "{series}");
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<String>();
        labels.push((label.to_owned(), values.next().unwrap().unwrap()));
        rest = &value[values.byte_offset()..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name, labels)
}

/// The values that a label has.
fn values_of(series: &BTreeMap<String, f64>, name: &str, label: &str) -> BTreeSet<String> {
    let of_name = series.keys().map(|key| split_labels(key)).filter(|(found, _)| *found == name);
    of_name.flat_map(|(_, labels)| labels).filter(|(found, _)| found == label).map(|(_, value)| value).collect()
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
        (
            "ortolan_preemptions_total{model=\"fake\",engine=\"0\"}",
            "vllm:num_preemptions_total{model_name=\"fake\",engine=\"0\"}",
            0.0,
        ),
        (
            "ortolan_requests_running{model=\"fake\",engine=\"0\"}",
            "vllm:num_requests_running{model_name=\"fake\",engine=\"0\"}",
            0.0,
        ),
        (
            "ortolan_requests_waiting{model=\"fake\",engine=\"0\"}",
            "vllm:num_requests_waiting{model_name=\"fake\",engine=\"0\"}",
            0.0,
        ),
        (
            "ortolan_kv_cache_usage_ratio{model=\"fake\",engine=\"0\"}",
            "vllm:kv_cache_usage_perc{model_name=\"fake\",engine=\"0\"}",
            0.0,
        ),
        (
            "ortolan_generation_tokens_total{model=\"fake\",engine=\"0\"}",
            "vllm:generation_tokens_total{model_name=\"fake\",engine=\"0\"}",
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
    let cached = value("ortolan_prefix_cache_hit_tokens_total{model=\"fake\",engine=\"0\"}");
    assert!(0.0 < cached && cached < value("ortolan_prefix_cache_queried_tokens_total{model=\"fake\",engine=\"0\"}"));
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
    let running = "ortolan_requests_running{model=\"fake\",engine=\"0\"}";
    let mut leaving = server.send(&body);
    permits.send(()).unwrap();
    read_until(&mut leaving, "response.output_text.delta");
    assert_eq!((series()[running], series()["ortolan_kv_cache_usage_ratio{model=\"fake\",engine=\"0\"}"]), (1.0, 1.0));
    let _waiting = server.send(&body);
    while series()["ortolan_requests_waiting{model=\"fake\",engine=\"0\"}"] != 1.0 {}
    assert!(0.0 < series()["ortolan_queued_prompt_tokens{model=\"fake\",engine=\"0\"}"]);
    drop((leaving, _waiting));
    drop(permits);
    while series()[running] != 0.0 {}
    let aborted = "ortolan_replies_total{model=\"fake\",finish_reason=\"abort\"}";
    while series()[aborted] != 2.0 {}
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn where_there_are_blocks_these_are_what_fills_up() {
    let (model, permits, _) = FakeModel::in_blocks(128, 4).gated();
    let server = Running::start(models(model, &config(2, 256)), &[]);
    let series = || parse(&exchange(&server, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").1);
    let client = server.send(&json!({ "input": "hi", "stream": true, "max_output_tokens": 100 }));
    let usage = "ortolan_kv_cache_usage_ratio{model=\"fake\",engine=\"0\"}";
    while series()[usage] == 0.0 {}
    let series_while_it_runs = series();
    assert_eq!(series_while_it_runs["ortolan_kv_blocks{model=\"fake\",engine=\"0\"}"], 128.0);
    let num_blocks = 128.0 * series_while_it_runs[usage];
    assert!(num_blocks.fract() == 0.0 && num_blocks < 64.0, "{num_blocks} blocks, where one of two slots is taken");
    drop((client, permits));
    while series()[usage] != 0.0 {}
    server.signal();
    server.thread.join().unwrap();
}

/// Whatever clients send, labels have values that are ours.
#[actix_web::test]
async fn no_client_makes_a_label() {
    let state = app_state_with(&[], models(FakeModel::saying(script("one")), &config(2, 64)), None);
    let routes: BTreeSet<String> = ROUTES.iter().map(|route| route.path.to_owned()).collect();
    for number in 0..20 {
        for path in ["/x", "/v1/responses/resp_", "/v1/models/a/b/", "/v1/conversations/a%22%0a/items/", "/metrics/"] {
            for method in ["GET", "PUT", "BREW", &format!("M{number}")] {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                assert_ne!(send(&state, method, &format!("{path}{number}"), None).await, 200);
            }
        }
        let body = json!({ "input": "hi", "model": format!("m{number}\"") });
        assert_eq!(send(&state, Method::POST, "/v1/responses", Some(body)).await, 404);
    }
    let series = scrape(&state).await;
    let told = values_of(&series, "ortolan_requests_total", "route");
    let ours = routes.into_iter().chain(["unknown".to_owned()]).collect();
    assert!(told.is_subset(&ours) && told.contains("unknown"), "{told:?}");
    let reasons = values_of(&series, "ortolan_rejected_total", "reason");
    let known = ["method_not_allowed", "model_not_found", "response_not_found", "unknown_url", "unsupported_parameter"];
    assert_eq!(reasons, known.map(str::to_owned).into());
    assert_eq!(values_of(&series, "ortolan_engine_up", "model"), ["fake".to_owned()].into());
}

#[actix_web::test]
async fn names_of_models_are_escaped() {
    let name = "a\"b\\c{d=\"e\"},f";
    let loader = Arc::new(FakeLoader::saying("one"));
    let models = Models::new(vec![entry(name, LoadTime::FirstUse, &loader)]);
    let series = scrape(&app_state_with(&[], models, None)).await;
    for metric in ["ortolan_engine_up", "ortolan_model_state", "ortolan_request_e2e_seconds_count"] {
        assert_eq!(values_of(&series, metric, "model"), [name.to_owned()].into(), "{metric}");
    }
    let is_of_engine = |key: &String| key.starts_with("ortolan_requests_running") || key.starts_with("vllm:num_");
    assert!(!series.keys().any(is_of_engine), "an engine that is not there has nothing to tell");
}

#[test]
fn who_is_not_let_in_counts_for_the_route() {
    let models = models(FakeModel::saying(script("one")), &config(2, 64));
    let key = format!("server.api_keys=[{{ name = \"a\", sha256 = \"{}\" }}]", KeyHash::of(b"ork_a"));
    let server = Running::start(models, &[&key, "server.open_metrics=true"]);
    let get = |path: &str| exchange(&server, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    assert!(get("/v1/models").0.starts_with("HTTP/1.1 401"));
    let series = parse(&get("/metrics").1);
    assert_eq!(series["ortolan_requests_total{route=\"/v1/models\",status=\"401\"}"], 1.0, "{series:#?}");
    assert_eq!(values_of(&series, "ortolan_rejected_total", "reason"), ["invalid_api_key".to_owned()].into());
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn websockets_count_while_they_are_open_and_so_does_what_they_are_refused() {
    let server = Running::start(models(FakeModel::saying(script("one")), &config(2, 64)), &[]);
    let series = || parse(&exchange(&server, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").1);
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let mut socket =
        server.send_raw(&format!("GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n{upgrade}\r\n{key}\r\n\r\n"));
    read_until(&mut socket, "\r\n\r\n");
    assert_eq!(series()["ortolan_websockets_open"], 1.0);
    // A text of two bytes, masked with zeros.
    socket.get_mut().write_all(b"\x81\x82\0\0\0\0{}").unwrap();
    let answered = socket.fill_buf().unwrap();
    assert!(!answered.is_empty());
    assert_eq!(series()["ortolan_rejected_total{reason=\"invalid_value\"}"], 1.0);
    drop(socket);
    while series()["ortolan_websockets_open"] != 0.0 {}
    server.signal();
    server.thread.join().unwrap();
}

#[actix_web::test]
async fn a_reply_whose_engine_is_lost_has_failed() {
    let state = app_state_with(&[], models(FakeModel::panicking_from(2), &config(2, 64)), None);
    let body = json!({ "input": "hi", "stream": true });
    assert_eq!(send(&state, Method::POST, "/v1/responses", Some(body)).await, 200);
    let series = scrape(&state).await;
    for (name, expected) in [
        ("ortolan_replies_total{model=\"fake\",finish_reason=\"error\"}", 1.0),
        ("ortolan_replies_total{model=\"fake\",finish_reason=\"abort\"}", 0.0),
        ("ortolan_requests_running{model=\"fake\",engine=\"0\"}", 0.0),
        ("ortolan_engine_up{model=\"fake\"}", 0.0),
        ("ortolan_model_state{model=\"fake\",state=\"failed\"}", 1.0),
    ] {
        assert_eq!(series[name], expected, "{name}");
    }
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
