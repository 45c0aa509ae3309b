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
    /// The client should retry when the model is there.
    #[error(
        "the model `{model}` is being loaded and {capacity} requests wait for it already, which is the limit; try again \
         later"
    )]
    LoadQueueFull {
        /// Its name.
        model: String,
        /// As many as its engine could take.
        capacity: usize,
    },
    /// The operator should look at the log; a later request tries again.
    #[error("the model `{model}` could not be loaded and the log says why; try again in {retry_seconds} seconds")]
    LoadFailed {
        /// Its name.
        model: String,
        /// Until a request may try again.
        retry_seconds: u64,
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
    /// The client should change what the answer has to follow.
    #[error("no answer can be held to this format: {message}")]
    InvalidFormat {
        /// The grammar compiler's words.
        message: String,
    },
    /// The client should change the schema, or send `strict: false` and leave the call to the model.
    #[error("no call can be held to the parameters of the tool `{name}`: {message}")]
    InvalidTool {
        /// Its name.
        name: String,
        /// The grammar compiler's words.
        message: String,
    },
    /// The client should ask for free text.
    #[error(
        "this model's tokens are not bytes, so its replies cannot be held to a format or to a call; ask for neither"
    )]
    NoGrammar,
    /// The client should leave the call to the model.
    #[error(
        "this model writes calls in a way that none can be held to; ask for `tool_choice: \"auto\"` and tools that are \
         not strict"
    )]
    NoForcedCall,
    /// A bug of ours or of a library.
    #[error("the prompt could not be made; the log says why")]
    Panicked,
    /// See [`EngineError`].
    #[error(transparent)]
    Engine(#[from] EngineError),
}
