//! The events of a response that is kept, from any of them on: those that there are, and those that come, from whatever
//! process they come.

use super::{
    error::{Kind, ResponsesError},
    event::{ErrorPayload, Payload, ResponseEvent},
    history::read_object,
    replay::replay,
    responder::{Owner, Responder},
    response::Failure,
};
use crate::store::{Changes, Key, Progress, Store};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use std::{collections::VecDeque, sync::Arc};

/// An event as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct WireEvent {
    /// Its type.
    pub name: String,
    /// Its JSON text.
    pub json: String,
}

/// Someone who follows a response.
struct Follower {
    responder: Responder,
    store: Store,
    tenant: Arc<str>,
    id: String,
    changes: Changes,
    /// The last event that was seen.
    cursor: Option<u64>,
    attempt: Option<u64>,
    unsent: VecDeque<WireEvent>,
    has_ended: bool,
}

impl Responder {
    /// The events after a number, or all of them. Where a response was not made in the background, its events were not kept,
    /// and are told anew: the same items, each text in one piece.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn follow(
        &self,
        owner: &Owner,
        id: &str,
        after: Option<u64>,
    ) -> Result<impl Stream<Item = WireEvent> + use<>, ResponsesError> {
        let not_found = || ResponsesError::not_found(Kind::Response, id);
        let store = self.store.clone().ok_or_else(not_found)?;
        let changes = store.changes();
        let found = store.response(Key { tenant: &owner.tenant, id }).await?.ok_or_else(not_found)?;
        if !found.is_background {
            let events = replay(&read_object(&found.id, &found.body)?, self.dialect.reasoning_events());
            let first = after.map_or(0, |after| usize::try_from(after.saturating_add(1)).unwrap_or(usize::MAX));
            return Ok(stream::iter(events.into_iter().skip(first)).left_stream());
        }
        let follower = Follower {
            responder: self.clone(),
            store,
            tenant: Arc::clone(&owner.tenant),
            id: id.to_owned(),
            changes,
            cursor: after,
            attempt: None,
            unsent: VecDeque::new(),
            has_ended: false,
        };
        Ok(stream::unfold(follower, |mut follower| async { Some((follower.next().await?, follower)) }).right_stream())
    }
}

impl Follower {
    async fn next(&mut self) -> Option<WireEvent> {
        loop {
            if let Some(event) = self.unsent.pop_front() {
                return Some(event);
            }
            if self.has_ended {
                return None;
            }
            self.look().await;
            if self.unsent.is_empty() && !self.has_ended {
                self.changes.of(&self.id).await;
            }
        }
    }

    async fn look(&mut self) {
        let key = Key { tenant: &self.tenant, id: &self.id };
        match self.store.progress(key, self.cursor).await {
            Ok(Some(progress)) => self.take(progress),
            // It was deleted: there is nothing left to tell.
            Ok(None) => self.has_ended = true,
            Err(_) => self.end_with(Failure::Model),
        }
        if self.unsent.is_empty() && !self.has_ended && self.responder.is_stopping() {
            self.end_with(Failure::Shutdown);
        }
    }

    fn take(&mut self, progress: Progress) {
        let Progress { events, has_ended, attempt } = progress;
        // None has begun before the first one.
        let before = self.attempt.replace(attempt).filter(|before| *before != 0);
        if before.is_some_and(|before| before != attempt) && self.cursor.is_some() {
            // What was told so far no longer holds. Whoever follows from the beginning hears the new one.
            return self.end_with(Failure::Restarted);
        }
        self.has_ended = has_ended;
        for (number, json) in events {
            self.cursor = Some(number);
            self.unsent.push_back(WireEvent::of(json));
        }
    }

    fn end_with(&mut self, failure: Failure) {
        let number = self.cursor.map_or(0, |cursor| cursor + 1);
        let event = ResponseEvent::new(number, Payload::Error(ErrorPayload(failure)), None);
        self.unsent.push_back(event.into());
        self.has_ended = true;
    }
}

impl WireEvent {
    /// Whose type stands in the text.
    pub(super) fn of(json: String) -> Self {
        #[derive(Deserialize)]
        struct Named {
            r#type: String,
        }
        let name = serde_json::from_str::<Named>(&json).map_or_else(|_| "error".to_owned(), |named| named.r#type);
        Self { name, json }
    }
}

impl From<ResponseEvent> for WireEvent {
    fn from(event: ResponseEvent) -> Self {
        let json = serde_json::to_string(&event).expect("wire types serialize");
        Self { name: event.name().to_owned(), json }
    }
}
