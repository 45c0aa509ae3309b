//! True ONNX Runtime on small graphs of random weights, one of each family and type.

use crate::engine::{config, drain, is_on_gpu, request};
use ortolan::{
    engine::{
        CacheKind, CacheTensor, ElementType, End, Engine, EngineConfig, EngineHandle, FloatType, GraphEdits,
        GraphFamily, LoadError, Model, ModelSpec, ProviderConfig, ProviderName, Request, Runtime, TokenEvent,
        TopScoresIn, load,
    },
    model_dir::{ModelDir, ModelDirError, Target},
};
use std::{
    collections::BTreeMap,
    env, fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

/// Graphs that only a GPU runs. They are not among the tiny models, since a GPU may round halves otherwise where it computes
/// more rows together, so that only tokens that win clearly are the same.
pub(crate) const GPU_MODELS: [&str; 3] = ["genai-qwen3-cuda", "genai-qwen3-paged", "genai-qwen3-paged-int8-kv"];

/// Every graph whose greedy tokens others have recorded and that a CPU can run, by the name of its golden file; on the oldest
/// runtime those that it can run.
pub(crate) fn tiny_models() -> Vec<String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let names = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = names.filter(|name| fixture(folder_and_variant(name).0).is_dir()).collect();
    names.retain(|name| !GPU_MODELS.contains(&&**name));
    // On a GPU, the graphs that these stand for run themselves.
    names.retain(|name| !name.starts_with("variant-paged") || !is_on_gpu());
    if is_oldest() {
        names.retain(|name| load(runtime(), open(name).spec, &config(1, 16)).is_ok());
    }
    names.sort();
    assert!(["tiny-concat", "tiny-gqa"].iter().all(|name| names.iter().any(|other| other == name)));
    names
}

/// The folder of a graph and, where that has several, the name of its variant.
fn folder_and_variant(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('-') {
        Some((folder, variant)) if !fixture(name).is_dir() => (folder, Some(variant)),
        _ => (name, None),
    }
}

/// The folder with that graph.
pub(crate) fn open(name: &str) -> ModelDir {
    let (folder, variant) = folder_and_variant(name);
    ModelDir::open(&fixture(folder), &Target { variant, ..Target::CPU }).unwrap()
}

/// Whether its weights are of a few bits. A GPU multiplies by them in other ways than a CPU, and one row in another way than
/// several.
pub(crate) fn has_small_weights(ModelDir { onnx, .. }: &ModelDir) -> bool {
    let is_of_them = |operator: &String| ["MatMulNBits", "MatMulBnb4", "MatMulInteger", "QMoE"].contains(&&**operator);
    onnx.operators.keys().any(is_of_them)
}

/// Those of them that compute each row for itself, and with just what they keep: where a cache has fewer bits, it matters what is in it already when a
/// token looks back.
pub(crate) fn exact_models() -> Vec<String> {
    let mut names = tiny_models();
    names.retain(|name| {
        let dir = open(name);
        if is_on_gpu() && has_small_weights(&dir) {
            return false;
        }
        let ModelDir { spec, onnx, .. } = dir;
        // These have one scale for all rows of a run.
        let is_dynamic = onnx.operators.keys().any(|operator| operator.starts_with("DynamicQuantize"));
        let is_exact = |kept: ElementType| matches!(kept, ElementType::Float(FloatType::F32 | FloatType::F16));
        !is_dynamic && spec.cache.iter().all(|tensor| is_exact(tensor.element_type))
    });
    names
}

/// Whether this is the oldest runtime that ortolan runs with, rather than the pinned one.
pub(crate) fn is_oldest() -> bool {
    env::var_os("ORT_DYLIB_PATH").is_some_and(|path| path.to_string_lossy().contains("oldest"))
}

/// One library per process: that is a rule of ONNX Runtime. The environment may name another than the pinned one.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let named = env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let pinned = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/libonnxruntime.so");
        Runtime::load(Some(&named.unwrap_or_else(pinned)), None).unwrap_or_else(|error| panic!("{error}"))
    })
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn graphs_that_only_a_gpu_runs_are_read_like_all_others() {
    let halves = ElementType::Float(FloatType::F16);
    let blocks = || CacheKind::Blocks { sizes: vec![2, 64] };
    let columns = CacheKind::Columns { num_heads: 2, head_size: 64, window: None };
    let expected = [
        (GraphFamily::Gqa, columns, halves, 1024, false),
        (GraphFamily::Paged, blocks(), halves, 1024, true),
        (GraphFamily::Paged, blocks(), ElementType::Int8, 512, true),
    ];
    for (name, (family, kind, element_type, bytes_per_token, is_packed)) in GPU_MODELS.into_iter().zip(expected) {
        let spec = open(name).spec;
        assert_eq!((spec.family, spec.num_layers, spec.cache.len()), (family, 2, 4), "{name}");
        let is_alike = |tensor: &CacheTensor| (&tensor.kind, tensor.element_type) == (&kind, element_type);
        assert!(spec.cache.iter().all(is_alike), "{name}: {:?}", spec.cache);
        assert_eq!(spec.cache_bytes_per_token(), bytes_per_token, "{name}");
        assert_eq!((spec.has_logits_indices, spec.has_attention_metadata), (is_packed, is_packed), "{name}");
    }
}

/// An engine on a thread of its own, which ends with the last handle.
pub(crate) fn start(spec: ModelSpec, config: &EngineConfig) -> (EngineHandle, thread::JoinHandle<End>) {
    let (engine, handle) = Engine::new(config, load(runtime(), spec, config).unwrap());
    (handle, thread::spawn(|| engine.run()))
}

/// Greedy, with no end but the limit.
pub(crate) fn endless(prompt: &[u32], max_output_tokens: u32) -> Request {
    Request { stop_tokens: [].into(), ..request(prompt, max_output_tokens) }
}

pub(crate) fn token_ids(events: &[TokenEvent]) -> Vec<u32> {
    let token = |event: &TokenEvent| match event {
        TokenEvent::Token(token) => Some(token.0),
        TokenEvent::Queued | TokenEvent::Started | TokenEvent::Logprobs(_) | TokenEvent::Finished { .. } => None,
    };
    events.iter().filter_map(token).collect()
}

fn prompts() -> Vec<Vec<u32>> {
    let prompt = |seed: u32, len: u32| (0..len).map(|index| (seed * 31 + index * 7) % 256).collect();
    vec![prompt(1, 5), prompt(2, 40), prompt(3, 1), prompt(4, 23), prompt(5, 64), prompt(6, 2)]
}

fn alone(name: &str) -> Vec<Vec<u32>> {
    let (handle, engine) = start(open(name).spec, &config(1, 1000));
    let outputs =
        prompts().iter().map(|prompt| token_ids(&drain(handle.submit(endless(prompt, 24)).unwrap()))).collect();
    drop(handle);
    engine.join().unwrap();
    outputs
}

fn together(name: &str, config: &EngineConfig) -> Vec<Vec<u32>> {
    let (handle, engine) = start(open(name).spec, config);
    let streams: Vec<_> = prompts().iter().map(|prompt| handle.submit(endless(prompt, 24)).unwrap()).collect();
    let outputs = streams.into_iter().map(|stream| token_ids(&drain(stream))).collect();
    drop(handle);
    engine.join().unwrap();
    outputs
}

#[test]
fn one_at_a_time_equals_interleaved_and_chunked() {
    for name in exact_models() {
        let expected = alone(&name);
        // Fewer slots than prompts, so that slots are used again; chunks that no prompt is a multiple of.
        for (max_batch_size, max_step_tokens) in [(6, 1000), (2, 9), (3, 1)] {
            let outputs = together(&name, &config(max_batch_size, max_step_tokens));
            assert_eq!(outputs, expected, "{name} with {max_batch_size} slots and {max_step_tokens} tokens a step");
        }
    }
}

#[test]
fn no_edit_of_the_graph_and_no_sharing_of_runs_changes_what_is_said() {
    for name in exact_models() {
        let expected = alone(&name);
        for [query_seqlens, logits_indices, sequence_lengths] in
            [[false, false, false], [false, true, true], [true, false, true], [true, true, false], [true, true, true]]
        {
            for (run_overhead_tokens, top_scores) in
                [(1, TopScoresIn::Gpu), (1000, TopScoresIn::Gpu), (1000, TopScoresIn::Always)]
            {
                let graph_edits =
                    GraphEdits { query_seqlens, logits_indices, sequence_lengths, ..config(1, 1).graph_edits };
                let config = EngineConfig { graph_edits, run_overhead_tokens, top_scores, ..config(4, 30) };
                assert_eq!(together(&name, &config), expected, "{name} with {config:?}");
            }
        }
    }
}

/// Its graph turns positions by other factors once a run is wider than 64 columns; what is said of a short text must not
/// depend on a long one beside it, nor the end of a long one on the chunks of its beginning.
#[test]
fn positions_are_turned_alike_in_all_runs() {
    let expected = alone("genai-phi3-long");
    for (max_batch_size, max_step_tokens) in [(6, 1000), (2, 9)] {
        assert_eq!(together("genai-phi3-long", &config(max_batch_size, max_step_tokens)), expected);
    }
}

#[test]
fn a_runtime_without_query_seqlens_is_used_without_it() {
    let config = config(2, 16);
    let model = load(runtime(), open("tiny-gqa").spec, &config).unwrap();
    assert_eq!(model.limits().can_verify_drafts, !is_oldest());
    let graph_edits = GraphEdits { query_seqlens: false, ..config.graph_edits };
    let config = EngineConfig { graph_edits, ..config };
    let model = load(runtime(), open("tiny-gqa").spec, &config).unwrap();
    assert!(!model.limits().can_verify_drafts);
}

#[test]
fn a_graph_that_is_too_new_for_the_runtime_is_told_apart() {
    let spec = open("variant-growing-hybrid").spec;
    let path = spec.path.display().to_string();
    match load(runtime(), spec, &config(1, 16)) {
        Ok(_) => assert!(!is_oldest()),
        Err(error) => {
            assert!(is_oldest());
            insta::assert_snapshot!(error.to_string().replace(&path, "FILE"), @"the model FILE needs a newer ONNX Runtime than the one that was loaded: Unrecognized attribute: state_window for operator CausalConvWithState; run scripts/fetch-runtime, or set `runtime.library` to a newer libonnxruntime.so");
        }
    }
}

#[test]
fn a_graph_that_loads_but_does_not_run_is_known_when_it_is_loaded() {
    let dir = copy("variant-renamed");
    let onnx = dir.path().join("onnx/model.onnx");
    let mut bytes = fs::read(&onnx).unwrap();
    // A number is to become two.
    let shape = b"keep/shape\x4a\x08\x01";
    let place = bytes.windows(shape.len()).position(|window| window == shape).unwrap();
    bytes[place + shape.len() - 1] = 2;
    fs::write(onnx, bytes).unwrap();
    let error = load(runtime(), ModelDir::open(dir.path(), &Target::CPU).unwrap().spec, &config(1, 16)).err().unwrap();
    assert!(matches!(error, LoadError::Run { .. }), "{error}");
}

#[test]
fn the_context_can_be_filled_to_its_end() {
    for name in tiny_models() {
        let config = EngineConfig { max_context_tokens: NonZeroU32::new(48).unwrap(), ..config(2, 16) };
        let (handle, engine) = start(open(&name).spec, &config);
        assert_eq!(handle.limits().context_tokens, 48);
        let streams = [40_u32, 47].map(|len| handle.submit(endless(&vec![9; len as usize], 1000)).unwrap());
        let lengths = streams.map(|stream| token_ids(&drain(stream)).len());
        assert_eq!(lengths, [8, 1], "{name}");
        drop(handle);
        engine.join().unwrap();
    }
}

/// A copy of a fixture that a test may break.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files(name) {
        let to = copy.path().join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture(name).join(&file), to).unwrap();
    }
    copy
}

/// The names of all fixtures, sorted.
pub(crate) fn fixtures() -> Vec<String> {
    let entries = fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names of a fixture's files, sorted.
pub(crate) fn files(name: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(fixture(name).join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = folder.clone() + entry.file_name().to_str().unwrap();
            if entry.path().is_dir() { folders.push(name + "/") } else { names.push(name) }
        }
    }
    names.sort();
    names
}

/// What `ModelDir::open` says, without the name of the folder.
fn refusal(dir: &Path) -> String {
    let error: ModelDirError = ModelDir::open(dir, &Target::CPU).unwrap_err();
    error.to_string().replace(&dir.display().to_string(), "DIR")
}

fn set_config(dir: &Path, key: &str, value: u64) {
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value.into();
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_config_that_does_not_match_the_graph_is_refused() {
    // A model may have layers that keep nothing, but not fewer than the graph.
    for (key, value) in [("num_hidden_layers", 1), ("vocab_size", 77)] {
        let dir = copy("tiny-concat");
        set_config(dir.path(), key, value);
        let refusal = refusal(dir.path());
        let says = format!("config.json says {value}");
        assert!(refusal.contains(&format!("{key} = ")) && refusal.contains(&says), "{refusal}");
    }
    // Falcon's counts the heads of queries, DeepSeek's measures a part of one.
    let dir = copy("tiny-concat");
    for key in ["num_key_value_heads", "head_dim"] {
        set_config(dir.path(), key, 77);
    }
    assert_eq!(ModelDir::open(dir.path(), &Target::CPU).unwrap().spec.cache, open("tiny-concat").spec.cache);
}

#[test]
fn a_file_that_is_missing_or_cut_short_is_named() {
    let dir = copy("tiny-gqa");
    let onnx = dir.path().join("onnx/model.onnx");
    let bytes = fs::read(&onnx).unwrap();
    fs::write(&onnx, &bytes[..bytes.len() / 2]).unwrap();
    let refused = refusal(dir.path());
    assert!(refused.starts_with("DIR/onnx/model.onnx is not valid: it is cut short"), "{refused}");
    fs::remove_file(&onnx).unwrap();
    insta::assert_snapshot!(refusal(dir.path()), @"the model folder DIR cannot be served: there is no ONNX graph of a language model (such as onnx/model.onnx); export one with Optimum or the GenAI model builder");
    fs::write(onnx, bytes).unwrap();
    fs::write(dir.path().join("config.json"), "{").unwrap();
    insta::assert_snapshot!(refusal(dir.path()), @"DIR/config.json is not valid: EOF while parsing an object at line 1 column 1; download it again");
    insta::assert_snapshot!(refusal(Path::new("DIR")), @"the model folder DIR does not exist; set `path` of the model to a folder with config.json and onnx/model.onnx");
}

#[test]
fn a_provider_that_cannot_be_had_is_an_error_unless_fallback_is_allowed() {
    let spec = || open("tiny-gqa").spec;
    for name in [ProviderName::Cuda, ProviderName::TensorRt] {
        let provider = ProviderConfig { name, options: BTreeMap::new() };
        let strict = EngineConfig { providers: vec![provider], ..config(1, 100) };
        let error = load(runtime(), spec(), &strict).err().unwrap();
        assert!(matches!(error, LoadError::Provider { name: named, .. } if named == name), "{error}");
        assert!(load(runtime(), spec(), &EngineConfig { fallback: true, ..strict }).is_ok());
    }
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so")), None).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"the ONNX Runtime library was not found (looked for /nowhere/libonnxruntime.so); run scripts/fetch-runtime, or set `runtime.library` to the path of libonnxruntime.so");
}
