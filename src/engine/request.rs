//! What a caller asks of the engine and what it gets back.

use super::{Constraint, SamplingParams};
use std::{num::NonZeroU32, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Index into the model's vocabulary.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenId(pub u32);

impl TokenId {
    /// Position of this token's score in a row of logits.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A tokenized prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// How to pick each token.
    pub sampling: SamplingParams,
    /// What the sequence has to follow; none leaves it free.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report how probable each token was, and so many others; none reports nothing.
    pub top_logprobs: Option<u32>,
    /// Tokens that end the sequence; they are not reported.
    pub stop_tokens: Arc<[TokenId]>,
    /// Upper limit on generated tokens; none means as many as the context still holds.
    pub max_output_tokens: Option<NonZeroU32>,
    /// Which requests are served first.
    pub service_class: ServiceClass,
    /// Only requests with the same salt reuse each other's keys and values, so that nobody can find out by the time it
    /// takes what others have asked.
    pub cache_salt: u64,
    /// Most tokens that are guessed ahead in one step; 0 guesses none, and nothing means what the config says.
    pub max_draft_tokens: Option<u32>,
}

/// Order among the requests that wait.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ServiceClass {
    /// Before all others.
    Priority,
    /// In the order of arrival.
    #[default]
    Default,
    /// When nothing else waits.
    Flex,
}

impl ServiceClass {
    /// Fewer requests than this that come later are served first: so that nobody waits for ever.
    fn patience(self) -> u64 {
        match self {
            Self::Priority => 0,
            Self::Default => 64,
            Self::Flex => 1024,
        }
    }
}

/// A request on its way to the scheduler, with the way back.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: SamplingParams,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) top_logprobs: Option<u32>,
    pub(crate) stop_tokens: Arc<[TokenId]>,
    pub(crate) max_output_tokens: usize,
    pub(crate) service_class: ServiceClass,
    pub(crate) cache_salt: u64,
    pub(crate) max_draft_tokens: usize,
    pub(crate) events: mpsc::Sender<TokenEvent>,
    /// Room for one request, given back when it leaves the engine.
    pub(crate) permit: OwnedSemaphorePermit,
    /// Room for its prompt among those that wait, given back when it gets a slot.
    pub(crate) _token_permit: OwnedSemaphorePermit,
}

impl Submission {
    /// Ends a request that never got a slot.
    pub(crate) fn finish(self, reason: FinishReason) {
        self.emit(TokenEvent::Finished { reason, num_cached_tokens: 0 });
    }

    /// Tells the listener.
    pub(crate) fn emit(&self, event: TokenEvent) {
        // Closed means that nobody waits for it any more; it cannot be full, since hardly anything was sent.
        let _ = self.events.try_send(event);
    }

    /// Of two waiting requests, the one with the lower turn goes first; `arrival` counts all requests.
    pub(crate) fn turn(&self, arrival: u64) -> u64 {
        arrival + self.service_class.patience()
    }
}

/// What the engine says about one sequence: perhaps that it waits, that it has begun, tokens, then exactly one `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// It has no slot yet.
    Queued,
    /// It has got its slot.
    Started,
    /// Of the token that follows, then of the most probable ones in its place, best first. Only where they were asked for.
    Logprobs(Vec<(TokenId, f32)>),
    /// One generated token.
    Token(TokenId),
    /// The last event.
    Finished {
        /// Why the sequence ended.
        reason: FinishReason,
        /// Tokens of the prompt whose keys and values an earlier request had left behind.
        num_cached_tokens: usize,
    },
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FinishReason {
    /// A stop token was sampled or a stop string appeared.
    Stop,
    /// `max_output_tokens` was reached or the context is full.
    Length,
    /// The model run failed.
    Error,
    /// It was the newest of those for which memory did not suffice.
    OutOfMemory,
    /// The device was lost, and the engine with it.
    DeviceLost,
    /// The server stopped before the sequence was complete.
    Shutdown,
}
