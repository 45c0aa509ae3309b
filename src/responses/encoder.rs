//! The order of events, as types.
//!
//! ```text
//! begin ─► Idle ─open_message────────► InMessage      (text)*──────close─► Idle ─complete, incomplete or fail─► ∎
//!            ├───open_reasoning──────► InReasoning    (text)*──────close───┤
//!            └───open_function_call──► InFunctionCall (arguments)*─close───┘
//! ```
//!
//! A delta outside an item does not compile, nor does a delta of another kind, nor anything after the end:
//!
//! ```compile_fail,E0599
//! # fn f(idle: ortolan::responses::Encoder<ortolan::responses::Idle>) {
//! idle.text("no item is open".to_owned());
//! # }
//! ```
//! ```compile_fail,E0599
//! # fn f(call: ortolan::responses::Encoder<ortolan::responses::InFunctionCall>) {
//! call.text("a call has no text".to_owned());
//! # }
//! ```
//! ```compile_fail,E0599
//! # fn f(message: ortolan::responses::Encoder<ortolan::responses::InMessage>) {
//! message.incomplete(Default::default());
//! # }
//! ```
//! ```compile_fail,E0382
//! # fn f(idle: ortolan::responses::Encoder<ortolan::responses::Idle>) {
//! idle.complete(Default::default());
//! idle.open_message();
//! # }
//! ```

use super::{
    event::{ErrorPayload, Payload, ResponseEvent},
    response::{Failure, IncompleteDetails, Item, ItemStatus, Part, Response, Status, new_id, unix_seconds},
};
use crate::chat::{Role, Usage};

/// An open response. `S` says which events may come next.
#[derive(Debug)]
pub struct Encoder<S> {
    /// Boxed because each event moves the encoder.
    response: Box<Response>,
    outbox: Vec<ResponseEvent>,
    next_sequence_number: u64,
    state: S,
}

/// Between items.
#[derive(Debug)]
pub struct Idle;

/// Inside a message.
#[derive(Debug)]
pub struct InMessage {
    item_id: String,
    text: String,
}

/// Inside a reasoning item.
#[derive(Debug)]
pub struct InReasoning {
    item_id: String,
    text: String,
}

/// Inside a function call.
#[derive(Debug)]
pub struct InFunctionCall {
    item_id: String,
    call_id: String,
    name: String,
    arguments: String,
}

/// Our items have one content part each.
const CONTENT_INDEX: usize = 0;

impl Encoder<Idle> {
    /// Emits `response.created` and `response.in_progress`.
    pub fn begin(response: Response) -> Self {
        let response = Box::new(response);
        let mut encoder = Self { response, outbox: Vec::new(), next_sequence_number: 0, state: Idle };
        encoder.emit(Payload::Created { response: encoder.response.clone() });
        encoder.emit(Payload::InProgress { response: encoder.response.clone() });
        encoder
    }

    /// Emits `response.output_item.added` and `response.content_part.added`.
    pub fn open_message(mut self) -> Encoder<InMessage> {
        let item_id = new_id("msg");
        let status = ItemStatus::InProgress;
        self.emit_added(Item::Message { id: item_id.clone(), status, role: Role::Assistant, content: Vec::new() });
        self.emit_part_added(&item_id, Part::output_text(String::new()));
        self.replace_state(InMessage { item_id, text: String::new() }).1
    }

    /// Emits `response.output_item.added` and `response.content_part.added`.
    pub fn open_reasoning(mut self) -> Encoder<InReasoning> {
        let item_id = new_id("rs");
        let status = ItemStatus::InProgress;
        self.emit_added(Item::Reasoning { id: item_id.clone(), summary: [], content: Vec::new(), status });
        self.emit_part_added(&item_id, Part::ReasoningText { text: String::new() });
        self.replace_state(InReasoning { item_id, text: String::new() }).1
    }

    /// Emits `response.output_item.added`.
    pub fn open_function_call(mut self, name: String) -> Encoder<InFunctionCall> {
        let state = InFunctionCall { item_id: new_id("fc"), call_id: new_id("call"), name, arguments: String::new() };
        self.emit_added(state.item(ItemStatus::InProgress));
        self.replace_state(state).1
    }

    /// Emits `response.completed`, which holds the whole response.
    pub fn complete(mut self, usage: Usage) -> Vec<ResponseEvent> {
        self.response.status = Status::Completed;
        self.response.completed_at = Some(unix_seconds());
        self.end(Some(usage), |response| Payload::Completed { response })
    }

    /// Emits `response.incomplete`: the tokens ran out.
    pub fn incomplete(mut self, usage: Usage) -> Vec<ResponseEvent> {
        self.response.status = Status::Incomplete;
        self.response.incomplete_details = Some(IncompleteDetails::MAX_OUTPUT_TOKENS);
        self.end(Some(usage), |response| Payload::Incomplete { response })
    }

    /// Emits `error` and `response.failed`, which holds what there is.
    pub fn fail(mut self, failure: Failure, usage: Option<Usage>) -> Vec<ResponseEvent> {
        self.emit(Payload::Error(ErrorPayload(failure)));
        self.response.status = Status::Failed;
        self.response.error = Some(failure);
        self.end(usage, |response| Payload::Failed { response })
    }

    fn end(mut self, usage: Option<Usage>, terminal: fn(Box<Response>) -> Payload) -> Vec<ResponseEvent> {
        self.response.usage = usage.map(Into::into);
        let Self { response, mut outbox, next_sequence_number, state: Idle } = self;
        outbox.push(ResponseEvent::new(next_sequence_number, terminal(response)));
        outbox
    }

    fn emit_added(&mut self, item: Item) {
        self.emit(Payload::ItemAdded { output_index: self.output_index(), item });
    }

    fn emit_part_added(&mut self, item_id: &str, part: Part) {
        let (item_id, output_index) = (item_id.to_owned(), self.output_index());
        self.emit(Payload::PartAdded { item_id, output_index, content_index: CONTENT_INDEX, part });
    }
}

impl Encoder<InMessage> {
    /// Emits `response.output_text.delta`.
    pub fn text(mut self, delta: String) -> Self {
        self.state.text.push_str(&delta);
        let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
        self.emit(Payload::TextDelta { item_id, output_index, content_index: CONTENT_INDEX, delta, logprobs: [] });
        self
    }

    /// Emits `response.output_text.done`, `response.content_part.done` and `response.output_item.done`.
    pub fn close(mut self, status: ItemStatus) -> Encoder<Idle> {
        let (item_id, output_index, text) = (self.state.item_id.clone(), self.output_index(), self.state.text.clone());
        self.emit(Payload::TextDone { item_id, output_index, content_index: CONTENT_INDEX, text, logprobs: [] });
        let (InMessage { item_id: id, text }, encoder) = self.replace_state(Idle);
        let part = Part::output_text(text);
        encoder.close_part(&id, &part).close_item(Item::Message {
            id,
            status,
            role: Role::Assistant,
            content: vec![part],
        })
    }
}

impl Encoder<InReasoning> {
    /// Emits `response.reasoning_text.delta`.
    pub fn text(mut self, delta: String) -> Self {
        self.state.text.push_str(&delta);
        let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
        self.emit(Payload::ReasoningDelta { item_id, output_index, content_index: CONTENT_INDEX, delta });
        self
    }

    /// Emits `response.reasoning_text.done`, `response.content_part.done` and `response.output_item.done`.
    pub fn close(mut self, status: ItemStatus) -> Encoder<Idle> {
        let (item_id, output_index, text) = (self.state.item_id.clone(), self.output_index(), self.state.text.clone());
        self.emit(Payload::ReasoningDone { item_id, output_index, content_index: CONTENT_INDEX, text });
        let (InReasoning { item_id: id, text }, encoder) = self.replace_state(Idle);
        let part = Part::ReasoningText { text };
        encoder.close_part(&id, &part).close_item(Item::Reasoning { id, summary: [], content: vec![part], status })
    }
}

impl Encoder<InFunctionCall> {
    /// Emits `response.function_call_arguments.delta`.
    pub fn arguments(mut self, delta: String) -> Self {
        self.state.arguments.push_str(&delta);
        let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
        self.emit(Payload::ArgumentsDelta { item_id, output_index, delta });
        self
    }

    /// Emits `response.function_call_arguments.done` and `response.output_item.done`.
    pub fn close(mut self, status: ItemStatus) -> Encoder<Idle> {
        let InFunctionCall { item_id, name, arguments, .. } = &self.state;
        let (item_id, name, arguments) = (item_id.clone(), name.clone(), arguments.clone());
        self.emit(Payload::ArgumentsDone { item_id, output_index: self.output_index(), name, arguments });
        let (state, encoder) = self.replace_state(Idle);
        encoder.close_item(state.item(status))
    }
}

impl InFunctionCall {
    fn item(&self, status: ItemStatus) -> Item {
        Item::FunctionCall {
            id: self.item_id.clone(),
            call_id: self.call_id.clone(),
            name: self.name.clone(),
            arguments: self.arguments.clone(),
            status,
        }
    }
}

impl Encoder<Idle> {
    fn close_part(mut self, item_id: &str, part: &Part) -> Self {
        let (item_id, output_index, part) = (item_id.to_owned(), self.output_index(), part.clone());
        self.emit(Payload::PartDone { item_id, output_index, content_index: CONTENT_INDEX, part });
        self
    }

    /// From here on the item is part of the output, and never changes.
    fn close_item(mut self, item: Item) -> Self {
        self.emit(Payload::ItemDone { output_index: self.output_index(), item: item.clone() });
        self.response.output.push(item);
        self
    }
}

impl<S> Encoder<S> {
    /// The events not yet sent.
    pub fn drain(&mut self) -> Vec<ResponseEvent> {
        std::mem::take(&mut self.outbox)
    }

    /// With [`end`](Encoder::end), the only place where a sequence number is made.
    fn emit(&mut self, payload: Payload) {
        self.outbox.push(ResponseEvent::new(self.next_sequence_number, payload));
        self.next_sequence_number += 1;
    }

    /// Where the open item, or the next one, stands in the output.
    fn output_index(&self) -> usize {
        self.response.output.len()
    }

    fn replace_state<T>(self, state: T) -> (S, Encoder<T>) {
        let Self { response, outbox, next_sequence_number, state: before } = self;
        (before, Encoder { response, outbox, next_sequence_number, state })
    }
}
