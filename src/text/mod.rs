//! Text in, text out: tokens stay below.

mod detokenizer;
mod error;
mod grammar;
mod stop;
mod tokenizer;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use grammar::{GrammarCompiler, GrammarError};
pub use stop::StopStrings;
pub use tokenizer::{AddedToken, Piece, Tokenizer};

#[cfg(test)]
pub(crate) use tokenizer::tests;

use crate::engine::{EngineError, FinishReason, Replicas, Request, TokenEvent, TokenId, TokenStream};
use futures::{Stream, stream};

/// Whether the reply waits, whole characters of it, then exactly one `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum TextEvent {
    /// The reply waits for others.
    Queued,
    /// It has begun.
    Started,
    /// More text.
    Text {
        /// Never empty.
        text: String,
        /// Tokens since the event before.
        num_tokens: usize,
        /// Of each of these tokens, where they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The last event.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens of the prompt that did not have to be computed.
        num_cached_tokens: usize,
        /// Tokens since the event before.
        num_tokens: usize,
    },
}

/// How probable a token was, before temperature and all else that shapes the choice.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token that was said.
    pub token: Logprob,
    /// The most probable ones in its place, best first.
    pub top: Vec<Logprob>,
}

/// A token and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Its own bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// Runs a request and turns its tokens into text. Dropping the stream cancels the request. A stream that ends without
/// `Finished` has lost its engine.
///
/// # Errors
/// See [`EngineError`].
pub fn generate(
    engine: &Replicas,
    detokenizer: Detokenizer,
    request: Request,
) -> Result<impl Stream<Item = TextEvent> + Send + Unpin + use<>, EngineError> {
    let tokens = engine.submit(request)?;
    let reply = Reply { tokens, detokenizer, num_tokens: 0, logprobs: Vec::new(), end: None };
    Ok(Box::pin(stream::unfold(Some(reply), |reply| async { reply?.next().await })))
}

/// A reply under way.
struct Reply {
    tokens: TokenStream,
    detokenizer: Detokenizer,
    /// Tokens since the last event.
    num_tokens: usize,
    logprobs: Vec<TokenLogprob>,
    /// How it ended and how many tokens of the prompt were cached, once all tokens are there.
    end: Option<(FinishReason, usize)>,
}

impl Reply {
    /// The next event and, unless it is the last, what follows it.
    async fn next(mut self) -> Option<(TextEvent, Option<Self>)> {
        while self.end.is_none() {
            let text = match self.tokens.recv().await? {
                TokenEvent::Token(token) => {
                    self.num_tokens += 1;
                    self.detokenizer.push(token)
                }
                TokenEvent::Queued => return Some((TextEvent::Queued, Some(self))),
                TokenEvent::Started => return Some((TextEvent::Started, Some(self))),
                TokenEvent::Logprobs(logprobs) => {
                    self.logprobs.extend(token_logprob(self.detokenizer.tokenizer(), &logprobs));
                    continue;
                }
                TokenEvent::Finished { reason, num_cached_tokens } => {
                    self.end = Some((reason, num_cached_tokens));
                    self.detokenizer.finish()
                }
            };
            if !text.is_empty() {
                let num_tokens = std::mem::take(&mut self.num_tokens);
                let logprobs = std::mem::take(&mut self.logprobs);
                return Some((TextEvent::Text { text, num_tokens, logprobs }, Some(self)));
            }
        }
        let (reason, num_cached_tokens) = self.end.expect("the loop ended");
        Some((TextEvent::Finished { reason, num_cached_tokens, num_tokens: self.num_tokens }, None))
    }
}

/// None for an empty list, which the engine never sends.
fn token_logprob(tokenizer: &Tokenizer, logprobs: &[(TokenId, f32)]) -> Option<TokenLogprob> {
    let logprob = |(token, logprob): &(TokenId, f32)| {
        // Where tokens are not bytes, they are at least text.
        let bytes = tokenizer.token_bytes().and_then(|bytes| bytes.get(token.index()).cloned());
        Logprob { bytes: bytes.unwrap_or_else(|| tokenizer.decode(&[*token]).into_bytes()), logprob: *logprob }
    };
    let (token, top) = logprobs.split_first()?;
    Some(TokenLogprob { token: logprob(token), top: top.iter().map(logprob).collect() })
}
