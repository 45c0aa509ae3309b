//! The seam between deciding what to compute and computing it.

mod canary;
mod capture;
mod concat;
mod cuda_libraries;
mod device;
mod edit;
mod elf;
mod error;
mod external_data;
mod fault;
mod ffi;
mod gqa;
mod graph;
mod inputs;
mod logits;
mod paged;
mod plan;
pub(crate) mod proto;
mod provider;
mod provider_error;
mod provider_options;
mod runtime;
mod sequence_lengths;
mod spec;
mod splice;
mod tensorrt;
mod top_scores;

pub use canary::{Canary, CanaryError};
pub use cuda_libraries::CudaLibrary;
pub use edit::GraphEdits;
pub use error::{LoadError, ModelError};
pub(crate) use external_data::{DataFileError, locate as locate_data_file};
pub use fault::Fault;
pub use logits::{Logits, Scores, TopScores, Wanted};
pub use provider::{ProviderConfig, ProviderName};
pub use runtime::Runtime;
pub(crate) use spec::MAX_CACHE_RANK;
pub use spec::{
    CacheKind, CacheTensor, ElementType, FloatType, GraphFamily, IntType, ModelSpec, NumLogits, PositionIds,
};
pub use top_scores::NUM_TOP_SCORES;

use super::{Batch, EngineConfig, TokenId};
use canary::Watched;
use capture::{Loading, not_capturing};
use concat::ConcatModel;
use gqa::GqaModel;
use graph::Graph;
use paged::PagedModel;
use std::time::Duration;

/// Implemented by one type per graph family and, in tests, by a fake.
pub trait Model: Send {
    /// What it can take.
    fn limits(&self) -> ModelLimits;

    /// Computes every new token of the batch and appends the scores that its rows [want](Wanted), or all of them. A row
    /// starts at 0, at the number of tokens that its slot holds or, where that is
    /// [rewindable](ModelLimits::rewindable_tokens), anywhere in between; what the slot held beyond is forgotten. Slots
    /// without a row keep what they hold.
    ///
    /// # Errors
    /// When the backend fails. What was computed of each row until then is not known; a row that starts where it did is
    /// computed as if nothing had been.
    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError>;

    /// Appends all scores of these rows of the last batch, of which [`forward`](Self::forward) appended the best.
    ///
    /// # Errors
    /// When the backend fails.
    fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        let _ = (batch_rows, logits);
        unreachable!("a model that keeps scores to itself gives them when it is asked")
    }

    /// Time that the backend itself has run so far, the rest of [`forward`](Self::forward) aside.
    fn time_in_runs(&self) -> Duration;

    /// What has crossed the bus so far; nothing where the device is the host.
    fn copied(&self) -> Copied {
        Copied::default()
    }

    /// Makes the slot `to` hold the first `num_tokens` tokens that the slot `from` holds: all of them where these are
    /// not [rewindable](ModelLimits::rewindable_tokens). Only where [`can_move_slots`](ModelLimits::can_move_slots).
    ///
    /// # Errors
    /// When the backend fails; `to` then holds nothing of use.
    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        let _ = (from, to, num_tokens);
        unreachable!("only where slots can be moved")
    }

    /// Exchanges what two slots hold, of which the longer one is `num_tokens`. Only where
    /// [`can_move_slots`](ModelLimits::can_move_slots). Where that fails, so does the next [`forward`](Self::forward).
    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        let _ = (one, other, num_tokens);
        unreachable!("only where slots can be moved")
    }

    /// Overwrites with zeros what a slot holds or, where there are blocks, these: an operator may multiply what it does not
    /// attend to by zero, which is only nothing where that is a number.
    ///
    /// # Errors
    /// When the backend fails.
    fn wipe(&mut self, slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        let _ = (slot_index, blocks);
        Ok(())
    }

    /// What it computed when it was loaded, where an engine is to see from time to time whether it still does.
    fn canary(&self) -> Option<Canary> {
        None
    }
}

impl Model for Box<dyn Model> {
    fn limits(&self) -> ModelLimits {
        (**self).limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        (**self).forward(batch, logits)
    }

    fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        (**self).complete(batch_rows, logits)
    }

    fn time_in_runs(&self) -> Duration {
        (**self).time_in_runs()
    }

    fn copied(&self) -> Copied {
        (**self).copied()
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        (**self).copy_slot(from, to, num_tokens)
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        (**self).swap_slots(one, other, num_tokens);
    }

    fn wipe(&mut self, slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        (**self).wipe(slot_index, blocks)
    }

    fn canary(&self) -> Option<Canary> {
        (**self).canary()
    }
}

/// Bytes between host and device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Copied {
    /// Tokens, lengths and the like.
    pub to_device: u64,
    /// Scores.
    pub to_host: u64,
}

/// What a loaded model can take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ModelLimits {
    /// Scores in a row of logits.
    pub vocab_size: usize,
    /// Prompt and reply together.
    pub context_tokens: usize,
    /// Tokens of prompts that a step had best compute: enough to use the device well, and no more, since replies wait.
    pub chunk_tokens: usize,
    /// A row may start before the end of what its slot holds, and a part of that be copied, where it holds at most so many
    /// tokens. What a slot holds beyond is used whole or not at all.
    pub rewindable_tokens: usize,
    /// Whether rows of a few tokens, all of them scored, run with those of one token, and rewinding costs nothing.
    pub can_verify_drafts: bool,
    /// Whether keys and values can be copied from slot to slot.
    pub can_move_slots: bool,
    /// Where there are some, keys and values lie in blocks, and a slot is only a place in the batch: rows carry the ids of
    /// their blocks, of which the first may be those of other rows too, and start anywhere up to where these are filled;
    /// slots can not be moved, since they hold nothing. None means that each slot has the memory for a whole context.
    pub blocks: Option<BlockLimits>,
}

/// The memory of a model that keeps keys and values in blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockLimits {
    /// Blocks that all sequences share; together they hold a whole context at least.
    pub num_blocks: usize,
    /// Tokens in a block, a power of two: the token at a position is in the block `position / block_tokens` of its row,
    /// at the offset `position % block_tokens`.
    pub block_tokens: usize,
}

/// Opens the graph on the providers that the config names, allocates its KV cache and computes a token, so that a graph
/// that loads but does not run, or not right, is known before a client waits for it.
///
/// # Errors
/// See [`LoadError`]; each is one sentence for the operator.
pub fn load(runtime: &Runtime, spec: ModelSpec, config: &EngineConfig) -> Result<Box<dyn Model>, LoadError> {
    let _loading = Loading::begin();
    let _asking = not_capturing();
    let (family, path) = (spec.family, spec.path.clone());
    let open = |config: &EngineConfig| loop {
        match Graph::open(runtime, spec.clone(), config) {
            Err(error) if tensorrt::forget_engine(&error, runtime.tensorrt_cache.as_deref()) => {
                tracing::warn!(%error, "TensorRT builds this engine anew");
            }
            opened => break opened,
        }
    };
    let graph = open(config).or_else(|error| {
        let Some(config) = tensorrt::without_profile(&error, config) else { return Err(error) };
        tracing::info!(%error, "TensorRT takes the graph in pieces, and builds for the shapes that it meets");
        open(&config)
    })?;
    let (num_slots, is_on_host) = (config.max_batch_size.get() as usize, graph.is_on_host());
    let mut model: Box<dyn Model> = match family {
        GraphFamily::Gqa => Box::new(GqaModel::new(graph, num_slots, config.run_overhead_tokens)?),
        GraphFamily::Concat => Box::new(ConcatModel::new(graph)),
        GraphFamily::Paged => Box::new(PagedModel::new(graph, config)?),
    };
    let canary = Canary::compute(&mut model, 0, &[0]).map_err(|error| LoadError::first_token(path.clone(), &error))?;
    if is_on_host {
        // A processor that fails takes the process with it.
        return Ok(model);
    }
    let step_tokens = config.step_tokens(model.limits().chunk_tokens);
    warm_up(&mut *model, step_tokens).map_err(|error| LoadError::first_token(path, &error.into()))?;
    Ok(Box::new(Watched::new(model, canary)))
}

/// Computes as much of a prompt as a step does. A device loads its kernels when they are first used, and this is when a run
/// takes the most memory: better now than when a client waits.
fn warm_up(model: &mut dyn Model, step_tokens: usize) -> Result<(), ModelError> {
    let limits = model.limits();
    let num_tokens = step_tokens.min(limits.context_tokens - 1).max(1);
    let mut batch = Batch::default();
    batch.push(0, 0, &vec![TokenId(0); num_tokens], Some(&[]));
    let num_blocks = limits.blocks.map_or(0, |blocks| num_tokens.div_ceil(blocks.block_tokens));
    let blocks: Vec<u32> = (0..).take(num_blocks).collect();
    batch.set_blocks(&blocks);
    model.forward(&batch, &mut Logits::new(limits.vocab_size))?;
    // It is no text that anybody would write, and may leave what is no number.
    model.wipe(0, &blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds this many tokens in blocks of 4, and says what it is asked for by an error.
    struct Asked(usize);

    impl Model for Asked {
        fn limits(&self) -> ModelLimits {
            ModelLimits {
                vocab_size: 8,
                context_tokens: self.0,
                chunk_tokens: 16,
                rewindable_tokens: self.0,
                can_verify_drafts: false,
                can_move_slots: false,
                blocks: Some(BlockLimits { num_blocks: self.0.div_ceil(4), block_tokens: 4 }),
            }
        }

        fn forward(&mut self, batch: &Batch, _logits: &mut Logits) -> Result<(), ModelError> {
            let row = &batch.rows()[0];
            Err(ModelError::new(format!("{} tokens in {} blocks", row.num_tokens(), batch.blocks(row).len())))
        }

        fn time_in_runs(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn the_first_steps_are_as_large_as_any() {
        let asked =
            |context_tokens, step_tokens| warm_up(&mut Asked(context_tokens), step_tokens).unwrap_err().to_string();
        assert_eq!(asked(1000, 10), "10 tokens in 3 blocks");
        assert_eq!(asked(1000, 24), "24 tokens in 6 blocks");
        assert_eq!(asked(20, 24), "19 tokens in 5 blocks");
    }
}
