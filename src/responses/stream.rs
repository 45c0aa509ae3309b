//! Drives the [`Encoder`] from a stream whose next event is known only at run time.

use super::{
    encoder::{Encoder, Idle, InFunctionCall, InMessage, InReasoning},
    event::ResponseEvent,
    response::{Failure, ItemStatus, Response},
};
use crate::{
    chat::{ChatEvent, Delta, Finished},
    engine::FinishReason,
};
use futures::{Stream, StreamExt, stream};

/// What is open. Each variant can do only what is legal in it.
enum State {
    Idle(Encoder<Idle>),
    Message(Encoder<InMessage>),
    Reasoning(Encoder<InReasoning>),
    FunctionCall(Encoder<InFunctionCall>),
}

impl State {
    /// A delta of another kind closes what is open. An empty one says nothing, so it opens nothing.
    fn on_delta(self, delta: Delta) -> Self {
        match (self, delta) {
            (open, Delta::Text(text) | Delta::Reasoning(text) | Delta::Arguments(text)) if text.is_empty() => open,
            (Self::Message(open), Delta::Text(text)) => Self::Message(open.text(text)),
            (Self::Reasoning(open), Delta::Reasoning(text)) => Self::Reasoning(open.text(text)),
            (Self::FunctionCall(open), Delta::Arguments(text)) => Self::FunctionCall(open.arguments(text)),
            (Self::FunctionCall(open), Delta::ToolCallEnd) => Self::Idle(open.close(ItemStatus::Completed)),
            (other, Delta::Text(text)) => Self::Message(other.close(ItemStatus::Completed).open_message().text(text)),
            (other, Delta::Reasoning(text)) => {
                Self::Reasoning(other.close(ItemStatus::Completed).open_reasoning().text(text))
            }
            (other, Delta::ToolCall { name }) => {
                Self::FunctionCall(other.close(ItemStatus::Completed).open_function_call(name))
            }
            (other, Delta::Arguments(_) | Delta::ToolCallEnd) => {
                tracing::error!("the chat layer spoke of a tool call and none is open");
                other
            }
        }
    }

    /// None when the chat ended without a word.
    fn finish(self, finished: Option<Finished>) -> Vec<ResponseEvent> {
        let Some(Finished { reason, usage }) = finished else {
            return self.close(ItemStatus::Incomplete).fail(Failure::EngineLost, None);
        };
        match reason {
            FinishReason::Stop => self.close(ItemStatus::Completed).complete(usage),
            FinishReason::Length => self.close(ItemStatus::Incomplete).incomplete(usage),
            FinishReason::Error => self.close(ItemStatus::Incomplete).fail(Failure::Model, Some(usage)),
            FinishReason::Shutdown => self.close(ItemStatus::Incomplete).fail(Failure::Shutdown, Some(usage)),
        }
    }

    fn close(self, status: ItemStatus) -> Encoder<Idle> {
        match self {
            Self::Idle(encoder) => encoder,
            Self::Message(open) => open.close(status),
            Self::Reasoning(open) => open.close(status),
            Self::FunctionCall(open) => open.close(status),
        }
    }

    fn drain(&mut self) -> Vec<ResponseEvent> {
        match self {
            Self::Idle(encoder) => encoder.drain(),
            Self::Message(encoder) => encoder.drain(),
            Self::Reasoning(encoder) => encoder.drain(),
            Self::FunctionCall(encoder) => encoder.drain(),
        }
    }
}

/// Turns one chat into one event stream, which ends with exactly one terminal event.
pub fn encode<C: Stream<Item = ChatEvent>>(response: Response, chat: C) -> impl Stream<Item = ResponseEvent> + use<C> {
    let mut begin = State::Idle(Encoder::begin(response));
    let first = begin.drain();
    let chat = chat.map(Some).chain(stream::iter([None]));
    let rest = chat.scan(Some(begin), |state, event| {
        let events = state.take().map(|open| match event {
            None => open.finish(None),
            Some(ChatEvent::Finished(finished)) => open.finish(Some(finished)),
            Some(ChatEvent::Logprobs(_)) => {
                *state = Some(open);
                Vec::new()
            }
            Some(ChatEvent::Delta(delta)) => {
                let mut next = open.on_delta(delta);
                let events = next.drain();
                *state = Some(next);
                events
            }
        });
        async { events.map(stream::iter) }
    });
    stream::iter(first).chain(rest.flatten())
}

/// The reply to a request that did not ask for a stream: the end of the very same stream.
pub async fn last_response(events: impl Stream<Item = ResponseEvent>) -> Response {
    let found = events.filter_map(|event| async move { event.final_response().cloned() });
    std::pin::pin!(found).next().await.expect("`encode` ends with a terminal event")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::Usage,
        engine::SamplingParams,
        responses::{CreateResponse, UnknownFields},
    };
    use futures::FutureExt;
    use insta::assert_snapshot;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const USAGE: Usage = Usage { input_tokens: 7, cached_tokens: 4, output_tokens: 5, reasoning_tokens: 2 };

    fn finished(reason: FinishReason) -> ChatEvent {
        ChatEvent::Finished(Finished { reason, usage: USAGE })
    }

    fn reasoning(text: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::Reasoning(text.to_owned()))
    }

    fn text(text: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::Text(text.to_owned()))
    }

    fn call(name: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::ToolCall { name: name.to_owned() })
    }

    fn arguments(text: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::Arguments(text.to_owned()))
    }

    fn call_end() -> ChatEvent {
        ChatEvent::Delta(Delta::ToolCallEnd)
    }

    /// The one place that calls `encode`.
    fn events(chat: &[ChatEvent]) -> Vec<Value> {
        let request = CreateResponse::parse(&json!({ "input": "hi" }), UnknownFields::Refuse).unwrap();
        let (response, _) = request.begin("tiny", &SamplingParams::default());
        let events = encode(response, stream::iter(chat.to_vec())).collect::<Vec<_>>().now_or_never().unwrap();
        events.iter().map(|event| serde_json::to_value(event).unwrap()).collect()
    }

    /// One line for each event, with what is new in it; ids are left out.
    fn transcript(chat: &[ChatEvent]) -> String {
        let line = |event: &Value| {
            let mut line = format!("{} {}", event["sequence_number"], event["type"].as_str().unwrap());
            for key in ["output_index", "delta", "text", "name", "arguments", "message"] {
                match event.get(key) {
                    Some(value) if key == "output_index" => line += &format!(" #{value}"),
                    Some(value) => line += &format!(" {key}={value}"),
                    None => {}
                }
            }
            for holder in ["item", "response"] {
                if let Some(status) = event[holder]["status"].as_str() {
                    line += &format!(" {holder} is {status}");
                }
            }
            line + "\n"
        };
        events(chat).iter().map(line).collect()
    }

    #[test]
    fn reasoning_then_text() {
        let chat = [reasoning("Hm."), text("Hel"), text(""), text("lo"), finished(FinishReason::Stop)];
        assert_snapshot!(transcript(&chat), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.reasoning_text.delta #0 delta="Hm."
        5 response.reasoning_text.done #0 text="Hm."
        6 response.content_part.done #0
        7 response.output_item.done #0 item is completed
        8 response.output_item.added #1 item is in_progress
        9 response.content_part.added #1
        10 response.output_text.delta #1 delta="Hel"
        11 response.output_text.delta #1 delta="lo"
        12 response.output_text.done #1 text="Hello"
        13 response.content_part.done #1
        14 response.output_item.done #1 item is completed
        15 response.completed response is completed
        "#);
    }

    #[test]
    fn two_calls_after_a_word() {
        let first = [text("Let me look."), call("find"), arguments("{\"a\""), arguments(":1}"), call_end()];
        let second = [call("list"), arguments("{}"), call_end(), finished(FinishReason::Stop)];
        assert_snapshot!(transcript(&[&first[..], &second[..]].concat()), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.output_text.delta #0 delta="Let me look."
        5 response.output_text.done #0 text="Let me look."
        6 response.content_part.done #0
        7 response.output_item.done #0 item is completed
        8 response.output_item.added #1 item is in_progress
        9 response.function_call_arguments.delta #1 delta="{\"a\""
        10 response.function_call_arguments.delta #1 delta=":1}"
        11 response.function_call_arguments.done #1 name="find" arguments="{\"a\":1}"
        12 response.output_item.done #1 item is completed
        13 response.output_item.added #2 item is in_progress
        14 response.function_call_arguments.delta #2 delta="{}"
        15 response.function_call_arguments.done #2 name="list" arguments="{}"
        16 response.output_item.done #2 item is completed
        17 response.completed response is completed
        "#);
    }

    #[test]
    fn a_call_that_is_cut_off_is_incomplete() {
        let chat = [call("find"), arguments("{\"a\""), finished(FinishReason::Length)];
        assert_snapshot!(transcript(&chat), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.function_call_arguments.delta #0 delta="{\"a\""
        4 response.function_call_arguments.done #0 name="find" arguments="{\"a\""
        5 response.output_item.done #0 item is incomplete
        6 response.incomplete response is incomplete
        "#);
    }

    #[test]
    fn tokens_that_end_between_items_leave_the_items_complete() {
        let chat = [call("find"), arguments("{}"), call_end(), finished(FinishReason::Length)];
        assert_snapshot!(transcript(&chat), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.function_call_arguments.delta #0 delta="{}"
        4 response.function_call_arguments.done #0 name="find" arguments="{}"
        5 response.output_item.done #0 item is completed
        6 response.incomplete response is incomplete
        "#);
    }

    #[test]
    fn a_reply_may_say_nothing() {
        assert_snapshot!(transcript(&[text(""), finished(FinishReason::Stop)]), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.completed response is completed
        "#);
    }

    #[test]
    fn a_failure_keeps_what_was_said() {
        assert_snapshot!(transcript(&[text("Hel"), finished(FinishReason::Error)]), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.output_text.delta #0 delta="Hel"
        5 response.output_text.done #0 text="Hel"
        6 response.content_part.done #0
        7 response.output_item.done #0 item is incomplete
        8 error message="the model failed while it wrote this reply; send the request again"
        9 response.failed response is failed
        "#);
    }

    #[test]
    fn a_shutdown_says_so() {
        assert_snapshot!(transcript(&[finished(FinishReason::Shutdown)]), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 error message="the server is shutting down; send the request again"
        3 response.failed response is failed
        "#);
    }

    #[test]
    fn a_lost_engine_is_a_failure_of_unknown_cost() {
        let events = events(&[text("Hel")]);
        let last = &events.last().unwrap()["response"];
        assert_eq!((&last["status"], &last["usage"]), (&json!("failed"), &Value::Null));
    }

    #[test]
    fn the_error_event_serves_both_readings_of_the_protocol() {
        let events = events(&[finished(FinishReason::Error)]);
        assert_snapshot!(events[2], @r#"{"type":"error","sequence_number":2,"code":"server_error","message":"the model failed while it wrote this reply; send the request again","param":null,"error":{"type":"server_error","code":"server_error","message":"the model failed while it wrote this reply; send the request again","param":null}}"#);
        assert_snapshot!(events[3]["response"]["error"], @r#"{"code":"server_error","message":"the model failed while it wrote this reply; send the request again"}"#);
    }

    #[test]
    fn the_last_event_holds_everything() {
        let chat =
            [reasoning("Hm."), text("Hi"), call("find"), arguments("{}"), call_end(), finished(FinishReason::Stop)];
        let mut last = events(&chat).pop().unwrap();
        redact(&mut last);
        assert_snapshot!(last, @r#"{"type":"response.completed","sequence_number":18,"response":{"id":"resp_…","object":"response","created_at":"seconds","completed_at":"seconds","status":"completed","incomplete_details":null,"model":"tiny","previous_response_id":null,"instructions":null,"output":[{"type":"reasoning","id":"rs_…","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}],"status":"completed"},{"type":"message","id":"msg_…","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi","annotations":[],"logprobs":[]}]},{"type":"function_call","id":"fc_…","call_id":"call_…","name":"find","arguments":"{}","status":"completed"}],"error":null,"tools":[],"tool_choice":"auto","truncation":"disabled","parallel_tool_calls":true,"text":{"format":{"type":"text"}},"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"temperature":1.0,"reasoning":null,"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":4,"cache_write_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":12},"max_output_tokens":null,"max_tool_calls":null,"store":false,"background":false,"service_tier":"default","metadata":{},"safety_identifier":null,"prompt_cache_key":null}}"#);
    }

    /// Ids and times, each after its shape was checked.
    fn redact(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match key.as_str() {
                        "id" | "call_id" => {
                            let (prefix, random) = value.as_str().unwrap().split_once('_').unwrap();
                            assert!(random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit()));
                            *value = json!(format!("{prefix}_…"));
                        }
                        "created_at" | "completed_at" if value.is_u64() => *value = json!("seconds"),
                        _ => redact(value),
                    }
                }
            }
            Value::Array(elements) => elements.iter_mut().for_each(redact),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Whether a client that trusts the protocol can read the events.
    struct Reader {
        is_open: Option<Value>,
        has_part: bool,
        is_content_done: bool,
        streamed: String,
        done: Vec<Value>,
    }

    impl Reader {
        fn read(events: &[Value]) {
            let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
            assert_eq!(names[..2], ["response.created", "response.in_progress"]);
            let ids = events.iter().filter_map(|event| event["response"]["id"].as_str());
            assert_eq!(ids.collect::<std::collections::HashSet<_>>().len(), 1);
            let mut reader = Self {
                is_open: None,
                has_part: false,
                is_content_done: false,
                streamed: String::new(),
                done: Vec::new(),
            };
            for (index, event) in events.iter().enumerate() {
                assert_eq!(event["sequence_number"], json!(index));
                let is_last = index + 1 == events.len();
                let is_terminal =
                    matches!(names[index], "response.completed" | "response.incomplete" | "response.failed");
                assert_eq!(is_last, is_terminal, "{names:?}");
                reader.read_event(names[index], event);
            }
            assert!(!names[2..].contains(&"response.created") && !names[2..].contains(&"response.in_progress"));
            let failed = *names.last().unwrap() == "response.failed";
            assert_eq!(failed, names.contains(&"error"), "an error comes right before `response.failed`");
            reader.end(&events.last().unwrap()["response"]);
        }

        fn read_event(&mut self, name: &str, event: &Value) {
            let item_id = self.is_open.as_ref().map(|item| item["id"].clone());
            if event.get("item_id").is_some() {
                assert_eq!(event.get("item_id"), item_id.as_ref(), "content is inside its item");
            }
            if event.get("output_index").is_some() {
                assert_eq!(event["output_index"], json!(self.done.len()));
            }
            match name.rsplit_once('.').map_or((name, ""), |(kind, action)| (kind, action)) {
                ("response.output_item", "added") => {
                    assert!(self.is_open.is_none(), "one item is open at a time");
                    assert_eq!(event["item"]["status"], "in_progress");
                    self.is_open = Some(event["item"].clone());
                    (self.has_part, self.is_content_done, self.streamed) = (false, false, String::new());
                }
                ("response.output_item", "done") => {
                    let added = self.is_open.take().expect("only an open item is done");
                    for key in ["id", "type", "call_id", "name", "role"] {
                        assert_eq!(added.get(key), event["item"].get(key));
                    }
                    assert!(self.is_content_done && !self.has_part);
                    let content = &event["item"]["content"][0]["text"];
                    let said = if content.is_null() { &event["item"]["arguments"] } else { content };
                    assert_eq!(said, &json!(self.streamed));
                    self.done.push(event["item"].clone());
                }
                ("response.content_part", "added") => {
                    assert!(item_id.is_some() && !std::mem::replace(&mut self.has_part, true));
                }
                ("response.content_part", "done") => {
                    assert!(self.is_content_done && std::mem::replace(&mut self.has_part, false));
                    assert_eq!(event["part"]["text"], json!(self.streamed));
                }
                (kind, "delta") => {
                    assert!(self.has_part || kind == "response.function_call_arguments", "{name} has no content part");
                    assert!(!self.is_content_done);
                    self.streamed += event["delta"].as_str().unwrap();
                }
                (kind, "done") => {
                    assert!(self.has_part || kind == "response.function_call_arguments");
                    assert!(!std::mem::replace(&mut self.is_content_done, true));
                    let said = event.get("text").unwrap_or(&event["arguments"]);
                    assert_eq!(said, &json!(self.streamed));
                }
                _ => assert!(self.is_open.is_none(), "nothing is open around {name}"),
            }
        }

        fn end(&self, response: &Value) {
            assert_eq!(response["output"], json!(self.done));
            let incomplete = |item: &Value| item["status"] == "incomplete";
            let allowed = response["status"] != "completed";
            let (last, earlier) = self.done.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
            assert!(!earlier.iter().any(incomplete), "only the last item may be incomplete");
            assert!(allowed || !last.is_some_and(incomplete));
        }
    }

    fn any_delta() -> impl Strategy<Value = ChatEvent> {
        let delta = prop_oneof![
            "[a-z]{0,3}".prop_map(Delta::Reasoning),
            "[a-z]{0,3}".prop_map(Delta::Text),
            "[a-z]{1,3}".prop_map(|name| Delta::ToolCall { name }),
            "[a-z]{0,3}".prop_map(Delta::Arguments),
            Just(Delta::ToolCallEnd),
        ];
        delta.prop_map(ChatEvent::Delta)
    }

    fn any_end() -> impl Strategy<Value = Option<ChatEvent>> {
        let reasons = [FinishReason::Stop, FinishReason::Length, FinishReason::Error, FinishReason::Shutdown];
        prop::option::of(prop::sample::select(reasons.to_vec()).prop_map(finished))
    }

    proptest! {
        #[test]
        fn any_chat_is_encoded_in_the_protocol_s_order(
            mut chat in prop::collection::vec(any_delta(), 0..12),
            end in any_end(),
            late in prop::collection::vec(any_delta(), 0..2),
        ) {
            chat.extend(end.clone());
            if end.is_some() {
                chat.extend(late); // Nothing comes after the end, even if more is said.
            }
            Reader::read(&events(&chat));
        }
    }
}
