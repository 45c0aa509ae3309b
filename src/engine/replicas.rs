//! Engines that run the same model side by side, and which of them a request goes to.

use super::{EngineError, EngineHandle, Load, ModelLimits, Request, Stats, TokenId, TokenStream};
use std::{
    cmp::Reverse,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
};

/// One engine for each device, or several. Cheap to clone.
///
/// A request goes to the one that has the least to do for its slots. Among those that have equally little it goes to the one
/// that was given the longest beginning of the same prompt, since that may still hold it; else they take turns. One whose last
/// run failed counts as busy in all of its slots: whatever fails all that it is given has the least to do, and would be given
/// everything.
#[derive(Clone, Debug)]
pub struct Replicas {
    /// At least one.
    engines: Arc<[EngineHandle]>,
    /// Held while one is chosen and room taken in it, so that two requests that come at once see each other.
    routes: Arc<Mutex<Routes>>,
}

impl From<EngineHandle> for Replicas {
    fn from(engine: EngineHandle) -> Self {
        Self::new(vec![engine])
    }
}

impl Replicas {
    /// Of one model and of one configuration, but for where they run.
    pub fn new(engines: Vec<EngineHandle>) -> Self {
        assert!(!engines.is_empty(), "a model has an engine");
        Self { engines: engines.into(), routes: Arc::default() }
    }

    /// What the model can take.
    pub fn limits(&self) -> ModelLimits {
        self.engines[0].limits()
    }

    /// What each has done so far and has to do, in the order of the devices.
    pub fn stats(&self) -> Vec<(Stats, Load)> {
        self.engines.iter().map(|engine| (engine.stats(), engine.load())).collect()
    }

    /// Whether all of them still take requests. Those that do go on where one does not.
    pub fn is_running(&self) -> bool {
        self.engines.iter().all(EngineHandle::is_running)
    }

    /// Whether a request would be refused whatever it holds, so that nothing need be prepared for it.
    ///
    /// # Errors
    /// `QueueFull` or `Stopped`.
    pub fn check_room(&self) -> Result<(), EngineError> {
        let mut refusal = None;
        for engine in self.engines.iter().filter(|engine| engine.is_running()) {
            match engine.check_room() {
                Ok(()) => return Ok(()),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.map_or(EngineError::Stopped, |refusal| self.of_all(refusal)))
    }

    /// Queues a request; never waits.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`], where none has room.
    pub fn submit(&self, request: Request) -> Result<TokenStream, EngineError> {
        self.engines[0].check(&request)?;
        let hashes = if self.engines.len() == 1 { Vec::new() } else { hashes(request.cache_salt, &request.prompt) };
        let mut routes = self.routes.lock().expect("nothing panics while it holds this");
        let mut refusal = None;
        for index in routes.order(&self.engines, &hashes) {
            let engine = &self.engines[index];
            match engine.reserve(request.prompt.len()) {
                Ok(place) => {
                    routes.note(index, &hashes);
                    drop(routes);
                    return Ok(engine.submit_to(place, request));
                }
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.map_or(EngineError::Stopped, |refusal| self.of_all(refusal)))
    }

    /// Ends every sequence with [`FinishReason::Shutdown`](super::FinishReason) within one step, refuses new ones and
    /// lets the threads return.
    pub fn shut_down(&self) {
        self.engines.iter().for_each(EngineHandle::shut_down);
    }
}

impl Replicas {
    /// What a client is told: the limits of all that run are one.
    fn of_all(&self, refusal: EngineError) -> EngineError {
        let num_running = self.engines.iter().filter(|engine| engine.is_running()).count();
        match refusal {
            EngineError::QueueFull { capacity } => EngineError::QueueFull { capacity: capacity * num_running },
            EngineError::TooManyTokensWaiting { capacity } => {
                let num_running = u32::try_from(num_running).unwrap_or(u32::MAX);
                EngineError::TooManyTokensWaiting { capacity: capacity.saturating_mul(num_running) }
            }
            EngineError::PromptTooLong { .. } | EngineError::UnknownToken { .. } | EngineError::Stopped => refusal,
        }
    }
}

/// Where requests went.
#[derive(Debug)]
struct Routes {
    /// Of the engine whose turn it is.
    next: usize,
    /// Hashes of beginnings, each with the engine that was given it last. A hash has one place; a later one with the same
    /// place takes it.
    known: Vec<Option<(u64, usize)>>,
}

/// Enough for some hundred conversations.
const NUM_KNOWN: usize = 4096;

/// Beginnings of these lengths are remembered: this, twice as much, and so on. Of what is shorter, nothing is reused.
const SHORTEST_BEGINNING: usize = 16;
/// What two prompts have in common is no longer than this, or as good as that.
const LONGEST_BEGINNING: usize = 8192;

impl Default for Routes {
    fn default() -> Self {
        Self { next: 0, known: vec![None; NUM_KNOWN] }
    }
}

impl Routes {
    /// Those that run, the best one first.
    fn order(&self, engines: &[EngineHandle], hashes: &[u64]) -> Vec<usize> {
        let running = engines.iter().enumerate().filter(|(_, engine)| engine.is_running());
        let ranked = running.map(|(index, engine)| {
            let longest = hashes.iter().rposition(|hash| self.known[place(*hash)] == Some((*hash, index)));
            let turn = (index + engines.len() - self.next % engines.len()) % engines.len();
            let num_slots = engine.num_slots();
            let num_requests = engine.num_requests() + if engine.has_failed() { num_slots } else { 0 };
            ((num_requests, num_slots), (Reverse(longest), turn), index)
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by(|((requests, slots), rest, _), ((others, other_slots), other_rest, _)| {
            // As fractions, without dividing.
            (requests * other_slots).cmp(&(others * slots)).then(rest.cmp(other_rest))
        });
        ranked.into_iter().map(|(_, _, index)| index).collect()
    }

    fn note(&mut self, index: usize, hashes: &[u64]) {
        self.next = index + 1;
        for hash in hashes {
            self.known[place(*hash)] = Some((*hash, index));
        }
    }
}

fn place(hash: u64) -> usize {
    usize::try_from(hash % NUM_KNOWN as u64).expect("it is less than a length")
}

/// Of the prompt's beginnings, the shortest first. Tenants have none in common.
fn hashes(cache_salt: u64, prompt: &[TokenId]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    cache_salt.hash(&mut hasher);
    let mut hashes = Vec::new();
    let (mut begin, mut end) = (0, SHORTEST_BEGINNING);
    while end <= prompt.len().min(LONGEST_BEGINNING) {
        prompt[begin..end].iter().for_each(|token| token.hash(&mut hasher));
        hashes.push(hasher.finish());
        (begin, end) = (end, 2 * end);
    }
    hashes
}
