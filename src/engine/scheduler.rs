//! Which sequences run in the next step, and how far.

use super::{Batch, FinishReason, KvCache, Model, Prefix, Sequence, TokenEvent, request::Submission, stats::Counters};

/// Decides what each step computes.
#[derive(Debug)]
pub struct Scheduler {
    /// In the order in which they will be admitted.
    waiting: Vec<Waiting>,
    /// In the order of their turns.
    running: Vec<Sequence>,
    max_step_tokens: usize,
    num_arrived: u64,
}

#[derive(Debug)]
struct Waiting {
    turn: u64,
    /// Whether it has been told.
    is_told: bool,
    submission: Submission,
}

impl Scheduler {
    /// Nothing waits and nothing runs.
    pub fn new(max_step_tokens: usize) -> Self {
        Self { waiting: Vec::new(), running: Vec::new(), max_step_tokens, num_arrived: 0 }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that have a slot.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Queues a request: behind those of its class, and ahead of later ones of a lower class until their patience ends.
    pub(super) fn add(&mut self, submission: Submission) {
        let turn = submission.turn(self.num_arrived);
        self.num_arrived += 1;
        let position = self.waiting.partition_point(|waiting| waiting.turn <= turn);
        self.waiting.insert(position, Waiting { turn, is_told: false, submission });
    }

    /// Admits waiting requests while slots last, then fills the batch: every sequence that decodes gets its one token
    /// first, then prompts share what is left of the step, in the order of their turns, then guesses. So a long prompt never holds up a
    /// running reply for more than one step.
    ///
    /// The first unfinished prompt always advances by at least one token, so that many decoding sequences cannot
    /// starve it.
    pub(super) fn schedule(
        &mut self,
        kv_cache: &mut KvCache,
        model: &mut impl Model,
        counters: &Counters,
        batch: &mut Batch,
    ) {
        self.admit(kv_cache, model, counters);
        self.close_gap(kv_cache, model);
        batch.clear();
        let (mut num_decoding, mut num_prompt_tokens) = (0, 0);
        for sequence in &self.running {
            match sequence.num_missing_tokens() {
                1 => num_decoding += 1,
                num_missing => num_prompt_tokens += num_missing,
            }
        }
        let left = self.max_step_tokens.saturating_sub(num_decoding);
        let max_draft_tokens = left.saturating_sub(num_prompt_tokens).checked_div(num_decoding).unwrap_or(0);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.num_missing_tokens() == 1) {
            sequence.push_row(batch, 1, max_draft_tokens);
        }
        let mut budget = left.max(1);
        for sequence in self.running.iter_mut().filter(|sequence| 1 < sequence.num_missing_tokens()) {
            let num_tokens = sequence.num_missing_tokens().min(budget);
            if num_tokens == 0 {
                break;
            }
            sequence.push_row(batch, num_tokens, 0);
            budget -= num_tokens;
        }
    }

    fn admit(&mut self, kv_cache: &mut KvCache, model: &mut impl Model, counters: &Counters) {
        while kv_cache.has_room() && !self.waiting.is_empty() {
            let Waiting { turn, submission, .. } = self.waiting.remove(0);
            let prompt = Prefix { tokens: &submission.prompt, salt: submission.cache_salt };
            let running = self.running.iter().map(|sequence| (sequence.slot_index(), sequence.prefix()));
            let (slot, num_cached_tokens) = kv_cache.allocate(prompt, running, model).expect("there is room");
            counters.count_admission(submission.prompt.len(), num_cached_tokens);
            let position = self.running.partition_point(|sequence| sequence.turn() <= turn);
            self.running.insert(position, Sequence::new(submission, turn, slot, num_cached_tokens));
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| !waiting.is_told) {
            waiting.is_told = true;
            waiting.submission.emit(TokenEvent::Queued);
        }
    }

    /// Moves the sequence in the last row up when a row before it has become free.
    fn close_gap(&mut self, kv_cache: &mut KvCache, model: &mut impl Model) {
        let Some(first) = self.running.iter().map(Sequence::slot_index).min() else { return };
        let last = self.running.iter_mut().max_by_key(|sequence| sequence.slot_index()).expect("there is a first one");
        let num_tokens = last.prefix().tokens.len();
        kv_cache.close_gap(first, last.slot_mut(), num_tokens, model);
    }

    /// The sequence that owns a KV row.
    pub(super) fn running_mut(&mut self, slot_index: usize) -> &mut Sequence {
        let owner = self.running.iter_mut().find(|sequence| sequence.slot_index() == slot_index);
        owner.expect("a batch holds running slots only")
    }

    /// Running sequences, each with what belongs to its KV row.
    pub(super) fn running_with<T>(&mut self, owned: impl Iterator<Item = (usize, T)>) -> Vec<(&mut Sequence, T)> {
        let mut owned: Vec<(usize, T)> = owned.collect();
        let with = self.running.iter_mut().filter_map(|sequence| {
            let place = owned.iter().position(|(slot_index, _)| *slot_index == sequence.slot_index())?;
            Some((sequence, owned.swap_remove(place).1))
        });
        with.collect()
    }

    /// Frees the slots of finished sequences.
    pub(super) fn retire_finished(&mut self, kv_cache: &mut KvCache) {
        self.retire(kv_cache, Sequence::is_finished);
    }

    /// Frees the slots of sequences nobody listens to, and forgets requests nobody waits for.
    pub(super) fn retire_cancelled(&mut self, kv_cache: &mut KvCache) {
        self.waiting.retain(|waiting| !waiting.submission.events.is_closed());
        self.retire(kv_cache, Sequence::is_cancelled);
    }

    /// Ends everything that waits or runs.
    pub(super) fn finish_all(&mut self, reason: FinishReason, kv_cache: &mut KvCache) {
        for waiting in self.waiting.drain(..) {
            waiting.submission.finish(reason);
        }
        for sequence in &mut self.running {
            sequence.finish(reason);
        }
        self.retire_finished(kv_cache);
    }

    fn retire(&mut self, kv_cache: &mut KvCache, done: impl Fn(&Sequence) -> bool) {
        for sequence in self.running.extract_if(.., |sequence| done(sequence)) {
            let (slot, tokens, salt) = sequence.into_slot();
            kv_cache.release(slot, tokens, salt);
        }
    }
}
