//! API keys over a fake model: who is let in, what tenants share, and how much a key may ask for.

use crate::{
    engine::config,
    fake_loader::{models, script},
    fake_model::FakeModel,
    http::{Running, app_state},
};
use actix_web::{
    body::MessageBody,
    dev::ServiceResponse,
    http::header::AUTHORIZATION,
    test::{self as service, TestRequest},
};
use ortolan::server::{self, Access, KeyHash, Methods, ROUTES};
use serde_json::{Value, json};
use std::{collections::BTreeSet, future::poll_fn, io::Read, time::Duration};
use tokio::time::{advance, pause};

const KEY: &str = "ork_key-of-the-tests";
const BODY: &str = "{\"input\": \"hi\"}";

/// Settings of keys, each a name, which is also the key, and the rest of its entry.
pub(crate) fn keys(entries: &[(&str, &str)]) -> String {
    let entry = |(key, more): &(&str, &str)| {
        format!("{{ name = {key:?}, sha256 = \"{}\" {more} }}", KeyHash::of(key.as_bytes()))
    };
    format!("server.api_keys=[{}]", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
}

fn running(settings: &[&str]) -> Running {
    Running::start(models(FakeModel::saying(script("Yes.")), &config(1, 64)), settings)
}

/// Status, headers and body of the answer to one request on a connection of its own.
fn answer(server: &Running, line: &str, headers: &str) -> (u16, String, String) {
    let length = BODY.len();
    let always = format!("connection: close\r\ncontent-type: application/json\r\ncontent-length: {length}");
    let mut connection = server.send_raw(&format!("{line} HTTP/1.1\r\n{headers}{always}\r\n\r\n{BODY}"));
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{line} {headers}: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// Ways to write a path that a check of strings might take for another one.
fn disguises(path: &str) -> Vec<String> {
    let dotted = path.replacen('/', "/%2e/", 1);
    let last = path.chars().last().unwrap();
    let encoded = format!("{}%{:02x}", &path[..path.len() - 1], u32::from(last));
    vec![
        path.to_owned(),
        format!("/{path}"),
        path.replace('/', "//"),
        format!("{path}/"),
        format!("{path}/."),
        format!("{path}?key={KEY}"),
        format!("{path}%3f"),
        format!("{path};/health"),
        format!("{path}%00"),
        format!("/health/..{path}"),
        format!("/health/%2e%2e{path}"),
        format!("/health%2f..{path}"),
        format!("/.{path}"),
        path.to_ascii_uppercase(),
        path.replace("/v1", "/V1"),
        path.replace('/', "%2f").replacen("%2f", "/", 1),
        path.replace('/', "\\").replacen('\\', "/", 1),
        dotted,
        encoded,
        format!("http://localhost{path}"),
        format!("http://evil.example{path}"),
        format!("http://localhost/health@evil.example{path}"),
    ]
}

/// A path that a route answers.
fn concrete(pattern: &str) -> String {
    let id = if pattern.starts_with("/v1/models") { "fake" } else { "id_1" };
    pattern.replace("{id:.+}", id).replace("{id}", id).replace("{item}", "msg_1")
}

#[test]
fn no_route_is_reached_without_a_key() {
    let server = running(&[&keys(&[(KEY, "")])]);
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"];
    let hosts = ["localhost", "localhost.", "localhost/health?", "evil.example", "localhost:80:80", "/health", ""];
    let overrides = ["", "x-http-method-override: GET\r\n", "x-original-url: /health\r\nx-rewrite-url: /health\r\n"];
    let mut bodies = BTreeSet::new();
    let mut check = |line: &str, headers: &str| {
        let (status, head, body) = answer(&server, line, headers);
        // What is no HTTP at all is refused before it has a route.
        assert!(status == 401 || status == 400, "{line} {headers}: {head} {body}");
        if status == 401 {
            assert!(head.contains("\r\nwww-authenticate: bearer\r\n"), "{head}");
            bodies.insert(body);
        }
        status
    };
    let closed = ROUTES.iter().filter(|route| route.access != Access::Open).map(|route| route.path);
    let closed: BTreeSet<String> = closed.map(concrete).collect();
    for path in closed.into_iter().chain(["/".to_owned(), "/nowhere".to_owned()]) {
        for method in methods {
            let line = format!("{method} {path}");
            assert_eq!(check(&line, "host: localhost\r\n"), 401, "{line}");
        }
        for disguise in disguises(&path) {
            for method in ["GET", "POST"] {
                check(&format!("{method} {disguise}"), "host: localhost\r\n");
            }
        }
        for host in hosts {
            for more in overrides {
                check(&format!("GET {path}"), &format!("host: {host}\r\n{more}"));
            }
        }
        for sent in ["Bearer wrong", "Bearer", "Basic b3JrOm9yaw==", &KEY.to_ascii_uppercase()] {
            assert_eq!(check(&format!("POST {path}"), &format!("host: localhost\r\nauthorization: {sent}\r\n")), 401);
        }
    }
    // Nothing tells a missing key from a wrong one, or a known path from an unknown one. HEAD has no body.
    bodies.remove("");
    insta::assert_debug_snapshot!(bodies, @r#"
    {
        "{\"error\":{\"message\":\"a valid API key is needed; send it as `Authorization: Bearer KEY`\",\"type\":\"authentication_error\",\"param\":null,\"code\":\"invalid_api_key\"}}",
    }
    "#);
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn with_a_key_everything_is_answered_as_ever() {
    let server = running(&[&keys(&[(KEY, "")])]);
    let key = format!("authorization: bearer {KEY}\r\n");
    for route in ROUTES {
        let path = concrete(route.path);
        let method = match route.methods {
            Methods::Post => "POST",
            Methods::Get => "GET",
            Methods::Delete => "DELETE",
            // Without a request for one, which the test of WebSockets makes.
            Methods::WebSocket => continue,
        };
        // Its name must not matter: no page of a browser has the key.
        let headers = format!("host: evil.example\r\n{key}");
        let (status, _, body) = answer(&server, &format!("{method} {path}"), &headers);
        // Nothing is kept here, and the body is that of a response.
        let is_kept = path.contains("_1") || path.contains("/conversations");
        let is_other = path == "/v1/responses/compact" || path.ends_with("/completions");
        assert!(
            status == 200 || is_kept && [400, 404].contains(&status) || is_other && status == 400,
            "{path}: {status} {body}"
        );
        assert_eq!(answer(&server, &format!("PUT {path}"), &headers).0, 405, "{path}");
        if route.access == Access::Metrics {
            assert_eq!(answer(&server, &format!("{method} {path}"), "host: localhost\r\n").0, 401, "{path}");
            continue;
        }
        let is_open = !matches!(answer(&server, &format!("{method} {path}"), "host: localhost\r\n").0, 401);
        assert_eq!(is_open, route.access == Access::Open, "{path}");
    }
    assert_eq!(answer(&server, "GET /nowhere", &format!("host: localhost\r\n{key}")).0, 404);
    let open: Vec<&str> = ROUTES.iter().filter(|route| route.access == Access::Open).map(|route| route.path).collect();
    assert_eq!(open, ["/health", "/ready"], "whoever opens another one says so here");
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn without_keys_only_known_hosts_are_answered() {
    let server = running(&[]);
    assert_eq!(answer(&server, "GET /v1/models", "host: localhost\r\nauthorization: Bearer any\r\n").0, 200);
    assert_eq!(answer(&server, "GET /v1/models", "host: evil.example\r\n").0, 403);
    server.signal();
    server.thread.join().unwrap();
}

/// With a key.
pub(crate) fn post(key: &str, path: &str, body: &Value) -> TestRequest {
    TestRequest::post().uri(path).insert_header((AUTHORIZATION, format!("Bearer {key}"))).set_json(body)
}

#[actix_web::test]
async fn tenants_do_not_share_what_the_prefix_cache_holds() {
    let keys = keys(&[("a", ", tenant = \"one\""), ("b", ", tenant = \"one\""), ("c", ""), ("d", ", tenant = \"c\"")]);
    let state = app_state(&[&keys], models(FakeModel::saying(script("Yes.")), &config(4, 64)));
    let app = service::init_service(server::app(state)).await;
    let mut cached = Vec::new();
    for key in ["a", "b", "c", "a", "d"] {
        let body = json!({ "input": "The very same words of one and the same question.", "max_output_tokens": 1 });
        let request = post(key, "/v1/responses", &body).to_request();
        let response: Value = service::call_and_read_body_json(&app, request).await;
        cached.push(response["usage"]["input_tokens_details"]["cached_tokens"] != json!(0));
    }
    assert_eq!(cached, [false, true, false, true, true], "only `b` and `a` are of `one`, only `d` of `c`");
}

/// Status, the headers that tell limits, and the body.
async fn told<B: MessageBody>(response: ServiceResponse<B>) -> String {
    let is_limit = |name: &str| name.contains("ratelimit") || name.contains("retry");
    let headers = response.headers().iter().filter(|(name, _)| is_limit(name.as_str()));
    let mut lines: Vec<String> = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort();
    let status = response.status().as_u16();
    let body = service::read_body(response).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let error = if status == 200 { String::new() } else { body["error"].to_string() };
    format!("{status}\n{}\n{error}", lines.join("\n"))
}

#[actix_web::test]
async fn requests_beyond_a_limit_are_refused_until_time_has_passed() {
    pause();
    let keys = keys(&[("ci", ", requests_per_minute = 2"), ("other", "")]);
    let state = app_state(&[&keys], models(FakeModel::saying(script("Yes.")), &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let post = async |key: &str, path: &str| {
        let body = json!({ "input": "hi", "model": "fake" });
        told(service::call_service(&app, post(key, path, &body).to_request()).await).await
    };
    insta::assert_snapshot!(post("ci", "/v1/responses").await, @"
    200
    x-ratelimit-limit-requests: 2
    x-ratelimit-remaining-requests: 1
    x-ratelimit-reset-requests: 30s
    ");
    assert!(post("ci", "/v1/responses/compact").await.starts_with("200\n"));
    for path in ["/v1/responses", "/v1/responses/compact"] {
        let refused = post("ci", path).await;
        insta::allow_duplicates! { insta::assert_snapshot!(refused, @r#"
        429
        retry-after-ms: 30000
        retry-after: 30
        x-ratelimit-limit-requests: 2
        x-ratelimit-remaining-requests: 0
        x-ratelimit-reset-requests: 1m0s
        x-should-retry: true
        {"message":"the API key `ci` has reached its limit `requests_per_minute = 2`; try again in 30s","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}
        "#) }
    }
    assert!(post("ci", "/v1/responses/input_tokens").await.starts_with("200\n"), "what is only read is free");
    insta::assert_snapshot!(post("other", "/v1/responses").await, @"200");
    advance(Duration::from_secs(30)).await;
    assert!(post("ci", "/v1/responses").await.starts_with("200\n"));
    assert!(post("ci", "/v1/responses").await.starts_with("429\n"));
}

#[actix_web::test]
async fn a_reply_is_paid_for_when_it_ends() {
    pause();
    let keys = keys(&[("ci", ", tokens_per_minute = 60")]);
    let words = script(&"word ".repeat(60))[..100].to_vec();
    let state = app_state(&[&keys], models(FakeModel::saying(words), &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let body = json!({ "input": "hi" });
    let request = || post("ci", "/v1/responses", &body).to_request();
    let first = service::call_service(&app, request()).await;
    assert_eq!(first.status(), 200, "it is not known yet how long the reply becomes");
    service::read_body(first).await;
    insta::assert_snapshot!(told(service::call_service(&app, request()).await).await, @r#"
    429
    retry-after-ms: 454000
    retry-after: 454
    x-ratelimit-limit-tokens: 60
    x-ratelimit-remaining-tokens: 0
    x-ratelimit-reset-tokens: 8m32s
    x-should-retry: true
    {"message":"the API key `ci` has reached its limit `tokens_per_minute = 60`; try again in 7m34s","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}
    "#);
    advance(Duration::from_secs(600)).await;

    let streamed = post("ci", "/v1/responses", &json!({ "input": "hi", "stream": true }));
    service::read_body(service::call_service(&app, streamed.to_request()).await).await;
    let refused = told(service::call_service(&app, request()).await).await;
    assert!(refused.contains("tokens_per_minute = 60"), "{refused}");
}

/// Keep-alives would move a paused clock, so it is the true one, which brings a token in a second.
#[actix_web::test]
async fn a_client_that_leaves_gives_its_place_back_and_pays_for_what_it_got() {
    let keys = keys(&[("ci", ", max_streams = 1, tokens_per_minute = 60")]);
    let words = script(&"word ".repeat(60))[..100].to_vec();
    let state = app_state(&[&keys], models(FakeModel::saying(words), &config(2, 64)));
    let app = service::init_service(server::app(state)).await;
    let send = async |body: Value| service::call_service(&app, post("ci", "/v1/responses", &body).to_request()).await;
    let mut first = Box::pin(send(json!({ "input": "hi", "stream": true })).await.into_body());
    let mut num_deltas = 0;
    while num_deltas < 30 {
        let frame = poll_fn(|context| first.as_mut().poll_next(context)).await.unwrap();
        let frame = frame.unwrap_or_else(|_| panic!("a stream does not fail"));
        num_deltas += usize::from(frame.starts_with(b"event: response.output_text.delta"));
    }
    let plain = async |max_output_tokens: u32| {
        told(send(json!({ "input": "hi", "max_output_tokens": max_output_tokens })).await).await
    };
    let refused = plain(1).await;
    assert!(refused.contains("max_streams = 1") && refused.contains("retry-after: 1\n"), "{refused}");
    drop(first);
    let refused = plain(40).await;
    assert!(refused.contains("tokens_per_minute = 60"), "{refused}");
    assert!(plain(1).await.starts_with("200\n"));
}

#[test]
fn metrics_can_be_told_to_everybody() {
    let server = running(&[&keys(&[(KEY, "")]), "server.open_metrics=true"]);
    assert_eq!(answer(&server, "GET /metrics", "host: localhost\r\n").0, 200);
    assert_eq!(answer(&server, "GET /v1/models", "host: localhost\r\n").0, 401);
    server.signal();
    server.thread.join().unwrap();
}
