//! `[engine]`

use super::ProviderConfig;
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
    /// Prompt and reply together, at most what the model itself allows.
    pub max_context_tokens: NonZeroU32,
    /// Tokens computed in one step by all sequences together; longer prompts are computed in chunks.
    pub max_step_tokens: NonZeroU32,
    /// Threads that ONNX Runtime computes one operator with; 0 leaves the number to ONNX Runtime.
    pub intra_op_threads: usize,
    /// Let idle threads spin between operators: faster steps, a busy core.
    pub spin: bool,
    /// Where to run, most wanted first.
    pub providers: Vec<ProviderConfig>,
    /// Run on the CPU when a provider cannot be loaded, instead of failing to load the model.
    pub fallback: bool,
}
