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
    /// That a text of all tokens of a context has.
    per_context: u64,
}

impl Memory {
    pub(super) fn of(dir: &ModelDir, config: &EngineConfig) -> Self {
        let context_tokens = dir.spec.context_tokens.min(config.max_context_tokens.get() as usize);
        let blocks = dir.spec.block_tokens().map(|tokens| Blocks {
            size: dir.spec.cache_bytes_per_token().saturating_mul(tokens) as u64,
            tokens,
            per_context: context_tokens.div_ceil(tokens) as u64,
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

    /// Number, name and bytes of what holds keys and values.
    fn places(&self) -> (u64, &'static str, u64) {
        match self.blocks {
            Some(Blocks { size, per_context, .. }) => (per_context.saturating_mul(self.num_slots), "blocks", size),
            None => (self.num_slots, "slots", self.slot),
        }
    }

    /// Weights, and slots or blocks, of all engines.
    pub(super) fn needed(&self) -> u64 {
        let (count, _, size) = self.places();
        self.weights.saturating_add(size.saturating_mul(count)).saturating_mul(self.num_engines)
    }

    /// What it keeps keys and values in, for a person.
    pub(super) fn cache(&self) -> String {
        let (count, name, size) = self.places();
        let at_most = if self.blocks.is_some() { "at most " } else { "" };
        format!("{at_most}{count} {name} of {}", variant::size(size))
    }

    /// How many of these would fit.
    pub(super) fn num_fitting(&self) -> Option<u64> {
        let (_, _, size) = self.places();
        (self.free? / self.num_engines).saturating_sub(self.weights).checked_div(size)
    }

    /// Where there are several, for a person.
    pub(super) fn for_each_engine(&self) -> String {
        match self.num_engines {
            1 => String::new(),
            several => format!(" for each of {several} engines"),
        }
    }
}
