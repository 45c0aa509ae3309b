//! The real server, its store and clients of all kinds, over a graph whose run says at one point that its device is lost.

use crate::{
    cli::{Server, model, serve},
    stream_validator::events,
    tiny_model::{copy, fixture},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};
use tempfile::TempDir;

/// A graph that cannot turn positions beyond its table, which its config does not tell; then it says where it was, by the
/// name of the node.
fn losing() -> TempDir {
    let dir = copy("tiny-gqa");
    let config = dir.path().join("config.json");
    let told = fs::read_to_string(&config).unwrap();
    assert!(told.contains("\"max_position_embeddings\": 1024"));
    fs::write(&config, told.replace("\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 8192")).unwrap();
    let onnx = dir.path().join("onnx/model.onnx");
    let mut bytes = fs::read(&onnx).unwrap();
    // Behind the tag of a node's name and its length.
    let name = b"\x1a\x28/model/layers.0/attn/GroupQueryAttention";
    let place = bytes.windows(name.len()).position(|window| window == name).unwrap() + 2;
    bytes[place..place + 11].copy_from_slice(b"device lost");
    fs::write(onnx, bytes).unwrap();
    dir
}

/// Keeps what it is told in that folder.
fn start(folder: &TempDir, graph: &str) -> Server {
    let path = format!("store.path={:?}", folder.path().display().to_string());
    let settings = [
        graph,
        "store.enabled=true",
        &path,
        "store.min_free_bytes=0",
        "engine.max_batch_size=1",
        "engine.max_context_tokens=8192",
        "server.drain_timeout=1",
    ];
    let mut server = Server::start(&mut serve(&settings));
    server.wait_for_line("model is ready");
    server
}

fn send(server: &Server, request: &str) -> BufReader<TcpStream> {
    let mut connection = TcpStream::connect(&server.address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    BufReader::new(connection)
}

fn post(server: &Server, path: &str, body: &Value) -> BufReader<TcpStream> {
    let body = body.to_string();
    let headers = "host: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    send(server, &format!("POST {path} HTTP/1.1\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

/// The status, and what comes until the connection is closed; chunks are not told apart.
fn answer(mut connection: BufReader<TcpStream>) -> (u16, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(connection.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut lines = Vec::new();
    connection.read_to_end(&mut lines).unwrap();
    let text = String::from_utf8(lines).unwrap();
    let is_size = |line: &&str| line.trim_end().chars().all(|char| char.is_ascii_hexdigit()) && line.ends_with("\r\n");
    let text = if head.contains("transfer-encoding: chunked") {
        // An event is whole in its chunk.
        text.split_inclusive('\n').filter(|line| !is_size(line) && *line != "\r\n").collect()
    } else {
        text
    };
    (status, text)
}

/// A WebSocket over which that is asked.
fn socket(server: &Server, asked: &Value) -> BufReader<TcpStream> {
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let mut socket =
        send(server, &format!("GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n{upgrade}\r\n{key}\r\n\r\n"));
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert_ne!(socket.read_line(&mut line).unwrap(), 0, "the upgrade is refused");
    }
    let asked = asked.to_string();
    let length = u16::try_from(asked.len()).unwrap().to_be_bytes();
    // Masked with zeros.
    socket.get_mut().write_all(&[&[0x81, 0x80 | 126], &length[..], &[0; 4], asked.as_bytes()].concat()).unwrap();
    socket
}

/// The JSON texts that a WebSocket's server sends, until it says goodbye.
fn messages(mut socket: BufReader<TcpStream>) -> (Vec<Value>, u16) {
    let mut told = Vec::new();
    loop {
        let mut head = [0; 2];
        socket.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                socket.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            127 => panic!("a message of more than 64 KiB"),
            length => usize::from(length),
        };
        let mut text = vec![0; length];
        socket.read_exact(&mut text).unwrap();
        match head[0] & 15 {
            1 => told.push(serde_json::from_slice(&text).unwrap()),
            8 => return (told, u16::from_be_bytes([text[0], text[1]])),
            _ => {}
        }
    }
}

/// The error of a body with four keys.
fn error_of(body: &str) -> Value {
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{body}"));
    assert_eq!(body["error"].as_object().unwrap().keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
    body["error"].clone()
}

#[test]
fn whoever_waits_is_told_and_the_next_process_does_what_was_left() {
    let (folder, losing) = (tempfile::tempdir().unwrap(), losing());
    let mut server = start(&folder, &model(losing.path()));
    // They run one after the other, and far longer than it takes to send the rest.
    let long = json!({ "input": "hi", "max_output_tokens": 900, "logit_bias": { "505": -100, "507": -100 } });
    let with = |more: Value| {
        let mut body = long.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let plain: Vec<_> = (0..12).map(|_| post(&server, "/v1/responses", &long)).collect();
    let mut streams = [json!({ "stream": true }), json!({ "stream": true, "background": true })]
        .map(|more| post(&server, "/v1/responses", &with(more)));
    let messages_of_chat = json!([{ "role": "user", "content": "hi" }]);
    let chat = json!({ "messages": messages_of_chat, "max_tokens": 900, "stream": true });
    let mut chat = post(&server, "/v1/chat/completions", &chat);
    let mut socket = socket(&server, &with(json!({ "type": "response.create" })));
    // Whoever can tell is in.
    for stream in streams.iter_mut().chain([&mut chat, &mut socket]) {
        let head = stream.fill_buf().unwrap();
        assert!(!head.is_empty());
    }
    let trigger = json!({ "input": "x ".repeat(1500), "stream": true, "service_tier": "priority" });
    let trigger = answer(post(&server, "/v1/responses", &trigger));

    let lost = "the engine was lost while it wrote this reply; send the request again";
    let [stream, background] = streams.map(answer);
    for (status, text) in [trigger, stream] {
        let events = events(&text);
        let [.., error, last] = &events[..] else { panic!("{events:?}") };
        assert_eq!((status, &error["type"], &last["type"]), (200, &json!("error"), &json!("response.failed")));
        assert_eq!(last["response"]["error"], json!({ "code": "server_error", "message": lost }));
    }
    let plain: Vec<(u16, String)> = plain.into_iter().map(answer).collect();
    let failed: Vec<_> = plain.iter().filter(|(status, _)| *status != 200).collect();
    assert!(6 < failed.len(), "{plain:?}");
    for (status, body) in failed {
        // Whoever came later was refused.
        assert!(error_of(body)["message"] == lost && *status == 500 || *status == 503, "{status} {body}");
    }
    let (status, chat) = answer(chat);
    let frames: Vec<&str> = chat.split_terminator("\n\n").collect();
    let [.., error, done] = &frames[..] else { panic!("{chat}") };
    assert_eq!((status, *done), (200, "data: [DONE]"));
    assert_eq!(error_of(error.strip_prefix("data: ").unwrap())["message"], lost);
    let (told, code) = messages(socket);
    let last = told.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["error"]["message"], code),
        (&json!("response.failed"), &json!(lost), 1001)
    );
    // Whoever follows what is written in the background can go on later.
    let (status, background) = background;
    let (rest, done) = background.trim_end().rsplit_once("\n\n").unwrap();
    let (_, error) = rest.rsplit_once("data: ").unwrap();
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!((status, done, &error["type"]), (200, "data: [DONE]", &json!("error")), "{background}");
    let (status, log) = server.end();
    assert_eq!(status, Some(71), "{log}");

    let first = background.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let id = serde_json::from_str::<Value>(first).unwrap()["response"]["id"].as_str().unwrap().to_owned();
    let mut server = start(&folder, &model(&fixture("tiny-gqa")));
    let followed =
        format!("GET /v1/responses/{id}?stream=true HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let (_, text) = answer(send(&server, &followed));
    assert!(text.contains("event: response.incomplete\n"), "it ends at its limit: {text}");
    server.signal();
    assert_eq!(server.end().0, Some(0));
}
