//! The `Send + Clone` side of the engine.

use super::{
    EngineConfig, EngineError, Load, ModelLimits, Request, Stats, TokenEvent, request::Submission, stats::Counters,
};
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What the engine thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<Submission>),
    /// Look at the stop flag.
    Wake,
}

/// The only way in. Cheap to clone; every HTTP worker has one.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    /// One for each request that runs or waits.
    permits: Arc<Semaphore>,
    max_waiting: usize,
    slots: usize,
    /// One for each token of the prompts that wait.
    token_permits: Arc<Semaphore>,
    max_waiting_tokens: u32,
    max_draft_tokens: u32,
    stopping: Arc<AtomicBool>,
    limits: ModelLimits,
    counters: Arc<Counters>,
}

/// Room in an engine for one request, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: OwnedSemaphorePermit,
    token_permit: OwnedSemaphorePermit,
    /// Whoever holds it is waited for when the engine ends, so it is not held for long.
    commands: mpsc::OwnedPermit<Command>,
}

/// More are not guessed ahead, whatever is asked: they would all have to be right.
const MAX_DRAFT_TOKENS: u32 = 32;

/// Tokens of one request. Dropping it cancels the request.
pub type TokenStream = mpsc::Receiver<TokenEvent>;

impl EngineHandle {
    pub(super) fn new(
        config: &EngineConfig,
        limits: ModelLimits,
        counters: Arc<Counters>,
    ) -> (Self, mpsc::Receiver<Command>, Arc<AtomicBool>) {
        let max_waiting = config.max_waiting.get() as usize;
        let max_requests = max_waiting + config.max_batch_size.get() as usize;
        let (commands, receiver) = mpsc::channel(max_requests);
        let stopping = Arc::new(AtomicBool::new(false));
        let permits = Arc::new(Semaphore::new(max_requests));
        let handle = Self {
            commands,
            permits,
            max_waiting,
            slots: config.max_batch_size.get() as usize,
            token_permits: Arc::new(Semaphore::new(config.max_waiting_tokens.get() as usize)),
            max_waiting_tokens: config.max_waiting_tokens.get(),
            max_draft_tokens: config.max_draft_tokens,
            stopping: Arc::clone(&stopping),
            limits,
            counters,
        };
        (handle, receiver, stopping)
    }

    /// What the model can take.
    pub fn limits(&self) -> ModelLimits {
        self.limits
    }

    /// What the engine has done so far.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// What it has to do.
    pub fn load(&self) -> Load {
        let running = self.counters.running();
        let max_waiting_tokens = self.max_waiting_tokens as usize;
        Load {
            running,
            waiting: self.num_requests().saturating_sub(running),
            waiting_tokens: max_waiting_tokens - self.token_permits.available_permits(),
            slots: self.slots,
            blocks_in_use: self.counters.blocks_in_use(),
            blocks: self.limits.blocks.map_or(0, |limits| limits.num_blocks),
            max_waiting: self.max_waiting,
            max_waiting_tokens,
        }
    }

    /// Whether the engine still takes requests.
    pub fn is_running(&self) -> bool {
        !self.stopping.load(Ordering::Acquire) && !self.commands.is_closed()
    }

    /// Whether a request would be refused whatever it holds, so that nothing need be prepared for it.
    ///
    /// # Errors
    /// `QueueFull` or `Stopped`.
    pub fn check_room(&self) -> Result<(), EngineError> {
        if !self.is_running() {
            return Err(EngineError::Stopped);
        }
        if self.permits.available_permits() == 0 {
            return Err(EngineError::QueueFull { capacity: self.max_waiting });
        }
        Ok(())
    }

    /// Queues a request; never waits.
    ///
    /// # Errors
    /// `PromptTooLong`, `UnknownToken`, `QueueFull`, `TooManyTokensWaiting` or `Stopped`.
    pub fn submit(&self, request: Request) -> Result<TokenStream, EngineError> {
        self.check(&request)?;
        let place = self.reserve(request.prompt.len())?;
        Ok(self.submit_to(place, request))
    }

    /// Whether the model can take the request at all.
    pub(super) fn check(&self, request: &Request) -> Result<(), EngineError> {
        let Request { prompt, sampling, .. } = request;
        assert!(!prompt.is_empty(), "a prompt has at least one token");
        let ModelLimits { vocab_size, context_tokens, .. } = self.limits;
        if context_tokens <= prompt.len() {
            return Err(EngineError::PromptTooLong { prompt_tokens: prompt.len(), context_tokens });
        }
        let biased = sampling.logit_bias.iter().map(|(token, _)| token);
        match prompt.iter().chain(biased).find(|token| vocab_size <= token.index()) {
            Some(unknown) => Err(EngineError::UnknownToken { token: unknown.0, vocab_size }),
            None => Ok(()),
        }
    }

    /// Room for a prompt of so many tokens, if there is any.
    pub(super) fn reserve(&self, prompt_tokens: usize) -> Result<Place, EngineError> {
        self.check_room()?;
        let full = EngineError::QueueFull { capacity: self.max_waiting };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(full) };
        // A prompt longer than the limit can still come when nothing else waits.
        let num_permits = u32::try_from(prompt_tokens).unwrap_or(u32::MAX).min(self.max_waiting_tokens);
        let Ok(token_permit) = Arc::clone(&self.token_permits).try_acquire_many_owned(num_permits) else {
            return Err(EngineError::TooManyTokensWaiting { capacity: self.max_waiting_tokens });
        };
        match self.commands.clone().try_reserve_owned() {
            Ok(commands) => Ok(Place { permit, token_permit, commands }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(full), // Wake-ups took the room.
            Err(mpsc::error::TrySendError::Closed(_)) => Err(EngineError::Stopped),
        }
    }

    /// Queues a request that was [checked](Self::check).
    pub(super) fn submit_to(&self, place: Place, request: Request) -> TokenStream {
        let ModelLimits { context_tokens, can_verify_drafts, .. } = self.limits;
        let room = context_tokens - request.prompt.len();
        let limit = request.max_output_tokens.map(|limit| NonZeroU32::get(limit) as usize);
        let max_output_tokens = limit.map_or(room, |limit| room.min(limit));
        // Room for every token, `Queued`, `Started` and `Finished`: the engine's send never blocks, whatever the client does.
        let events_per_token = if request.top_logprobs.is_some() { 2 } else { 1 };
        let (events, stream) = mpsc::channel(events_per_token * max_output_tokens + 3);
        let max_draft_tokens = request.max_draft_tokens.unwrap_or(self.max_draft_tokens).min(MAX_DRAFT_TOKENS);
        let submission = Box::new(Submission {
            prompt: request.prompt,
            sampling: request.sampling,
            constraint: request.constraint,
            top_logprobs: request.top_logprobs,
            stop_tokens: request.stop_tokens,
            max_output_tokens,
            service_class: request.service_class,
            cache_salt: request.cache_salt,
            max_draft_tokens: if can_verify_drafts { max_draft_tokens as usize } else { 0 },
            events,
            permit: place.permit,
            _token_permit: place.token_permit,
        });
        place.commands.send(Command::Submit(submission));
        stream
    }

    /// Requests that run or wait, of those that may.
    pub(super) fn num_requests(&self) -> usize {
        self.slots + self.max_waiting - self.permits.available_permits()
    }

    /// Whether the last run failed, and the engine has not been looked at since.
    pub(super) fn has_failed(&self) -> bool {
        self.counters.has_failed()
    }

    /// Sequences that run at once.
    pub(super) fn num_slots(&self) -> usize {
        self.slots
    }

    /// Ends every sequence with [`FinishReason::Shutdown`](super::FinishReason) within one step, refuses new ones and
    /// lets the engine thread return.
    pub fn shut_down(&self) {
        self.stopping.store(true, Ordering::Release);
        // A full queue needs no waking: the engine is at work and looks at the flag before its next step.
        let _ = self.commands.try_send(Command::Wake);
    }
}
