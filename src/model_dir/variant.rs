//! Which graphs a folder or a repository holds, and which of them is taken. Nothing is read here: both are lists of paths.

use std::{cmp::Reverse, collections::BTreeMap};

/// A path with `/` between its parts, relative to the folder or repository, and its size in bytes.
pub type ListedFile = (String, u64);

/// One graph, and the files that it needs beside those of its folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variant {
    /// By the end of the graph's name (`fp32`, `q4f16` …); `genai` in a folder of the GenAI model builder. What is not at
    /// the top has its folder's path before it, or in place of `genai`.
    pub name: String,
    /// The folder with `config.json` and the tokenizer; empty for the top.
    pub dir: String,
    /// The graph's path.
    pub graph: String,
    /// Paths of the weights that are not in the graph's own file.
    pub external_data: Vec<String>,
    /// Size of the graph and its external data.
    pub bytes: u64,
}

/// What a graph is to run on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Device {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// CUDA or TensorRT.
    Gpu,
}

/// What a graph is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// By name; `None` takes the best.
    pub variant: Option<&'a str>,
    /// Where it is to run.
    pub device: Device,
    /// What the weights may need of; `None` where that is not known.
    pub memory_bytes: Option<u64>,
}

impl Target<'_> {
    /// The best graph for a CPU, however large.
    pub const CPU: Target<'static> = Target { variant: None, device: Device::Cpu, memory_bytes: None };
}

/// Why no variant can be taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VariantError {
    /// There is nothing to choose from.
    #[error(
        "there is no ONNX graph of a language model (such as onnx/model.onnx); export one with Optimum or the GenAI model builder"
    )]
    NoGraph,
    /// None is called so.
    #[error("there is no variant `{wanted}`; there are {there}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Names and sizes.
        there: String,
    },
    /// Several are called so.
    #[error("the variant `{wanted}` could be any of {there}; write one of these names")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Names and sizes.
        there: String,
    },
}

/// Names without the ending, the most wanted first.
const GRAPHS: [&str; 2] = ["model", "decoder_model_merged"];
/// A half of a model, as Optimum wrote them until 2023.
const WITH_PAST: &str = "decoder_with_past_model.onnx";
/// What the GenAI model builder writes beside its graph.
const GENAI_CONFIG: &str = "genai_config.json";
const GENAI: &str = "genai";
/// The ending of [`QUANTIZED`] is what transformers.js loads for its type `q8`.
const QUANTIZED: &str = "quantized";
const Q8: &str = "q8";

/// Most wanted first. A CPU multiplies 4-bit blocks fastest and computes with halves slowly.
const ON_CPU: [&str; 8] = ["q4", QUANTIZED, "int8", "uint8", "fp32", "q4f16", "fp16", "bnb4"];
/// A GPU has the best quality at full speed in halves; it has no fast kernels for dynamically quantized 8-bit products.
const ON_GPU: [&str; 8] = ["fp16", "q4f16", "fp32", "q4", "bnb4", QUANTIZED, "int8", "uint8"];
/// Words in paths of the GenAI model builder's folders, and devices that ortolan does not run on.
const CPU_FOLDER: &str = "cpu";
const GPU_FOLDER: &str = "cuda";
const OTHER_FOLDERS: [&str; 7] = ["directml", "dml", "webgpu", "npu", "qnn", "openvino", "vitisai"];

impl Variant {
    /// Its name where its own folder is the top.
    pub fn name_in_dir(&self) -> &str {
        match self.name.strip_prefix(self.dir.as_str()) {
            Some("") => GENAI,
            Some(rest) => rest.trim_start_matches('/'),
            None => &self.name,
        }
    }
}

/// All of them, by name.
pub fn variants(files: &[ListedFile]) -> Vec<Variant> {
    let mut found: BTreeMap<String, Variant> = BTreeMap::new();
    let mut graphs: Vec<&str> =
        files.iter().map(|(path, _)| path.as_str()).filter(|path| is_graph(path, files)).collect();
    // The same name twice is kept once: what lies in `onnx/` is before what lies beside it, `model` before other names.
    graphs.sort_by_key(|path| (Reverse(split(path).0.ends_with("onnx")), priority(path), *path));
    for graph in graphs {
        let variant = variant(graph, files);
        found.entry(variant.name.clone()).or_insert(variant);
    }
    found.into_values().collect()
}

/// The variant that `wanted` names; without a name the best one for the device that fits in its memory, else the smallest.
///
/// # Errors
/// Each is one sentence for the operator.
pub fn choose(files: &[ListedFile], target: &Target<'_>) -> Result<Variant, VariantError> {
    let variants = variants(files);
    if variants.is_empty() {
        return Err(VariantError::NoGraph);
    }
    if let Some(wanted) = target.variant {
        return named(&variants, wanted);
    }
    // Weights are not all that memory is needed for.
    let fits = |variant: &Variant| target.memory_bytes.is_none_or(|memory| variant.bytes <= memory / 5 * 4);
    let best = |variant: &&Variant| (rank(variant, target.device), Reverse(variant.bytes));
    let chosen = variants.iter().filter(|variant| fits(variant)).min_by_key(best);
    let chosen = chosen.or_else(|| variants.iter().min_by_key(|variant| (is_foreign(variant), variant.bytes)));
    chosen.cloned().ok_or(VariantError::NoGraph)
}

/// Names and sizes, for a person to choose from.
pub fn list<'v>(variants: impl IntoIterator<Item = &'v Variant>) -> String {
    let texts: Vec<String> =
        variants.into_iter().map(|variant| format!("{} ({})", variant.name, size(variant.bytes))).collect();
    texts.join(", ")
}

/// As people write sizes of files.
pub fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| *unit <= bytes) {
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

fn named(variants: &[Variant], wanted: &str) -> Result<Variant, VariantError> {
    let wanted = wanted.trim_matches('/');
    let name = if wanted == Q8 { QUANTIZED } else { wanted };
    let is_called = |variant: &&Variant| {
        let before = variant.name.strip_suffix(name);
        variant.dir == name || before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    };
    let exact = variants.iter().find(|variant| variant.name == name);
    let called: Vec<&Variant> = exact.map_or_else(|| variants.iter().filter(is_called).collect(), |exact| vec![exact]);
    match called[..] {
        [variant] => Ok(variant.clone()),
        [] => Err(VariantError::Unknown { wanted: wanted.to_owned(), there: list(variants) }),
        [..] => Err(VariantError::Ambiguous { wanted: wanted.to_owned(), there: list(called) }),
    }
}

/// Lower is better.
fn rank(variant: &Variant, device: Device) -> (bool, usize) {
    let (order, own_folder, other_folder) = match device {
        Device::Cpu => (ON_CPU, CPU_FOLDER, GPU_FOLDER),
        Device::Gpu => (ON_GPU, GPU_FOLDER, CPU_FOLDER),
    };
    let kind = variant.name.rsplit('/').next().unwrap_or_default();
    let position = order.iter().position(|name| *name == kind).map(|position| position + 1);
    let by_folder = match variant.dir.as_str() {
        dir if has_word(dir, own_folder) => 0,
        dir if has_word(dir, other_folder) => order.len() + 2,
        _ => order.len() + 1,
    };
    (is_foreign(variant), position.unwrap_or(by_folder))
}

fn is_foreign(variant: &Variant) -> bool {
    OTHER_FOLDERS.iter().any(|name| has_word(&variant.dir, name))
}

fn has_word(path: &str, word: &str) -> bool {
    path.split(|other: char| !other.is_ascii_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
}

fn is_graph(path: &str, files: &[ListedFile]) -> bool {
    let (dir, name) = split(path);
    let Some(stem) = name.strip_suffix(".onnx") else { return false };
    let is_model = |path: &str| path.strip_suffix(".onnx").is_some_and(|stem| ending(stem).is_some());
    // The GenAI model builder's graph may have any name, which stands in its config; so may one that has no other beside it.
    ending(stem).is_some()
        || is_genai(dir, files) && !files.iter().any(|(path, _)| split(path).0 == dir && is_model(split(path).1))
        || name != WITH_PAST && !files.iter().any(|(other, _)| other != path && other.ends_with(".onnx"))
}

fn variant(graph: &str, files: &[ListedFile]) -> Variant {
    let (graph_dir, name) = split(graph);
    let dir = match split(graph_dir) {
        (above, "onnx") => above,
        _ => graph_dir,
    };
    let stem = name.strip_suffix(".onnx").unwrap_or(name);
    let name = match ending(stem) {
        _ if is_genai(graph_dir, files) => if dir.is_empty() { GENAI } else { dir }.to_owned(),
        ending => {
            let kind = ending.filter(|ending| !ending.is_empty()).unwrap_or("fp32");
            if dir.is_empty() { kind.to_owned() } else { format!("{dir}/{kind}") }
        }
    };
    let belongs = |path: &str| path.strip_prefix(graph).is_some_and(is_external_data);
    let external_data = files.iter().filter(|(path, _)| belongs(path));
    let bytes = files.iter().filter(|(path, _)| path == graph || belongs(path)).map(|(_, bytes)| bytes);
    Variant {
        name,
        dir: dir.to_owned(),
        graph: graph.to_owned(),
        external_data: external_data.map(|(path, _)| path.clone()).collect(),
        bytes: bytes.fold(0, |sum, bytes| sum.saturating_add(*bytes)),
    }
}

/// What follows the graph's name: `.data`, `_data`, `_data_1` …
fn is_external_data(rest: &str) -> bool {
    let Some(number) = rest.strip_prefix(['.', '_']).and_then(|rest| rest.strip_prefix("data")) else { return false };
    let digits = number.strip_prefix('_');
    number.is_empty()
        || digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

/// `q4` of `model_q4`, nothing of `model`; none where it is no language model's graph.
fn ending(stem: &str) -> Option<&str> {
    let rest = GRAPHS.iter().find_map(|name| stem.strip_prefix(name))?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('_').filter(|ending| !ending.is_empty()) }
}

/// Whether `model` comes first.
fn priority(path: &str) -> usize {
    let name = split(path).1;
    GRAPHS.iter().position(|graph| name.starts_with(graph)).unwrap_or(GRAPHS.len())
}

fn is_genai(dir: &str, files: &[ListedFile]) -> bool {
    files.iter().any(|(path, _)| split(path) == (dir, GENAI_CONFIG))
}

/// Folder and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[(&str, u64)]) -> Vec<ListedFile> {
        sizes.iter().map(|(path, mib)| ((*path).to_owned(), mib << 20)).collect()
    }

    /// As transformers.js has them.
    fn community() -> Vec<ListedFile> {
        files(&[
            ("config.json", 0),
            ("onnx/model.onnx", 1),
            ("onnx/model.onnx_data", 2000),
            ("onnx/model.onnx_data_1", 400),
            ("onnx/model_fp16.onnx", 1200),
            ("onnx/model_q4.onnx", 900),
            ("onnx/model_q4f16.onnx", 1),
            ("onnx/model_q4f16.onnx_data", 500),
            ("onnx/model_quantized.onnx", 600),
            ("tokenizer.json", 11),
        ])
    }

    /// As the GenAI model builder's repositories have them.
    fn genai() -> Vec<ListedFile> {
        files(&[
            ("cpu_and_mobile/cpu-int4-awq-block-128/genai_config.json", 0),
            ("cpu_and_mobile/cpu-int4-awq-block-128/phi3.onnx", 1),
            ("cpu_and_mobile/cpu-int4-awq-block-128/phi3.onnx.data", 2500),
            ("cpu_and_mobile/cpu-int4-rtn/genai_config.json", 0),
            ("cpu_and_mobile/cpu-int4-rtn/model.onnx", 1),
            ("cpu_and_mobile/cpu-int4-rtn/model.onnx.data", 2600),
            ("cuda/cuda-fp16/genai_config.json", 0),
            ("cuda/cuda-fp16/model.onnx", 1),
            ("cuda/cuda-fp16/model.onnx.data", 7000),
            ("directml/directml-int4/genai_config.json", 0),
            ("directml/directml-int4/model.onnx", 100),
        ])
    }

    fn chosen(files: &[ListedFile], device: Device, memory_gib: u64) -> String {
        choose(files, &Target { variant: None, device, memory_bytes: Some(memory_gib << 30) }).unwrap().name
    }

    fn wanted(files: &[ListedFile], wanted: &str) -> Result<String, String> {
        let chosen = choose(files, &Target { variant: Some(wanted), ..Target::CPU });
        chosen.map(|variant| variant.graph).map_err(|error| error.to_string())
    }

    #[test]
    fn a_variant_has_its_external_data_and_nobody_elses() {
        let variant = choose(&community(), &Target { variant: Some("fp32"), ..Target::CPU }).unwrap();
        assert_eq!(variant.external_data, ["onnx/model.onnx_data", "onnx/model.onnx_data_1"]);
        assert_eq!((variant.dir.as_str(), variant.bytes), ("", 2401 << 20));
        let data = [".data", "_data", "_data_0", "_data_12", "", "_data_", "_data_x", ".data.json", "x_data"];
        let found: Vec<&str> = data.into_iter().filter(|rest| is_external_data(rest)).collect();
        assert_eq!(found, [".data", "_data", "_data_0", "_data_12"]);
    }

    #[test]
    fn the_best_for_the_device_that_fits_is_chosen() {
        assert_eq!(chosen(&community(), Device::Cpu, 16), "q4");
        assert_eq!(chosen(&community(), Device::Gpu, 16), "fp16");
        assert_eq!(chosen(&community(), Device::Gpu, 1), "q4f16");
        assert_eq!(chosen(&community(), Device::Cpu, 0), "q4f16", "the smallest where none fits");
        assert_eq!(chosen(&genai(), Device::Cpu, 16), "cpu_and_mobile/cpu-int4-rtn");
        assert_eq!(chosen(&genai(), Device::Gpu, 16), "cuda/cuda-fp16");
        assert_eq!(chosen(&genai(), Device::Gpu, 4), "cpu_and_mobile/cpu-int4-rtn");
        assert_eq!(chosen(&genai(), Device::Cpu, 0), "cpu_and_mobile/cpu-int4-awq-block-128");
    }

    #[test]
    fn a_variant_is_named_by_ending_or_by_folder() {
        assert_eq!(wanted(&community(), "q8").unwrap(), "onnx/model_quantized.onnx");
        assert_eq!(wanted(&genai(), "cuda-fp16").unwrap(), "cuda/cuda-fp16/model.onnx");
        assert_eq!(
            wanted(&genai(), "cpu_and_mobile/cpu-int4-awq-block-128/").unwrap(),
            "cpu_and_mobile/cpu-int4-awq-block-128/phi3.onnx"
        );
        let top =
            files(&[("model.onnx", 1), ("onnx/model.onnx", 2), ("small/model_q4.onnx", 1), ("large/model_q4.onnx", 3)]);
        assert_eq!(wanted(&top, "fp32").unwrap(), "onnx/model.onnx");
        assert_eq!(wanted(&top, "large").unwrap(), "large/model_q4.onnx");
        insta::assert_snapshot!(wanted(&top, "q4").unwrap_err(), @"the variant `q4` could be any of large/q4 (3.0 MiB), small/q4 (1.0 MiB); write one of these names");
        insta::assert_snapshot!(wanted(&community(), "int4").unwrap_err(), @"there is no variant `int4`; there are fp16 (1.1 GiB), fp32 (2.3 GiB), q4 (900.0 MiB), q4f16 (501.0 MiB), quantized (600.0 MiB)");
        insta::assert_snapshot!(wanted(&files(&[("model.safetensors", 9)]), "q4").unwrap_err(), @"there is no ONNX graph of a language model (such as onnx/model.onnx); export one with Optimum or the GenAI model builder");
    }

    #[test]
    fn a_graph_without_another_may_have_any_name() {
        let graph = |paths: &[&str]| {
            let there: Vec<_> = paths.iter().map(|path| (*path, 1)).collect();
            variants(&files(&there)).first().map(|variant| variant.graph.clone())
        };
        assert_eq!(graph(&["config.json", "qwen3-0.6b.onnx"]).as_deref(), Some("qwen3-0.6b.onnx"));
        assert_eq!(graph(&["qwen3-0.6b.onnx", "vision_encoder.onnx"]), None);
        assert_eq!(graph(&["onnx/model.onnx", "vision_encoder.onnx"]).as_deref(), Some("onnx/model.onnx"));
        assert_eq!(graph(&["decoder_with_past_model.onnx"]), None);
    }

    #[test]
    fn a_folder_can_be_taken_for_itself() {
        let in_dir = |files: &[ListedFile], wanted: &str| {
            choose(files, &Target { variant: Some(wanted), ..Target::CPU }).unwrap().name_in_dir().to_owned()
        };
        assert_eq!(in_dir(&community(), "q4"), "q4");
        assert_eq!(in_dir(&genai(), "cuda-fp16"), "genai");
        assert_eq!(in_dir(&files(&[("small/onnx/model_q4.onnx", 1)]), "q4"), "q4");
        assert_eq!(in_dir(&files(&[("genai_config.json", 0), ("model.onnx", 1)]), "genai"), "genai");
    }

    #[test]
    fn other_graphs_of_a_repository_are_no_variants() {
        let vision = files(&[
            ("onnx/decoder_model_merged_q4.onnx", 9),
            ("onnx/vision_encoder_q4.onnx", 9),
            ("onnx/embed_tokens_q4.onnx", 9),
            ("onnx/modeling.onnx", 9),
        ]);
        assert_eq!(list(&variants(&vision)), "q4 (9.0 MiB)");
        let genai = files(&[("genai_config.json", 0), ("model.onnx", 1), ("vision.onnx", 1)]);
        assert_eq!(list(&variants(&genai)), "genai (1.0 MiB)");
    }

    #[test]
    fn sizes_are_rounded_down() {
        let sizes = [0, 1023, 1024, 1536, (1 << 30) - 1, u64::MAX];
        assert_eq!(sizes.map(size).join(", "), "0 B, 1023 B, 1.0 KiB, 1.5 KiB, 1023.9 MiB, 17179869183.9 GiB");
    }
}
