//! Drives the [`Encoder`] from a stream whose next event is known only at run time.

use super::{
    encoder::{Begun, EncodeOptions, Encoder, Idle, InCustomToolCall, InFunctionCall, InMessage, InReasoning},
    event::ResponseEvent,
    response::{Failure, ItemStatus, Response},
    tools::CallableKind,
};
use crate::{
    chat::{ChatEvent, Delta, Finished, TokenLogprob, Usage},
    engine::FinishReason,
};
use futures::{Stream, StreamExt, stream};
use std::mem::take;

/// What is open. Each variant can do only what is legal in it.
enum State {
    Begun(Encoder<Begun>),
    Idle(Encoder<Idle>),
    Message(Encoder<InMessage>),
    Reasoning(Encoder<InReasoning>),
    FunctionCall(Encoder<InFunctionCall>),
    CustomToolCall(Encoder<InCustomToolCall>),
}

impl State {
    /// A delta of another kind closes what is open. An empty one says nothing, so it opens nothing. The next text takes
    /// the log probabilities.
    fn on_delta(self, delta: Delta, logprobs: &mut Vec<TokenLogprob>) -> Self {
        match (self.started(), delta) {
            (open, Delta::Text(text) | Delta::Reasoning(text) | Delta::Arguments(text)) if text.is_empty() => open,
            (Self::Message(open), Delta::Text(text)) => Self::Message(open.text(text, take(logprobs))),
            (Self::Reasoning(open), Delta::Reasoning(text)) => Self::Reasoning(open.text(text)),
            (Self::FunctionCall(open), Delta::Arguments(text)) => Self::FunctionCall(open.arguments(text)),
            (Self::CustomToolCall(open), Delta::Arguments(text)) => Self::CustomToolCall(open.arguments(&text)),
            (open @ (Self::FunctionCall(_) | Self::CustomToolCall(_)), Delta::ToolCallEnd) => {
                Self::Idle(open.close(ItemStatus::Completed))
            }
            (other, Delta::Text(text)) => {
                Self::Message(other.close(ItemStatus::Completed).open_message().text(text, take(logprobs)))
            }
            (other, Delta::Reasoning(text)) => {
                Self::Reasoning(other.close(ItemStatus::Completed).open_reasoning().text(text))
            }
            (other, Delta::ToolCall { name }) => Self::open_call(other.close(ItemStatus::Completed), name),
            (other, Delta::Arguments(_) | Delta::ToolCallEnd) => {
                tracing::error!("the chat layer spoke of a tool call and none is open");
                other
            }
        }
    }

    fn open_call(idle: Encoder<Idle>, name: String) -> Self {
        match idle.called_tool(name) {
            (CallableKind::Function, name) => Self::FunctionCall(idle.open_function_call(name)),
            (CallableKind::Custom, name) => Self::CustomToolCall(idle.open_custom_tool_call(name)),
        }
    }

    /// None when the chat ended without a word.
    fn finish(self, finished: Option<Finished>) -> Vec<ResponseEvent> {
        let open = self.started();
        let Some(Finished { reason, usage }) = finished else {
            return open.close(ItemStatus::Incomplete).fail(Failure::EngineLost, None);
        };
        match reason {
            FinishReason::Stop => open.close(ItemStatus::Completed).complete(usage),
            FinishReason::Length => open.begun(&usage).close(ItemStatus::Incomplete).incomplete(usage),
            FinishReason::Error => open.close(ItemStatus::Incomplete).fail(Failure::Model, Some(usage)),
            FinishReason::OutOfMemory => open.close(ItemStatus::Incomplete).fail(Failure::OutOfMemory, Some(usage)),
            FinishReason::DeviceLost => open.close(ItemStatus::Incomplete).fail(Failure::EngineLost, Some(usage)),
            FinishReason::Shutdown => open.close(ItemStatus::Incomplete).fail(Failure::Shutdown, Some(usage)),
        }
    }

    /// A compaction comes first.
    fn started(self) -> Self {
        match self {
            Self::Begun(encoder) => {
                let compaction = encoder.options().compaction.clone();
                Self::Idle(compaction.into_iter().fold(encoder.start(), Encoder::compaction))
            }
            open @ (Self::Idle(_)
            | Self::Message(_)
            | Self::Reasoning(_)
            | Self::FunctionCall(_)
            | Self::CustomToolCall(_)) => open,
        }
    }

    /// A reply that was cut before its reasoning said a word has begun to reason all the same.
    fn begun(self, usage: &Usage) -> Self {
        match self {
            Self::Idle(idle) if idle.is_empty() && 0 < usage.reasoning_tokens => Self::Reasoning(idle.open_reasoning()),
            open @ (Self::Begun(_)
            | Self::Idle(_)
            | Self::Message(_)
            | Self::Reasoning(_)
            | Self::FunctionCall(_)
            | Self::CustomToolCall(_)) => open,
        }
    }

    fn close(self, status: ItemStatus) -> Encoder<Idle> {
        match self {
            Self::Begun(encoder) => encoder.start(),
            Self::Idle(encoder) => encoder,
            Self::Message(open) => open.close(status),
            Self::Reasoning(open) => open.close(status),
            Self::FunctionCall(open) => open.close(status),
            Self::CustomToolCall(open) => open.close(status),
        }
    }

    fn drain(&mut self) -> Vec<ResponseEvent> {
        match self {
            Self::Begun(encoder) => encoder.drain(),
            Self::Idle(encoder) => encoder.drain(),
            Self::Message(encoder) => encoder.drain(),
            Self::Reasoning(encoder) => encoder.drain(),
            Self::FunctionCall(encoder) => encoder.drain(),
            Self::CustomToolCall(encoder) => encoder.drain(),
        }
    }
}

/// Turns one chat into one event stream, which ends with exactly one terminal event.
pub fn encode<C: Stream<Item = ChatEvent>>(
    response: Response,
    options: EncodeOptions,
    chat: C,
) -> impl Stream<Item = ResponseEvent> + use<C> {
    let mut begin = State::Begun(Encoder::begin(response, options));
    let first = begin.drain();
    let chat = chat.map(Some).chain(stream::iter([None]));
    let mut logprobs = Vec::new(); // What no text took at the end belongs to tokens that a stop string cut off.
    let rest = chat.scan(Some(begin), move |state, event| {
        let events = state.take().map(|open| match event {
            None => open.finish(None),
            Some(ChatEvent::Finished(finished)) => open.finish(Some(finished)),
            Some(event @ (ChatEvent::Queued | ChatEvent::Started)) => {
                let mut next = match (open, event) {
                    (State::Begun(encoder), ChatEvent::Queued) => State::Begun(encoder.queued()),
                    (open, _) => open.started(),
                };
                let events = next.drain();
                *state = Some(next);
                events
            }
            Some(ChatEvent::Logprobs(more)) => {
                logprobs.extend(more);
                *state = Some(open);
                Vec::new()
            }
            Some(ChatEvent::Delta(delta)) => {
                let mut next = open.on_delta(delta, &mut logprobs);
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
        chat::Logprob,
        engine::SamplingParams,
        responses::{CreateResponse, KeySource, Purpose, ReasoningEvents, Seal, UnknownFields},
    };
    use futures::FutureExt;
    use insta::assert_snapshot;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

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

    fn logprobs(tokens: &[&str]) -> ChatEvent {
        let token = |token: &&str| Logprob { bytes: token.as_bytes().to_vec(), logprob: -0.5 };
        ChatEvent::Logprobs(
            tokens.iter().map(|said| TokenLogprob { token: token(said), top: vec![token(said)] }).collect(),
        )
    }

    fn seal() -> Arc<Seal> {
        Arc::new(Seal::new(&KeySource::Random).unwrap())
    }

    /// The model calls `f` and `shell`, which takes text, and `git__log`, which is `log` of `git`.
    fn tools() -> Value {
        json!([
            { "type": "function", "name": "f" },
            { "type": "custom", "name": "shell" },
            { "type": "namespace", "name": "git", "tools": [{ "type": "function", "name": "log" }] },
        ])
    }

    fn events(chat: &[ChatEvent]) -> Vec<Value> {
        events_with(EncodeOptions::default(), chat)
    }

    /// The one place that calls `encode`.
    fn events_with(options: EncodeOptions, chat: &[ChatEvent]) -> Vec<Value> {
        let request =
            CreateResponse::parse(&json!({ "input": "hi", "tools": tools() }), UnknownFields::Refuse).unwrap();
        let (response, _) = request.begin("tiny", &SamplingParams::default());
        let events = encode(response, options, stream::iter(chat.to_vec())).collect::<Vec<_>>().now_or_never().unwrap();
        events.iter().map(|event| serde_json::to_value(event).unwrap()).collect()
    }

    /// One line for each event, with what is new in it; ids are left out.
    fn transcript(chat: &[ChatEvent]) -> String {
        transcript_with(EncodeOptions::default(), chat)
    }

    fn transcript_with(options: EncodeOptions, chat: &[ChatEvent]) -> String {
        let line = |event: &Value| {
            let mut line = format!("{} {}", event["sequence_number"], event["type"].as_str().unwrap());
            for key in ["output_index", "delta", "text", "name", "arguments", "input", "message"] {
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
        events_with(options, chat).iter().map(line).collect()
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
    fn a_tool_that_takes_text_gets_it_as_it_comes() {
        let first =
            [call("shell"), arguments("{\"inp"), arguments("ut\": \"ls"), arguments(" -l\\"), arguments("n\"}")];
        let rest = [call_end(), call("shell"), arguments("{\"input\":\"p"), finished(FinishReason::Length)];
        let options = EncodeOptions::default();
        assert_snapshot!(transcript_with(options, &[&first[..], &rest[..]].concat()), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.custom_tool_call_input.delta #0 delta="ls"
        4 response.custom_tool_call_input.delta #0 delta=" -l"
        5 response.custom_tool_call_input.delta #0 delta="\n"
        6 response.custom_tool_call_input.done #0 input="ls -l\n"
        7 response.output_item.done #0 item is completed
        8 response.output_item.added #1 item is in_progress
        9 response.custom_tool_call_input.delta #1 delta="p"
        10 response.custom_tool_call_input.done #1 input="p"
        11 response.output_item.done #1 item is incomplete
        12 response.incomplete response is incomplete
        "#);
    }

    #[test]
    fn a_tool_is_called_what_the_client_calls_it() {
        let chat = [call("shell"), call_end(), call("git__log"), arguments("{}"), finished(FinishReason::Stop)];
        let options = EncodeOptions::default();
        let mut last = events_with(options, &chat).pop().unwrap();
        redact(&mut last);
        assert_snapshot!(last["response"]["output"], @r#"[{"type":"custom_tool_call","id":"ctc_…","call_id":"call_…","name":"shell","input":"","status":"completed"},{"type":"function_call","id":"fc_…","call_id":"call_…","name":"log","namespace":"git","arguments":"{}","status":"completed"}]"#);
    }

    #[test]
    fn reasoning_is_told_as_configured() {
        let chat = [reasoning("H"), reasoning("m."), finished(FinishReason::Length)];
        let told = |reasoning_events| {
            let options = || EncodeOptions { reasoning_events, ..EncodeOptions::default() };
            let mut last = events_with(options(), &chat).pop().unwrap();
            redact(&mut last);
            format!("{}{}", transcript_with(options(), &chat), last["response"]["output"])
        };
        assert_snapshot!(told(ReasoningEvents::OpenAi), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.reasoning_text.delta #0 delta="H"
        5 response.reasoning_text.delta #0 delta="m."
        6 response.reasoning_text.done #0 text="Hm."
        7 response.content_part.done #0
        8 response.output_item.done #0 item is incomplete
        9 response.incomplete response is incomplete
        [{"type":"reasoning","id":"rs_…","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}],"status":"incomplete"}]
        "#);
        assert_snapshot!(told(ReasoningEvents::OpenResponses), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.reasoning.delta #0 delta="H"
        5 response.reasoning.delta #0 delta="m."
        6 response.reasoning.done #0 text="Hm."
        7 response.content_part.done #0
        8 response.output_item.done #0 item is incomplete
        9 response.incomplete response is incomplete
        [{"type":"reasoning","id":"rs_…","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}],"status":"incomplete"}]
        "#);
        assert_snapshot!(told(ReasoningEvents::Summary), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.reasoning_summary_part.added #0
        4 response.reasoning_summary_text.delta #0 delta="H"
        5 response.reasoning_summary_text.delta #0 delta="m."
        6 response.reasoning_summary_text.done #0 text="Hm."
        7 response.reasoning_summary_part.done #0
        8 response.output_item.done #0 item is incomplete
        9 response.incomplete response is incomplete
        [{"type":"reasoning","id":"rs_…","summary":[{"type":"summary_text","text":"Hm."}],"status":"incomplete"}]
        "#);
    }

    #[test]
    fn sealed_reasoning_can_be_sent_back() {
        let chat = [reasoning("Hm."), text("Hi"), finished(FinishReason::Stop)];
        for reasoning_events in [ReasoningEvents::OpenAi, ReasoningEvents::Summary] {
            let seal = seal();
            let options = EncodeOptions { reasoning_events, seal: Some(Arc::clone(&seal)), ..EncodeOptions::default() };
            let events = events_with(options, &chat);
            let last = &events.last().unwrap()["response"]["output"][0];
            assert_eq!(seal.open(Purpose::Reasoning, last["encrypted_content"].as_str().unwrap()).unwrap(), "Hm.");
            let sealed = |event: &&Value| event["item"].get("encrypted_content").is_some();
            let names: Vec<&Value> = events.iter().filter(sealed).map(|event| &event["type"]).collect();
            assert_eq!(names, ["response.output_item.done"]);
        }
        assert!(!json!(events(&chat)).to_string().contains("encrypted_content"));
    }

    #[test]
    fn log_probabilities_come_with_their_text() {
        let first = [logprobs(&["He", "l"]), text("Hel"), logprobs(&["l"]), logprobs(&["o"]), text("lo"), text("!")];
        let rest = [logprobs(&["cut off"]), finished(FinishReason::Stop)];
        let events = events(&[&first[..], &rest[..]].concat());
        let tokens = |holder: &Value| {
            let entries = holder["logprobs"].as_array().unwrap().iter();
            entries.map(|entry| entry["token"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("|")
        };
        let told = events.iter().filter_map(|event| match event["type"].as_str().unwrap() {
            name @ ("response.output_text.delta" | "response.output_text.done") => Some((name, tokens(event))),
            name @ ("response.content_part.added" | "response.content_part.done") => {
                Some((name, tokens(&event["part"])))
            }
            name @ "response.completed" => Some((name, tokens(&event["response"]["output"][0]["content"][0]))),
            _ => None,
        });
        let told: Vec<String> = told.map(|(name, tokens)| format!("{name} [{tokens}]")).collect();
        assert_snapshot!(told.join("\n"), @r#"
        response.content_part.added []
        response.output_text.delta [He|l]
        response.output_text.delta [l|o]
        response.output_text.delta []
        response.output_text.done [He|l|l|o]
        response.content_part.done [He|l|l|o]
        response.completed [He|l|l|o]
        "#);
        assert_snapshot!(events[4]["logprobs"][0], @r#"{"token":"He","logprob":-0.5,"bytes":[72,101],"top_logprobs":[{"token":"He","logprob":-0.5,"bytes":[72,101]}]}"#);
    }

    #[test]
    fn deltas_and_nothing_else_are_padded() {
        let first = [reasoning("Hm."), text("Hello"), call("find"), arguments("{}"), call_end()];
        let rest = [call("shell"), arguments("{\"input\": \"ls\"}"), finished(FinishReason::Stop)];
        let options = EncodeOptions { obfuscation: true, ..EncodeOptions::default() };
        let events = events_with(options, &[&first[..], &rest[..]].concat());
        for event in events {
            let is_delta = event["type"].as_str().unwrap().ends_with(".delta");
            let padding = event.get("obfuscation").map(|padding| padding.as_str().unwrap().len());
            assert_eq!(padding, is_delta.then(|| 16 - event["delta"].as_str().unwrap().len()));
        }
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
    fn a_failed_response_holds_what_was_said_and_what_it_cost() {
        let events = events(&[reasoning("Hm."), text("Hel"), finished(FinishReason::Error)]);
        let last = &events.last().unwrap()["response"];
        let told: Vec<_> = last["output"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| (&item["content"][0]["text"], &item["status"]))
            .collect();
        assert_eq!(told, [(&json!("Hm."), &json!("completed")), (&json!("Hel"), &json!("incomplete"))]);
        assert_eq!((&last["usage"]["total_tokens"], &last["completed_at"]), (&json!(12), &Value::Null));
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
        assert_eq!(last["output"][0]["content"][0]["text"], "Hel");
        assert_eq!((&last["status"], &last["usage"]), (&json!("failed"), &Value::Null));
    }

    #[test]
    fn the_error_event_serves_both_readings_of_the_protocol() {
        let events = events(&[finished(FinishReason::Error)]);
        assert_snapshot!(events[2], @r#"{"type":"error","sequence_number":2,"code":"server_error","message":"the model failed while it wrote this reply; send the request again","param":null,"error":{"type":"server_error","code":"server_error","message":"the model failed while it wrote this reply; send the request again","param":null}}"#);
        assert_snapshot!(events[3]["response"]["error"], @r#"{"code":"server_error","message":"the model failed while it wrote this reply; send the request again"}"#);
    }

    #[test]
    fn a_reply_that_waits_says_so() {
        let chat = [ChatEvent::Queued, ChatEvent::Started, text("Hi"), finished(FinishReason::Stop)];
        assert_snapshot!(transcript(&chat).lines().take(4).collect::<Vec<_>>().join("\n"), @r#"
        0 response.created response is in_progress
        1 response.queued response is queued
        2 response.in_progress response is in_progress
        3 response.output_item.added #0 item is in_progress
        "#);
    }

    #[test]
    fn reasoning_that_was_cut_before_its_first_word_is_an_item() {
        assert_snapshot!(transcript(&[finished(FinishReason::Length)]), @r#"
        0 response.created response is in_progress
        1 response.in_progress response is in_progress
        2 response.output_item.added #0 item is in_progress
        3 response.content_part.added #0
        4 response.reasoning_text.done #0 text=""
        5 response.content_part.done #0
        6 response.output_item.done #0 item is incomplete
        7 response.incomplete response is incomplete
        "#);
    }

    #[test]
    fn the_last_event_holds_everything() {
        let chat =
            [reasoning("Hm."), text("Hi"), call("find"), arguments("{}"), call_end(), finished(FinishReason::Stop)];
        let mut last = events(&chat).pop().unwrap();
        redact(&mut last);
        assert_snapshot!(last, @r#"{"type":"response.completed","sequence_number":18,"response":{"id":"resp_…","object":"response","created_at":"seconds","completed_at":"seconds","status":"completed","incomplete_details":null,"model":"tiny","previous_response_id":null,"instructions":null,"output":[{"type":"reasoning","id":"rs_…","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}],"status":"completed"},{"type":"message","id":"msg_…","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi","annotations":[],"logprobs":[]}]},{"type":"function_call","id":"fc_…","call_id":"call_…","name":"find","arguments":"{}","status":"completed"}],"error":null,"tools":[{"type":"function","name":"f","description":null,"parameters":null,"strict":null},{"type":"custom","name":"shell"},{"type":"namespace","name":"git","tools":[{"type":"function","name":"log"}]}],"tool_choice":"auto","truncation":"disabled","parallel_tool_calls":true,"text":{"format":{"type":"text"}},"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"temperature":1.0,"reasoning":null,"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":4,"cache_write_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":12},"max_output_tokens":null,"max_tool_calls":null,"store":false,"background":false,"service_tier":"default","metadata":{},"safety_identifier":null,"prompt_cache_key":null}}"#);
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
        logprobs: Vec<Value>,
        done: Vec<Value>,
    }

    /// Whose text stands in the item itself.
    const WITHOUT_PART: [&str; 2] = ["response.function_call_arguments", "response.custom_tool_call_input"];

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
                logprobs: Vec::new(),
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
            for key in ["content_index", "summary_index"] {
                assert!(event.get(key).is_none_or(|index| index == 0), "an item has one part");
            }
            if event.get("output_index").is_some() {
                assert_eq!(event["output_index"], json!(self.done.len()));
            }
            match name.rsplit_once('.').map_or((name, ""), |(kind, action)| (kind, action)) {
                ("response.output_item", "added") => {
                    assert!(self.is_open.is_none(), "one item is open at a time");
                    assert_eq!(event["item"]["status"], "in_progress");
                    self.is_open = Some(event["item"].clone());
                    (self.has_part, self.is_content_done) = (false, false);
                    (self.streamed, self.logprobs) = (String::new(), Vec::new());
                }
                ("response.output_item", "done") => {
                    let added = self.is_open.take().expect("only an open item is done");
                    for key in ["id", "type", "call_id", "name", "namespace", "role"] {
                        assert_eq!(added.get(key), event["item"].get(key));
                    }
                    assert!(self.is_content_done && !self.has_part);
                    let item = &event["item"];
                    let told =
                        [&item["content"][0]["text"], &item["summary"][0]["text"], &item["arguments"], &item["input"]];
                    assert_eq!(told.map(|text| usize::from(!text.is_null())).iter().sum::<usize>(), 1);
                    assert!(told.contains(&&json!(self.streamed)));
                    self.done.push(event["item"].clone());
                }
                ("response.content_part" | "response.reasoning_summary_part", "added") => {
                    assert!(item_id.is_some() && !std::mem::replace(&mut self.has_part, true));
                }
                ("response.content_part" | "response.reasoning_summary_part", "done") => {
                    assert!(self.is_content_done && std::mem::replace(&mut self.has_part, false));
                    assert_eq!(event["part"]["text"], json!(self.streamed));
                    self.check_logprobs(&event["part"]);
                }
                (kind, "delta") => {
                    assert_ne!(self.has_part, WITHOUT_PART.contains(&kind), "{name} is in its place");
                    assert!(!self.is_content_done);
                    let delta = event["delta"].as_str().unwrap();
                    assert!(!delta.is_empty(), "a delta says something");
                    self.streamed += delta;
                    self.logprobs.extend(event["logprobs"].as_array().cloned().unwrap_or_default());
                }
                (kind, "done") => {
                    assert_ne!(self.has_part, WITHOUT_PART.contains(&kind), "{name} is in its place");
                    assert!(!std::mem::replace(&mut self.is_content_done, true));
                    let said = ["text", "arguments", "input"].iter().find_map(|key| event.get(key));
                    assert_eq!(said, Some(&json!(self.streamed)));
                    self.check_logprobs(event);
                }
                _ => assert!(self.is_open.is_none(), "nothing is open around {name}"),
            }
        }

        fn check_logprobs(&self, text: &Value) {
            assert_eq!(text["logprobs"].as_array().map_or(&[][..], Vec::as_slice), self.logprobs);
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
            "find|shell|git__log".prop_map(|name| Delta::ToolCall { name }),
            r#"[a-z]{0,3}|\{"input": ?"|\\[nu"]|"\}"#.prop_map(Delta::Arguments),
            Just(Delta::ToolCallEnd),
        ];
        prop_oneof![6 => delta.prop_map(ChatEvent::Delta), 1 => "[a-z]{0,3}".prop_map(|token| logprobs(&[&token]))]
    }

    fn any_options() -> impl Strategy<Value = EncodeOptions> {
        let styles = [ReasoningEvents::OpenAi, ReasoningEvents::OpenResponses, ReasoningEvents::Summary];
        let options = (prop::sample::select(styles.to_vec()), any::<bool>(), any::<bool>());
        options.prop_map(|(reasoning_events, is_sealed, obfuscation)| EncodeOptions {
            reasoning_events,
            seal: is_sealed.then(seal),
            obfuscation,
            compaction: None,
            first_number: 0,
        })
    }

    fn any_end() -> impl Strategy<Value = Option<ChatEvent>> {
        let reasons = [
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Error,
            FinishReason::OutOfMemory,
            FinishReason::DeviceLost,
            FinishReason::Shutdown,
        ];
        prop::option::of(prop::sample::select(reasons.to_vec()).prop_map(finished))
    }

    proptest! {
        #[test]
        fn any_chat_is_encoded_in_the_protocol_s_order(
            options in any_options(),
            mut chat in prop::collection::vec(any_delta(), 0..12),
            end in any_end(),
            late in prop::collection::vec(any_delta(), 0..2),
        ) {
            chat.extend(end.clone());
            if end.is_some() {
                chat.extend(late); // Nothing comes after the end, even if more is said.
            }
            Reader::read(&events_with(options, &chat));
        }
    }
}
