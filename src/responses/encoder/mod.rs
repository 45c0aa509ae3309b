//! The order of events, as types.
//!
//! ```text
//! begin ─► Begun (queued)? ─start─► Idle
//!
//!          Idle ─open_message──────────► InMessage        (text)*──────close─► Idle ─complete, incomplete or fail─► ∎
//!            ├───open_reasoning────────► InReasoning      (text)*──────close───┤
//!            ├───open_function_call────► InFunctionCall   (arguments)*─close───┤
//!            ├───open_custom_tool_call─► InCustomToolCall (arguments)*─close───┤
//!            └───compaction────────────────────────────────────────────────────┘
//! ```
//!
//! An item before the start does not compile, nor does a delta outside an item, nor one of another kind, nor anything after
//! the end:
//!
//! ```compile_fail,E0599
//! # fn f(begun: ortolan::responses::Encoder<ortolan::responses::Begun>) {
//! begun.open_message();
//! # }
//! ```
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
//! # fn f(call: ortolan::responses::Encoder<ortolan::responses::InCustomToolCall>) {
//! call.open_message();
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

mod call;
mod message;
mod reasoning;

pub use call::{InCustomToolCall, InFunctionCall};
pub use message::InMessage;
pub use reasoning::InReasoning;

use super::{
    config::ReasoningEvents,
    event::{ErrorPayload, Payload, ResponseEvent},
    obfuscation,
    response::{Failure, IncompleteDetails, Item, Part, Response, Status, ToolName, new_id, unix_seconds},
    seal::Seal,
    tools::{Callable, CallableKind},
};
use crate::chat::Usage;
use std::sync::Arc;

/// An open response. `S` says which events may come next.
#[derive(Debug)]
pub struct Encoder<S> {
    /// Boxed because each event moves the encoder.
    reply: Box<Reply>,
    state: S,
}

/// What outlives the items.
#[derive(Debug)]
struct Reply {
    response: Response,
    options: EncodeOptions,
    outbox: Vec<ResponseEvent>,
    next_sequence_number: u64,
}

/// How a reply is told. The default is the least that the protocol asks for.
#[derive(Debug, Default)]
pub struct EncodeOptions {
    /// Names and shape of the events that tell reasoning.
    pub reasoning_events: ReasoningEvents,
    /// Gives reasoning items their `encrypted_content`; none leaves it out.
    pub seal: Option<Arc<Seal>>,
    /// Pads deltas.
    pub obfuscation: bool,
    /// Comes before the reply: a sealed summary of the conversation that it answers.
    pub compaction: Option<String>,
    /// Of the first event.
    pub first_number: u64,
}

/// Before anything is done for it.
#[derive(Debug)]
pub struct Begun;

/// Between items.
#[derive(Debug)]
pub struct Idle;

/// Our items have one content part each.
const CONTENT_INDEX: usize = 0;

impl Encoder<Begun> {
    /// Emits `response.created`.
    pub fn begin(response: Response, options: EncodeOptions) -> Self {
        let created = Box::new(response.clone());
        let next_sequence_number = options.first_number;
        let reply = Reply { response, options, outbox: Vec::new(), next_sequence_number };
        let mut encoder = Self { reply: Box::new(reply), state: Begun };
        encoder.emit(Payload::Created { response: created });
        encoder
    }

    /// Emits `response.queued`: others come first.
    pub fn queued(mut self) -> Self {
        let response = Response { status: Status::Queued, ..self.reply.response.clone() };
        self.emit(Payload::Queued { response: Box::new(response) });
        self
    }

    /// Emits `response.in_progress`.
    pub fn start(mut self) -> Encoder<Idle> {
        self.reply.response.status = Status::InProgress;
        let response = Box::new(self.reply.response.clone());
        self.emit(Payload::InProgress { response });
        self.replace_state(Idle).1
    }
}

impl Encoder<Idle> {
    /// Whether no item has come yet.
    pub fn is_empty(&self) -> bool {
        self.reply.response.output.is_empty()
    }

    /// What the client knows the tool as that the model calls so.
    pub fn called_tool(&self, name: String) -> (CallableKind, ToolName) {
        match self.reply.response.callable(&name) {
            Some(Callable { kind, namespace, name, .. }) => {
                (*kind, ToolName { name: name.clone(), namespace: namespace.clone() })
            }
            None => (CallableKind::Function, ToolName { name, namespace: None }),
        }
    }

    /// Emits `response.output_item.added` and `response.output_item.done`: a compaction comes whole.
    pub fn compaction(mut self, encrypted_content: String) -> Self {
        let item = Item::Compaction { id: new_id("cmp"), encrypted_content };
        self.emit_added(item.clone());
        self.close_item(item)
    }

    /// Emits `response.completed`, which holds the whole response.
    pub fn complete(mut self, usage: Usage) -> Vec<ResponseEvent> {
        self.reply.response.status = Status::Completed;
        self.reply.response.completed_at = Some(unix_seconds());
        self.end(Some(usage), |response| Payload::Completed { response })
    }

    /// Emits `response.incomplete`: the tokens ran out.
    pub fn incomplete(mut self, usage: Usage) -> Vec<ResponseEvent> {
        self.reply.response.status = Status::Incomplete;
        self.reply.response.incomplete_details = Some(IncompleteDetails::MAX_OUTPUT_TOKENS);
        self.end(Some(usage), |response| Payload::Incomplete { response })
    }

    /// Emits `error` and `response.failed`, which holds what there is.
    pub fn fail(mut self, failure: Failure, usage: Option<Usage>) -> Vec<ResponseEvent> {
        self.emit(Payload::Error(ErrorPayload(failure.clone())));
        self.reply.response.status = Status::Failed;
        self.reply.response.error = Some(failure);
        self.end(usage, |response| Payload::Failed { response })
    }

    fn end(self, usage: Option<Usage>, terminal: fn(Box<Response>) -> Payload) -> Vec<ResponseEvent> {
        let Reply { mut response, mut outbox, next_sequence_number, .. } = *self.reply;
        response.usage = usage.map(Into::into);
        outbox.push(ResponseEvent::new(next_sequence_number, terminal(Box::new(response)), None));
        outbox
    }

    fn emit_added(&mut self, item: Item) {
        self.emit(Payload::ItemAdded { output_index: self.output_index(), item });
    }

    /// From here on the item is part of the output, and never changes.
    fn close_item(mut self, item: Item) -> Self {
        self.emit(Payload::ItemDone { output_index: self.output_index(), item: item.clone() });
        self.reply.response.output.push(item);
        self
    }

    fn emit_part_added(&mut self, item_id: &str, part: Part) {
        let (item_id, output_index) = (item_id.to_owned(), self.output_index());
        self.emit(Payload::PartAdded { item_id, output_index, content_index: CONTENT_INDEX, part });
    }

    fn emit_part_done(&mut self, item_id: &str, part: Part) {
        let (item_id, output_index) = (item_id.to_owned(), self.output_index());
        self.emit(Payload::PartDone { item_id, output_index, content_index: CONTENT_INDEX, part });
    }
}

impl<S> Encoder<S> {
    /// How the reply is told.
    pub fn options(&self) -> &EncodeOptions {
        &self.reply.options
    }

    /// The events not yet sent.
    pub fn drain(&mut self) -> Vec<ResponseEvent> {
        std::mem::take(&mut self.reply.outbox)
    }

    /// With [`end`](Encoder::end), the only place where a sequence number is made.
    fn emit(&mut self, payload: Payload) {
        let Reply { options, outbox, next_sequence_number, .. } = &mut *self.reply;
        let padding = payload.delta().filter(|_| options.obfuscation).map(obfuscation::padding);
        outbox.push(ResponseEvent::new(*next_sequence_number, payload, padding));
        *next_sequence_number += 1;
    }

    /// Where the open item, or the next one, stands in the output.
    fn output_index(&self) -> usize {
        self.reply.response.output.len()
    }

    fn replace_state<T>(self, state: T) -> (S, Encoder<T>) {
        (self.state, Encoder { reply: self.reply, state })
    }
}
