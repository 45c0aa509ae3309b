//! `[engine]`

use super::{GraphEdits, ProviderConfig};
use serde::Deserialize;
use std::num::NonZeroU32;

/// Limits and devices of one model's engine. Zero is not a value any of the limits can hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Sequences that run at once; also the number of KV slots.
    pub max_batch_size: NonZeroU32,
    /// Requests that may wait for a slot; more are refused with 429.
    pub max_waiting: NonZeroU32,
    /// Tokens of the prompts that wait, all together; more are refused with 429.
    pub max_waiting_tokens: NonZeroU32,
    /// Prompt and reply together, at most what the model itself allows.
    pub max_context_tokens: NonZeroU32,
    /// Tokens computed in one step by all sequences together; longer prompts are computed in chunks. 0 leaves it to the
    /// provider.
    pub max_step_tokens: u32,
    /// What a run of the graph costs beside its tokens, as a number of tokens: decides which rows share a run. 0 leaves it
    /// to the provider.
    pub run_overhead_tokens: u32,
    /// Whether a request goes on from what earlier ones with the same beginning have computed.
    pub prefix_cache: bool,
    /// Tokens guessed ahead in one step where the reply repeats what was said before; 0 guesses none.
    pub max_draft_tokens: u32,
    /// What is changed in the graph when it is loaded.
    pub graph_edits: GraphEdits,
    /// Where the best scores are found in the graph, so that the others stay on the device.
    pub top_scores: TopScoresIn,
    /// Whether steps that recur are captured and replayed on the device instead of being launched operator by operator.
    pub cuda_graphs: bool,
    /// Of the device's memory that is free once the weights are there, how much is taken for blocks of keys and values.
    pub memory_share: f32,
    /// Threads that ONNX Runtime computes one operator with; 0 takes one for each core that the process may use.
    pub intra_op_threads: usize,
    /// Cores of each of these threads but the first, as ONNX Runtime spells them; empty pins none.
    pub intra_op_affinity: String,
    /// Let idle threads spin between operators: faster steps, a busy core.
    pub spin: bool,
    /// Threads that draw the tokens of many sequences at once; 0 takes one for each core that the process may use, at most 8;
    /// 1 never starts any.
    pub sampling_threads: usize,
    /// Where to run, most wanted first.
    pub providers: Vec<ProviderConfig>,
    /// Run on the CPU when a provider cannot be loaded, instead of failing to load the model.
    pub fallback: bool,
}

/// Devices on which a graph finds its best scores itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum TopScoresIn {
    /// Where scores would have to cross a bus.
    Gpu,
    /// Also on a CPU, which gains nothing by it.
    Always,
    /// All scores of all rows come to the host.
    Never,
}
