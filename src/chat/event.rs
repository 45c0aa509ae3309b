//! What the model said, told apart.

use crate::{engine::FinishReason, text::TokenLogprob};
use futures::{Stream, StreamExt};

/// Whether the reply waits, its pieces, then exactly one `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent {
    /// The reply waits for others.
    Queued,
    /// It has begun.
    Started,
    /// More of the reply.
    Delta(Delta),
    /// Of the tokens that the next [`Delta::Text`] ends with. Only where they were asked for.
    Logprobs(Vec<TokenLogprob>),
    /// The last event.
    Finished(Finished),
}

/// A piece of the reply. Pieces of one kind follow one another until another kind begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Delta {
    /// Thinking.
    Reasoning(String),
    /// The visible answer.
    Text(String),
    /// A tool call begins; its arguments follow.
    ToolCall {
        /// Which function.
        name: String,
    },
    /// More of the JSON text of the open call's arguments.
    Arguments(String),
    /// The open call is complete. A reply that ends inside a call lacks this.
    ToolCallEnd,
}

/// How a reply ended and what it cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
}

/// Tokens of one reply.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Prompt tokens, counted after the chat template.
    pub input_tokens: usize,
    /// Prompt tokens whose keys and values were already there.
    pub cached_tokens: usize,
    /// Generated tokens, the stop token left out.
    pub output_tokens: usize,
    /// Those of them inside reasoning.
    pub reasoning_tokens: usize,
}

/// The text of a reply, without reasoning and calls, and how it ended; without an end, the engine was lost.
pub async fn whole_answer(mut events: impl Stream<Item = ChatEvent> + Unpin) -> (String, Option<Finished>) {
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event {
            ChatEvent::Delta(Delta::Text(more)) => text.push_str(&more),
            ChatEvent::Queued | ChatEvent::Started | ChatEvent::Delta(_) | ChatEvent::Logprobs(_) => {}
            ChatEvent::Finished(finished) => return (text, Some(finished)),
        }
    }
    (text, None)
}
