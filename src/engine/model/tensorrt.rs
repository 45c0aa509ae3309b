//! What TensorRT is told where the config leaves it open: which shapes to build for, in which precision, and where to keep what
//! it has built.

use super::{
    CacheKind, CacheTensor, ElementType, FloatType, GraphFamily, LoadError, ModelSpec, ProviderName,
    edit::LOGITS_INDICES, spec::window_columns,
};
use crate::engine::EngineConfig;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const MIN_SHAPES: &str = "trt_profile_min_shapes";
const OPT_SHAPES: &str = "trt_profile_opt_shapes";
const MAX_SHAPES: &str = "trt_profile_max_shapes";

/// How large the runs of a graph become.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunLimits {
    /// Rows of a run.
    pub(super) num_rows: usize,
    /// Columns of its past, with the new ones.
    pub(super) context_tokens: usize,
    /// Tokens of a row.
    pub(super) width: usize,
}

impl RunLimits {
    /// Where the provider computes at best `chunk_tokens` in one run.
    pub(super) fn new(spec: &ModelSpec, config: &EngineConfig, chunk_tokens: usize) -> Self {
        let context_tokens = spec.context_tokens.min(config.max_context_tokens.get() as usize);
        let num_rows = config.max_batch_size.get() as usize;
        Self { num_rows, context_tokens, width: config.step_tokens(chunk_tokens).min(context_tokens) }
    }
}

/// Where engines of all models are kept, and what they depend on beside a model's files and what ONNX Runtime names them by, which
/// is the graph's shape, its own version and the generation of the GPU.
#[derive(Clone, Copy)]
pub(super) struct EngineCache<'c> {
    pub(super) folder: &'c Path,
    /// TensorRT's own, which reads no engine of another version.
    pub(super) library: Option<&'c Path>,
    /// Those of the config and of the export.
    pub(super) options: &'c BTreeMap<String, String>,
}

/// Options for this graph, to be taken where neither the config nor the export has its own.
pub(super) fn defaults(
    spec: &ModelSpec,
    limits: RunLimits,
    cache: Option<EngineCache<'_>>,
) -> BTreeMap<&'static str, String> {
    let is_on = || "1".to_owned();
    let mut options = BTreeMap::new();
    if let Some(folder) = cache.and_then(|cache| own_folder(cache, &spec.path)) {
        let folder = folder.to_string_lossy().into_owned();
        options.extend([("trt_engine_cache_enable", is_on()), ("trt_engine_cache_path", folder.clone())]);
        options.extend([("trt_timing_cache_enable", is_on()), ("trt_timing_cache_path", folder)]);
    }
    match float_type(spec) {
        FloatType::F16 => drop(options.insert("trt_fp16_enable", is_on())),
        FloatType::BF16 => drop(options.insert("trt_bf16_enable", is_on())),
        FloatType::F32 => {}
    }
    if let Some([min, opt, max]) = profile(spec, limits) {
        options.extend([(MIN_SHAPES, min), (OPT_SHAPES, opt), (MAX_SHAPES, max)]);
    }
    options
}

/// What the graph computes in, as far as its inputs and outputs show.
fn float_type(spec: &ModelSpec) -> FloatType {
    let of_cache = spec.cache.iter().find_map(|tensor| match tensor.element_type {
        ElementType::Float(float_type) => Some(float_type),
        ElementType::Int8 | ElementType::Uint8 | ElementType::Float8 => None,
    });
    of_cache.filter(|_| spec.logits_type == FloatType::F32).unwrap_or(spec.logits_type)
}

/// The least, the best and the largest shape of each input: one profile from a single token to a piece of a prompt, built to be
/// fastest where all rows decode. ONNX Runtime builds an engine for several profiles but runs only the first of them.
///
/// None where TensorRT gets the graph in pieces: each would need shapes of what lies between them. It then builds for the shapes
/// that it meets.
fn profile(spec: &ModelSpec, limits: RunLimits) -> Option<[String; 3]> {
    let is_whole = spec.family == GraphFamily::Concat && !spec.has_cache_branch && spec.num_logits.is_none();
    let RunLimits { num_rows, context_tokens, width } = limits;
    let max_past = context_tokens.saturating_sub(1);
    let runs = [(1, 0, 1), (num_rows, max_past / 2, 1), (num_rows, max_past, width)];
    is_whole.then(|| runs.map(|(num_rows, past, width)| shapes(spec, num_rows, past, width, context_tokens)))
}

/// `input:1x2,other:1x2x3` of one run.
fn shapes(spec: &ModelSpec, num_rows: usize, past: usize, width: usize, context_tokens: usize) -> String {
    let mut shapes = vec![("input_ids", vec![num_rows, width])];
    if spec.mask_type.is_some() {
        shapes.push(("attention_mask", vec![num_rows, (past + width).min(context_tokens)]));
    }
    if let Some(positions) = spec.position_ids {
        shapes.push(("position_ids", positions.num_axes.into_iter().chain([num_rows, width]).collect()));
    }
    // Of a row that computes several tokens, alone in its run, each may be scored.
    shapes.push((LOGITS_INDICES, vec![1, num_rows.max(width)]));
    shapes.extend(spec.cache.iter().map(|tensor| (tensor.past.as_str(), past_shape(tensor, num_rows, past))));
    let spelled = shapes.into_iter().map(|(name, shape)| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("{name}:{}", shape.join("x"))
    });
    spelled.collect::<Vec<_>>().join(",")
}

fn past_shape(tensor: &CacheTensor, num_rows: usize, past: usize) -> Vec<usize> {
    match &tensor.kind {
        CacheKind::Columns { num_heads, head_size, window } => {
            let past = window.map_or(past, |window| window_columns(window, 0, past).min(past));
            vec![num_rows, *num_heads, past, *head_size]
        }
        CacheKind::State { sizes, .. } => [num_rows].iter().chain(sizes).copied().collect(),
        CacheKind::Blocks { .. } => unreachable!("graphs with blocks are taken in pieces"),
    }
}

/// The same config for a graph that TensorRT takes in pieces, where that is what the error says and the profile was ours.
pub(super) fn without_profile(error: &LoadError, config: &EngineConfig) -> Option<EngineConfig> {
    const IN_PIECES: &str = "no associated shape profiles";
    let mut config = config.clone();
    let provider = config.providers.iter_mut().find(|provider| provider.name == ProviderName::TensorRt)?;
    let is_ours = !provider.options.contains_key(MIN_SHAPES);
    provider.options.extend([MIN_SHAPES, OPT_SHAPES, MAX_SHAPES].map(|key| (key.to_owned(), String::new())));
    (is_ours && error.to_string().contains(IN_PIECES)).then_some(config)
}

/// A model's own folder in the cache. ONNX Runtime names an engine by the graph's shape, not by its weights, so that models of one
/// architecture would get each other's; and not by most options, so that changed ones would change nothing.
fn own_folder(cache: EngineCache<'_>, graph: &Path) -> Option<PathBuf> {
    let folder = cache.folder.join(fingerprint(cache, graph)?);
    let made = fs::create_dir_all(&folder);
    made.inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "TensorRT's engines cannot be kept"))
        .ok()?;
    folder.canonicalize().ok()
}

/// Of what is in the graph's folder, weights among it, of TensorRT's library and of the options.
fn fingerprint(cache: EngineCache<'_>, graph: &Path) -> Option<String> {
    let graph = graph.canonicalize().ok().filter(|path| path.is_file())?;
    let entries = fs::read_dir(graph.parent()?).ok()?.flatten();
    let mut files: Vec<String> = entries.filter_map(|entry| version_of(&entry.path())).collect();
    files.sort_unstable();
    let library = cache.library.and_then(version_of);
    // One device is as good as another of its kind.
    let options =
        cache.options.iter().filter(|(key, _)| *key != "device_id").map(|(key, value)| format!("{key}={value}"));
    let all: Vec<String> = files.into_iter().chain(library).chain(options).collect();
    let digest = Sha256::digest(format!("{}\n{}", graph.display(), all.join("\n")));
    Some(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Name, size and time of a file, or of what a link leads to.
fn version_of(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{:?} {} {:?}", path.file_name()?, metadata.len(), metadata.modified().ok()))
}

/// Takes an engine out of the cache, where the error says that it cannot be read: a process may have ended while it wrote it.
pub(super) fn forget_engine(error: &LoadError, cache: Option<&Path>) -> bool {
    const UNREADABLE: &str = "could not deserialize engine from cache: ";
    const ENGINE: &str = ".engine";
    let said = error.to_string();
    let name = said.split_once(UNREADABLE).and_then(|(_, path)| Some(path.split_once(ENGINE)?.0));
    let Some(engine) = name.map(|name| PathBuf::from(format!("{name}{ENGINE}"))) else { return false };
    let is_ours = cache.and_then(|cache| cache.canonicalize().ok()).is_some_and(|cache| engine.starts_with(cache));
    is_ours && fs::remove_file(engine).is_ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::{IntType, NumLogits, PositionIds, ProviderConfig};

    fn columns(past: &str, element_type: ElementType, window: Option<usize>) -> CacheTensor {
        let kind = CacheKind::Columns { num_heads: 2, head_size: 64, window };
        CacheTensor { past: past.to_owned(), present: past.to_owned(), element_type, kind }
    }

    pub(in super::super) fn spec() -> ModelSpec {
        ModelSpec {
            has_logits_indices: false,
            has_attention_metadata: false,
            path: "/nowhere/model.onnx".into(),
            family: GraphFamily::Concat,
            cache: vec![columns("past.0.key", ElementType::Float(FloatType::F16), None)],
            num_layers: 1,
            ids_type: IntType::I64,
            mask_type: Some(IntType::I64),
            num_short_tokens: None,
            own_block_tokens: None,
            position_ids: Some(PositionIds { int_type: IntType::I64, num_axes: None }),
            num_logits: None,
            has_cache_branch: false,
            logits_type: FloatType::F32,
            has_last_logits_only: false,
            vocab_size: 100,
            context_tokens: 4096,
        }
    }

    pub(in super::super) const LIMITS: RunLimits = RunLimits { num_rows: 8, context_tokens: 1024, width: 256 };

    #[test]
    fn one_profile_goes_from_a_token_to_a_piece_of_a_prompt() {
        insta::assert_snapshot!(profile(&spec(), LIMITS).unwrap().join("\n"), @"
        input_ids:1x1,attention_mask:1x1,position_ids:1x1,logits_indices:1x1,past.0.key:1x2x0x64
        input_ids:8x1,attention_mask:8x512,position_ids:8x1,logits_indices:1x8,past.0.key:8x2x511x64
        input_ids:8x256,attention_mask:8x1024,position_ids:8x256,logits_indices:1x256,past.0.key:8x2x1023x64
        ");
        let state = CacheKind::State { sizes: vec![32, 3], is_in_place: false };
        let cache = vec![
            columns("past.0.key", ElementType::Int8, Some(512)),
            CacheTensor { kind: state, ..columns("past.1.conv", ElementType::Float(FloatType::F32), None) },
        ];
        let position_ids = Some(PositionIds { int_type: IntType::I64, num_axes: Some(3) });
        let other = ModelSpec { cache, mask_type: None, position_ids, ..spec() };
        insta::assert_snapshot!(profile(&other, LIMITS).unwrap().join("\n"), @"
        input_ids:1x1,position_ids:3x1x1,logits_indices:1x1,past.0.key:1x2x0x64,past.1.conv:1x32x3
        input_ids:8x1,position_ids:3x8x1,logits_indices:1x8,past.0.key:8x2x511x64,past.1.conv:8x32x3
        input_ids:8x256,position_ids:3x8x256,logits_indices:1x256,past.0.key:8x2x512x64,past.1.conv:8x32x3
        ");
    }

    #[test]
    fn a_graph_in_pieces_has_no_profile() {
        let num_logits = Some(NumLogits { name: "n".to_owned(), int_type: IntType::I64, is_vector: false });
        assert_eq!(profile(&ModelSpec { family: GraphFamily::Gqa, ..spec() }, LIMITS), None);
        assert_eq!(profile(&ModelSpec { has_cache_branch: true, ..spec() }, LIMITS), None);
        assert_eq!(profile(&ModelSpec { num_logits, ..spec() }, LIMITS), None);
    }

    #[test]
    fn the_precision_is_the_graphs() {
        let precisions = |spec: &ModelSpec| {
            let options = defaults(spec, LIMITS, None);
            ["trt_fp16_enable", "trt_bf16_enable"].map(|key| options.contains_key(key))
        };
        assert_eq!(precisions(&spec()), [true, false]);
        let cache_of = |float_type| vec![columns("past.0.key", ElementType::Float(float_type), None)];
        assert_eq!(precisions(&ModelSpec { cache: cache_of(FloatType::F32), ..spec() }), [false, false]);
        assert_eq!(precisions(&ModelSpec { cache: cache_of(FloatType::BF16), ..spec() }), [false, true]);
        assert_eq!(precisions(&ModelSpec { cache: Vec::new(), logits_type: FloatType::F16, ..spec() }), [true, false]);
    }

    #[test]
    fn each_model_and_each_version_of_it_has_its_own_engines() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join("cache");
        let own = BTreeMap::new();
        let cache = EngineCache { folder: &cache, library: None, options: &own };
        let of = |name: &str, cache| {
            defaults(&ModelSpec { path: home.path().join(name).join("model.onnx"), ..spec() }, LIMITS, Some(cache))
        };
        let model = |name: &str, weights: &str| {
            let folder = home.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("model.onnx"), "graph").unwrap();
            fs::write(folder.join("model.onnx_data"), weights).unwrap();
            of(name, cache)
        };
        let one = model("one", "weights");
        assert!(Path::new(&one["trt_engine_cache_path"]).is_dir());
        assert_eq!(one["trt_engine_cache_path"], one["trt_timing_cache_path"]);
        assert_eq!(one, of("one", cache));
        let [device, level] = ["device_id", "trt_builder_optimization_level"]
            .map(|key| BTreeMap::from([(key.to_owned(), "1".to_owned())]));
        assert_eq!(one, of("one", EngineCache { options: &device, ..cache }));
        let slower = EngineCache { options: &level, ..cache };
        let library = home.path().join("libnvinfer.so.10");
        fs::write(&library, "TensorRT").unwrap();
        let newer = EngineCache { library: Some(&library), ..cache };
        let engines = [one, of("one", slower), of("one", newer), model("two", "weights"), model("one", "new weights")];
        let mut folders = engines.map(|options| options["trt_engine_cache_path"].clone()).to_vec();
        folders.sort_unstable();
        folders.dedup();
        assert_eq!(folders.len(), 5);
        // A folder that cannot be made is gone without.
        fs::write(home.path().join("file"), "").unwrap();
        let without = of("two", EngineCache { folder: &home.path().join("file"), ..cache });
        assert!(!without.contains_key("trt_engine_cache_enable"));
    }

    #[test]
    fn an_engine_that_cannot_be_read_is_built_anew() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join("cache");
        let inside = cache.join("0123").join("TensorrtExecutionProvider_graph_1_0_0_fp16_sm90.engine");
        let outside = home.path().join("own.engine");
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        let forget = |engine: &Path, cache| {
            fs::write(engine, "half an eng").unwrap();
            let engine = engine.canonicalize().unwrap();
            let message = format!("TensorRT EP could not deserialize engine from cache: {}", engine.display());
            let forgotten = forget_engine(&LoadError::Session { path: "a".into(), message }, cache);
            assert_eq!(forgotten, !engine.exists());
            forgotten
        };
        assert!(forget(&inside, Some(cache.as_path())));
        assert!(!forget(&outside, Some(cache.as_path())));
        assert!(!forget(&inside, None));
        let other = LoadError::Session { path: "a".into(), message: format!("{} is bad", inside.display()) };
        assert!(!forget_engine(&other, Some(&cache)));
    }

    #[test]
    fn a_profile_of_ours_is_taken_back_where_the_graph_comes_in_pieces() {
        let toml = |options: &str| {
            let setting = format!("engine.providers=[{{ name = \"tensorrt\", options = {{ {options} }} }}]");
            let overrides = crate::config::Overrides { settings: vec![setting], ..Default::default() };
            crate::config::Config::load(&overrides).unwrap().0.engine
        };
        let error = |message: &str| LoadError::Session { path: "a".into(), message: message.to_owned() };
        let in_pieces =
            error("Following input(s) has no associated shape profiles provided: /model/layers.0/Add_output_0");
        let changed = without_profile(&in_pieces, &toml("")).unwrap();
        let ProviderConfig { options, .. } = &changed.providers[0];
        assert_eq!(options.get(MIN_SHAPES).map(String::as_str), Some(""));
        assert!(without_profile(&in_pieces, &changed).is_none(), "it is tried once");
        assert!(without_profile(&in_pieces, &toml("trt_profile_min_shapes = \"a:1\"")).is_none());
        assert!(without_profile(&error("out of memory"), &toml("")).is_none());
    }
}
