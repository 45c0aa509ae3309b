//! A model without ONNX Runtime, whose next token depends on every token before it.

use ortolan::engine::{Batch, Logits, Model, ModelError, ModelLimits, TokenId};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

pub(crate) const VOCAB_SIZE: usize = 512;
pub(crate) const CONTEXT_TOKENS: usize = 512;

/// A row that reads another row's cache, or skips a position, changes the output.
#[derive(Debug, Default)]
pub(crate) struct FakeModel {
    first_failing_run: Option<usize>,
    panics: bool,
    gate: Option<mpsc::Receiver<()>>,
    script: Option<Vec<u32>>,
    runs: Arc<AtomicUsize>,
    kv: BTreeMap<usize, Vec<TokenId>>,
}

impl FakeModel {
    pub(crate) fn failing_from(run: usize) -> Self {
        Self { first_failing_run: Some(run), ..Self::default() }
    }

    pub(crate) fn panicking_from(run: usize) -> Self {
        Self { panics: true, ..Self::failing_from(run) }
    }

    /// Says these tokens, whatever the prompt, then the last of them for ever.
    pub(crate) fn saying(tokens: Vec<u32>) -> Self {
        Self { script: Some(tokens), ..Self::default() }
    }

    /// Waits for a permit before each run, until the sender is dropped. Also returns the count of runs.
    pub(crate) fn gated(self) -> (Self, mpsc::SyncSender<()>, Arc<AtomicUsize>) {
        let (permits, gate) = mpsc::sync_channel(1);
        let model = Self { gate: Some(gate), ..self };
        let runs = Arc::clone(&model.runs);
        (model, permits, runs)
    }
}

impl Model for FakeModel {
    fn limits(&self) -> ModelLimits {
        ModelLimits { vocab_size: VOCAB_SIZE, context_tokens: CONTEXT_TOKENS }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        if let Some(gate) = &self.gate {
            let _: Result<(), mpsc::RecvError> = gate.recv(); // A closed gate is an open one.
        }
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        if self.first_failing_run.is_some_and(|first| first <= run) {
            assert!(!self.panics, "injected");
            return Err(ModelError::new("injected"));
        }

        for row in batch.rows() {
            let history = self.kv.entry(row.slot_index).or_default();
            if row.start == 0 {
                history.clear(); // A new sequence took the slot over.
            }
            assert_eq!(history.len(), row.start, "each token is computed exactly once");
            let is_prompt = history.is_empty() || 1 < batch.new_tokens(row).len();
            history.extend(batch.new_tokens(row));
            if row.wants_logits {
                let next = match &self.script {
                    Some(script) => {
                        // The first sampled row of a sequence ends its prompt, however long that was.
                        let said = if is_prompt { 0 } else { said(script, history) };
                        script[said.min(script.len() - 1)] as usize
                    }
                    None => hash(history) as usize % 64,
                };
                logits.push((0..VOCAB_SIZE).map(|token| if token == next { 1.0 } else { 0.0 }));
            }
        }
        Ok(())
    }
}

/// How much of the script stands at the end of the history.
fn said(script: &[u32], history: &[TokenId]) -> usize {
    (0..=script.len()).rev().find(|said| history.ends_with(&tokens(&script[..*said]))).unwrap_or(0)
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn hash(history: &[TokenId]) -> u32 {
    let mix = |hash: u32, token: &TokenId| (hash ^ token.0).wrapping_mul(0x9E37_79B1).rotate_left(13);
    history.iter().fold(17, mix)
}
