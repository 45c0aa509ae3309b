//! The right to talk to a loaded model.

use super::{Chat, ChatError, ChatEvent, ChatRequest, Delta, Finished, ServedModel};
use crate::engine::{FinishReason, SamplingParams};
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

    /// The answer to a request, when it is complete; reasoning and calls are left out. None when it failed.
    ///
    /// # Errors
    /// As for a reply.
    pub async fn answer(&self, request: ChatRequest) -> Result<Option<String>, ChatError> {
        let mut events = self.chat.start(request).await?;
        let mut text = String::new();
        while let Some(event) = events.next().await {
            match event {
                ChatEvent::Delta(Delta::Text(more)) => text.push_str(&more),
                ChatEvent::Queued | ChatEvent::Started | ChatEvent::Delta(_) | ChatEvent::Logprobs(_) => {}
                ChatEvent::Finished(Finished { reason: FinishReason::Stop | FinishReason::Length, .. }) => {
                    return Ok(Some(text).filter(|text| !text.trim().is_empty()));
                }
                ChatEvent::Finished(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// See [`Chat::start`].
    ///
    /// # Errors
    /// Before the first byte of the reply is sent.
    pub async fn start(self, request: ChatRequest) -> Result<impl Stream<Item = ChatEvent> + Unpin + use<>, ChatError> {
        let events = self.chat.start(request).await?;
        Ok(events.inspect(move |_| {
            let _held_while_it_talks = &self;
        }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.model.end_lease();
    }
}
