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
    /// Each with weights and slots of its own.
    pub(super) num_engines: u64,
    pub(super) context_tokens: usize,
    pub(super) free: Option<u64>,
}

impl Memory {
    pub(super) fn of(dir: &ModelDir, config: &EngineConfig) -> Self {
        let context_tokens = dir.spec.context_tokens.min(config.max_context_tokens.get() as usize);
        Self {
            weights: dir.variant.bytes,
            slot: dir.spec.cache_bytes_per_slot(context_tokens) as u64,
            num_slots: u64::from(config.max_batch_size.get()),
            num_engines: config.replicas().len() as u64,
            context_tokens,
            free: machine::memory(machine::device(&config.providers)).map(|memory| memory.free),
        }
    }

    /// Weights and slots of all engines.
    pub(super) fn needed(&self) -> u64 {
        self.weights.saturating_add(self.slot.saturating_mul(self.num_slots)).saturating_mul(self.num_engines)
    }

    pub(super) fn is_short(&self) -> bool {
        self.free.is_some_and(|free| free < self.needed())
    }

    /// For a person.
    pub(super) fn slots(&self) -> String {
        let fitting =
            self.free.and_then(|free| (free / self.num_engines).saturating_sub(self.weights).checked_div(self.slot));
        let fitting = fitting.map(|slots| format!("; {slots} would fit beside the weights")).unwrap_or_default();
        let (size, each) = (variant::size(self.slot), self.for_each_engine());
        format!("{} of {size} in engine.max_batch_size{each}{fitting}", self.num_slots)
    }

    /// Where there are several, for a person.
    pub(super) fn for_each_engine(&self) -> String {
        match self.num_engines {
            1 => String::new(),
            several => format!(" for each of {several} engines"),
        }
    }
}
