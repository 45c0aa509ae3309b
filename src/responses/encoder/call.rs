//! Inside a call of a tool.

use super::{Encoder, Idle};
use crate::responses::{
    custom_input::CustomInput,
    event::Payload,
    response::{Item, ItemStatus, ToolName, new_id},
};

/// Inside a function call.
#[derive(Debug)]
pub struct InFunctionCall {
    item_id: String,
    call_id: String,
    name: ToolName,
    arguments: String,
}

/// Inside a call of a tool that takes text.
#[derive(Debug)]
pub struct InCustomToolCall {
    item_id: String,
    call_id: String,
    name: ToolName,
    input: String,
    reader: CustomInput,
}

impl Encoder<Idle> {
    /// Emits `response.output_item.added`.
    pub fn open_function_call(mut self, name: ToolName) -> Encoder<InFunctionCall> {
        let state = InFunctionCall { item_id: new_id("fc"), call_id: new_id("call"), name, arguments: String::new() };
        self.emit_added(state.item(ItemStatus::InProgress));
        self.replace_state(state).1
    }

    /// Emits `response.output_item.added`.
    pub fn open_custom_tool_call(mut self, name: ToolName) -> Encoder<InCustomToolCall> {
        let (item_id, call_id) = (new_id("ctc"), new_id("call"));
        let state = InCustomToolCall { item_id, call_id, name, input: String::new(), reader: CustomInput::default() };
        self.emit_added(state.item(ItemStatus::InProgress));
        self.replace_state(state).1
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
    pub fn close(self, status: ItemStatus) -> Encoder<Idle> {
        let (call, mut encoder) = self.replace_state(Idle);
        let (name, arguments) = (call.name.name.clone(), call.arguments.clone());
        let (item_id, output_index) = (call.item_id.clone(), encoder.output_index());
        encoder.emit(Payload::ArgumentsDone { item_id, output_index, name, arguments });
        encoder.close_item(call.item(status))
    }
}

impl Encoder<InCustomToolCall> {
    /// Emits `response.custom_tool_call_input.delta` where more of the input is known.
    pub fn arguments(mut self, delta: &str) -> Self {
        let delta = self.state.reader.push(delta);
        if !delta.is_empty() {
            self.state.input.push_str(&delta);
            let (item_id, output_index) = (self.state.item_id.clone(), self.output_index());
            self.emit(Payload::InputDelta { item_id, output_index, delta });
        }
        self
    }

    /// Emits `response.custom_tool_call_input.done` and `response.output_item.done`.
    pub fn close(self, status: ItemStatus) -> Encoder<Idle> {
        let (call, mut encoder) = self.replace_state(Idle);
        let (item_id, output_index, input) = (call.item_id.clone(), encoder.output_index(), call.input.clone());
        encoder.emit(Payload::InputDone { item_id, output_index, input });
        encoder.close_item(call.item(status))
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

impl InCustomToolCall {
    fn item(&self, status: ItemStatus) -> Item {
        Item::CustomToolCall {
            id: self.item_id.clone(),
            call_id: self.call_id.clone(),
            name: self.name.clone(),
            input: self.input.clone(),
            status,
        }
    }
}
