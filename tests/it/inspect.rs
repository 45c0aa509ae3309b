//! The real binary: what it tells of a model folder and of the machine.

use crate::{
    cli::ortolan,
    tiny_model::{copy, fixture},
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Output};

fn run(args: &[&str]) -> Output {
    ortolan().args(args).output().unwrap()
}

/// What was printed, without the folder's name and without what differs from machine to machine.
fn printed(output: &Output, dir: &Path) -> String {
    let text = String::from_utf8_lossy(&output.stdout).replace(&dir.display().to_string(), "DIR");
    let is_same_everywhere = |line: &&str| !line.starts_with("cache ") && !line.contains(" free");
    text.lines().filter(is_same_everywhere).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_folder_is_described() {
    let dir = fixture("tiny-gqa");
    let output = run(&["inspect", dir.to_str().unwrap()]);
    assert!(output.status.success());
    insta::assert_snapshot!(printed(&output, &dir), @"
    folder             DIR
    model type         llama
    variant            fp32 (622.4 KiB)
    graph              DIR/onnx/model.onnx
    data files         none
    exported by        onnxruntime-genai, IR version 10
    family             gqa
    position ids       made by the graph
    layers             2
    keys and values    2 heads of 16 in float32
    states             none
    logits             float32 of 512 tokens
    context            1024 tokens, of which 1024 are used
    memory per token   512 B
    memory per slot    512.0 KiB
    manifest           none
    operators          MatMul 11, Mul 4, SkipSimplifiedLayerNormalization 4, Cast 2, Constant 2, Gather 2, GroupQueryAttention 2, Sigmoid 2, ReduceSum 1, Shape 1, SimplifiedLayerNormalization 1, Sub 1
    chat template      default
    special tokens     eos_token <|im_end|>, pad_token <|endoftext|>
    it can say         system messages anywhere, roles in any order, tools, calls, parallel calls, results
    response format    hermes
    stop tokens        <|endoftext|> 505, <|im_end|> 507
    ");
}

/// Though no provider is there that runs it.
#[test]
fn a_folder_for_gpus_is_described() {
    let dir = fixture("genai-qwen3-paged");
    let output = run(&["inspect", dir.to_str().unwrap()]);
    assert!(output.status.success());
    // How many would fit differs from machine to machine.
    let blocks = "\ncache              at most 16 blocks of 256.0 KiB, as many as engine.max_batch_size asks for";
    assert!(String::from_utf8_lossy(&output.stdout).contains(blocks), "{output:?}");
    insta::assert_snapshot!(printed(&output, &dir), @"
    folder             DIR
    model type         qwen3
    variant            genai (236.1 KiB)
    graph              DIR/model.onnx
    data files         model.onnx.data (216.8 KiB)
    exported by        onnxruntime-genai, IR version 10
    made for           cuda
    family             paged
    position ids       made by the graph
    layers             2
    keys and values    2 x 64 in float16, in blocks
    states             none
    logits             float16 of 512 tokens
    context            512 tokens, of which 512 are used
    memory per token   1.0 KiB
    memory per block   256.0 KiB for 256 tokens
    manifest           none
    operators          MatMul 15, Reshape 8, SimplifiedLayerNormalization 5, Mul 4, SkipSimplifiedLayerNormalization 4, Constant 3, Gather 3, PagedAttention 2, Sigmoid 2, Transpose 1
    chat template      default
    special tokens     eos_token <|im_end|>, pad_token <|endoftext|>
    it can say         system messages anywhere, roles in any order, tools, calls, parallel calls, results
    response format    hermes
    stop tokens        <|endoftext|> 505, <|im_end|> 507
    look at            the export is for cuda, which is not among engine.providers: operators may be missing or slow
    ");
}

#[test]
fn a_folder_that_cannot_be_served_is_described_and_told_why() {
    let dir = copy("tiny-gqa");
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let output = run(&["inspect", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output, dir.path()).contains("chat template      none"));
    let error = String::from_utf8_lossy(&output.stderr).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(error, @"ortolan: DIR has no chat template; add chat_template.jinja");
}

#[test]
fn the_doctor_names_what_to_mend_and_goes_on() {
    let [dir, paged] = ["tiny-gqa", "genai-qwen3-paged"].map(fixture);
    let models = format!(
        "models=[{{ name = \"gone\", path = \"/nowhere\" }}, {{ name = \"tiny\", path = {:?}, \
         engine = {{ providers = [\"tensorrt\"], fallback = true }} }}, {{ name = \"paged\", path = {:?} }}]",
        dir.display().to_string(),
        paged.display().to_string()
    );
    let settings =
        ["--set", &models, "--set", "runtime.library=.runtime/libonnxruntime.so", "--set", "store.path=/srv/store"];
    let output = run(&[&["doctor"], &settings[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let findings = printed(&output, &dir).replace(&paged.display().to_string(), "PAGED");
    let runtime = findings.lines().next().unwrap();
    assert!(runtime.starts_with("ok       runtime") && runtime.contains("/libonnxruntime.so."), "{runtime}");
    // What there is of the driver and of GPUs is this machine's own.
    let is_own = |line: &&str| line.contains("  nvidia driver ") || line.contains("  gpu");
    assert!(findings.lines().any(|line| is_own(&line)), "{findings}");
    let findings: Vec<&str> = findings.lines().skip(1).filter(|line| !is_own(line)).collect();
    insta::assert_snapshot!(findings.join("\n"), @r#"
    ok       provider cpu       can be had
    look at  provider tensorrt  the execution provider `tensorrt` cannot be loaded: this build of ONNX Runtime does not have it; run scripts/fetch-runtime --gpu and set `runtime.library = ".runtime/gpu/libonnxruntime.so"`, or set `engine.fallback = true` to run on the CPU
    ok       api keys           none, and 127.0.0.1 needs none: only this machine can reach it
    ok       store              in /srv/store
    FAILED   model gone         the model folder /nowhere does not exist; set `path` of the model to a folder with config.json and onnx/model.onnx
    ok       model tiny         fp32 in DIR, weights 622.4 KiB, 8 slots of 512.0 KiB
    ok       model paged        genai in PAGED, weights 236.1 KiB, at most 16 blocks of 256.0 KiB
    look at  model paged        the export is for cuda, which is not among engine.providers: operators may be missing or slow
    "#);
}

#[test]
fn the_doctor_tells_whether_the_address_needs_keys() {
    let key = format!("server.api_keys=[{{ name = \"ci\", sha256 = \"{}\" }}]", "0".repeat(64));
    let finding = |settings: &[&str]| {
        let arguments = settings.iter().flat_map(|setting| ["--set", setting]);
        let output = run(&["doctor"].into_iter().chain(arguments).collect::<Vec<_>>());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains(" api keys ")).unwrap().to_owned()
    };
    let open = "server.host=0.0.0.0";
    insta::assert_snapshot!(finding(&[open]), @"FAILED   api keys           `server.host` is `0.0.0.0`, which others can reach, and there are no API keys; run `ortolan key NAME` and add the entry that it prints to the configuration");
    insta::assert_snapshot!(finding(&[open, "server.insecure_no_auth=true"]), @"look at  api keys           none, and others can reach 0.0.0.0: `server.insecure_no_auth` lets everybody in");
    insta::assert_snapshot!(finding(&[open, &key]), @"ok       api keys           1, and others can reach 0.0.0.0");
    insta::assert_snapshot!(finding(&[&key]), @"ok       api keys           1, though only this machine can reach 127.0.0.1");
}

#[test]
fn a_sealed_folder_that_was_changed_is_not_served() {
    let dir = copy("tiny-gqa");
    let path = dir.path().to_str().unwrap();
    let output = run(&["manifest", path]);
    insta::assert_snapshot!(printed(&output, dir.path()), @"DIR/manifest.json lists 6 files");
    assert!(run(&["inspect", path]).status.success());
    let graph = dir.path().join("onnx/model.onnx");
    let mut bytes = fs::read(&graph).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(graph, bytes).unwrap();
    let models = format!("models=[{{ name = \"tiny\", path = {path:?} }}]");
    let output = run(&["serve", "--set", "server.port=0", "--set", &models]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("its SHA-256 is another"), "{stderr}");
}

#[test]
fn the_token_that_ends_a_turn_ends_a_reply_though_no_config_says_so() {
    let dir = copy("tiny-gqa");
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 505}"#).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    let output = run(&["inspect", dir.path().to_str().unwrap()]);
    assert!(printed(&output, dir.path()).contains("stop tokens        <|endoftext|> 505, <|im_end|> 507"));
}

/// Writes another `tokenizer.json`.
fn change_tokenizer(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("tokenizer.json");
    let mut description = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut description);
    fs::write(path, description.to_string()).unwrap();
}

/// The smallest of Gemma 3 have the tokenizer of the others, and with it a token for pictures.
#[test]
fn an_added_token_may_be_beyond_the_graph() {
    let dir = copy("tiny-gqa");
    change_tokenizer(dir.path(), |description| {
        let mut token = description["added_tokens"][0].clone();
        (token["id"], token["content"]) = (json!(512), json!("<image_soft_token>"));
        description["added_tokens"].as_array_mut().unwrap().push(token);
    });
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [505, 512]}"#).unwrap();
    let output = run(&["inspect", dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(printed(&output, dir.path()).ends_with("stop tokens        <|endoftext|> 505, <|im_end|> 507"));
}

#[test]
fn a_tokenizer_of_another_model_is_told_apart() {
    let dir = copy("tiny-gqa");
    change_tokenizer(dir.path(), |description| {
        for id in 512..520 {
            description["model"]["vocab"][format!("word {id}")] = json!(id);
        }
    });
    let output = run(&["inspect", dir.path().to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(error, @"ortolan: DIR/tokenizer.json has 513 tokens and the graph scores only 512; take tokenizer and graph from one export");
}
