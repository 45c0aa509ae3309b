//! The choices of a completion: each a chat of its own, told together as they come.

use super::{
    chunk::{CallPiece, Choice, Piece, Usage},
    request::Envelope,
};
use crate::{
    chat::{ChatError, ChatEvent, ChatRequest, Delta, Finished, ServedModel},
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
    /// Chunks as they come, then exactly one last event. Dropping them cancels what has not ended.
    pub fn into_events(self) -> impl Stream<Item = CompletionEvent> {
        let Self { envelope, is_new_prompt, steps } = self;
        let mut usage = Usage::default();
        let steps = steps.map(Some).chain(stream::iter([None]));
        let events = steps.scan(false, move |has_ended, step| {
            let events = match step {
                _ if *has_ended => None,
                Some(Step::Piece(piece)) => Some(vec![CompletionEvent::Chunk(envelope.chunk(&piece))]),
                Some(Step::Finished { index, usage: more }) => {
                    usage.add(more, is_new_prompt[index]);
                    Some(Vec::new())
                }
                Some(Step::Failed(failure)) => {
                    *has_ended = true;
                    Some(vec![CompletionEvent::Failed(failure)])
                }
                None => {
                    let last = envelope.includes_usage.then(|| CompletionEvent::Chunk(envelope.usage_chunk(usage)));
                    Some(last.into_iter().chain([CompletionEvent::Finished(usage)]).collect())
                }
            };
            async { events.map(stream::iter) }
        });
        events.flatten()
    }
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
    logprobs: Vec<crate::chat::TokenLogprob>,
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
                Some(Piece { content: Some(text), logprobs, ..self.piece() })
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
