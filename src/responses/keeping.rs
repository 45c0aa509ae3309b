//! What becomes of a reply at its end: it is kept, and its conversation gets it, before the client hears of the end.

use super::{event::ResponseEvent, items::with_ids, response::Response};
use crate::store::{Append, FinishedResponse, Key, Store};
use futures::{Stream, StreamExt};
use serde_json::Value;
use std::sync::Arc;

/// Where a reply belongs.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) store: Store,
    pub(super) tenant: Arc<str>,
    /// The request's own items. Where what it goes on from was not stored, those of that stand before them, so that others can
    /// go on from the reply.
    pub(super) input: Arc<[Value]>,
    pub(super) has_stored_parent: bool,
    /// Whether the response itself is kept.
    pub(super) is_stored: bool,
}

impl Keeping {
    /// The same events; the last one comes when what it says is durable. A reply that cannot be kept is given to the client
    /// all the same, and says so with `store: false`.
    pub(super) fn keep<E: Stream<Item = ResponseEvent>>(self, events: E) -> impl Stream<Item = ResponseEvent> + use<E> {
        let keeping = Arc::new(self);
        events.then(move |mut event| {
            let keeping = Arc::clone(&keeping);
            async move {
                if let Some(response) = event.final_response_mut() {
                    response.store = keeping.put(response).await;
                }
                event
            }
        })
    }

    /// Whether the response is kept. The log says why not.
    async fn put(&self, response: &Response) -> bool {
        let record = Record::new(&self.tenant, response, &self.input);
        let whole = record.finished();
        let previous_id = whole.previous_id.filter(|_| self.has_stored_parent);
        let finished = self.is_stored.then_some(FinishedResponse { previous_id, ..whole });
        let append = record.append();
        if finished.is_none() && append.is_none() {
            return false;
        }
        match self.store.put(finished.as_ref(), append.as_ref()).await {
            Ok(true) => self.is_stored,
            // The conversation was deleted while the reply was written; what was to be kept of it is kept alone.
            Ok(false) => {
                tracing::warn!(id = response.id, "the conversation of a response is gone");
                self.is_stored && self.store.put(finished.as_ref(), None).await.is_ok()
            }
            Err(_) => false,
        }
    }
}

/// The items as clients get them. Read from their text: a number that is kept as a value of its own would have digits that none
/// was sent.
pub(super) fn output_items(response: &Response) -> Vec<Value> {
    let text = serde_json::to_string(&response.output).expect("wire types serialize");
    serde_json::from_str(&text).expect("what was written can be read")
}

/// A response that has ended, in the form in which it is kept.
pub(super) struct Record<'r> {
    tenant: &'r str,
    response: &'r Response,
    body: String,
    input: String,
    item_ids: Vec<String>,
    /// What a conversation gets.
    said: Vec<(String, String)>,
}

impl<'r> Record<'r> {
    pub(super) fn new(tenant: &'r str, response: &'r Response, input: &[Value]) -> Self {
        let body = serde_json::to_string(response).expect("wire types serialize");
        let output = output_items(response);
        let id = |item: &Value| item["id"].as_str().map(str::to_owned);
        Self {
            tenant,
            response,
            input: Value::from(input).to_string(),
            item_ids: output.iter().filter_map(id).collect(),
            said: with_ids(input.iter().chain(&output)),
            body,
        }
    }

    pub(super) fn finished(&self) -> FinishedResponse<'_> {
        FinishedResponse {
            key: Key { tenant: self.tenant, id: &self.response.id },
            created_at: self.response.created_at,
            status: self.response.status.name(),
            model: &self.response.model,
            previous_id: self.response.previous_response_id.as_deref(),
            input: &self.input,
            body: &self.body,
            item_ids: &self.item_ids,
        }
    }

    /// A failure adds nothing to a conversation.
    pub(super) fn append(&self) -> Option<Append<'_>> {
        let conversation = self.response.conversation.as_ref().filter(|_| self.response.error.is_none())?;
        Some(Append { conversation: Key { tenant: self.tenant, id: &conversation.id }, items: &self.said })
    }
}
