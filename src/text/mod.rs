//! Text in, text out: tokens stay below.

mod detokenizer;
mod error;
mod stop;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use stop::StopStrings;
pub use tokenizer::{AddedToken, Piece, Tokenizer};

#[cfg(test)]
pub(crate) use tokenizer::tests;

use crate::engine::{EngineError, EngineHandle, FinishReason, Request, TokenEvent, TokenStream};
use futures::{Stream, stream};
use std::sync::Arc;

/// Whole characters of the reply, then exactly one `Finished`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TextEvent {
    /// More text.
    Text {
        /// Never empty.
        text: String,
        /// Tokens since the event before.
        num_tokens: usize,
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

/// Runs a request and turns its tokens into text. Dropping the stream cancels the request. A stream that ends without
/// `Finished` has lost its engine.
///
/// # Errors
/// See [`EngineError`].
pub fn generate(
    engine: &EngineHandle,
    tokenizer: Arc<Tokenizer>,
    request: Request,
) -> Result<impl Stream<Item = TextEvent> + Send + Unpin + use<>, EngineError> {
    let tokens = engine.submit(request)?;
    let reply = Reply { tokens, detokenizer: Detokenizer::new(tokenizer), num_tokens: 0, end: None };
    Ok(Box::pin(stream::unfold(Some(reply), |reply| async { reply?.next().await })))
}

/// A reply under way.
struct Reply {
    tokens: TokenStream,
    detokenizer: Detokenizer,
    /// Tokens since the last event.
    num_tokens: usize,
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
                TokenEvent::Finished { reason, num_cached_tokens } => {
                    self.end = Some((reason, num_cached_tokens));
                    self.detokenizer.finish()
                }
            };
            if !text.is_empty() {
                let num_tokens = std::mem::take(&mut self.num_tokens);
                return Some((TextEvent::Text { text, num_tokens }, Some(self)));
            }
        }
        let (reason, num_cached_tokens) = self.end.expect("the loop ended");
        Some((TextEvent::Finished { reason, num_cached_tokens, num_tokens: self.num_tokens }, None))
    }
}
