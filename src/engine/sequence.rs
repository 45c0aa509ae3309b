//! A request that has begun.

use super::{
    Batch, FinishReason, Picked, Prefix, Row, SampleError, Sampler, Scores, TokenEvent, TokenId, cache::Place, draft,
    request::Submission,
};
use std::{ops::Range, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A request that has begun: its tokens, and how many of them are computed.
#[derive(Debug)]
pub struct Sequence {
    tokens: Vec<TokenId>,
    num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache. There are no phases: a step computes some of what is missing.
    num_computed_tokens: usize,
    /// Of these, the ones that an earlier request had left behind.
    num_cached_tokens: usize,
    max_output_tokens: usize,
    stop_tokens: Arc<[TokenId]>,
    sampler: Sampler,
    top_logprobs: Option<u32>,
    turn: u64,
    cache_salt: u64,
    drafting: Drafting,
    events: mpsc::Sender<TokenEvent>,
    _permit: OwnedSemaphorePermit,
    finished: bool,
    failed: bool,
}

/// What became of a sequence's rows of scores.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Taken {
    /// Tokens that were picked, one from each of the first rows.
    pub(super) num_picked: usize,
    /// Whether the row behind them does not say enough: all of its scores are to be taken, and those of the rows behind it.
    pub(super) wants_all: bool,
    /// Whether the row behind them holds no number, which may be the device's fault.
    pub(super) is_spoiled: bool,
}

/// Guesses ahead, and how they fare.
#[derive(Debug)]
struct Drafting {
    max_tokens: usize,
    /// The guess in the running step that is not verified yet, as a range of the sequence's own tokens.
    guess: Range<usize>,
    /// Whether the scores to come follow what has been said.
    is_on_course: bool,
    /// Average share of a guess that was right, recent guesses counting most.
    accepted_share: f32,
    /// Steps until the next guess, where guesses have been wrong.
    pause: u32,
    num_guessed: usize,
}

/// Below this share of right guesses, verifying them costs more than it saves.
const MIN_ACCEPTED_SHARE: f32 = 0.3;
/// Steps without a guess after too many wrong ones.
const PAUSE_STEPS: u32 = 16;

impl Sequence {
    /// Its place holds the first `num_cached_tokens` of its prompt.
    pub(super) fn new(submission: Submission, turn: u64, num_cached_tokens: usize) -> Self {
        submission.emit(TokenEvent::Started);
        let Submission { prompt, sampling, constraint, stop_tokens, max_output_tokens, events, permit, .. } =
            submission;
        assert!(num_cached_tokens < prompt.len(), "the last token is computed for its scores");
        Self {
            sampler: Sampler::new(sampling, constraint, &prompt),
            top_logprobs: submission.top_logprobs,
            num_prompt_tokens: prompt.len(),
            tokens: prompt,
            num_computed_tokens: num_cached_tokens,
            num_cached_tokens,
            max_output_tokens,
            stop_tokens,
            turn,
            cache_salt: submission.cache_salt,
            drafting: Drafting {
                max_tokens: submission.max_draft_tokens,
                guess: 0..0,
                is_on_course: true,
                accepted_share: 1.0,
                pause: 0,
                num_guessed: 0,
            },
            events,
            _permit: permit,
            finished: false,
            failed: false,
        }
    }

    /// Goes on in another place, which holds the first `num_computed_tokens`. The rest is computed again, replies too.
    pub(super) fn resume(self, num_computed_tokens: usize) -> Self {
        assert!(num_computed_tokens < self.tokens.len(), "the last token is computed for its scores");
        Self { num_computed_tokens, ..self }
    }

    /// Prompt and reply.
    pub(super) fn all_tokens(&self) -> Prefix<'_> {
        Prefix { tokens: &self.tokens, salt: self.cache_salt }
    }

    /// What its place holds.
    pub(super) fn prefix(&self) -> Prefix<'_> {
        Prefix { tokens: &self.tokens[..self.num_computed_tokens], salt: self.cache_salt }
    }

    /// Tokens of prompt and reply.
    pub(super) fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens known but not computed: one while decoding, more while the prompt is computed.
    pub fn num_missing_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Of two sequences, the one with the lower turn goes first.
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// Prepares a row of the next `num_tokens` missing tokens: behind the last of them comes a guess of at most
    /// `max_draft_tokens`.
    pub(super) fn plan_row(&mut self, num_tokens: usize, max_draft_tokens: usize) {
        let reaches_end = self.num_missing_tokens() == num_tokens;
        self.drafting.is_on_course = true;
        // The guess comes after what the step itself yields, so one token less than is left.
        let num_left = self.max_output_tokens - (self.tokens.len() - self.num_prompt_tokens);
        let max_tokens = max_draft_tokens.min(num_left - 1);
        self.drafting.guess = if reaches_end { self.drafting.guess_next(&self.tokens, max_tokens) } else { 0..0 };
    }

    /// Tokens of the guess in the planned row.
    pub(super) fn num_guessed(&self) -> usize {
        self.drafting.guess.len()
    }

    /// Plans the row without a guess.
    pub(super) fn drop_guess(&mut self) {
        self.drafting.guess = 0..0;
    }

    /// Adds the planned row to the batch.
    pub(super) fn push_row(&self, batch: &mut Batch, num_tokens: usize, place: &Place) {
        let start = self.num_computed_tokens;
        let end = start + num_tokens;
        let draft = (end == self.tokens.len()).then(|| &self.tokens[self.drafting.guess.clone()]);
        batch.push(place.slot_index(), start, &self.tokens[start..end], draft);
        batch.set_blocks(place.blocks());
        batch.want(self.sampler.wanted(self.top_logprobs));
    }

    /// Notes that the model has computed a row of this sequence, its guess aside.
    pub(super) fn advance(&mut self, row: &Row) {
        self.num_computed_tokens += row.num_tokens() - self.drafting.guess.len();
        assert!(self.num_computed_tokens <= self.tokens.len());
    }

    /// Whether no token of it is drawn.
    pub(super) fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }

    /// Picks the token that follows the last one, and, while the guess proves right, those after it: there is a row of scores
    /// for each token that may come.
    pub(super) fn take_scores(&mut self, scores: &mut Scores<'_>, vocab_size: usize) -> Taken {
        match scores {
            Scores::All(scores) => {
                let sample = |sequence: &mut Self, scores: &mut [f32]| {
                    sequence.sampler.sample(scores, sequence.top_logprobs).map(Some)
                };
                self.take_rows(scores.chunks_exact_mut(vocab_size), sample)
            }
            top @ Scores::Top { .. } => {
                self.take_rows(top.tops(), |sequence, top| Ok(sequence.sampler.sample_top(top, sequence.top_logprobs)))
            }
        }
    }

    fn take_rows<R>(
        &mut self,
        rows: impl Iterator<Item = R>,
        sample: impl Fn(&mut Self, R) -> Result<Option<Picked>, SampleError>,
    ) -> Taken {
        let mut taken = Taken::default();
        for row in rows {
            if self.finished || !self.drafting.is_on_course {
                break;
            }
            match sample(self, row).and_then(|picked| picked.map(|picked| self.take(picked)).transpose()) {
                Ok(Some(())) => taken.num_picked += 1,
                Ok(None) => {
                    taken.wants_all = true;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "no token can be picked");
                    taken.is_spoiled = error == SampleError::NotNumbers;
                    self.fail(FinishReason::Error);
                    break;
                }
            }
        }
        taken
    }

    fn take(&mut self, picked: Picked) -> Result<(), SampleError> {
        if self.stop_tokens.contains(&picked.token) {
            self.finish(FinishReason::Stop);
            return Ok(());
        }
        self.sampler.push(picked.token)?;
        if let Some(logprobs) = picked.logprobs {
            self.emit(TokenEvent::Logprobs(logprobs));
        }
        self.push(picked.token);
        if !self.finished && self.drafting.confirms(&self.tokens, picked.token) {
            self.num_computed_tokens += 1;
        }
        Ok(())
    }

    /// Tokens of the last guess that were right.
    pub(super) fn num_accepted(&self) -> usize {
        self.drafting.num_guessed - self.drafting.guess.len()
    }

    /// Appends a sampled token, tells the listener, and finishes when a limit is met.
    fn push(&mut self, token: TokenId) {
        debug_assert_eq!(self.num_missing_tokens(), 0, "sampling follows the last known token");
        self.tokens.push(token);
        self.emit(TokenEvent::Token(token));
        if self.tokens.len() - self.num_prompt_tokens == self.max_output_tokens {
            self.finish(FinishReason::Length);
        }
    }

    /// Ends the sequence.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finished = true;
        self.emit(TokenEvent::Finished { reason, num_cached_tokens: self.num_cached_tokens });
    }

    /// Ends the sequence because a run failed: nobody knows what its place holds.
    pub(super) fn fail(&mut self, reason: FinishReason) {
        self.failed = true;
        self.finish(reason);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the listener has gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// The tokens that its place holds, and their salt.
    pub(super) fn into_computed(mut self) -> (Vec<TokenId>, u64) {
        self.tokens.truncate(if self.failed { 0 } else { self.num_computed_tokens });
        (self.tokens, self.cache_salt)
    }

    fn emit(&self, event: TokenEvent) {
        // Closed means cancelled: the next step retires the sequence.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            unreachable!("the channel has room for every token and `Finished`");
        }
    }
}

impl Drafting {
    fn guess_next(&mut self, tokens: &[TokenId], max_tokens: usize) -> Range<usize> {
        self.num_guessed = 0;
        if 0 < self.pause {
            self.pause -= 1;
            return 0..0;
        }
        let guess = draft::find(tokens, self.max_tokens.min(max_tokens));
        self.num_guessed = guess.len();
        guess
    }

    /// Whether the guess says that `token` comes next: then its keys and values are computed already, and the next scores
    /// follow it.
    fn confirms(&mut self, tokens: &[TokenId], token: TokenId) -> bool {
        if self.guess.is_empty() {
            return false;
        }
        self.is_on_course = tokens[self.guess.start] == token;
        if self.is_on_course {
            self.guess.start += 1;
        }
        if !self.is_on_course || self.guess.is_empty() {
            let share = 1.0 - self.guess.len() as f32 / self.num_guessed as f32;
            self.accepted_share = 0.75 * self.accepted_share + 0.25 * share;
            if self.accepted_share < MIN_ACCEPTED_SHARE {
                (self.pause, self.accepted_share) = (PAUSE_STEPS, 2.0 * MIN_ACCEPTED_SHARE);
            }
        }
        self.is_on_course
    }
}
