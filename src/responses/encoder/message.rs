//! Inside a message.

use super::{CONTENT_INDEX, Encoder, Idle};
use crate::{
    chat::{self, Role},
    responses::{
        event::Payload,
        logprob::TokenLogprob,
        response::{Item, ItemStatus, Part, new_id},
    },
};

/// Inside a message.
#[derive(Debug)]
pub struct InMessage {
    item_id: String,
    text: String,
    logprobs: Vec<TokenLogprob>,
}

impl Encoder<Idle> {
    /// Emits `response.output_item.added` and `response.content_part.added`.
    pub fn open_message(mut self) -> Encoder<InMessage> {
        let item_id = new_id("msg");
        let status = ItemStatus::InProgress;
        self.emit_added(Item::Message { id: item_id.clone(), status, role: Role::Assistant, content: Vec::new() });
        self.emit_part_added(&item_id, Part::output_text(String::new(), Vec::new()));
        self.replace_state(InMessage { item_id, text: String::new(), logprobs: Vec::new() }).1
    }
}

impl Encoder<InMessage> {
    /// Emits `response.output_text.delta`. Log probabilities are those of its tokens, where they were asked for.
    pub fn text(mut self, delta: String, logprobs: Vec<chat::TokenLogprob>) -> Self {
        let logprobs: Vec<TokenLogprob> = logprobs.into_iter().map(Into::into).collect();
        self.state.text.push_str(&delta);
        self.state.logprobs.extend_from_slice(&logprobs);
        let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
        self.emit(Payload::TextDelta { item_id, output_index, content_index: CONTENT_INDEX, delta, logprobs });
        self
    }

    /// Emits `response.output_text.done`, `response.content_part.done` and `response.output_item.done`.
    pub fn close(self, status: ItemStatus) -> Encoder<Idle> {
        let (InMessage { item_id: id, text, logprobs }, mut encoder) = self.replace_state(Idle);
        encoder.emit(Payload::TextDone {
            item_id: id.clone(),
            output_index: encoder.output_index(),
            content_index: CONTENT_INDEX,
            text: text.clone(),
            logprobs: logprobs.clone(),
        });
        let part = Part::output_text(text, logprobs);
        encoder.emit_part_done(&id, part.clone());
        encoder.close_item(Item::Message { id, status, role: Role::Assistant, content: vec![part] })
    }
}
