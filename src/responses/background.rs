//! Work that nobody waits for: whichever process comes to a kept request first answers it, and keeps what is said as it is said.

use super::{
    encoder::{EncodeOptions, Encoder},
    error::ResponsesError,
    event::ResponseEvent,
    history::{read_items, read_object},
    keeping::Record,
    responder::{Owner, Responder},
    response::{Failure, Response, Status, unix_seconds},
};
use crate::{
    chat::ChatError,
    engine::{EngineError, SamplingParams},
    responses::{CreateResponse, UnknownFields},
    store::{Job, POLL_INTERVAL, Store, StoreError},
};
use futures::{StreamExt, stream::LocalBoxStream};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

/// Work that was begun so often is what stops the process, perhaps.
const MAX_ATTEMPTS: u64 = 3;
/// Events kept in one transaction.
const MAX_EVENTS: usize = 256;
/// A lease is renewed at least as often, and a cancellation noticed.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Between tries to read what is to be done while the store fails, and to begin while the engine is full.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Before other work is taken up where this process could not do what it had: its model cannot be loaded, or has failed.
const PAUSE: Duration = Duration::from_secs(5);

/// Work that no process could begin for so long fails: a day, since those that serve its model may only be busy.
const UNSERVED_SECONDS: u64 = 24 * 3600;
/// How often such work is looked for.
const UNSERVED_INTERVAL: Duration = Duration::from_secs(60);

/// How an attempt ended.
enum Outcome {
    /// The response has ended, and is kept.
    Kept,
    /// It is no longer ours: cancelled, deleted, or taken over.
    Lost,
    /// The engine is gone, perhaps because of this work: its lease ends by and by, and the attempt counts.
    EngineLost,
    /// The process stops, or cannot do it now; another one, or a later try, goes on.
    Interrupted,
}

impl Responder {
    /// Takes up work until the process drains; then ends when the last of it has been kept or given back. Has to run where
    /// tasks can be spawned that stay on their thread.
    pub async fn work(self) {
        let Some(store) = self.store.clone() else { return };
        let num_jobs = self.dialect.background_jobs();
        let permits = Arc::new(Semaphore::new(num_jobs));
        let mut changes = store.changes();
        let mut last_look = None;
        while !self.is_draining() {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            match self.claim(&store).await {
                Ok(Some(job)) => {
                    let (responder, store) = (self.clone(), store.clone());
                    tokio::task::spawn_local(async move {
                        if matches!(responder.run(&store, &job).await, Some(Outcome::Interrupted | Outcome::EngineLost))
                        {
                            responder.pause().await;
                        }
                        drop(permit);
                    });
                }
                Ok(None) if last_look.is_none_or(|last: Instant| UNSERVED_INTERVAL <= last.elapsed()) => {
                    last_look = Some(Instant::now());
                    // A failure is in the log, and this is tried again.
                    let _ = self.fail_unserved(&store).await;
                }
                Ok(None) => changes.any().await,
                // The log says why.
                Err(_) => sleep(RETRY_INTERVAL).await,
            }
        }
        let all = u32::try_from(num_jobs).unwrap_or(u32::MAX);
        let _ended = permits.acquire_many(all).await;
    }

    async fn claim(&self, store: &Store) -> Result<Option<Job>, StoreError> {
        for model in self.models.iter() {
            if let Some(job) = store.claim(model.name()).await? {
                return Ok(Some(job));
            }
        }
        Ok(None)
    }

    async fn fail_unserved(&self, store: &Store) -> Result<(), StoreError> {
        let served: Vec<&str> = self.models.iter().map(|model| model.name()).collect();
        while let Some(job) = store.claim_abandoned(&served, UNSERVED_SECONDS).await? {
            let message = "no server that serves the model of this response has come to it for a day".to_owned();
            self.refuse(store, &job, Failure::Refused { message }).await?;
        }
        Ok(())
    }

    async fn pause(&self) {
        let until = Instant::now() + PAUSE;
        while Instant::now() < until && !self.is_draining() {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// How it ended; none where the store failed.
    async fn run(&self, store: &Store, job: &Job) -> Option<Outcome> {
        let (id, attempt) = (&job.id, job.attempt);
        let outcome = match self.begin(store, job).await {
            Ok(Some(events)) => self.follow_to_the_end(store, job, events).await,
            Ok(None) => Ok(Outcome::Lost),
            // Not for ever: somebody waits for the end.
            Err(error) if is_ours(&error) && unix_seconds() < job.created_at + UNSERVED_SECONDS => {
                tracing::warn!(id, attempt, %error, "a background response could not be begun");
                Ok(Outcome::Interrupted)
            }
            Err(error) => self.refuse(store, job, Failure::Refused { message: error.to_string() }).await,
        };
        match &outcome {
            Ok(Outcome::Kept) => tracing::info!(id, attempt, "a background response has ended"),
            Ok(Outcome::Lost) => tracing::info!(id, attempt, "a background response was cancelled or taken over"),
            Ok(Outcome::EngineLost) => {
                tracing::error!(id, attempt, "the engine was lost while it wrote a background response");
            }
            Ok(Outcome::Interrupted) => {
                tracing::info!(id, attempt, "a background response is left for later");
                // If this fails, too, its lease ends.
                let _ = store.release(job).await;
            }
            // Its lease ends by and by, and then it is tried again.
            Err(error) => tracing::error!(id, attempt, %error, "a background response could not be kept"),
        }
        outcome.ok()
    }

    /// Waits while the engine is full. None where the work is no longer ours.
    async fn begin(
        &self,
        store: &Store,
        job: &Job,
    ) -> Result<Option<LocalBoxStream<'static, ResponseEvent>>, ResponsesError> {
        let owner = Owner { tenant: job.tenant.as_str().into(), cache_salt: self.cache_salt(&job.tenant) };
        if MAX_ATTEMPTS < job.attempt {
            let events = self.failed(job, Failure::Interrupted { attempts: job.attempt - 1 });
            return Ok(Some(futures::stream::iter(events).boxed_local()));
        }
        loop {
            // A model may take longer to load than a lease lasts.
            let mut start = std::pin::pin!(self.start_job(&owner, job));
            let started = loop {
                match timeout(RENEW_INTERVAL, &mut start).await {
                    Ok(started) => break started,
                    Err(_elapsed) if store.record(job, &[]).await? => {}
                    Err(_elapsed) => return Ok(None),
                }
            };
            match started {
                Ok(events) => return Ok(Some(events)),
                Err(ResponsesError::Chat(error)) if is_passing(&error) && !self.is_draining() => {
                    if !store.record(job, &[]).await? {
                        return Ok(None);
                    }
                    sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Dropping the events, as all ways out do, cancels what has not ended.
    async fn follow_to_the_end(
        &self,
        store: &Store,
        job: &Job,
        events: LocalBoxStream<'static, ResponseEvent>,
    ) -> Result<Outcome, StoreError> {
        let mut chunks = events.ready_chunks(MAX_EVENTS);
        loop {
            let events = match timeout(RENEW_INTERVAL, chunks.next()).await {
                Ok(Some(events)) => events,
                Ok(None) => unreachable!("events end with a terminal one"),
                Err(_elapsed) => Vec::new(),
            };
            let last = events.last().and_then(ResponseEvent::final_response);
            if let Some(response) = last {
                return self.finish(store, job, response, &events).await;
            }
            if !store.record(job, &numbered(&events)).await? {
                return Ok(Outcome::Lost);
            }
        }
    }

    async fn finish(
        &self,
        store: &Store,
        job: &Job,
        response: &Response,
        events: &[ResponseEvent],
    ) -> Result<Outcome, StoreError> {
        match response.failure() {
            Some(Failure::Shutdown) => return Ok(Outcome::Interrupted),
            Some(Failure::EngineLost) => return Ok(Outcome::EngineLost),
            Some(_) | None => {}
        }
        let input = read_items(&job.id, &job.input).unwrap_or_default();
        let record = Record::new(&job.tenant, response, &input);
        let (finished, events) = (record.finished(), numbered(events));
        if let Some(append) = record.append()
            && store.finish(job, &finished, &events, Some(&append)).await.unwrap_or(false)
        {
            return Ok(Outcome::Kept);
        }
        // There is no conversation, or it is gone, or cannot take the items; else the lease is lost, and with it the right to
        // say anything.
        let is_kept = store.finish(job, &finished, &events, None).await?;
        Ok(if is_kept { Outcome::Kept } else { Outcome::Lost })
    }

    /// Ends a response that never began.
    async fn refuse(&self, store: &Store, job: &Job, failure: Failure) -> Result<Outcome, StoreError> {
        let events = self.failed(job, failure);
        let response = events.last().and_then(ResponseEvent::final_response).expect("a failure ends the response");
        self.finish(store, job, response, &events).await
    }

    /// The events of a response that never began.
    fn failed(&self, job: &Job, failure: Failure) -> Vec<ResponseEvent> {
        let options = EncodeOptions { first_number: job.first_number(), ..EncodeOptions::default() };
        Encoder::begin(self.beginning(job), options).start().fail(failure, None)
    }

    /// The response as it was when it was asked for, as far as it can still be understood.
    fn beginning(&self, job: &Job) -> Response {
        let body = read_object(&job.id, &job.request).unwrap_or_default();
        let told = |body: &Value| CreateResponse::parse(body, UnknownFields::Ignore);
        // What it asks for may be what was refused.
        let bare = json!({ "input": "-", "model": body["model"], "background": true,
                           "previous_response_id": body["previous_response_id"], "conversation": body["conversation"] });
        let request =
            told(&body).or_else(|_| told(&bare)).or_else(|_| told(&json!({ "input": "-", "background": true })));
        let request = request.expect("a body with an input is a request");
        let known = self.models.get(request.model()).map(|model| model.name());
        let model = known.unwrap_or_else(|_| request.model().unwrap_or_default()).to_owned();
        let (response, _) = request.begin(&model, &SamplingParams::default());
        Response { id: job.id.clone(), created_at: job.created_at, store: true, status: Status::Queued, ..response }
    }
}

/// Whether the request is not to blame, so that another process or another time may do better.
fn is_ours(error: &ResponsesError) -> bool {
    match error {
        ResponsesError::Store(error) => !matches!(error, StoreError::Corrupt { .. } | StoreError::TooLong),
        ResponsesError::Chat(ChatError::LoadFailed { .. } | ChatError::Engine(EngineError::Stopped)) => true,
        ResponsesError::Chat(error) => is_passing(error),
        ResponsesError::Invalid(_)
        | ResponsesError::NotFound { .. }
        | ResponsesError::NotBackground { .. }
        | ResponsesError::BackgroundFull { .. } => false,
    }
}

/// Whether it may be different in a moment.
fn is_passing(error: &ChatError) -> bool {
    matches!(
        error,
        ChatError::LoadQueueFull { .. }
            | ChatError::Engine(EngineError::QueueFull { .. } | EngineError::TooManyTokensWaiting { .. })
    )
}

/// With their numbers, in JSON.
fn numbered(events: &[ResponseEvent]) -> Vec<(u64, String)> {
    let text = |event: &ResponseEvent| serde_json::to_string(event).expect("wire types serialize");
    events.iter().map(|event| (event.sequence_number(), text(event))).collect()
}
