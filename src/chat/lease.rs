//! The right to talk to a loaded model.

use super::{
    Chat, ChatError, ChatEvent, ChatRequest, Finished, ServedModel, event::whole_answer, request_stats::Timing,
};
use crate::engine::SamplingParams;
use futures::{Stream, StreamExt};
use std::sync::Arc;

/// A chat whose model is not unloaded while this, or the reply that it became, lives.
#[derive(Debug)]
pub struct Lease {
    chat: Chat,
    model: Arc<ServedModel>,
}

impl Lease {
    /// The model counts it.
    pub(super) fn new(chat: Chat, model: Arc<ServedModel>) -> Self {
        Self { chat, model }
    }

    /// What applies where a request says nothing.
    pub fn default_sampling(&self) -> &SamplingParams {
        self.chat.default_sampling()
    }

    /// See [`Chat::count_tokens`].
    ///
    /// # Errors
    /// As for a reply, but that the engine has no say.
    pub async fn count_tokens(&self, request: ChatRequest) -> Result<usize, ChatError> {
        self.chat.count_tokens(request).await
    }

    /// The [whole answer](whole_answer) to a request.
    ///
    /// # Errors
    /// As for a reply.
    pub async fn answer(&self, request: ChatRequest) -> Result<(String, Option<Finished>), ChatError> {
        Ok(whole_answer(self.reply(request).await?).await)
    }

    /// See [`Chat::start`].
    ///
    /// # Errors
    /// Before the first byte of the reply is sent.
    pub async fn start(self, request: ChatRequest) -> Result<impl Stream<Item = ChatEvent> + Unpin + use<>, ChatError> {
        let events = self.reply(request).await?;
        Ok(events.inspect(move |_| {
            let _held_while_it_talks = &self;
        }))
    }

    /// Its times and its end are noted.
    async fn reply(&self, request: ChatRequest) -> Result<impl Stream<Item = ChatEvent> + Unpin + use<>, ChatError> {
        let mut timing = Timing::begin(Arc::clone(self.model.request_stats()));
        let started = self.chat.start(request).await;
        let events = started.inspect_err(|_| timing.forget())?;
        Ok(timing.watch(events))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.model.end_lease();
    }
}
