//! Why a model cannot be loaded or run.

use super::{CanaryError, Fault, ProviderName};
use std::path::PathBuf;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    message: String,
    fault: Fault,
}

impl ModelError {
    /// In the backend's words, by which the fault is known.
    pub fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { fault: Fault::of(&message), message }
    }

    /// What it means for the runs that follow.
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

impl From<ort::Error> for ModelError {
    fn from(error: ort::Error) -> Self {
        // Where it says so may say why.
        Self { message: words(&error), fault: Fault::of(&error.to_string()) }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operator should fetch the library.
    #[error(
        "the ONNX Runtime library was not found (looked for {}); run scripts/fetch-runtime, or set `runtime.library` to \
         the path of libonnxruntime.so", list(.searched)
    )]
    LibraryMissing {
        /// In the order of the search.
        searched: Vec<PathBuf>,
    },
    /// The operator should replace the library.
    #[error(
        "the ONNX Runtime library cannot be used: {message}; run scripts/fetch-runtime, or set `runtime.library` to \
         another one"
    )]
    LibraryUnusable {
        /// In the loader's words.
        message: String,
    },
    /// The operator should install what the provider needs, or ask for another one.
    #[error(
        "the execution provider `{name}` cannot be loaded: {message}; {advice}, or set `engine.fallback = true` to run on the CPU"
    )]
    Provider {
        /// As in the config.
        name: ProviderName,
        /// What is wrong.
        message: String,
        /// What mends it.
        advice: String,
    },
    /// The operator should look at the model file.
    #[error("the model {} cannot be loaded: {message}", path.display())]
    Session {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should replace the library.
    #[error(
        "the model {} needs a newer ONNX Runtime than the one that was loaded: {message}; run scripts/fetch-runtime, or \
         set `runtime.library` to a newer libonnxruntime.so", path.display()
    )]
    RuntimeTooOld {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should take an export for the device.
    #[error("the model {} is made for another device: {message}; take an export for this one", path.display())]
    OtherDevice {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should take another export, or a newer library.
    #[error("the model {} loads but does not run: {message}; take another export, or a newer ONNX Runtime", path.display())]
    Run {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should start again, or look at the device.
    #[error(
        "the device was lost while the model {} was loaded: {message}; start again and, where that ends so too, look at the \
         device and its driver", path.display()
    )]
    DeviceLost {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should ask for less, or take a smaller graph.
    #[error(
        "the model {} does not fit in memory: {message}; {}lower `engine.max_batch_size`, `engine.max_context_tokens` or \
         `engine.max_step_tokens`, or take a smaller variant", path.display(), raise_limit(message)
    )]
    OutOfMemory {
        /// The ONNX file.
        path: PathBuf,
        /// In the runtime's words.
        message: String,
    },
    /// The operator should ask for a shorter context, or give the blocks more.
    #[error(
        "keys and values of one text of {context_tokens} tokens take {num_bytes} bytes, and what `engine.memory_share` \
         leaves them of the memory that is free beside the weights is {share}; lower `engine.max_context_tokens`, raise \
         `engine.memory_share`, or take a smaller variant"
    )]
    Blocks {
        /// That a text may have.
        context_tokens: usize,
        /// Of all blocks of such a text.
        num_bytes: usize,
        /// Bytes that there are for all blocks.
        share: usize,
    },
    /// The operator should ask for fewer slots or a shorter context.
    #[error(
        "the KV cache of {num_bytes} bytes cannot be allocated: {message}; {}lower `engine.max_batch_size` or \
         `engine.max_context_tokens`",
        raise_limit(message)
    )]
    KvCache {
        /// Of all slots together, or all blocks.
        num_bytes: usize,
        /// In the runtime's words.
        message: String,
    },
}

/// What ONNX Runtime says of graphs that are younger than itself.
const TOO_OLD: [&str; 4] =
    ["Unrecognized attribute", "is not a registered function/op", "Unsupported model IR version", "opset version"];

/// What it says of types that it has no kernels for on its providers, such as bfloat16 on a CPU.
const NO_KERNEL: &str = "Could not find an implementation for";

/// What its kernels for CPUs say, not before they run, of what only those for GPUs can do, such as the norms of queries and
/// keys in `GroupQueryAttention`.
const ONLY_ON_GPUS: &str = "implemented only on the CUDA";

impl LoadError {
    /// A graph that the runtime does not take.
    pub(super) fn session(path: PathBuf, error: &ort::Error) -> Self {
        let message = words(error);
        match TOO_OLD.iter().find_map(|phrase| message.find(phrase)) {
            Some(place) => Self::RuntimeTooOld { path, message: message[place..].to_owned() },
            None if message.contains(NO_KERNEL) => Self::OtherDevice { path, message },
            None => match Fault::of(&message) {
                Fault::OutOfMemory => Self::OutOfMemory { path, message },
                Fault::DeviceLost => Self::DeviceLost { path, message },
                Fault::Other => Self::Session { path, message },
            },
        }
    }
}

impl LoadError {
    /// A graph whose first token is not computed, or not right.
    pub(super) fn first_token(path: PathBuf, error: &CanaryError) -> Self {
        let message = error.to_string();
        match error {
            CanaryError::Run(error) if error.fault() == Fault::OutOfMemory => Self::OutOfMemory { path, message },
            CanaryError::Run(error) if error.fault() == Fault::DeviceLost => Self::DeviceLost { path, message },
            CanaryError::Run(_) if message.contains(ONLY_ON_GPUS) => {
                Self::OtherDevice { path, message: kernel_words(&message) }
            }
            CanaryError::Run(_)
            | CanaryError::NotFinite { .. }
            | CanaryError::AllAlike
            | CanaryError::Changed { .. } => Self::Run { path, message },
        }
    }
}

/// What a kernel says, without which node of the graph it is.
fn kernel_words(message: &str) -> String {
    let words = message.rsplit_once("Status Message: ").map_or(message, |(_, words)| words);
    words.trim_end_matches('.').to_owned()
}

/// What its arena says where memory is there that the config does not let it have.
const BEYOND_LIMIT: &str = "is smaller than requested bytes of";

fn raise_limit(message: &str) -> &'static str {
    if message.contains(BEYOND_LIMIT) { "raise the provider's `gpu_mem_limit`, " } else { "" }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What ONNX Runtime says, without where in its own source it says so.
pub(super) fn words(error: &ort::Error) -> String {
    without_place(&error.to_string())
}

/// Keeps the end of `file:line function [ONNXRuntimeError] : code : NAME : words`.
fn without_place(message: &str) -> String {
    let after_name = message.split_once("[ONNXRuntimeError]").and_then(|(_, rest)| rest.splitn(4, " : ").nth(3));
    after_name.unwrap_or(message).trim().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_apart_from_what_does_not_run() {
        let error = |message: &str| LoadError::first_token("FILE".into(), &ModelError::new(message).into()).to_string();
        insta::assert_snapshot!(error("CUDA failure 2: out of memory"), @"the model FILE does not fit in memory: CUDA failure 2: out of memory; lower `engine.max_batch_size`, `engine.max_context_tokens` or `engine.max_step_tokens`, or take a smaller variant");
        insta::assert_snapshot!(error("Available memory of 1 is smaller than requested bytes of 2"), @"the model FILE does not fit in memory: Available memory of 1 is smaller than requested bytes of 2; raise the provider's `gpu_mem_limit`, lower `engine.max_batch_size`, `engine.max_context_tokens` or `engine.max_step_tokens`, or take a smaller variant");
        let cache = LoadError::KvCache {
            num_bytes: 2,
            message: "Available memory of 1 is smaller than requested bytes of 2".into(),
        };
        insta::assert_snapshot!(cache, @"the KV cache of 2 bytes cannot be allocated: Available memory of 1 is smaller than requested bytes of 2; raise the provider's `gpu_mem_limit`, lower `engine.max_batch_size` or `engine.max_context_tokens`");
        insta::assert_snapshot!(error("while running X. Status Message: Y (CPU): a is not supported. It is implemented only on the CUDA EP."), @"the model FILE is made for another device: Y (CPU): a is not supported. It is implemented only on the CUDA EP; take an export for this one");
        insta::assert_snapshot!(error("CUDA failure 700: an illegal memory access was encountered"), @"the device was lost while the model FILE was loaded: CUDA failure 700: an illegal memory access was encountered; start again and, where that ends so too, look at the device and its driver");
        insta::assert_snapshot!(error("no"), @"the model FILE loads but does not run: no; take another export, or a newer ONNX Runtime");
    }

    #[test]
    fn only_the_words_are_left() {
        let long = "/src/bridge.cc:2043 Provider& Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load a.so: b : c\n";
        assert_eq!(without_place(long), "Failed to load a.so: b : c");
        assert_eq!(without_place("plain"), "plain");
    }
}
