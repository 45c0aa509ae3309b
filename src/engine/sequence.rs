//! A request that owns a slot.

use super::{
    Batch, FinishReason, Slot, TokenEvent, TokenId,
    request::Submission,
    sampler::{History, SamplingParams},
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A running request: its tokens, how many of them are computed, and its KV row.
#[derive(Debug)]
pub struct Sequence {
    tokens: Vec<TokenId>,
    num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache. There are no phases: a step computes some of what is missing.
    num_computed_tokens: usize,
    max_output_tokens: usize,
    stop_tokens: Arc<[TokenId]>,
    sampling: SamplingParams,
    history: History,
    events: mpsc::Sender<TokenEvent>,
    slot: Slot,
    _permit: OwnedSemaphorePermit,
    finished: bool,
}

impl Sequence {
    /// Nothing computed yet.
    pub(super) fn new(submission: Submission, slot: Slot) -> Self {
        let Submission { prompt, sampling, stop_tokens, max_output_tokens, events, permit } = submission;
        Self {
            history: History::new(&sampling, &prompt),
            num_prompt_tokens: prompt.len(),
            tokens: prompt,
            num_computed_tokens: 0,
            max_output_tokens,
            stop_tokens,
            sampling,
            events,
            slot,
            _permit: permit,
            finished: false,
        }
    }

    /// Its row of the KV tensors.
    pub fn slot_index(&self) -> usize {
        self.slot.index()
    }

    /// Tokens known but not computed: one while decoding, more while the prompt is computed.
    pub fn num_missing_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Adds the next `num_tokens` missing tokens to the batch.
    pub(super) fn push_row(&self, batch: &mut Batch, num_tokens: usize) {
        let start = self.num_computed_tokens;
        let end = start + num_tokens;
        batch.push(self.slot.index(), start, &self.tokens[start..end], end == self.tokens.len());
    }

    /// How to pick the next token and what was said before.
    pub(super) fn sampling(&mut self) -> (&SamplingParams, &mut History) {
        (&self.sampling, &mut self.history)
    }

    /// Notes that the model has computed `num_tokens` more.
    pub(super) fn advance(&mut self, num_tokens: usize) {
        self.num_computed_tokens += num_tokens;
        assert!(self.num_computed_tokens <= self.tokens.len());
    }

    /// Appends a sampled token, tells the listener, and finishes when a limit is met.
    pub(super) fn push(&mut self, token: TokenId) {
        assert!(!self.finished);
        assert_eq!(self.num_missing_tokens(), 0, "sampling follows the last known token");
        if self.stop_tokens.contains(&token) {
            return self.finish(FinishReason::Stop);
        }
        self.tokens.push(token);
        self.history.push(token);
        self.emit(TokenEvent::Token(token));
        if self.tokens.len() - self.num_prompt_tokens == self.max_output_tokens {
            self.finish(FinishReason::Length);
        }
    }

    /// Ends the sequence.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finished = true;
        self.emit(TokenEvent::Finished(reason));
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the listener has gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn into_slot(self) -> Slot {
        self.slot
    }

    fn emit(&self, event: TokenEvent) {
        // Closed means cancelled: the next step retires the sequence.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            unreachable!("the channel has room for every token and `Finished`");
        }
    }
}
