//! The choices of a completion: each a chat of its own, told together as they come.

use super::{
    chunk::{CallPiece, Choice, Piece, Usage, num_chars},
    request::Envelope,
};
use crate::{
    chat::{ChatError, ChatEvent, ChatRequest, Delta, Finished, ServedModel, TokenLogprob},
    engine::FinishReason,
    responses::{Failure, new_id},
};
use futures::{
    Stream, StreamExt,
    stream::{self, LocalBoxStream},
};
use serde_json::Value;
use std::sync::Arc;

/// What a client hears, and how it ends.
#[derive(Debug)]
pub enum CompletionEvent {
    /// A chunk as JSON text.
    Chunk(String),
    /// The last event of a stream that went well.
    Finished(Usage),
    /// The last event of one that did not.
    Failed(Failure),
}

/// One thing that happened to one choice.
enum Step {
    Piece(Piece),
    Finished { index: usize, usage: crate::chat::Usage },
    Failed(Failure),
}

/// Choices under way.
pub struct Choices {
    envelope: Envelope,
    /// Whether a choice has the prompt of the one before it.
    is_new_prompt: Vec<bool>,
    steps: LocalBoxStream<'static, Step>,
}

/// Submits all choices, or none: what began is cancelled where a later one cannot.
///
/// # Errors
/// As for a reply.
pub async fn start(
    model: &Arc<ServedModel>,
    envelope: Envelope,
    requests: Vec<ChatRequest>,
) -> Result<Choices, ChatError> {
    let mut choices = Vec::with_capacity(requests.len());
    let mut is_new_prompt = Vec::with_capacity(requests.len());
    let mut last_text = None;
    for (index, request) in requests.into_iter().enumerate() {
        is_new_prompt.push(index == 0 || request.text != last_text);
        last_text.clone_from(&request.text);
        let chat = model.lease().await?.start(request).await?;
        choices.push(tell(index, envelope.echo.clone(), chat).boxed_local());
    }
    Ok(Choices { envelope, is_new_prompt, steps: stream::select_all(choices).boxed_local() })
}

impl Choices {
    /// Chunks as they come, then exactly one last event. Dropping them cancels what has not ended, and so does a failure.
    pub fn into_events(self) -> impl Stream<Item = CompletionEvent> {
        let Self { envelope, is_new_prompt, steps } = self;
        let mut usage = Usage::default();
        let steps = steps.map(Some).chain(stream::iter([None]));
        let events = steps.map(move |step| match step {
            Some(Step::Piece(piece)) => vec![CompletionEvent::Chunk(envelope.chunk(&piece))],
            Some(Step::Finished { index, usage: more }) => {
                usage.add(more, is_new_prompt[index]);
                Vec::new()
            }
            Some(Step::Failed(failure)) => vec![CompletionEvent::Failed(failure)],
            None => {
                let last = envelope.includes_usage.then(|| CompletionEvent::Chunk(envelope.usage_chunk(usage)));
                last.into_iter().chain([CompletionEvent::Finished(usage)]).collect()
            }
        });
        up_to_the_last(events.map(stream::iter).flatten())
    }
}

/// Drops the events with the last one, and does not wait for what would come after it.
fn up_to_the_last(events: impl Stream<Item = CompletionEvent>) -> impl Stream<Item = CompletionEvent> {
    stream::unfold(Some(Box::pin(events)), |events| async {
        let mut events = events?;
        let event = events.next().await?;
        let goes_on = matches!(event, CompletionEvent::Chunk(_));
        Some((event, goes_on.then_some(events)))
    })
}

/// The object that all pieces add up to, for a client that did not ask for a stream.
///
/// # Errors
/// The first failure of any choice.
pub async fn last_completion(choices: Choices) -> Result<(Value, Usage), Failure> {
    let Choices { envelope, is_new_prompt, mut steps } = choices;
    let mut whole: Vec<Choice> = is_new_prompt.iter().map(|_| Choice::default()).collect();
    let mut usage = Usage::default();
    while let Some(step) = steps.next().await {
        match step {
            Step::Piece(piece) => whole[piece.index].push(piece),
            Step::Finished { index, usage: more } => usage.add(more, is_new_prompt[index]),
            Step::Failed(failure) => return Err(failure),
        }
    }
    Ok((envelope.whole(whole, usage), usage))
}

/// What has been said of one choice.
#[derive(Default)]
struct Telling {
    index: usize,
    num_calls: usize,
    /// Of tokens whose text has not been said yet, and where that text will begin.
    logprobs: Vec<TokenLogprob>,
    logprobs_offset: usize,
    has_ended: bool,
}

/// One choice's events as steps; its last one is `Finished` or `Failed`.
fn tell(index: usize, echo: String, chat: impl Stream<Item = ChatEvent> + 'static) -> impl Stream<Item = Step> {
    let content = (!echo.is_empty()).then_some(echo);
    let first = Step::Piece(Piece { index, begins: true, content, ..Piece::default() });
    let telling = Telling { index, ..Telling::default() };
    let chat = chat.map(Some).chain(stream::iter([None]));
    let rest = chat.scan(telling, |telling, event| {
        let steps = telling.on_event(event);
        async { Some(stream::iter(steps)) }
    });
    stream::iter([first]).chain(rest.flatten())
}

impl Telling {
    /// None where the chat ends, which it does not do without a word unless the engine was lost.
    fn on_event(&mut self, event: Option<ChatEvent>) -> Vec<Step> {
        match event {
            Some(ChatEvent::Queued | ChatEvent::Started) => Vec::new(),
            Some(ChatEvent::Logprobs(more)) => {
                self.logprobs.extend(more);
                Vec::new()
            }
            Some(ChatEvent::Delta(delta)) => self.on_delta(delta).map(Step::Piece).into_iter().collect(),
            Some(ChatEvent::Finished(Finished { reason, usage })) => {
                self.has_ended = true;
                let finish_reason = match reason {
                    FinishReason::Stop if 0 < self.num_calls => "tool_calls",
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Error => return vec![Step::Failed(Failure::Model)],
                    FinishReason::OutOfMemory => return vec![Step::Failed(Failure::OutOfMemory)],
                    FinishReason::DeviceLost => return vec![Step::Failed(Failure::EngineLost)],
                    FinishReason::Shutdown => return vec![Step::Failed(Failure::Shutdown)],
                };
                let last = Piece { finish_reason: Some(finish_reason), ..self.piece() };
                vec![Step::Piece(last), Step::Finished { index: self.index, usage }]
            }
            None if self.has_ended => Vec::new(),
            None => vec![Step::Failed(Failure::EngineLost)],
        }
    }

    fn on_delta(&mut self, delta: Delta) -> Option<Piece> {
        match delta {
            Delta::Text(text) | Delta::Reasoning(text) | Delta::Arguments(text) if text.is_empty() => None,
            Delta::Text(text) => {
                let logprobs = std::mem::take(&mut self.logprobs);
                let logprobs_offset = self.logprobs_offset;
                self.logprobs_offset += num_chars(&logprobs);
                Some(Piece { content: Some(text), logprobs, logprobs_offset, ..self.piece() })
            }
            Delta::Reasoning(text) => Some(Piece { reasoning: Some(text), ..self.piece() }),
            Delta::ToolCall { name } => {
                self.num_calls += 1;
                Some(self.call(Some((new_id("call"), name)), String::new()))
            }
            // Without a call there is nothing that they could belong to.
            Delta::Arguments(_) if self.num_calls == 0 => None,
            Delta::Arguments(arguments) => Some(self.call(None, arguments)),
            Delta::ToolCallEnd => None,
        }
    }

    fn piece(&self) -> Piece {
        Piece { index: self.index, ..Piece::default() }
    }

    fn call(&self, begins: Option<(String, String)>, arguments: String) -> Piece {
        let call = CallPiece { index: self.num_calls - 1, begins, arguments };
        Piece { call: Some(call), ..self.piece() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{self, Logprob},
        completions::request::Protocol,
    };
    use futures::{FutureExt, executor::block_on};
    use insta::assert_snapshot;
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    /// Choices of these scripts, all with one prompt.
    fn choices(protocol: Protocol, scripts: &[Vec<ChatEvent>]) -> Choices {
        choices_of(protocol, scripts.iter().cloned().map(|script| stream::iter(script).boxed_local()).collect())
    }

    fn choices_of(protocol: Protocol, chats: Vec<LocalBoxStream<'static, ChatEvent>>) -> Choices {
        let envelope = Envelope {
            id: "chatcmpl-1".to_owned(),
            created: 1,
            model: "tiny".to_owned(),
            service_tier: "default",
            protocol,
            includes_usage: true,
            echo: String::new(),
        };
        let is_new_prompt = (0..chats.len()).map(|index| index == 0).collect();
        let steps = chats.into_iter().enumerate();
        let steps = steps.map(|(index, chat)| tell(index, envelope.echo.clone(), chat).boxed_local());
        Choices { is_new_prompt, steps: stream::select_all(steps).boxed_local(), envelope }
    }

    /// All that a client hears as a stream, and the plain reply to the same.
    fn tell_both(protocol: Protocol, scripts: &[Vec<ChatEvent>]) -> (Vec<CompletionEvent>, Result<Value, Failure>) {
        block_on(async {
            let streamed = choices(protocol, scripts).into_events().collect().await;
            (streamed, last_completion(choices(protocol, scripts)).await.map(|(whole, _)| whole))
        })
    }

    fn chunks(events: &[CompletionEvent]) -> Vec<Value> {
        let chunk = |event: &CompletionEvent| match event {
            CompletionEvent::Chunk(json) => Some(serde_json::from_str(json).unwrap()),
            CompletionEvent::Finished(_) | CompletionEvent::Failed(_) => None,
        };
        events.iter().filter_map(chunk).collect()
    }

    /// The stream of one choice, an event on each line, then the plain reply. All ids of calls are alike.
    fn told(protocol: Protocol, script: &[ChatEvent]) -> String {
        let (events, whole) = tell_both(protocol, &[script.to_vec()]);
        let mut lines: Vec<String> =
            chunks(&events).into_iter().map(|chunk| without_call_ids(chunk)["choices"].to_string()).collect();
        lines.push(match events.last().unwrap() {
            CompletionEvent::Failed(failure) => format!("{failure:?}"),
            CompletionEvent::Finished(usage) => json!(usage).to_string(),
            CompletionEvent::Chunk(_) => panic!("a chunk is never the last event"),
        });
        lines.push(match whole {
            Ok(whole) => without_call_ids(whole)["choices"].to_string(),
            Err(failure) => format!("{failure:?}"),
        });
        lines.join("\n")
    }

    fn without_call_ids(mut completion: Value) -> Value {
        for choice in completion["choices"].as_array_mut().unwrap() {
            let said = if choice.get("delta").is_some() { "delta" } else { "message" };
            for id in choice.get_mut(said).into_iter().flat_map(calls_of).filter_map(|call| call.get_mut("id")) {
                assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
                *id = json!("call");
            }
        }
        completion
    }

    fn calls_of(said: &mut Value) -> impl Iterator<Item = &mut Value> {
        said.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
    }

    fn text(text: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::Text(text.to_owned()))
    }

    fn arguments(text: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::Arguments(text.to_owned()))
    }

    fn call(name: &str) -> ChatEvent {
        ChatEvent::Delta(Delta::ToolCall { name: name.to_owned() })
    }

    fn logprob(token: &[u8]) -> Logprob {
        Logprob { bytes: token.to_vec(), logprob: -0.5 }
    }

    fn logprobs(tokens: &[&str]) -> ChatEvent {
        let token =
            |token: &&str| TokenLogprob { token: logprob(token.as_bytes()), top: vec![logprob(token.as_bytes())] };
        ChatEvent::Logprobs(tokens.iter().map(token).collect())
    }

    fn finished(reason: FinishReason) -> ChatEvent {
        let usage = chat::Usage { input_tokens: 9, cached_tokens: 4, output_tokens: 3, reasoning_tokens: 1 };
        ChatEvent::Finished(Finished { reason, usage })
    }

    #[test]
    fn every_object_has_the_same_beginning_and_the_last_chunk_has_the_usage() {
        let (events, whole) = tell_both(Protocol::Chat, &[vec![text("Yes."), finished(FinishReason::Stop)]]);
        let chunks = chunks(&events);
        assert_snapshot!(format!("{}\n{}\n{}", chunks[1], chunks.last().unwrap(), whole.unwrap()), @r#"
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{"content":"Yes."},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","service_tier":"default","system_fingerprint":null,"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}}
        {"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"message":{"role":"assistant","content":"Yes.","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}}
        "#);
    }

    #[test]
    fn text_and_reasoning_are_kept_apart() {
        let reasoning = ChatEvent::Delta(Delta::Reasoning("Hm.".to_owned()));
        let script = [ChatEvent::Queued, ChatEvent::Started, reasoning, text("Y"), text(""), text("es.")];
        assert_snapshot!(told(Protocol::Chat, &[&script[..], &[finished(FinishReason::Stop)]].concat()), @r#"
        [{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"reasoning_content":"Hm."},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"content":"Y"},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"content":"es."},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]
        []
        {"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}
        [{"index":0,"message":{"role":"assistant","content":"Yes.","refusal":null,"annotations":[],"reasoning_content":"Hm."},"logprobs":null,"finish_reason":"stop"}]
        "#);
    }

    #[test]
    fn calls_are_told_by_their_place() {
        let end = ChatEvent::Delta(Delta::ToolCallEnd);
        let script = [
            arguments("lost"),
            call("f"),
            arguments("{\"a\""),
            arguments(": 1}"),
            end.clone(),
            call("g"),
            arguments("{}"),
            end,
            finished(FinishReason::Stop),
        ];
        assert_snapshot!(told(Protocol::Chat, &script), @r#"
        [{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call","type":"function","function":{"name":"f","arguments":""}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":": 1}"}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call","type":"function","function":{"name":"g","arguments":""}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}]
        []
        {"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}
        [{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"annotations":[],"tool_calls":[{"id":"call","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"call","type":"function","function":{"name":"g","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}]
        "#);
    }

    #[test]
    fn a_call_that_is_cut_is_told_as_cut() {
        let script = [text("So: "), call("f"), arguments("{\"a"), finished(FinishReason::Length)];
        assert_snapshot!(told(Protocol::Chat, &script), @r#"
        [{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"content":"So: "},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call","type":"function","function":{"name":"f","arguments":""}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a"}}]},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]
        []
        {"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}
        [{"index":0,"message":{"role":"assistant","content":"So: ","refusal":null,"annotations":[],"tool_calls":[{"id":"call","type":"function","function":{"name":"f","arguments":"{\"a"}}]},"logprobs":null,"finish_reason":"length"}]
        "#);
    }

    #[test]
    fn probabilities_stand_beside_their_text() {
        let script = [
            logprobs(&["Hé"]),
            logprobs(&["l"]),
            text("Hél"),
            logprobs(&["lo"]),
            text("lo"),
            finished(FinishReason::Length),
        ];
        assert_snapshot!(told(Protocol::Chat, &script), @r#"
        [{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]
        [{"index":0,"delta":{"content":"Hél"},"logprobs":{"content":[{"token":"Hé","logprob":-0.5,"bytes":[72,195,169],"top_logprobs":[{"token":"Hé","logprob":-0.5,"bytes":[72,195,169]}]},{"token":"l","logprob":-0.5,"bytes":[108],"top_logprobs":[{"token":"l","logprob":-0.5,"bytes":[108]}]}],"refusal":null},"finish_reason":null}]
        [{"index":0,"delta":{"content":"lo"},"logprobs":{"content":[{"token":"lo","logprob":-0.5,"bytes":[108,111],"top_logprobs":[{"token":"lo","logprob":-0.5,"bytes":[108,111]}]}],"refusal":null},"finish_reason":null}]
        [{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]
        []
        {"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}
        [{"index":0,"message":{"role":"assistant","content":"Héllo","refusal":null,"annotations":[]},"logprobs":{"content":[{"token":"Hé","logprob":-0.5,"bytes":[72,195,169],"top_logprobs":[{"token":"Hé","logprob":-0.5,"bytes":[72,195,169]}]},{"token":"l","logprob":-0.5,"bytes":[108],"top_logprobs":[{"token":"l","logprob":-0.5,"bytes":[108]}]},{"token":"lo","logprob":-0.5,"bytes":[108,111],"top_logprobs":[{"token":"lo","logprob":-0.5,"bytes":[108,111]}]}],"refusal":null},"finish_reason":"length"}]
        "#);
        assert_snapshot!(told(Protocol::Text, &script), @r#"
        [{"index":0,"text":"","logprobs":null,"finish_reason":null}]
        [{"index":0,"text":"Hél","logprobs":{"text_offset":[0,2],"token_logprobs":[-0.5,-0.5],"tokens":["Hé","l"],"top_logprobs":[{"Hé":-0.5},{"l":-0.5}]},"finish_reason":null}]
        [{"index":0,"text":"lo","logprobs":{"text_offset":[3],"token_logprobs":[-0.5],"tokens":["lo"],"top_logprobs":[{"lo":-0.5}]},"finish_reason":null}]
        [{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]
        []
        {"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}
        [{"index":0,"text":"Héllo","logprobs":{"text_offset":[0,2,3],"token_logprobs":[-0.5,-0.5,-0.5],"tokens":["Hé","l","lo"],"top_logprobs":[{"Hé":-0.5},{"l":-0.5},{"lo":-0.5}]},"finish_reason":"length"}]
        "#);
    }

    #[test]
    fn a_token_that_goes_on_with_a_character_stands_where_that_begins() {
        let token = |bytes: &[u8]| ChatEvent::Logprobs(vec![TokenLogprob { token: logprob(bytes), top: Vec::new() }]);
        let script = [
            token(b"H"),
            token(b"i \xf0\x9f"),
            text("Hi "),
            token(b"\x91"),
            token(b"\x8d!"),
            text("👍!"),
            token(b"?"),
            text("?"),
            finished(FinishReason::Stop),
        ];
        let (events, whole) = tell_both(Protocol::Text, &[script.to_vec()]);
        let offsets = |choices: &Value| choices[0]["logprobs"]["text_offset"].clone();
        let streamed: Vec<Value> = chunks(&events).iter().map(|chunk| offsets(&chunk["choices"])).collect();
        assert_eq!(streamed, [json!(null), json!([0, 1]), json!([3, 3]), json!([5]), json!(null), json!(null)]);
        let whole = whole.unwrap();
        assert_eq!(offsets(&whole["choices"]), json!([0, 1, 3, 3, 5]));
        // Other tokens were not asked for, and the one that was said is told all the same.
        assert_eq!(whole["choices"][0]["logprobs"]["top_logprobs"][0], json!({ "H": -0.5 }));
    }

    #[test]
    fn what_fails_ends_with_its_failure() {
        for end in [vec![finished(FinishReason::Error)], vec![finished(FinishReason::Shutdown)], vec![]] {
            let told = told(Protocol::Chat, &[&[text("Y")], &end[..]].concat());
            insta::allow_duplicates! { assert_snapshot!(told.lines().nth(1).unwrap(), @r#"[{"index":0,"delta":{"content":"Y"},"logprobs":null,"finish_reason":null}]"#) };
            let (streamed, plain) = told.rsplit_once('\n').unwrap();
            assert!(streamed.ends_with(plain), "{told}");
            assert_eq!(told.lines().count(), 4, "{told}");
        }
    }

    #[test]
    fn the_first_choice_that_fails_ends_all() {
        let scripts = [
            vec![text("Y"), finished(FinishReason::Error)],
            vec![text("a"), text("b"), text("c"), text("d"), finished(FinishReason::Stop)],
        ];
        let (events, whole) = tell_both(Protocol::Chat, &scripts);
        let failures = events.iter().filter(|event| matches!(event, CompletionEvent::Failed(Failure::Model)));
        assert_eq!(failures.count(), 1);
        assert!(matches!(events.last(), Some(CompletionEvent::Failed(_))), "{events:?}");
        assert!(matches!(whole, Err(Failure::Model)));
    }

    #[test]
    fn nothing_is_awaited_after_a_failure() {
        let silent = stream::pending().boxed_local();
        let failing = stream::iter([finished(FinishReason::Error)]).boxed_local();
        let events = choices_of(Protocol::Chat, vec![silent, failing]).into_events().collect::<Vec<_>>();
        let events = events.now_or_never().expect("the choice that says nothing is given up");
        assert!(matches!(events.last(), Some(CompletionEvent::Failed(Failure::Model))), "{events:?}");
    }

    #[test]
    fn a_prompt_that_choices_share_is_counted_once() {
        let script = vec![text("Yes."), finished(FinishReason::Stop)];
        let (_, whole) = tell_both(Protocol::Chat, &[script.clone(), script]);
        assert_snapshot!(whole.unwrap()["usage"], @r#"{"prompt_tokens":9,"completion_tokens":6,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}}"#);
    }

    /// As clients do it: texts are joined, elements with an `index` stand at it, other elements are added.
    fn merge(into: &mut Value, more: &Value) {
        match (into, more) {
            (_, Value::Null) => {}
            (Value::String(into), Value::String(more)) => into.push_str(more),
            (Value::Object(into), Value::Object(more)) => {
                for (name, value) in more {
                    merge(into.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
            (Value::Array(into), Value::Array(more)) => {
                for value in more {
                    match value.get("index").and_then(Value::as_u64) {
                        Some(index) => {
                            let index = usize::try_from(index).unwrap();
                            into.resize(into.len().max(index + 1), Value::Null);
                            merge(&mut into[index], value);
                        }
                        None => into.push(value.clone()),
                    }
                }
            }
            (into @ Value::Null, Value::Array(_)) => {
                *into = json!([]);
                merge(into, more);
            }
            (into, more) => *into = more.clone(),
        }
    }

    /// The choices of a stream as a plain reply would have them.
    fn accumulate(chunks: &[Value]) -> Value {
        let mut choices = json!([]);
        chunks.iter().for_each(|chunk| merge(&mut choices, &chunk["choices"]));
        for choice in choices.as_array_mut().unwrap().iter_mut().filter_map(Value::as_object_mut) {
            let Some(mut message) = choice.remove("delta") else { continue };
            for call in calls_of(&mut message) {
                call.as_object_mut().unwrap().remove("index");
            }
            if message["content"] == "" && message.get("tool_calls").is_some() {
                message["content"] = Value::Null;
            }
            (message["refusal"], message["annotations"]) = (Value::Null, json!([]));
            choice.insert("message".to_owned(), message);
        }
        choices
    }

    fn any_event() -> impl Strategy<Value = ChatEvent> {
        let delta = |delta: fn(String) -> Delta| ".{0,3}".prop_map(move |text| ChatEvent::Delta(delta(text)));
        prop_oneof![
            4 => delta(Delta::Text),
            2 => delta(Delta::Reasoning),
            2 => delta(Delta::Arguments),
            1 => "[fg]".prop_map(|name| call(&name)),
            1 => Just(ChatEvent::Delta(Delta::ToolCallEnd)),
            2 => vec(".{0,2}", 1..3)
                .prop_map(|tokens| logprobs(&tokens.iter().map(String::as_str).collect::<Vec<_>>())),
        ]
    }

    fn any_script() -> impl Strategy<Value = Vec<ChatEvent>> {
        let reason = prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length)];
        (vec(any_event(), 0..12), reason).prop_map(|(mut script, reason)| {
            script.push(finished(reason));
            script
        })
    }

    proptest! {
        #[test]
        fn the_chunks_add_up_to_the_plain_reply(
            protocol in prop_oneof![Just(Protocol::Chat), Just(Protocol::Text)],
            scripts in vec(any_script(), 1..4),
        ) {
            let (events, whole) = tell_both(protocol, &scripts);
            let chunks: Vec<Value> = chunks(&events).into_iter().map(without_call_ids).collect();
            let whole = without_call_ids(whole.unwrap());
            prop_assert_eq!(&accumulate(&chunks), &whole["choices"]);
            prop_assert_eq!(&chunks.last().unwrap()["usage"], &whole["usage"]);
        }
    }
}
