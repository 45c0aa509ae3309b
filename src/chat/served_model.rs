//! One served model: in memory or not, and the way there and back.

use super::{Chat, ChatError, Lease, LoadFailure, LoadTime, ModelEntry, RequestStats};
use crate::engine::{EngineError, Load, Stats};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep_until},
};

/// After a load that failed, requests are refused for this long before one may try again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// An entry and what has become of it.
#[derive(Debug)]
pub struct ServedModel {
    entry: ModelEntry,
    current: Mutex<Current>,
    /// Sent to when a load begins or ends, when nobody uses or awaits the model any more, and at shutdown.
    changed: watch::Sender<()>,
    /// A permit for each request that may wait for a load.
    waiting: Semaphore,
    request_stats: Arc<RequestStats>,
    /// Held by the one load of all models that is going on.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Current {
    stage: Stage,
    /// When that began.
    since: Instant,
    /// Whether it has ever been loaded.
    was_ready: bool,
    /// From now on nothing is loaded.
    is_closed: bool,
}

#[derive(Debug)]
enum Stage {
    Unloaded,
    Loading,
    Ready { chat: Chat, num_leases: usize, idle_since: Instant },
    Failed(LoadFailure),
}

/// Where a model stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ModelState {
    /// Not in memory; a request loads it.
    Unloaded,
    /// On the way; requests wait.
    Loading,
    /// It takes requests.
    Ready,
    /// It could not be loaded, or its engine has failed.
    Failed,
}

impl ModelState {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

impl ServedModel {
    /// Not loaded. All models share the turn.
    pub(super) fn new(entry: ModelEntry, turn: Arc<Mutex<()>>) -> Self {
        let current = Current { stage: Stage::Unloaded, since: Instant::now(), was_ready: false, is_closed: false };
        let waiting = Semaphore::new(entry.max_waiting);
        Self {
            entry,
            current: Mutex::new(current),
            changed: watch::Sender::new(()),
            waiting,
            request_stats: Arc::default(),
            turn,
        }
    }

    /// As clients call it.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Unix seconds.
    pub fn created(&self) -> u64 {
        self.entry.created
    }

    /// Prompt and reply together.
    pub fn context_tokens(&self) -> usize {
        match &self.lock().stage {
            Stage::Ready { chat, .. } => chat.context_tokens(),
            Stage::Unloaded | Stage::Loading | Stage::Failed(_) => self.entry.context_tokens,
        }
    }

    /// What has become of its requests.
    pub fn request_stats(&self) -> &Arc<RequestStats> {
        &self.request_stats
    }

    /// What each of its engines has done since it was loaded, and has to do; none where it is not loaded.
    pub fn engine_stats(&self) -> Vec<(Stats, Load)> {
        match &self.lock().stage {
            Stage::Ready { chat, .. } => chat.engine_stats(),
            Stage::Unloaded | Stage::Loading | Stage::Failed(_) => Vec::new(),
        }
    }

    /// Where it stands and, but for an engine that has failed, for how long.
    pub fn state(&self) -> (ModelState, Option<Duration>) {
        let current = self.lock();
        let duration = Some(current.since.elapsed());
        match &current.stage {
            Stage::Unloaded => (ModelState::Unloaded, duration),
            Stage::Loading => (ModelState::Loading, duration),
            Stage::Ready { chat, .. } if chat.is_running() => (ModelState::Ready, duration),
            Stage::Ready { .. } => (ModelState::Failed, None),
            Stage::Failed(_) => (ModelState::Failed, duration),
        }
    }

    /// Whether the process is not ready for want of this model.
    pub fn is_missing(&self) -> bool {
        let current = self.lock();
        match &current.stage {
            Stage::Ready { chat, .. } => !chat.is_running(),
            Stage::Unloaded | Stage::Loading | Stage::Failed(_) => {
                self.entry.load == LoadTime::Start && !current.was_ready
            }
        }
    }

    /// A chat with the model, which is loaded first where it is not. Dropping the future gives up the wait and nothing
    /// else: the load goes on.
    ///
    /// # Errors
    /// `LoadQueueFull`, `LoadFailed`, or `Stopped` when the process shuts down.
    pub async fn lease(self: &Arc<Self>) -> Result<Lease, ChatError> {
        let mut changed = self.changed.subscribe();
        let mut place = None;
        loop {
            if let Some(lease) = self.try_lease(&mut place)? {
                return Ok(lease);
            }
            changed.changed().await.expect("the sender is in self");
        }
    }

    /// Waits until the model is loaded, or the process shuts down.
    ///
    /// # Errors
    /// When it could not be loaded.
    pub(super) async fn load(self: &Arc<Self>) -> Result<(), LoadFailure> {
        let mut changed = self.changed.subscribe();
        self.begin_load(&mut self.lock());
        loop {
            {
                let current = self.lock();
                match &current.stage {
                    Stage::Loading if !current.is_closed => {}
                    Stage::Failed(failure) => return Err(failure.clone()),
                    Stage::Loading | Stage::Ready { .. } | Stage::Unloaded => return Ok(()),
                }
            }
            changed.changed().await.expect("the sender is in self");
        }
    }

    /// Unloads the model whenever nobody has used it for that long. Never ends.
    pub(super) async fn unload_when_idle(&self, idle_unload: Duration) {
        let mut changed = self.changed.subscribe();
        loop {
            match self.unload_if_idle(idle_unload) {
                Some(deadline) => sleep_until(deadline).await,
                None => changed.changed().await.expect("the sender is in self"),
            }
        }
    }

    /// What the entry says.
    pub(super) fn idle_unload(&self) -> Option<Duration> {
        self.entry.idle_unload
    }

    /// What the entry says.
    pub(super) fn load_time(&self) -> LoadTime {
        self.entry.load
    }

    /// Refuses those who wait for a load, and whoever would. A model that is loaded stays.
    pub(super) fn stop_loading(&self) {
        self.lock().is_closed = true;
        self.changed.send_replace(());
    }

    /// Ends all replies and refuses new ones.
    pub(super) fn shut_down(&self) {
        self.stop_loading();
        if let Stage::Ready { chat, .. } = &self.lock().stage {
            chat.shut_down();
        }
    }

    /// Called by each lease that ends.
    pub(super) fn end_lease(&self) {
        if let Stage::Ready { num_leases, idle_since, .. } = &mut self.lock().stage {
            *num_leases -= 1;
            *idle_since = Instant::now();
            if 0 < *num_leases {
                return;
            }
        }
        self.changed.send_replace(());
    }

    /// Otherwise takes a place among those who wait, and begins a load where none is going on.
    fn try_lease<'s>(self: &'s Arc<Self>, place: &mut Option<Place<'s>>) -> Result<Option<Lease>, ChatError> {
        let mut current = self.lock();
        if let Stage::Ready { chat, num_leases, .. } = &mut current.stage {
            *num_leases += 1;
            return Ok(Some(Lease::new(chat.clone(), Arc::clone(self))));
        }
        if current.is_closed {
            return Err(EngineError::Stopped.into());
        }
        if let Stage::Failed(_) = current.stage {
            let wait = RETRY_INTERVAL.saturating_sub(current.since.elapsed());
            if place.is_some() || !wait.is_zero() {
                let retry_seconds = (wait + Duration::from_millis(999)).as_secs().max(1);
                return Err(ChatError::LoadFailed { model: self.entry.name.clone(), retry_seconds });
            }
        }
        if place.is_none() {
            *place = Some(Place::take(self).ok_or_else(|| self.queue_full())?);
        }
        self.begin_load(&mut current);
        Ok(None)
    }

    fn queue_full(&self) -> ChatError {
        ChatError::LoadQueueFull { model: self.entry.name.clone(), capacity: self.entry.max_waiting }
    }

    /// On a thread of its own and not of the runtime, whose end would wait for the load.
    fn begin_load(self: &Arc<Self>, current: &mut Current) {
        match current.stage {
            Stage::Unloaded | Stage::Failed(_) => {}
            Stage::Loading | Stage::Ready { .. } => return,
        }
        let model = Arc::clone(self);
        let thread = thread::Builder::new().name("load".to_owned()).spawn(move || model.run_load());
        current.enter(match thread {
            Ok(_) => Stage::Loading,
            Err(cause) => Stage::Failed(LoadFailure::new(format!("no thread can be started: {cause}"))),
        });
        self.changed.send_replace(());
    }

    /// Whatever happens to the loader, those who wait are told.
    fn run_load(&self) {
        let _turn = self.turn.lock().expect("nothing panics while it holds this");
        if !self.lock().is_closed {
            let loaded = catch_unwind(AssertUnwindSafe(|| self.entry.loader.load()));
            let loaded = loaded.unwrap_or_else(|_panic| Err(LoadFailure::new("loading panicked; the log says where")));
            self.finish_load(loaded);
        }
        self.changed.send_replace(());
    }

    fn finish_load(&self, loaded: Result<Chat, LoadFailure>) {
        let mut current = self.lock();
        match loaded {
            Ok(chat) if current.is_closed => chat.shut_down(),
            Ok(chat) => current.enter(Stage::Ready { chat, num_leases: 0, idle_since: Instant::now() }),
            Err(failure) => {
                tracing::error!(model = self.entry.name, error = %failure, "the model could not be loaded");
                current.enter(Stage::Failed(failure));
            }
        }
    }

    /// When to look again; `None` as long as nothing changes.
    fn unload_if_idle(&self, idle_unload: Duration) -> Option<Instant> {
        let mut current = self.lock();
        let Stage::Ready { chat, num_leases: 0, idle_since } = &current.stage else { return None };
        if !chat.is_running() || self.waiting.available_permits() < self.entry.max_waiting {
            return None;
        }
        let deadline = idle_since.checked_add(idle_unload)?;
        if Instant::now() < deadline {
            return Some(deadline);
        }
        // The engine ends by itself; the next load waits for that.
        chat.shut_down();
        current.enter(Stage::Unloaded);
        tracing::info!(model = self.entry.name, idle_seconds = idle_unload.as_secs(), "unloaded an idle model");
        None
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("nothing panics while it holds this")
    }
}

/// One of those who wait for a load.
struct Place<'s> {
    permit: Option<SemaphorePermit<'s>>,
    changed: &'s watch::Sender<()>,
}

impl<'s> Place<'s> {
    fn take(model: &'s ServedModel) -> Option<Self> {
        Some(Self { permit: Some(model.waiting.try_acquire().ok()?), changed: &model.changed })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.permit = None;
        self.changed.send_replace(());
    }
}

impl Current {
    fn enter(&mut self, stage: Stage) {
        self.was_ready |= matches!(stage, Stage::Ready { .. });
        self.stage = stage;
        self.since = Instant::now();
    }
}
