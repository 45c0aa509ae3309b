//! Why the engine refuses a request.

/// Known before the first token; a failure after it is [`FinishReason::Error`](super::FinishReason).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The client should shorten the prompt.
    #[error(
        "the prompt has {prompt_tokens} tokens and the model's context holds {context_tokens}, the reply included; \
         shorten the input"
    )]
    PromptTooLong {
        /// Counted after the chat template.
        prompt_tokens: usize,
        /// Prompt and reply together.
        context_tokens: usize,
    },
    /// The client named a token that the model does not have.
    #[error("token {token} is not in the model's vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// As the client sent it.
        token: u32,
        /// Tokens the model knows.
        vocab_size: usize,
    },
    /// The client should retry later.
    #[error("{capacity} requests are waiting already, which is the limit; try again later")]
    QueueFull {
        /// `engine.max_waiting`
        capacity: usize,
    },
    /// The client should retry later.
    #[error("prompts of {capacity} tokens are waiting already, which is the limit; try again later")]
    TooManyTokensWaiting {
        /// `engine.max_waiting_tokens`
        capacity: u32,
    },
    /// The process is shutting down, or the engine has failed.
    #[error("the engine has stopped; try again later")]
    Stopped,
}
