//! Which sequences run in the next step, and how far.

use super::{
    Batch, FinishReason, Model, Prefix, Sequence, TokenEvent,
    cache::{Cache, Place},
    request::Submission,
    stats::Counters,
};

/// Decides what each step computes.
#[derive(Debug)]
pub struct Scheduler {
    /// In the order in which they will be admitted.
    waiting: Vec<Waiting>,
    /// In the order of their turns.
    running: Vec<Running>,
    max_step_tokens: usize,
    num_arrived: u64,
}

#[derive(Debug)]
struct Waiting {
    turn: u64,
    /// Whether it has been told.
    is_told: bool,
    who: Who,
}

#[derive(Debug)]
enum Who {
    /// A request that has just come.
    New(Submission),
    /// A sequence that gave up its place to those before it, with all that it has said.
    Preempted(Box<Sequence>),
}

/// A sequence and its place in the cache.
#[derive(Debug)]
struct Running {
    sequence: Sequence,
    place: Place,
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
        self.wait(Waiting { turn, is_told: false, who: Who::New(submission) });
    }

    fn wait(&mut self, newcomer: Waiting) {
        let position = self.waiting.partition_point(|waiting| waiting.turn <= newcomer.turn);
        self.waiting.insert(position, newcomer);
    }

    /// Admits waiting requests while there is room, then fills the batch: every sequence that decodes gets its one token
    /// first, then prompts share what is left of the step, in the order of their turns, then guesses. So a long prompt never
    /// holds up a running reply for more than one step.
    ///
    /// The first unfinished prompt always advances by at least one token, so that many decoding sequences cannot
    /// starve it.
    pub(super) fn schedule(
        &mut self,
        cache: &mut Cache,
        model: &mut impl Model,
        counters: &Counters,
        batch: &mut Batch,
    ) {
        for Running { sequence, place } in &mut self.running {
            cache.settle(place, sequence.prefix());
        }
        self.admit(cache, model, counters);
        self.close_gap(cache, model);
        batch.clear();
        let (mut num_decoding, mut num_prompt_tokens) = (0, 0);
        for Running { sequence, .. } in &self.running {
            match sequence.num_missing_tokens() {
                1 => num_decoding += 1,
                num_missing => num_prompt_tokens += num_missing,
            }
        }
        let left = self.max_step_tokens.saturating_sub(num_decoding);
        let max_draft_tokens = left.saturating_sub(num_prompt_tokens).checked_div(num_decoding).unwrap_or(0);
        let mut budget = left.max(1);
        let mut index = 0;
        while let Some(Running { sequence, .. }) = self.running.get_mut(index) {
            let (num_tokens, max_draft_tokens) = match sequence.num_missing_tokens() {
                1 => (1, max_draft_tokens),
                num_missing => (num_missing.min(budget), 0),
            };
            if 1 < sequence.num_missing_tokens() {
                budget -= num_tokens;
            }
            sequence.plan_row(num_tokens, max_draft_tokens);
            if 0 < num_tokens && self.make_room(index, num_tokens, cache, counters) {
                let Running { sequence, place } = &self.running[index];
                sequence.push_row(batch, num_tokens, place);
            }
            index += 1;
        }
    }

    fn admit(&mut self, cache: &mut Cache, model: &mut impl Model, counters: &Counters) {
        while cache.has_slot()
            && let Some(first) = self.waiting.first()
        {
            // What those that run are going to need, so that nobody is admitted only to be preempted.
            let wanted = |Running { sequence, place }: &Running| cache.num_wanted_blocks(place, sequence.num_tokens());
            let num_spared = self.running.iter().map(wanted).sum();
            let running = self.running.iter().map(|running| (running.place.slot_index(), running.sequence.prefix()));
            let Some((place, num_cached_tokens)) = cache.allocate(first.who.tokens(), num_spared, running, model)
            else {
                break;
            };
            let Waiting { turn, who, .. } = self.waiting.remove(0);
            let sequence = match who {
                Who::New(submission) => {
                    counters.count_admission(submission.prompt.len(), num_cached_tokens);
                    Sequence::new(submission, turn, num_cached_tokens)
                }
                Who::Preempted(sequence) => sequence.resume(num_cached_tokens),
            };
            let position = self.running.partition_point(|running| running.sequence.turn() <= turn);
            self.running.insert(position, Running { sequence, place });
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| !waiting.is_told) {
            waiting.is_told = true;
            if let Who::New(submission) = &waiting.who {
                submission.emit(TokenEvent::Queued);
            }
        }
    }

    /// Moves the sequence in the last row up when a row before it has become free.
    fn close_gap(&mut self, cache: &mut Cache, model: &mut impl Model) {
        let Some(first) = self.running.iter().map(|running| running.place.slot_index()).min() else { return };
        let last = self.running.iter_mut().max_by_key(|running| running.place.slot_index());
        let Running { sequence, place } = last.expect("there is a first one");
        cache.close_gap(first, place, sequence.prefix().tokens.len(), model);
    }

    /// Makes room for a sequence's planned row: without its guess, if that does not fit, and then by preempting those whose
    /// turn comes last. False where it was itself one of these.
    fn make_room(&mut self, index: usize, num_tokens: usize, cache: &mut Cache, counters: &Counters) -> bool {
        loop {
            let Running { sequence, place } = &mut self.running[index];
            let start = sequence.prefix().tokens.len();
            let end = start + num_tokens;
            if cache.reserve(place, start..end + sequence.num_guessed()) {
                return true;
            }
            sequence.drop_guess();
            if cache.reserve(place, start..end) {
                return true;
            }
            let Running { sequence, place } = self.running.pop().expect("there is this one at least");
            assert!(!self.running.is_empty(), "the blocks hold a whole context");
            counters.count_preemption();
            // What it has computed is known already, since `schedule` settles first.
            cache.release(place, Vec::new(), sequence.prefix().salt);
            self.wait(Waiting { turn: sequence.turn(), is_told: true, who: Who::Preempted(Box::new(sequence)) });
            if self.running.len() == index {
                return false;
            }
        }
    }

    /// The sequence that owns a KV row.
    pub(super) fn running_mut(&mut self, slot_index: usize) -> &mut Sequence {
        let owner = self.running.iter_mut().find(|running| running.place.slot_index() == slot_index);
        &mut owner.expect("a batch holds running slots only").sequence
    }

    /// Places of sequences that have failed.
    pub(super) fn failed_places(&mut self) -> impl Iterator<Item = &mut Place> {
        self.running.iter_mut().filter(|running| running.sequence.has_failed()).map(|running| &mut running.place)
    }

    /// Running sequences, each with what belongs to its KV row.
    pub(super) fn running_with<T>(&mut self, owned: impl Iterator<Item = (usize, T)>) -> Vec<(&mut Sequence, T)> {
        let mut owned: Vec<(usize, T)> = owned.collect();
        let with = self.running.iter_mut().filter_map(|running| {
            let place = owned.iter().position(|(slot_index, _)| *slot_index == running.place.slot_index())?;
            Some((&mut running.sequence, owned.swap_remove(place).1))
        });
        with.collect()
    }

    /// Frees the places of finished sequences.
    pub(super) fn retire_finished(&mut self, cache: &mut Cache) {
        self.retire(cache, Sequence::is_finished);
    }

    /// Frees the places of sequences nobody listens to, and forgets requests nobody waits for.
    pub(super) fn retire_cancelled(&mut self, cache: &mut Cache) {
        self.waiting.retain(|waiting| !waiting.who.is_cancelled());
        self.retire(cache, Sequence::is_cancelled);
    }

    /// Ends everything that waits or runs.
    pub(super) fn finish_all(&mut self, reason: FinishReason, cache: &mut Cache) {
        for waiting in self.waiting.drain(..) {
            match waiting.who {
                Who::New(submission) => submission.finish(reason),
                Who::Preempted(mut sequence) => sequence.finish(reason),
            }
        }
        for running in &mut self.running {
            running.sequence.finish(reason);
        }
        self.retire_finished(cache);
    }

    fn retire(&mut self, cache: &mut Cache, done: impl Fn(&Sequence) -> bool) {
        for Running { sequence, place } in self.running.extract_if(.., |running| done(&running.sequence)) {
            let (tokens, salt) = sequence.into_computed();
            cache.release(place, tokens, salt);
        }
    }
}

impl Who {
    /// All tokens that it has.
    fn tokens(&self) -> Prefix<'_> {
        match self {
            Self::New(submission) => Prefix { tokens: &submission.prompt, salt: submission.cache_salt },
            Self::Preempted(sequence) => sequence.all_tokens(),
        }
    }

    /// Whether the listener has gone.
    fn is_cancelled(&self) -> bool {
        match self {
            Self::New(submission) => submission.events.is_closed(),
            Self::Preempted(sequence) => sequence.is_cancelled(),
        }
    }
}
