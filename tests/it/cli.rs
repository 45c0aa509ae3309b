//! The real binary: what a person sees when something is wrong, and that a signal ends it well.

use crate::{
    stream_validator::events,
    tiny_model::{GPU_MODELS, fixture, fixtures},
};
use ortolan::server::KeyHash;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

pub(crate) fn ortolan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ortolan"));
    command.env_remove("ORT_DYLIB_PATH").current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Keeps nothing, since what is kept would be among the user's own.
pub(crate) fn serve(settings: &[&str]) -> Command {
    let mut command = ortolan();
    command.args(["serve", "--set", "server.port=0", "--set", "store.enabled=false"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

pub(crate) fn model(dir: &Path) -> String {
    format!("models=[{{ name = \"tiny\", path = {:?} }}]", dir.display().to_string())
}

/// What `ortolan serve` says before it gives up: its last line.
pub(crate) fn refusal(command: &mut Command) -> String {
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
fn a_missing_key_is_one_sentence() {
    let tiny = model(&fixture("tiny-gqa"));
    insta::assert_snapshot!(refusal(&mut serve(&[&tiny, "responses.encryption_key=/nowhere/key"])), @"`responses.encryption_key` is neither 64 hexadecimal digits nor a file that can be read: No such file or directory (os error 2)");
}

#[test]
fn a_missing_library_is_one_sentence() {
    let tiny = model(&fixture("tiny-gqa"));
    insta::assert_snapshot!(refusal(&mut serve(&[&tiny, "runtime.library=/nowhere/libonnxruntime.so"])), @"the ONNX Runtime library was not found (looked for /nowhere/libonnxruntime.so); run scripts/fetch-runtime, or set `runtime.library` to the path of libonnxruntime.so");
    let unusable = |library: &Path| {
        let refused = refusal(serve(&[&tiny]).env("ORT_DYLIB_PATH", library));
        refused.replace(&library.canonicalize().unwrap().display().to_string(), "FILE")
    };
    insta::assert_snapshot!(unusable(Path::new("Cargo.toml")), @"the ONNX Runtime library cannot be used: FILE is no library for this machine; run scripts/fetch-runtime, or set `runtime.library` to another one");
    // The system's loader would end the process.
    let whole = fs::read(".runtime/libonnxruntime.so").unwrap();
    let short = tempfile::NamedTempFile::new().unwrap();
    fs::write(short.path(), &whole[..1 << 20]).unwrap();
    insta::assert_snapshot!(unusable(short.path()), @"the ONNX Runtime library cannot be used: FILE is cut short; run scripts/fetch-runtime, or set `runtime.library` to another one");
    let needs_another = tempfile::NamedTempFile::new().unwrap();
    let name = whole.windows(10).rposition(|name| name == b"libc.so.6\0").expect("it needs the C library");
    fs::write(needs_another.path(), [&whole[..name], b"libn.so.6\0", &whole[name + 10..]].concat()).unwrap();
    insta::assert_snapshot!(unusable(needs_another.path()), @"the ONNX Runtime library cannot be used: libn.so.6: cannot open shared object file: No such file or directory; run scripts/fetch-runtime, or set `runtime.library` to another one");
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
    insta::assert_snapshot!(refusal(&mut serve(&[&tiny, "engine.providers=[\"cuda\"]"])), @r#"the execution provider `cuda` cannot be loaded: this build of ONNX Runtime does not have it; run scripts/fetch-runtime --gpu and set `runtime.library = ".runtime/gpu/libonnxruntime.so"`, or set `engine.fallback = true` to run on the CPU"#);
}

#[test]
fn a_model_that_does_not_load_at_start_ends_the_server() {
    let tiny = model(&fixture("tiny-gqa"));
    let output = serve(&[&tiny, "engine.providers=[\"cuda\"]", "log.format=json"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("listening on http://"), "{stderr}");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
}

#[test]
fn a_broken_folder_is_one_sentence_even_if_nobody_asks_for_the_model() {
    let lazy = "models=[{ name = \"lazy\", path = \"/nowhere\", load = \"first_use\" }]";
    insta::assert_snapshot!(refusal(&mut serve(&[lazy])), @"the model folder /nowhere does not exist; set `path` of the model to a folder with config.json and onnx/model.onnx");
}

#[test]
fn a_model_that_was_not_fetched_is_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let refusal = |mut command: Command| {
        let command = command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", home.path());
        refusal(command).replace(&home.path().display().to_string(), "CACHE")
    };
    let mut pull = ortolan();
    pull.args(["pull", "acme/tiny@v1"]);
    insta::assert_snapshot!(refusal(pull), @"HF_HUB_OFFLINE is set and acme/tiny@v1 is not in CACHE; unset it for `ortolan pull acme/tiny@v1`");
    let models = "models=[{ name = \"tiny\", repo = \"acme/tiny\" }]";
    insta::assert_snapshot!(refusal(serve(&[models, "hub.download=false"])), @"acme/tiny has not been fetched and `hub.download` is false; run `ortolan pull acme/tiny`");
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let refused = refusal(&mut serve(&["server.host=0.0.0.0"]));
    insta::assert_snapshot!(refused, @"`server.host` is `0.0.0.0`, which others can reach, and there are no API keys; run `ortolan key NAME` and add the entry that it prints to the configuration");
}

/// The key that `ortolan key` shows, and the entry that it prints.
fn new_key(name: &str) -> (String, String) {
    let output = ortolan().args(["key", name]).output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8(output.stderr).unwrap();
    let key = shown.trim_end().strip_prefix("the key, which is shown only now: ").unwrap();
    (key.to_owned(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_new_key_fits_its_entry() {
    let (key, entry) = new_key("ci \"1\"");
    assert!(!entry.contains(&key));
    assert_ne!(new_key("ci").0, key);
    let random = key.strip_prefix("ork_").unwrap();
    assert!(random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    let hash = KeyHash::of(key.as_bytes());
    assert_eq!(entry, format!("[[server.api_keys]]\nname = \"ci \\\"1\\\"\"\nsha256 = \"{hash}\"\n"));

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &entry).unwrap();
    let output = ortolan().arg("config").arg("--config").arg(file.path()).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(listed.contains(&hash.to_string()) && !listed.contains(&key), "{listed}");

    let mut hash = ortolan();
    hash.args(["key", "ci \"1\"", "--hash"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut hash = hash.spawn().unwrap();
    writeln!(hash.stdin.take().unwrap(), "{key}").unwrap();
    assert_eq!(String::from_utf8(hash.wait_with_output().unwrap().stdout).unwrap(), entry);
}

#[test]
fn the_log_names_a_key_and_does_not_hold_it() {
    let (key, entry) = new_key("ci");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), entry).unwrap();
    let mut command =
        serve(&[&model(&fixture("tiny-gqa")), "log.format=json", "log.filter=trace", "server.host=0.0.0.0"]);
    let mut server = Server::start(command.arg("--config").arg(file.path()));
    for key in [&key, "wrong-secret"] {
        let mut connection = TcpStream::connect(server.address.replace("0.0.0.0", "127.0.0.1")).unwrap();
        write!(
            connection,
            "GET /v1/models HTTP/1.1\r\nhost: box.example\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
        )
        .unwrap();
        let status = BufReader::new(connection).lines().next().unwrap().unwrap();
        assert_eq!(status.contains(" 200 "), key != "wrong-secret", "{status}");
    }
    server.signal();
    let (_, log) = server.end();
    let requests: Vec<&str> = log.lines().filter(|line| line.contains("\"route\"")).collect();
    assert_eq!(requests.len(), 2, "{log}");
    assert!(requests[0].contains("\"key\":\"ci\"") && !requests[1].contains("\"key\""), "{requests:?}");
    assert!(!log.contains(&key) && !log.contains("wrong-secret"), "{log}");
}

/// The real server, and what it logs.
pub(crate) struct Server {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = lines.find(|line| line.as_ref().unwrap().contains("listening on http://")).unwrap().unwrap();
        let address = listening.rsplit("http://").next().unwrap();
        let address = address.split(['"', ' ']).next().unwrap().to_owned();
        Self { process, lines, address }
    }

    pub(crate) fn wait_for_line(&mut self, text: &str) {
        assert!(self.lines.any(|line| line.unwrap().contains(text)), "{text} was never logged");
    }

    /// Posts a body to `/v1/responses`; gives what comes back, line by line.
    pub(crate) fn post(&self, body: &str) -> impl Iterator<Item = String> + use<> {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let request =
            "POST /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
        write!(connection, "{request}content-length: {length}\r\n\r\n{body}").unwrap();
        BufReader::new(connection).lines().map(Result::unwrap)
    }

    pub(crate) fn signal(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Its exit status, and the rest of the log.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let log = self.lines.by_ref().map(Result::unwrap).collect::<Vec<_>>().join("\n");
        (self.process.wait().unwrap().code(), log)
    }
}

impl Drop for Server {
    /// A test that fails leaves nothing behind.
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

#[test]
fn a_signal_ends_the_server_with_success() {
    let mut server = Server::start(&mut serve(&[&model(&fixture("tiny-concat")), "log.format=json"]));
    server.signal();
    server.wait_for_line("draining");
    assert_eq!(server.end().0, Some(0));
}

/// No flags: the folders are named, and each answers under its own name.
#[test]
fn folders_of_every_layout_are_served_as_they_are() {
    let mut names = fixtures();
    names.retain(|name| !GPU_MODELS.contains(&&**name));
    let mut command = serve(&["log.filter=ortolan=info", "engine.max_batch_size=2"]);
    command.args(names.iter().map(|name| fixture(name)));
    let server = Server::start(&mut command);
    for name in &names {
        let body = json!({ "model": name, "input": "Hello, who are you?", "max_output_tokens": 5 });
        let reply: Vec<String> = server.post(&body.to_string()).collect();
        assert_eq!(reply[0], "HTTP/1.1 200 OK", "{name}: {reply:?}");
        let response: Value = serde_json::from_str(reply.last().unwrap()).unwrap();
        assert_eq!(response["usage"]["output_tokens"], 5, "{name}: {response}");
    }
    eprintln!("layouts: {} folders served", names.len());
}

/// The engines end with the drain; that is no alarm, so there is time for last events.
#[test]
fn what_runs_at_a_signal_gets_a_last_event() {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/starter");
    let mut server = Server::start(&mut serve(&[&model(&starter), "server.drain_timeout=0"]));
    // Without its two end tokens the model talks for seconds.
    let mut lines = server.post(r#"{"input": "hi", "stream": true, "logit_bias": {"1017": -100, "1015": -100}}"#);
    let mut stream = Vec::new();
    while stream.last() != Some(&"event: response.output_text.delta".to_owned()) {
        stream.push(lines.next().unwrap());
    }
    server.signal();
    stream.extend(lines);
    assert_eq!(events(&stream.join("\n")).last().unwrap()["type"], "response.failed");
    let (status, log) = server.end();
    assert!(!log.contains("an engine has failed"), "{log}");
    assert_eq!(status, Some(0));
}

/// A folder with a model that can be loaded, to be broken.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").arg(fixture(name).join(".")).arg(copy.path()).status().unwrap().success());
    copy
}

/// The load reads a pipe that nothing is written to.
#[test]
fn a_signal_while_a_model_loads_ends_the_server_with_success() {
    let dir = copy_of("tiny-gqa");
    let lazy = format!("models=[{{ name = \"lazy\", path = {:?}, load = \"first_use\" }}]", dir.path());
    let mut server = Server::start(&mut serve(&[&lazy, "server.drain_timeout=600"]));
    let config = dir.path().join("config.json");
    fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let mut refused = server.post(r#"{"input": "hi"}"#);
    // Opening its other end waits until the load reads.
    let _writer = fs::OpenOptions::new().write(true).open(&config).unwrap();
    server.signal();
    assert!(refused.next().unwrap().starts_with("HTTP/1.1 503 "));
    let (status, log) = server.end();
    assert_eq!(status, Some(0), "{log}");
}

/// The visible text of an answer.
fn text(answer: impl Iterator<Item = String>) -> String {
    let body = answer.last().unwrap();
    let response: Value = serde_json::from_str(&body).unwrap();
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
}

#[test]
fn a_model_that_was_unloaded_says_the_same_again() {
    let models = format!(
        "models=[{{ name = \"starter\", path = \"models/starter\" }}, \
         {{ name = \"tiny\", path = {:?}, load = \"first_use\", idle_unload = 1, engine = {{ max_batch_size = 2 }} }}]",
        fixture("tiny-gqa")
    );
    let mut server = Server::start(&mut serve(&[&models]));
    let body =
        |name: &str| format!(r#"{{"model": "{name}", "input": "hi", "temperature": 0, "max_output_tokens": 20}}"#);
    let first = ["starter", "tiny"].map(|name| text(server.post(&body(name))));
    assert_ne!(first[0], first[1]);
    server.wait_for_line("unloaded an idle model");
    assert_eq!(["starter", "tiny"].map(|name| text(server.post(&body(name)))), first);
    server.signal();
    let (status, log) = server.end();
    assert_eq!((status, log.matches("model is ready").count()), (Some(0), 1), "{log}");
}

/// `scripts/serve --gpu` puts `config/gpu.toml` before the files of the user.
#[test]
fn what_a_file_says_of_gpus_holds_beside_the_settings_for_them() {
    let own = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let providers = "[{ name = \"cuda\", options = { device_id = 1 } }]";
    fs::write(own.path(), format!("engine.providers = {providers}\n")).unwrap();
    let script = fs::read_to_string("scripts/serve").unwrap();
    assert!(script.contains("arguments=(--config config/gpu.toml \"${arguments[@]}\")"));
    let mut command = ortolan();
    command.args(["config", "--config", "config/gpu.toml", "--config"]).arg(own.path());
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for expected in [
        "runtime.library = \".runtime/gpu/libonnxruntime.so\"  # config/gpu.toml".to_owned(),
        format!(
            "engine.providers = [{{ name = \"cuda\", options = {{ device_id = 1 }} }}]  # {}",
            own.path().display()
        ),
    ] {
        assert!(text.lines().any(|line| line == expected), "{text}");
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
