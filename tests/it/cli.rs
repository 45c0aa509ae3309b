//! The real binary: what a person sees when something is wrong, and that a signal ends it well.

use crate::tiny_model::fixture;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

fn ortolan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ortolan"));
    command.env_remove("ORT_DYLIB_PATH").current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn serve(settings: &[&str]) -> Command {
    let mut command = ortolan();
    command.args(["serve", "--set", "server.port=0"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn model(dir: &Path) -> String {
    format!("models=[{{ name = \"tiny\", path = {:?} }}]", dir.display().to_string())
}

/// What `ortolan serve` says before it gives up: its last line.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let last = stderr.lines().last().unwrap_or_default();
    last.strip_prefix("ortolan: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

#[test]
fn a_broken_configuration_is_one_sentence() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), "[server]\nprot = 1\n").unwrap();
    let refused = refusal(serve(&[]).arg("--config").arg(file.path()));
    let path = file.path().display();
    let expected = format!(
        "the configuration is not valid: {path} sets `server.prot`, which is not a setting; did you mean `server.port`?"
    );
    assert_eq!(refused, expected);
}

#[test]
fn a_missing_library_is_one_sentence() {
    let tiny = model(&fixture("tiny-gqa"));
    insta::assert_snapshot!(refusal(&mut serve(&[&tiny, "runtime.library=/nowhere/libonnxruntime.so"])), @"the ONNX Runtime library was not found (looked for /nowhere/libonnxruntime.so); run scripts/fetch-runtime, or set `runtime.library` to the path of libonnxruntime.so");
    let mut not_a_library = serve(&[&tiny]);
    not_a_library.env("ORT_DYLIB_PATH", "Cargo.toml");
    let refused = refusal(&mut not_a_library);
    assert!(refused.starts_with("the ONNX Runtime library cannot be used: "), "{refused}");
}

#[test]
fn a_truncated_model_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("onnx")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(fixture("tiny-gqa").join(file), dir.path().join(file)).unwrap();
    }
    let bytes = fs::read(fixture("tiny-gqa").join("onnx/model.onnx")).unwrap();
    fs::write(dir.path().join("onnx/model.onnx"), &bytes[..bytes.len() - 1000]).unwrap();
    let refused = refusal(&mut serve(&[&model(dir.path())])).replace(&dir.path().display().to_string(), "DIR");
    assert!(refused.starts_with("DIR/onnx/model.onnx is not valid: it is cut short"), "{refused}");
}

#[test]
fn a_port_in_use_is_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = refusal(&mut serve(&[&format!("server.port={port}")]));
    assert_eq!(
        refused,
        format!("port {port} on 127.0.0.1 is in use; stop the program that has it or set another `server.port`")
    );
}

#[test]
fn a_gpu_provider_on_a_cpu_box_is_one_sentence() {
    let tiny = model(&fixture("tiny-gqa"));
    insta::assert_snapshot!(refusal(&mut serve(&[&tiny, "engine.providers=[\"cuda\"]"])), @"the execution provider `cuda` cannot be loaded: this build of ONNX Runtime does not have it; run scripts/serve --gpu for the CUDA build and install the CUDA 13 runtime libraries, or set `engine.fallback = true` to run on the CPU");
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let refused = refusal(&mut serve(&["server.host=0.0.0.0"]));
    assert!(refused.contains("no API keys"), "{refused}");
}

#[test]
fn a_signal_ends_the_server_with_success() {
    let mut command = serve(&[&model(&fixture("tiny-concat")), "log.format=json"]);
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("listening on http://127.0.0.1:")));
    let signalled = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    assert!(lines.any(|line| line.contains("draining")));
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

/// The engines end with the drain; that is no alarm, so there is time for last events.
#[test]
fn what_runs_at_a_signal_gets_a_last_event() {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/starter");
    let mut command = serve(&[&model(&starter), "server.drain_timeout=0"]);
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = lines.find(|line| line.contains("listening on http://")).unwrap();
    let address = listening.rsplit("http://").next().unwrap().trim().to_owned();
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Without its two end tokens the model talks for seconds.
    let body = r#"{"input": "hi", "stream": true, "logit_bias": {"1017": -100, "1015": -100}}"#;
    let length = body.len();
    let request = "POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(connection, "{request}content-length: {length}\r\n\r\n{body}").unwrap();
    let mut events = BufReader::new(connection).lines().map(Result::unwrap);
    assert!(events.any(|line| line.contains("response.output_text.delta")));
    assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
    assert!(events.any(|line| line == "event: response.failed"));
    assert!(events.any(|line| line == "data: [DONE]"));
    assert!(lines.all(|line| !line.contains("an engine has failed")));
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

#[test]
fn a_folder_is_described() {
    let output = ortolan().arg("inspect").arg("tests/fixtures/tiny-concat-fp16").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in ["family             concat", "position ids       fed", "2 heads of 16 in float16"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn settings_are_listed_with_their_origin() {
    let mut command = ortolan();
    command.args(["config", "--set", "server.port=9000"]).env("ORTOLAN__LOG__FORMAT", "json");
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for expected in [
        "server.port = 9000  # --set",
        "log.format = \"json\"  # the environment variable ORTOLAN__LOG__FORMAT",
        "server.host = \"127.0.0.1\"  # the defaults",
    ] {
        assert!(text.lines().any(|line| line == expected), "{text}");
    }
}
