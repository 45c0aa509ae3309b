//! The events of a response that has ended, made from nothing but the response itself: each text comes in one piece.

use super::{config::ReasoningEvents, follow::WireEvent};
use serde_json::{Map, Value, json};

/// From `response.created` to the terminal event.
pub(super) fn replay(response: &Value, reasoning_events: ReasoningEvents) -> Vec<WireEvent> {
    let mut replay = Replay { reasoning_events, ..Replay::default() };
    let mut beginning = response.clone();
    for (key, value) in [
        ("status", json!("in_progress")),
        ("output", json!([])),
        ("usage", Value::Null),
        ("completed_at", Value::Null),
        ("incomplete_details", Value::Null),
        ("error", Value::Null),
    ] {
        beginning[key] = value;
    }
    replay.emit("response.created", json!({ "response": beginning }));
    replay.emit("response.in_progress", json!({ "response": beginning }));
    for (index, item) in response["output"].as_array().into_iter().flatten().enumerate() {
        replay.item(index, item);
    }
    match response["status"].as_str() {
        Some("failed") => {
            let error = &response["error"];
            let (code, message) = (&error["code"], &error["message"]);
            let nested = json!({ "type": code, "code": code, "message": message, "param": null });
            replay.emit("error", json!({ "code": code, "message": message, "param": null, "error": nested }));
            replay.emit("response.failed", json!({ "response": response }));
        }
        Some("incomplete") => replay.emit("response.incomplete", json!({ "response": response })),
        _ => replay.emit("response.completed", json!({ "response": response })),
    }
    replay.events
}

#[derive(Default)]
struct Replay {
    reasoning_events: ReasoningEvents,
    events: Vec<WireEvent>,
}

impl Replay {
    fn emit(&mut self, name: &str, payload: Value) {
        let mut event = Map::new();
        event.insert("type".to_owned(), json!(name));
        event.insert("sequence_number".to_owned(), json!(self.events.len()));
        if let Value::Object(payload) = payload {
            event.extend(payload);
        }
        self.events.push(WireEvent { name: name.to_owned(), json: Value::Object(event).to_string() });
    }

    fn item(&mut self, output_index: usize, item: &Value) {
        let mut added = item.clone();
        if !item["status"].is_null() {
            added["status"] = json!("in_progress");
        }
        for (key, zero) in
            [("content", json!([])), ("arguments", json!("")), ("input", json!("")), ("summary", json!([]))]
        {
            if !added[key].is_null() {
                added[key] = zero;
            }
        }
        self.emit("response.output_item.added", json!({ "output_index": output_index, "item": added }));
        let place = json!({ "item_id": item["id"], "output_index": output_index });
        for (index, part) in item["summary"].as_array().into_iter().flatten().enumerate() {
            let place = with(&place, "summary_index", json!(index));
            self.part(&place, part, ["response.reasoning_summary_part", "response.reasoning_summary_text"]);
        }
        for (index, part) in item["content"].as_array().into_iter().flatten().enumerate() {
            let place = with(&place, "content_index", json!(index));
            let text = match self.reasoning_events {
                _ if part["type"] != "reasoning_text" => "response.output_text",
                ReasoningEvents::OpenResponses => "response.reasoning",
                // Reasoning that is told as a summary has no content.
                ReasoningEvents::OpenAi | ReasoningEvents::Summary => "response.reasoning_text",
            };
            self.part(&place, part, ["response.content_part", text]);
        }
        if item["type"] == "function_call" {
            let arguments = &item["arguments"];
            self.emit("response.function_call_arguments.delta", with(&place, "delta", arguments.clone()));
            let done = with(&with(&place, "name", item["name"].clone()), "arguments", arguments.clone());
            self.emit("response.function_call_arguments.done", done);
        } else if item["type"] == "custom_tool_call" {
            self.emit("response.custom_tool_call_input.delta", with(&place, "delta", item["input"].clone()));
            self.emit("response.custom_tool_call_input.done", with(&place, "input", item["input"].clone()));
        }
        self.emit("response.output_item.done", json!({ "output_index": output_index, "item": item }));
    }

    /// A part and its text, which has log probabilities where the part has them.
    fn part(&mut self, place: &Value, part: &Value, [part_event, text_event]: [&str; 2]) {
        let mut empty = part.clone();
        empty["text"] = json!("");
        let logprobs = part.get("logprobs").cloned();
        if logprobs.is_some() {
            empty["logprobs"] = json!([]);
        }
        let told = |key: &str| {
            let told = with(place, key, part["text"].clone());
            logprobs.as_ref().map_or_else(|| told.clone(), |logprobs| with(&told, "logprobs", logprobs.clone()))
        };
        let (delta, done) = (told("delta"), told("text"));
        self.emit(&format!("{part_event}.added"), with(place, "part", empty));
        self.emit(&format!("{text_event}.delta"), delta);
        self.emit(&format!("{text_event}.done"), done);
        self.emit(&format!("{part_event}.done"), with(place, "part", part.clone()));
    }
}

fn with(object: &Value, key: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[key] = value;
    object
}
