//! Why a chat could not start.

use crate::engine::EngineError;

/// Known before the first byte of the reply.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The client named a model that is not served.
    #[error("the model `{requested}` is not served here; served: {served}")]
    UnknownModel {
        /// As the client sent it.
        requested: String,
        /// Names joined by commas.
        served: String,
    },
    /// The template's own `raise_exception`, or a message it cannot render.
    #[error("the model's chat template rejected the messages: {message}")]
    Template {
        /// The template's words.
        message: String,
    },
    /// The prompt is so long that it cannot fit, known without counting its tokens.
    #[error(
        "the prompt has {bytes} bytes, more than the {max_bytes} that can fit the model's context; shorten the input"
    )]
    PromptTooLarge {
        /// After the template.
        bytes: usize,
        /// 16 for each token of the context.
        max_bytes: usize,
    },
    /// The tokenizer failed on the prompt, which no valid UTF-8 should make it do.
    #[error("the prompt cannot be tokenized: {0}")]
    Tokenizer(String),
    /// A bug of ours or of a library.
    #[error("the prompt could not be made; the log says why")]
    Panicked,
    /// See [`EngineError`].
    #[error(transparent)]
    Engine(#[from] EngineError),
}
