//! What a model takes of a machine's memory, and what there is.

use super::machine;
use crate::{
    engine::EngineConfig,
    model_dir::{ModelDir, variant},
};

/// Memory that a model takes beside what it computes with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) weights: u64,
    /// Keys and values of one slot.
    pub(super) slot: u64,
    pub(super) num_slots: u64,
    /// Where keys and values lie in these, there are no more of them than slots could need, and no more than there is room for.
    pub(super) blocks: Option<Blocks>,
    /// Each with weights, slots and blocks of its own.
    pub(super) num_engines: u64,
    pub(super) context_tokens: usize,
    pub(super) free: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Keys and values of one.
    pub(super) size: u64,
    /// In one.
    pub(super) tokens: usize,
    /// That a text of all tokens of a context has. Fewer would not do.
    per_context: u64,
    /// How much of what is free beside the weights is taken.
    share: f32,
}

impl Memory {
    pub(super) fn of(dir: &ModelDir, config: &EngineConfig) -> Self {
        let context_tokens = dir.spec.context_tokens.min(config.max_context_tokens.get() as usize);
        let blocks = dir.spec.block_tokens().map(|tokens| Blocks {
            size: dir.spec.cache_bytes_per_token().saturating_mul(tokens) as u64,
            tokens,
            per_context: context_tokens.div_ceil(tokens) as u64,
            share: config.memory_share,
        });
        Self {
            weights: dir.variant.bytes,
            slot: dir.spec.cache_bytes_per_slot(context_tokens) as u64,
            num_slots: u64::from(config.max_batch_size.get()),
            blocks,
            num_engines: config.replicas().len() as u64,
            context_tokens,
            free: machine::memory(machine::device(&config.providers)).map(|memory| memory.free),
        }
    }

    /// Weights and slots of all engines, or weights and the fewest blocks.
    pub(super) fn needed(&self) -> u64 {
        let cache = match self.blocks {
            Some(Blocks { size, per_context, .. }) => size.saturating_mul(per_context),
            None => self.slot.saturating_mul(self.num_slots),
        };
        self.weights.saturating_add(cache).saturating_mul(self.num_engines)
    }

    pub(super) fn is_short(&self) -> bool {
        self.free.is_some_and(|free| free < self.needed())
    }

    /// What it keeps keys and values in, for a person.
    pub(super) fn cache(&self) -> String {
        match self.blocks {
            Some(blocks) => {
                let (most, size) = (blocks.per_context.saturating_mul(self.num_slots), variant::size(blocks.size));
                format!("at most {most} blocks of {size}")
            }
            None => format!("{} slots of {}", self.num_slots, variant::size(self.slot)),
        }
    }

    /// How many slots would fit, or blocks, for a person.
    pub(super) fn fitting(&self) -> Option<String> {
        let beside_weights = (self.free? / self.num_engines).saturating_sub(self.weights);
        Some(match self.blocks {
            Some(Blocks { size, share, .. }) => {
                let fitting = share_of(beside_weights, share).checked_div(size)?;
                format!("{fitting} would fit in engine.memory_share of what is free beside the weights")
            }
            None => format!("{} would fit beside the weights", beside_weights.checked_div(self.slot)?),
        })
    }

    /// Where there are several, for a person.
    pub(super) fn for_each_engine(&self) -> String {
        match self.num_engines {
            1 => String::new(),
            several => format!(" for each of {several} engines"),
        }
    }
}

/// About.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "bytes of memory, of which a share between 0 and 1 is told"
)]
fn share_of(num_bytes: u64, share: f32) -> u64 {
    (num_bytes as f64 * f64::from(share)) as u64
}
