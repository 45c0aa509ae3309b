//! The options that ONNX Runtime 1.31 has for its providers, and what each may be set to.
//!
//! Checked here because ONNX Runtime says of a value that it cannot read only what the default was.

use super::ProviderName;

/// One option.
struct ProviderOption {
    key: &'static str,
    kind: Kind,
    /// Completes "which is".
    meaning: &'static str,
}

/// What an option may be set to.
#[derive(Clone, Copy)]
enum Kind {
    Switch,
    /// At least so much.
    Whole(i64),
    /// A number of bytes, which may have a unit.
    Size,
    OneOf(&'static [&'static str]),
    Text,
    /// For a program that links ONNX Runtime: an address in its memory.
    Address,
}

const fn option(key: &'static str, kind: Kind, meaning: &'static str) -> ProviderOption {
    ProviderOption { key, kind, meaning }
}

const CUDA: &[ProviderOption] = &[
    option("device_id", Kind::Whole(0), "the number of the GPU, from 0"),
    option("gpu_mem_limit", Kind::Size, "the most memory that it takes for weights, KV cache and runs"),
    option("arena_extend_strategy", Kind::OneOf(&["kNextPowerOfTwo", "kSameAsRequested"]), "how its arena grows"),
    option("use_tf32", Kind::Switch, "whether float32 products are rounded to 10 bits, for speed"),
    option(
        "sdpa_kernel",
        Kind::Whole(0),
        "a bit mask of the attention kernels that may be taken; 0 leaves it to the runtime",
    ),
    option("prefer_nhwc", Kind::Switch, "whether convolutions run with channels last"),
    option("fuse_conv_bias", Kind::Switch, "whether convolutions add their bias at once"),
    option(
        "cudnn_conv_algo_search",
        Kind::OneOf(&["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
        "how kernels of convolutions are chosen",
    ),
    option("cudnn_conv_use_max_workspace", Kind::Switch, "whether convolutions may take all the memory that they want"),
    option(
        "cudnn_conv1d_pad_to_nc1d",
        Kind::Switch,
        "on which side one-dimensional convolutions get a second dimension",
    ),
    option("enable_cudnn", Kind::Switch, "whether cuDNN is used where it is installed"),
    option(
        "enable_cuda_graph",
        Kind::Switch,
        "whether runs are captured and replayed, which needs inputs of one shape",
    ),
    option(
        "enable_skip_layer_norm_strict_mode",
        Kind::Switch,
        "whether layer norms are computed more exactly and slower",
    ),
    option("do_copy_in_default_stream", Kind::Switch, "whether copies wait for the computation"),
    option("use_ep_level_unified_stream", Kind::Switch, "whether all runs of a session share one stream"),
    option("tunable_op_enable", Kind::Switch, "whether measured choices of kernels are used"),
    option("tunable_op_tuning_enable", Kind::Switch, "whether kernels are measured while they run"),
    option(
        "tunable_op_max_tuning_duration_ms",
        Kind::Whole(0),
        "milliseconds to measure one kernel for; 0 sets no limit",
    ),
    option("external_data_loader_reading_threads", Kind::Whole(0), "the threads that read the weights"),
    option("user_compute_stream", Kind::Address, ""),
    option("has_user_compute_stream", Kind::Address, ""),
    option("gpu_external_alloc", Kind::Address, ""),
    option("gpu_external_free", Kind::Address, ""),
    option("gpu_external_empty_cache", Kind::Address, ""),
];

const TENSORRT: &[ProviderOption] = &[
    option("device_id", Kind::Whole(0), "the number of the GPU, from 0"),
    option("trt_max_workspace_size", Kind::Size, "the most memory that a kernel may take beside its data"),
    option(
        "trt_max_partition_iterations",
        Kind::Whole(1),
        "how often the graph is divided anew to find what TensorRT takes",
    ),
    option("trt_min_subgraph_size", Kind::Whole(1), "the fewest operators that are given to TensorRT together"),
    option("trt_op_types_to_exclude", Kind::Text, "operators that TensorRT is not given, with commas between"),
    option("trt_fp16_enable", Kind::Switch, "whether it may compute in half precision"),
    option("trt_bf16_enable", Kind::Switch, "whether it may compute in bfloat16"),
    option("trt_int8_enable", Kind::Switch, "whether it may compute in 8-bit integers"),
    option("trt_int8_calibration_table_name", Kind::Text, "a file with the ranges of activations"),
    option("trt_int8_use_native_calibration_table", Kind::Switch, "whether that file is TensorRT's own"),
    option("trt_layer_norm_fp32_fallback", Kind::Switch, "whether layer norms keep single precision"),
    option("trt_engine_cache_enable", Kind::Switch, "whether what was built is kept on disk"),
    option("trt_engine_cache_path", Kind::Text, "the folder where it is kept"),
    option("trt_engine_cache_prefix", Kind::Text, "how the names of its files begin"),
    option("trt_engine_hw_compatible", Kind::Switch, "whether it also runs on newer GPUs, at some cost"),
    option("trt_weight_stripped_engine_enable", Kind::Switch, "whether it is kept without weights"),
    option("trt_onnx_model_folder_path", Kind::Text, "the folder that it then gets its weights from"),
    option("trt_load_user_initializer", Kind::Switch, "whether weights are taken from memory"),
    option("trt_engine_decryption_enable", Kind::Switch, "whether what is kept is encrypted"),
    option("trt_engine_decryption_lib_path", Kind::Text, "the library that decrypts it"),
    option("trt_timing_cache_enable", Kind::Switch, "whether what was measured is kept on disk"),
    option("trt_timing_cache_path", Kind::Text, "the folder where that is kept"),
    option(
        "trt_force_timing_cache",
        Kind::Switch,
        "whether measurements of another GPU of the same generation are used",
    ),
    option(
        "trt_profile_min_shapes",
        Kind::Text,
        "the smallest shapes, as input:1x1,input2:1x8x1x64; empty leaves all shapes to be found out",
    ),
    option("trt_profile_opt_shapes", Kind::Text, "the shapes to be fastest at"),
    option("trt_profile_max_shapes", Kind::Text, "the largest shapes"),
    option("trt_builder_optimization_level", Kind::Whole(0), "how long it looks for fast kernels, from 0 to 5"),
    option("trt_build_heuristics_enable", Kind::Switch, "whether it guesses in place of measuring"),
    option("trt_sparsity_enable", Kind::Switch, "whether it may use zeros in weights"),
    option("trt_tactic_sources", Kind::Text, "the libraries that it takes kernels from"),
    option("trt_preview_features", Kind::Text, "features of TensorRT that are not final"),
    option("trt_extra_plugin_lib_paths", Kind::Text, "libraries with more operators"),
    option("trt_auxiliary_streams", Kind::Whole(-1), "how many streams beside the main one; -1 leaves it to TensorRT"),
    option(
        "trt_cuda_graph_enable",
        Kind::Switch,
        "whether runs are captured and replayed, which needs inputs of one shape",
    ),
    option("trt_context_memory_sharing_enable", Kind::Switch, "whether its parts share their memory"),
    option("trt_force_sequential_engine_build", Kind::Switch, "whether engines for several GPUs are built one by one"),
    option("trt_dla_enable", Kind::Switch, "whether the accelerator of a Jetson is used"),
    option("trt_dla_core", Kind::Whole(0), "which one of them"),
    option("trt_dump_subgraphs", Kind::Switch, "whether what TensorRT is given is written to the working directory"),
    option("trt_detailed_build_log", Kind::Switch, "whether building is logged at length"),
    option("trt_dump_ep_context_model", Kind::Switch, "whether a graph with the built engine in it is written"),
    option("trt_ep_context_file_path", Kind::Text, "where that graph is written"),
    option(
        "trt_ep_context_embed_mode",
        Kind::Whole(0),
        "0 for the path of the engine in that graph, 1 for the engine itself",
    ),
    option("user_compute_stream", Kind::Address, ""),
    option("has_user_compute_stream", Kind::Address, ""),
    option("trt_onnx_bytestream", Kind::Address, ""),
    option("trt_onnx_bytestream_size", Kind::Address, ""),
    option("trt_external_data_bytestream", Kind::Address, ""),
    option("trt_external_data_bytestream_size", Kind::Address, ""),
];

impl ProviderName {
    /// The value as ONNX Runtime wants it spelled.
    ///
    /// # Errors
    /// There is no such option, or not of this value: a sentence that says what there is.
    pub fn check_option(self, key: &str, value: &str) -> Result<String, String> {
        let known = match self {
            Self::Cpu => return Err(format!("the provider `cpu` has no options; leave `{key}` out")),
            Self::Cuda => CUDA,
            Self::TensorRt => TENSORRT,
        };
        let Some(option) = known.iter().find(|option| option.key == key) else {
            return Err(
                match [(Self::Cuda, CUDA), (Self::TensorRt, TENSORRT)].iter().find(|(_, known)| has(known, key)) {
                    Some((other, _)) => format!("`{key}` is an option of `{other}` and not of `{self}`; set it there"),
                    None => unknown(self, key, known),
                },
            );
        };
        let ProviderOption { kind, meaning, .. } = option;
        let wants = |what: &str| format!("`{key}` of `{self}`, which is {meaning}, takes {what}, and not `{value}`");
        match kind {
            Kind::Switch => switch(value).ok_or_else(|| wants("true or false")),
            Kind::Whole(least) => {
                let number =
                    value.parse().ok().filter(|number: &i64| least <= number && *number <= i64::from(i32::MAX));
                number.map(|number| number.to_string()).ok_or_else(|| wants(&format!("a whole number from {least} on")))
            }
            Kind::Size => bytes(value)
                .map(|bytes| bytes.to_string())
                .ok_or_else(|| wants("a number of bytes, or one such as \"20GiB\"")),
            Kind::OneOf(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(value));
                word.map(|word| (*word).to_owned()).ok_or_else(|| wants(&format!("`{}`", words.join("` or `"))))
            }
            Kind::Text if value.contains('\0') => Err(wants("a text without NUL")),
            Kind::Text => Ok(value.to_owned()),
            Kind::Address => Err(format!(
                "`{key}` of `{self}` is an address in a program's memory; ortolan sets it itself, so leave it out"
            )),
        }
    }
}

fn has(known: &[ProviderOption], key: &str) -> bool {
    known.iter().any(|option| option.key == key)
}

fn unknown(provider: ProviderName, key: &str, known: &[ProviderOption]) -> String {
    let settable = known.iter().filter(|option| !matches!(option.kind, Kind::Address));
    let similarity = |option: &&ProviderOption| strsim::normalized_damerau_levenshtein(key, option.key);
    let nearest = settable.max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
    let ProviderOption { key: nearest, meaning, .. } = nearest.expect("each provider has options");
    format!("`{key}` is not an option of `{provider}`; did you mean `{nearest}`, which is {meaning}?")
}

fn switch(value: &str) -> Option<String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Some("1".to_owned()),
        "0" | "false" => Some("0".to_owned()),
        _ => None,
    }
}

/// `20GiB` or `20000000000`.
fn bytes(value: &str) -> Option<u64> {
    let digits = value.len() - value.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| 0 < *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProviderName::{Cpu, Cuda, TensorRt};

    #[test]
    fn values_are_spelled_as_the_runtime_wants_them() {
        let spelled = |provider: ProviderName, key: &str, value: &str| provider.check_option(key, value).unwrap();
        assert_eq!(spelled(Cuda, "device_id", "1"), "1");
        assert_eq!(spelled(Cuda, "gpu_mem_limit", "20GiB"), "21474836480");
        assert_eq!(spelled(Cuda, "gpu_mem_limit", "512 MB"), "512000000");
        assert_eq!(spelled(Cuda, "gpu_mem_limit", "20000000000"), "20000000000");
        assert_eq!(spelled(Cuda, "use_tf32", "False"), "0");
        assert_eq!(spelled(Cuda, "arena_extend_strategy", "ksameasrequested"), "kSameAsRequested");
        assert_eq!(spelled(Cuda, "cudnn_conv_algo_search", "heuristic"), "HEURISTIC");
        assert_eq!(spelled(TensorRt, "trt_auxiliary_streams", "-1"), "-1");
        assert_eq!(spelled(TensorRt, "trt_profile_min_shapes", "input_ids:1x1"), "input_ids:1x1");
        assert_eq!(spelled(TensorRt, "trt_max_workspace_size", "1GB"), "1000000000");
    }

    #[test]
    fn what_the_runtime_would_misread_is_refused() {
        let refusal = |provider: ProviderName, key: &str, value: &str| provider.check_option(key, value).unwrap_err();
        insta::assert_snapshot!(refusal(Cuda, "gpu_memory_limit", "1"), @"`gpu_memory_limit` is not an option of `cuda`; did you mean `gpu_mem_limit`, which is the most memory that it takes for weights, KV cache and runs?");
        insta::assert_snapshot!(refusal(Cuda, "trt_fp16_enable", "1"), @"`trt_fp16_enable` is an option of `tensorrt` and not of `cuda`; set it there");
        insta::assert_snapshot!(refusal(TensorRt, "fp16_enable", "1"), @"`fp16_enable` is not an option of `tensorrt`; did you mean `trt_fp16_enable`, which is whether it may compute in half precision?");
        insta::assert_snapshot!(refusal(Cpu, "device_id", "1"), @"the provider `cpu` has no options; leave `device_id` out");
        insta::assert_snapshot!(refusal(Cuda, "use_tf32", "yes"), @"`use_tf32` of `cuda`, which is whether float32 products are rounded to 10 bits, for speed, takes true or false, and not `yes`");
        insta::assert_snapshot!(refusal(Cuda, "device_id", "-1"), @"`device_id` of `cuda`, which is the number of the GPU, from 0, takes a whole number from 0 on, and not `-1`");
        insta::assert_snapshot!(refusal(Cuda, "device_id", "cuda:0"), @"`device_id` of `cuda`, which is the number of the GPU, from 0, takes a whole number from 0 on, and not `cuda:0`");
        insta::assert_snapshot!(refusal(Cuda, "gpu_mem_limit", "20 gigs"), @r#"`gpu_mem_limit` of `cuda`, which is the most memory that it takes for weights, KV cache and runs, takes a number of bytes, or one such as "20GiB", and not `20 gigs`"#);
        insta::assert_snapshot!(refusal(Cuda, "gpu_mem_limit", "99999999999GiB"), @r#"`gpu_mem_limit` of `cuda`, which is the most memory that it takes for weights, KV cache and runs, takes a number of bytes, or one such as "20GiB", and not `99999999999GiB`"#);
        insta::assert_snapshot!(refusal(Cuda, "arena_extend_strategy", "fast"), @"`arena_extend_strategy` of `cuda`, which is how its arena grows, takes `kNextPowerOfTwo` or `kSameAsRequested`, and not `fast`");
        insta::assert_snapshot!(refusal(Cuda, "user_compute_stream", "1"), @"`user_compute_stream` of `cuda` is an address in a program's memory; ortolan sets it itself, so leave it out");
        assert!(refusal(TensorRt, "trt_engine_cache_prefix", "a\0b").contains("a text without NUL"));
    }

    #[test]
    fn each_option_is_told_once_and_has_a_meaning() {
        for known in [CUDA, TENSORRT] {
            for (index, option) in known.iter().enumerate() {
                assert!(known[..index].iter().all(|before| before.key != option.key), "{} twice", option.key);
                assert_eq!(option.meaning.is_empty(), matches!(option.kind, Kind::Address), "{}", option.key);
            }
        }
    }
}
