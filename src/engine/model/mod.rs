//! The seam between deciding what to compute and computing it.

mod canary;
mod concat;
mod edit;
mod error;
mod external_data;
mod fault;
mod ffi;
mod gqa;
mod graph;
mod inputs;
mod plan;
pub(crate) mod proto;
mod provider;
mod runtime;
mod spec;

pub use canary::{Canary, CanaryError};
pub use edit::GraphEdits;
pub use error::{LoadError, ModelError};
pub(crate) use external_data::{DataFileError, locate as locate_data_file};
pub use fault::Fault;
pub use provider::{ProviderConfig, ProviderName};
pub use runtime::Runtime;
pub(crate) use spec::MAX_CACHE_RANK;
pub use spec::{
    CacheKind, CacheTensor, ElementType, FloatType, GraphFamily, IntType, ModelSpec, NumLogits, PositionIds,
};

use super::{Batch, EngineConfig, TokenId};
use canary::Watched;
use concat::ConcatModel;
use gqa::GqaModel;
use graph::Graph;
use std::time::Duration;

/// Implemented by one type per graph family and, in tests, by a fake.
pub trait Model: Send {
    /// What it can take.
    fn limits(&self) -> ModelLimits;

    /// Computes every new token of the batch and appends the scores that its rows want. A row starts at 0, at the
    /// number of tokens that its slot holds or, where that is [rewindable](ModelLimits::rewindable_tokens), anywhere in
    /// between; what the slot held beyond is forgotten. Slots without a row keep what they hold.
    ///
    /// # Errors
    /// When the backend fails. What was computed of each row until then is not known; a row that starts where it did is
    /// computed as if nothing had been.
    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError>;

    /// Time that the backend itself has run so far, the rest of [`forward`](Self::forward) aside.
    fn time_in_runs(&self) -> Duration;

    /// Makes the slot `to` hold the first `num_tokens` tokens that the slot `from` holds: all of them where these are
    /// not [rewindable](ModelLimits::rewindable_tokens). Only where [`can_move_slots`](ModelLimits::can_move_slots).
    ///
    /// # Errors
    /// When the backend fails; `to` then holds nothing of use.
    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError>;

    /// Exchanges what two slots hold, of which the longer one is `num_tokens`. Only where
    /// [`can_move_slots`](ModelLimits::can_move_slots).
    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize);

    /// What it computed when it was loaded, where an idle engine is to see from time to time whether it still does.
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

    fn time_in_runs(&self) -> Duration {
        (**self).time_in_runs()
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        (**self).copy_slot(from, to, num_tokens)
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        (**self).swap_slots(one, other, num_tokens);
    }

    fn canary(&self) -> Option<Canary> {
        (**self).canary()
    }
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
}

/// Scores of what may come next. They are refilled for each step.
#[derive(Debug)]
pub struct Logits {
    /// As large as any step has needed.
    scores: Vec<f32>,
    /// For each row of scores, the row of the batch that it belongs to. Those of one row are in the order of its tokens.
    rows: Vec<usize>,
    vocab_size: usize,
}

impl Logits {
    /// No rows yet.
    pub fn new(vocab_size: usize) -> Self {
        assert!(vocab_size > 0, "the vocabulary is not empty");
        Self { scores: Vec::new(), rows: Vec::new(), vocab_size }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Room for a row of scores for each of these rows of the batch, to be written as a whole.
    pub fn extend(&mut self, batch_rows: &[usize]) -> &mut [f32] {
        let begin = self.rows.len() * self.vocab_size;
        self.rows.extend_from_slice(batch_rows);
        let end = self.rows.len() * self.vocab_size;
        if self.scores.len() < end {
            self.scores.resize(end, 0.0);
        }
        &mut self.scores[begin..end]
    }

    /// How many rows of scores there are.
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// For each row of the batch that has scores, its number and all of its rows of scores, one behind the other.
    pub fn by_batch_row_mut(&mut self) -> impl Iterator<Item = (usize, &mut [f32])> {
        let Self { scores, rows, vocab_size } = self;
        let mut scores = &mut scores[..];
        rows.chunk_by(|one, next| one == next).map(move |rows| {
            let (of_row, rest) = std::mem::take(&mut scores).split_at_mut(rows.len() * *vocab_size);
            scores = rest;
            (rows[0], of_row)
        })
    }
}

/// Opens the graph on the providers that the config names, allocates its KV cache and computes a token, so that a graph
/// that loads but does not run, or not right, is known before a client waits for it.
///
/// # Errors
/// See [`LoadError`]; each is one sentence for the operator.
pub fn load(runtime: &Runtime, spec: ModelSpec, config: &EngineConfig) -> Result<Box<dyn Model>, LoadError> {
    let (family, path) = (spec.family, spec.path.clone());
    let graph = Graph::open(runtime, spec, config)?;
    let (num_slots, is_on_host) = (config.max_batch_size.get() as usize, graph.is_on_host());
    let mut model: Box<dyn Model> = match family {
        GraphFamily::Gqa => Box::new(GqaModel::new(graph, num_slots, config.run_overhead_tokens)?),
        GraphFamily::Concat => Box::new(ConcatModel::new(graph)?),
    };
    let canary = Canary::compute(&mut model, 0).map_err(|error| LoadError::first_token(path, &error))?;
    // A processor that fails takes the process with it.
    Ok(if is_on_host { model } else { Box::new(Watched { model, canary }) })
}
