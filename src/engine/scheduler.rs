//! Which sequences run in the next step, and how far.

use super::{Batch, FinishReason, KvCache, Sequence, request::Submission};
use std::collections::VecDeque;

/// Decides what each step computes.
#[derive(Debug)]
pub struct Scheduler {
    waiting: VecDeque<Submission>,
    /// In the order of admission.
    running: Vec<Sequence>,
    max_step_tokens: usize,
}

impl Scheduler {
    /// Nothing waits and nothing runs.
    pub fn new(max_step_tokens: usize) -> Self {
        Self { waiting: VecDeque::new(), running: Vec::new(), max_step_tokens }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Queues a request.
    pub(super) fn add(&mut self, submission: Submission) {
        self.waiting.push_back(submission);
    }

    /// Admits waiting requests while slots last, then fills the batch: every sequence that decodes gets its one token
    /// first, then prompts share what is left of the step, oldest first. So a long prompt never holds up a running
    /// reply for more than one step.
    ///
    /// The first unfinished prompt always advances by at least one token, so that many decoding sequences cannot
    /// starve it.
    pub(super) fn schedule(&mut self, kv_cache: &mut KvCache, batch: &mut Batch) {
        while !self.waiting.is_empty()
            && let Some(slot) = kv_cache.allocate()
        {
            let submission = self.waiting.pop_front().expect("checked above");
            self.running.push(Sequence::new(submission, slot));
        }
        batch.clear();
        for sequence in self.running.iter().filter(|sequence| sequence.num_missing_tokens() == 1) {
            sequence.push_row(batch, 1);
        }
        let mut budget = self.max_step_tokens.saturating_sub(batch.num_tokens()).max(1);
        for sequence in self.running.iter().filter(|sequence| sequence.num_missing_tokens() > 1) {
            let num_tokens = sequence.num_missing_tokens().min(budget);
            if num_tokens == 0 {
                break;
            }
            sequence.push_row(batch, num_tokens);
            budget -= num_tokens;
        }
    }

    /// The sequence that owns a KV row.
    pub(super) fn running_mut(&mut self, slot_index: usize) -> &mut Sequence {
        let owner = self.running.iter_mut().find(|sequence| sequence.slot_index() == slot_index);
        owner.expect("a batch holds running slots only")
    }

    /// Frees the slots of finished sequences.
    pub(super) fn retire_finished(&mut self, kv_cache: &mut KvCache) {
        self.retire(kv_cache, Sequence::is_finished);
    }

    /// Frees the slots of sequences nobody listens to, and forgets requests nobody waits for.
    pub(super) fn retire_cancelled(&mut self, kv_cache: &mut KvCache) {
        self.waiting.retain(|submission| !submission.events.is_closed());
        self.retire(kv_cache, Sequence::is_cancelled);
    }

    /// Ends everything that waits or runs.
    pub(super) fn finish_all(&mut self, reason: FinishReason, kv_cache: &mut KvCache) {
        for submission in self.waiting.drain(..) {
            submission.finish(reason);
        }
        for sequence in &mut self.running {
            sequence.finish(reason);
        }
        self.retire_finished(kv_cache);
    }

    fn retire(&mut self, kv_cache: &mut KvCache, done: impl Fn(&Sequence) -> bool) {
        for sequence in self.running.extract_if(.., |sequence| done(sequence)) {
            kv_cache.release(sequence.into_slot());
        }
    }
}
