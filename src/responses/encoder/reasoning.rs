//! Inside a reasoning item, whose shape and events are a matter of [`ReasoningEvents`].

use super::{CONTENT_INDEX, Encoder, Idle};
use crate::responses::{
    config::ReasoningEvents,
    event::Payload,
    response::{Item, ItemStatus, Part, new_id},
    seal::Purpose,
};

/// Inside a reasoning item.
#[derive(Debug)]
pub struct InReasoning {
    item_id: String,
    text: String,
}

/// Nor is there more than one part of a summary.
const SUMMARY_INDEX: usize = 0;

impl Encoder<Idle> {
    /// Emits `response.output_item.added`, and that its one part was added.
    pub fn open_reasoning(mut self) -> Encoder<InReasoning> {
        let id = new_id("rs");
        let (item_id, output_index) = (id.clone(), self.output_index());
        let (status, summary, encrypted_content) = (ItemStatus::InProgress, Vec::new(), None);
        if self.reply.options.reasoning_events == ReasoningEvents::Summary {
            self.emit_added(Item::Reasoning { id: id.clone(), summary, content: None, encrypted_content, status });
            let part = Part::SummaryText { text: String::new() };
            self.emit(Payload::SummaryPartAdded { item_id, output_index, summary_index: SUMMARY_INDEX, part });
        } else {
            let content = Some(Vec::new());
            self.emit_added(Item::Reasoning { id: id.clone(), summary, content, encrypted_content, status });
            self.emit_part_added(&item_id, Part::ReasoningText { text: String::new() });
        }
        self.replace_state(InReasoning { item_id: id, text: String::new() }).1
    }
}

impl Encoder<InReasoning> {
    /// Emits the delta that the configuration names.
    pub fn text(mut self, delta: String) -> Self {
        self.state.text.push_str(&delta);
        let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
        let (content_index, summary_index) = (CONTENT_INDEX, SUMMARY_INDEX);
        self.emit(match self.reply.options.reasoning_events {
            ReasoningEvents::OpenAi => Payload::ReasoningTextDelta { item_id, output_index, content_index, delta },
            ReasoningEvents::OpenResponses => Payload::ReasoningDelta { item_id, output_index, content_index, delta },
            ReasoningEvents::Summary => Payload::SummaryTextDelta { item_id, output_index, summary_index, delta },
        });
        self
    }

    /// Emits that the text, its part and the item are done.
    pub fn close(self, status: ItemStatus) -> Encoder<Idle> {
        let (InReasoning { item_id: id, text }, mut encoder) = self.replace_state(Idle);
        let encrypted_content = encoder.reply.options.seal.as_ref().map(|seal| seal.seal(Purpose::Reasoning, &text));
        let events = encoder.reply.options.reasoning_events;
        let (item_id, output_index, done) = (id.clone(), encoder.output_index(), text.clone());
        let (content_index, summary_index) = (CONTENT_INDEX, SUMMARY_INDEX);
        encoder.emit(match events {
            ReasoningEvents::OpenAi => Payload::ReasoningTextDone { item_id, output_index, content_index, text: done },
            ReasoningEvents::OpenResponses => {
                Payload::ReasoningDone { item_id, output_index, content_index, text: done }
            }
            ReasoningEvents::Summary => Payload::SummaryTextDone { item_id, output_index, summary_index, text: done },
        });
        let (summary, content) = if events == ReasoningEvents::Summary {
            let (item_id, part) = (id.clone(), Part::SummaryText { text });
            encoder.emit(Payload::SummaryPartDone { item_id, output_index, summary_index, part: part.clone() });
            (vec![part], None)
        } else {
            let part = Part::ReasoningText { text };
            encoder.emit_part_done(&id, part.clone());
            (Vec::new(), Some(vec![part]))
        };
        encoder.close_item(Item::Reasoning { id, summary, content, encrypted_content, status })
    }
}
