//! The seam between deciding what to compute and computing it.

mod concat;
mod error;
mod ffi;
mod gqa;
mod graph;
mod provider;
mod runtime;
mod spec;

pub use error::{LoadError, ModelError};
pub use provider::{ProviderConfig, ProviderName};
pub use runtime::Runtime;
pub use spec::{ElementType, GraphFamily, KvTensor, ModelSpec};

use super::{Batch, EngineConfig};
use concat::ConcatModel;
use gqa::GqaModel;
use graph::Graph;

/// Implemented by one type per graph family and, in tests, by a fake.
pub trait Model: Send {
    /// What it can take.
    fn limits(&self) -> ModelLimits;

    /// Computes every new token of the batch and pushes one row of scores for each row that wants logits, in order.
    /// A row that starts at position 0 begins a new sequence, whatever its slot held before.
    ///
    /// # Errors
    /// When the backend fails; the batch's sequences then finish with an error.
    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError>;
}

impl Model for Box<dyn Model> {
    fn limits(&self) -> ModelLimits {
        (**self).limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        (**self).forward(batch, logits)
    }
}

/// What a loaded model can take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ModelLimits {
    /// Scores in a row of logits.
    pub vocab_size: usize,
    /// Prompt and reply together.
    pub context_tokens: usize,
}

/// Scores of what may come next, a row per sampled sequence. It is refilled for each step.
#[derive(Debug)]
pub struct Logits {
    scores: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    /// No rows yet.
    pub fn new(vocab_size: usize) -> Self {
        assert!(vocab_size > 0, "the vocabulary is not empty");
        Self { scores: Vec::new(), vocab_size }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.scores.clear();
    }

    /// Appends a row of `vocab_size` scores.
    pub fn push(&mut self, row: impl IntoIterator<Item = f32>) {
        self.scores.extend(row);
        assert!(self.scores.len().is_multiple_of(self.vocab_size), "a row scores the whole vocabulary");
    }

    /// In the order in which they were pushed.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.scores.chunks_exact_mut(self.vocab_size)
    }
}

/// Opens the graph on the providers that the config names and allocates its KV cache.
///
/// # Errors
/// See [`LoadError`]; each is one sentence for the operator.
pub fn load(runtime: &Runtime, spec: ModelSpec, config: &EngineConfig) -> Result<Box<dyn Model>, LoadError> {
    let family = spec.family;
    let graph = Graph::open(runtime, spec, config)?;
    let num_slots = config.max_batch_size.get() as usize;
    Ok(match family {
        GraphFamily::Gqa => Box::new(GqaModel::new(graph, num_slots)?),
        GraphFamily::Concat => Box::new(ConcatModel::new(graph, num_slots)),
    })
}
