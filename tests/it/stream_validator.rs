//! Whether a stream keeps the protocol: written from the specifications, not from the server.
//!
//! `tests/sdk/stream_validator.py` knows more of it; this one judges what a fake model says, and how streams fail.

use serde_json::{Value, json};
use std::collections::HashSet;

const MAY_DIFFER: [&str; 7] =
    ["status", "output", "usage", "error", "incomplete_details", "completed_at", "service_tier"];
/// Types of items, with the prefix of their ids.
const ITEMS: [(&str, &str); 5] = [
    ("message", "msg_"),
    ("reasoning", "rs_"),
    ("function_call", "fc_"),
    ("custom_tool_call", "ctc_"),
    ("compaction", "cmp_"),
];
/// What stays the same from an item's first event to its last.
const FIXED: [&str; 7] = ["id", "type", "role", "call_id", "name", "namespace", "phase"];
/// Events that tell an item's text: the item's type, and the key of the whole.
const ITEM_TEXTS: [(&str, &str, &str); 2] = [
    ("response.function_call_arguments", "function_call", "arguments"),
    ("response.custom_tool_call_input", "custom_tool_call", "input"),
];
/// Events that tell a part's text: the item's list of such parts, the part's type, and the key of the whole.
const PART_TEXTS: [(&str, &str, &str, &str); 5] = [
    ("response.output_text", "content", "output_text", "text"),
    ("response.refusal", "content", "refusal", "refusal"),
    ("response.reasoning_text", "content", "reasoning_text", "text"),
    ("response.reasoning", "content", "reasoning_text", "text"),
    ("response.reasoning_summary_text", "summary", "summary_text", "text"),
];

type Rule = Result<(), String>;

fn require(holds: bool, broken: &str) -> Rule {
    if holds { Ok(()) } else { Err(broken.to_owned()) }
}

/// The events of a stream that ended as it should. Around its frames may be what HTTP needs, and comments.
pub(crate) fn events(stream: &str) -> Vec<Value> {
    let (mut events, mut is_done, mut lines) = (Vec::new(), false, stream.lines());
    while let Some(line) = lines.next() {
        is_done |= line == "data: [DONE]";
        let Some(name) = line.strip_prefix("event: ") else { continue };
        assert!(!is_done, "{name} comes after [DONE]");
        let data = lines.next().and_then(|line| line.strip_prefix("data: ")).expect("a frame has one line of data");
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&event["type"], lines.next()), (&json!(name), Some("")));
        events.push(event);
    }
    assert!(is_done, "the stream does not end with [DONE]: {stream}");
    check(&events).unwrap_or_else(|broken| panic!("{broken}\n{stream}"));
    events
}

/// The rule that is broken, and where.
fn check(events: &[Value]) -> Rule {
    let mut reader = Reader::default();
    for (number, event) in events.iter().enumerate() {
        let numbered = require(event["sequence_number"] == number, "the sequence number is wrong");
        numbered.and_then(|()| reader.read(event)).map_err(|broken| format!("event {number}, {event}: {broken}"))?;
    }
    require(reader.has_ended, "there is no terminal event")
}

/// What a client knows so far.
#[derive(Default)]
struct Reader {
    first: Option<Value>,
    is_in_progress: bool,
    open: Option<Open>,
    done: Vec<Value>,
    ids: HashSet<String>,
    error: Option<Value>,
    has_ended: bool,
}

/// The open item, and what was said about it.
struct Open {
    added: Value,
    lists: [(&'static str, Vec<Value>); 2],
    text: Text,
    part: Option<Part>,
}

struct Part {
    list: &'static str,
    kind: Value,
    text: Text,
}

/// Deltas, and whether they are done.
#[derive(Default)]
struct Text {
    said: String,
    logprobs: Vec<Value>,
    is_done: bool,
}

impl Reader {
    fn read(&mut self, event: &Value) -> Rule {
        let name = event["type"].as_str().unwrap_or_default();
        require(!self.has_ended, "it comes after the terminal event")?;
        require(self.first.is_some() || name == "response.created", "the first event is not response.created")?;
        require(self.error.is_none() || name == "response.failed", "an error is not followed by response.failed")?;
        require(name == "error" || event.get("error").is_none(), "it has an `error` key and is none")?;
        match name {
            "response.created" => {
                require(self.first.is_none(), "it comes twice")?;
                self.first = Some(event["response"].clone());
                self.read_response(&event["response"], &["in_progress", "queued"])
            }
            "response.queued" => {
                require(!self.is_in_progress, "it comes late")?;
                self.read_response(&event["response"], &["queued"])
            }
            "response.in_progress" => {
                require(!std::mem::replace(&mut self.is_in_progress, true), "it comes twice")?;
                self.read_response(&event["response"], &["in_progress"])
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.has_ended = true;
                require(self.is_in_progress || name == "response.failed", "it was not in progress")?;
                self.read_response(&event["response"], &[name.trim_start_matches("response.")])?;
                self.read_end(&event["response"])
            }
            "error" => {
                require(self.open.is_none(), "an item is still open")?;
                for key in ["code", "message", "param"] {
                    require(event.get(key) == event["error"].get(key), "it says two things")?;
                }
                require(event["error"]["type"].is_string() && event["message"].is_string(), "it says nothing")?;
                self.error = Some(event.clone());
                Ok(())
            }
            _ if name.starts_with("ortolan:") => Ok(()),
            _ => {
                require(self.is_in_progress, "the response is not in progress")?;
                self.read_output(name, event)
            }
        }
    }

    fn read_response(&self, response: &Value, statuses: &[&str]) -> Rule {
        let status = response["status"].as_str().unwrap_or_default();
        require(statuses.contains(&status), "the status does not fit")?;
        require(response["id"].as_str().is_some_and(|id| id.starts_with("resp_")), "the id is wrong")?;
        let constant = |value: &Value| {
            let fields = value.as_object().unwrap().iter();
            fields.filter(|(key, _)| !MAY_DIFFER.contains(&key.as_str())).map(|pair| format!("{pair:?}")).collect()
        };
        let (first, this): (Vec<_>, Vec<_>) = (constant(self.first.as_ref().unwrap()), constant(response));
        require(first == this, "what should stay the same has changed")?;
        let is_set = |key: &str| !response[key].is_null();
        require(is_set("completed_at") == (status == "completed"), "completed_at does not fit the status")?;
        require(is_set("error") == (status == "failed"), "the error does not fit the status")?;
        require(is_set("incomplete_details") == (status == "incomplete"), "incomplete_details do not fit")?;
        require(is_set("usage") == self.has_ended || status == "failed", "the usage does not fit the status")?;
        require(self.has_ended || response["output"] == json!([]), "there is output before the end")
    }

    fn read_end(&self, response: &Value) -> Rule {
        require(self.open.is_none(), "an item is still open")?;
        require(response["output"] == json!(self.done), "the output is not the items that were done")?;
        let is_incomplete = self.done.last().is_some_and(|item| item["status"] == "incomplete");
        require(!is_incomplete || response["status"] != "completed", "an item is incomplete")?;
        if response["status"] == "failed" {
            let told = self.error.as_ref().map(|error| json!({ "code": error["code"], "message": error["message"] }));
            require(told.as_ref() == Some(&response["error"]), "it is not the failure that the error told")?;
        }
        let usage = &response["usage"];
        if !usage.is_null() {
            let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64).unwrap_or(u64::MAX / 4);
            let (input, output) = (count("/input_tokens"), count("/output_tokens"));
            require(count("/total_tokens") == input + output, "the usage does not add up")?;
            require(count("/input_tokens_details/cached_tokens") <= input, "more is cached than there is")?;
            require(count("/output_tokens_details/reasoning_tokens") <= output, "more is reasoning than there is")?;
        }
        let calls = self.done.iter().filter(|item| item.get("call_id").is_some()).count();
        require(calls <= 1 || response["parallel_tool_calls"] == true, "there are several calls")?;
        require(calls == 0 || response["tool_choice"] != "none", "there is a call")
    }

    fn read_output(&mut self, name: &str, event: &Value) -> Rule {
        require(event["output_index"] == self.done.len(), "the output index is wrong")?;
        if name == "response.output_item.added" {
            return self.add(&event["item"]);
        }
        let Some(open) = &mut self.open else { return Err("no item is open".to_owned()) };
        if name == "response.output_item.done" {
            open.end(&event["item"])?;
            let is_incomplete = self.done.last().is_some_and(|item| item["status"] == "incomplete");
            require(!is_incomplete, "it follows an incomplete item")?;
            self.done.push(event["item"].clone());
            self.open = None;
            return Ok(());
        }
        require(event["item_id"] == open.added["id"], "the item is another")?;
        open.read(name, event)
    }

    fn add(&mut self, item: &Value) -> Rule {
        require(self.open.is_none(), "another item is open")?;
        let kind = item["type"].as_str().unwrap_or_default();
        let Some((_, prefix)) = ITEMS.iter().find(|(name, _)| *name == kind) else {
            return Err("no such item is known".to_owned());
        };
        require(item["id"].as_str().is_some_and(|id| id.starts_with(prefix)), "the id has another prefix")?;
        for id in [item.get("id"), item.get("call_id")].into_iter().flatten() {
            require(self.ids.insert(id.to_string()), "its id was there before")?;
        }
        require(item.get("status").is_none_or(|status| status == "in_progress"), "it is not in progress")?;
        for (key, empty) in
            [("content", json!([])), ("summary", json!([])), ("arguments", json!("")), ("input", json!(""))]
        {
            require(item.get(key).is_none_or(|value| *value == empty), "it is not empty")?;
        }
        let lists = [("content", Vec::new()), ("summary", Vec::new())];
        self.open = Some(Open { added: item.clone(), lists, text: Text::default(), part: None });
        Ok(())
    }
}

impl Open {
    fn read(&mut self, name: &str, event: &Value) -> Rule {
        let (stem, action) = name.rsplit_once('.').unwrap_or_default();
        let list = if stem.contains("summary") { "summary" } else { "content" };
        if matches!(stem, "response.content_part" | "response.reasoning_summary_part") {
            return self.read_part(list, action, event);
        }
        if let Some((_, kind, key)) = ITEM_TEXTS.iter().find(|text| text.0 == stem) {
            require(self.added["type"] == *kind, "the item is of another type")?;
            require(event.get("name").is_none_or(|name| *name == self.added["name"]), "the name has changed")?;
            return self.text.read(action, key, event);
        }
        let Some((_, list, kind, key)) = PART_TEXTS.iter().find(|text| text.0 == stem) else {
            return Err("no such event is known".to_owned());
        };
        let num_before = self.list(list).len();
        let Some(part) = &mut self.part else { return Err("no part is open".to_owned()) };
        require(part.kind == *kind && part.list == *list, "the part is of another type")?;
        require(event[format!("{list}_index")] == num_before, "the part's index is wrong")?;
        part.text.read(action, key, event)
    }

    fn read_part(&mut self, list: &'static str, action: &str, event: &Value) -> Rule {
        let part = &event["part"];
        require(event[format!("{list}_index")] == self.list(list).len(), "the part's index is wrong")?;
        let said = part.get("text").or(part.get("refusal")).and_then(Value::as_str);
        let logprobs = part.get("logprobs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if action == "added" {
            require(self.part.is_none(), "another part is open")?;
            require(said == Some("") && logprobs.is_empty(), "it is not empty")?;
            self.part = Some(Part { list, kind: part["type"].clone(), text: Text::default() });
            return Ok(());
        }
        let Some(open) = self.part.take() else { return Err("no part is open".to_owned()) };
        require(open.list == list && open.kind == part["type"] && open.text.is_done, "its text is not done")?;
        require(said == Some(&open.text.said) && logprobs == open.text.logprobs, "it is not what was streamed")?;
        self.list(list).push(part.clone());
        Ok(())
    }

    fn list(&mut self, name: &str) -> &mut Vec<Value> {
        &mut self.lists.iter_mut().find(|(list, _)| *list == name).unwrap().1
    }

    fn end(&self, item: &Value) -> Rule {
        require(self.part.is_none(), "a part is open")?;
        require(FIXED.iter().all(|key| item.get(key) == self.added.get(key)), "it is another item")?;
        let status = item.get("status").and_then(Value::as_str).unwrap_or("completed");
        require(matches!(status, "completed" | "incomplete"), "it is not done")?;
        for (key, parts) in &self.lists {
            require(item.get(key).unwrap_or(&json!([])) == &json!(parts), "it is not what was streamed")?;
        }
        let Some((_, _, key)) = ITEM_TEXTS.iter().find(|(_, kind, _)| item["type"] == *kind) else { return Ok(()) };
        require(self.text.is_done && item[key] == self.text.said, "it is not what was streamed")
    }
}

impl Text {
    fn read(&mut self, action: &str, key: &str, event: &Value) -> Rule {
        require(!self.is_done, "the text is done")?;
        let logprobs = event.get("logprobs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if action == "delta" {
            self.said += event["delta"].as_str().ok_or("there is no delta")?;
            self.logprobs.extend_from_slice(logprobs);
            return Ok(());
        }
        require(action == "done", "no such event is known")?;
        self.is_done = true;
        require(event[key] == self.said && logprobs == self.logprobs, "it is not what was streamed")
    }
}

/// A message and a call, as any server may send them.
fn good() -> Vec<Value> {
    let response =
        |status: &str| json!({ "id": "resp_1", "status": status, "output": [], "parallel_tool_calls": true });
    let part = |text: &str| json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] });
    let message = |status: &str, content: Value| json!({ "type": "message", "id": "msg_1", "status": status, "content": content });
    let call = |status: &str, arguments: &str| json!({ "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": arguments, "status": status });
    let mut end = response("completed");
    end["output"] = json!([message("completed", json!([part("Hi")])), call("completed", "{}")]);
    end["completed_at"] = json!(1);
    end["usage"] = json!({ "input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_tokens_details": { "cached_tokens": 3 }, "output_tokens_details": { "reasoning_tokens": 0 } });
    let mut events = vec![
        json!({ "type": "response.created", "response": response("in_progress") }),
        json!({ "type": "response.in_progress", "response": response("in_progress") }),
        json!({ "type": "response.output_item.added", "output_index": 0, "item": message("in_progress", json!([])) }),
        json!({ "type": "response.content_part.added", "output_index": 0, "item_id": "msg_1", "content_index": 0, "part": part("") }),
        json!({ "type": "response.output_text.delta", "output_index": 0, "item_id": "msg_1", "content_index": 0, "delta": "Hi" }),
        json!({ "type": "response.output_text.done", "output_index": 0, "item_id": "msg_1", "content_index": 0, "text": "Hi" }),
        json!({ "type": "response.content_part.done", "output_index": 0, "item_id": "msg_1", "content_index": 0, "part": part("Hi") }),
        json!({ "type": "response.output_item.done", "output_index": 0, "item": end["output"][0] }),
        json!({ "type": "response.output_item.added", "output_index": 1, "item": call("in_progress", "") }),
        json!({ "type": "response.function_call_arguments.delta", "output_index": 1, "item_id": "fc_1", "delta": "{}" }),
        json!({ "type": "response.function_call_arguments.done", "output_index": 1, "item_id": "fc_1", "arguments": "{}" }),
        json!({ "type": "response.output_item.done", "output_index": 1, "item": end["output"][1] }),
        json!({ "type": "response.completed", "response": end }),
    ];
    events.iter_mut().enumerate().for_each(|(number, event)| event["sequence_number"] = json!(number));
    events
}

#[test]
fn a_broken_stream_is_refused() {
    assert_eq!(check(&good()), Ok(()));
    let edits = [
        (0, "/sequence_number", json!(1), "the sequence number is wrong"),
        (0, "/type", json!("response.in_progress"), "the first event is not response.created"),
        (1, "/type", json!("response.created"), "it comes twice"),
        (12, "/response/id", json!("resp_2"), "what should stay the same has changed"),
        (12, "/response/output", json!([]), "the output is not the items that were done"),
        (12, "/response/usage/total_tokens", json!(6), "the usage does not add up"),
        (12, "/response/completed_at", Value::Null, "completed_at does not fit the status"),
        (12, "/response/parallel_tool_calls", json!(false), "what should stay the same has changed"),
        (12, "/type", json!("response.output_item.added"), "the output index is wrong"),
        (2, "/item/id", json!("item_1"), "the id has another prefix"),
        (4, "/delta", json!("Ho"), "it is not what was streamed"),
        (4, "/item_id", json!("msg_2"), "the item is another"),
        (4, "/content_index", json!(1), "the part's index is wrong"),
        (4, "/type", json!("response.refusal.delta"), "the part is of another type"),
        (4, "/type", json!("response.output_text.blob"), "no such event is known"),
        (6, "/part/text", json!("Ho"), "it is not what was streamed"),
        (7, "/item/id", json!("msg_2"), "it is another item"),
        (7, "/item/status", json!("in_progress"), "it is not done"),
        (8, "/output_index", json!(0), "the output index is wrong"),
        (8, "/item/arguments", json!("{"), "it is not empty"),
        (11, "/item/arguments", json!("[]"), "it is not what was streamed"),
    ];
    for (number, pointer, value, rule) in edits {
        let mut events = good();
        *events[number].pointer_mut(pointer).unwrap() = value;
        let broken = check(&events).unwrap_err();
        assert!(broken.ends_with(rule), "{pointer} of {number}: {broken}");
    }
    assert_eq!(check(&good()[..12]).unwrap_err(), "there is no terminal event");
}
