//! What text means: prompts are rendered from messages, replies are told apart into reasoning, text and tool calls.

mod error;
mod event;
mod models;
mod parser;
mod python_json;
mod request;
mod template;

pub use error::ChatError;
pub use event::{ChatEvent, Delta, Finished, Usage};
pub use models::Models;
pub use parser::{ReplyFormat, ReplyParser};
pub use request::{ChatRequest, Message, Role, Tool, ToolCall};
pub use template::{ChatTemplate, TemplateError};

use crate::{
    engine::{EngineHandle, Request, SamplingParams, TokenId},
    text::{self, Piece, TextEvent, Tokenizer},
};
use futures::{Stream, StreamExt, stream};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// One loaded model, ready to talk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chat {
    model: Arc<ChatModel>,
    engine: EngineHandle,
}

/// What a chat needs beside the engine.
#[derive(Debug)]
pub struct ChatModel {
    /// As clients call it.
    pub name: String,
    /// Unix seconds.
    pub created: u64,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to prompt.
    pub template: ChatTemplate,
    /// Tokens that end a reply.
    pub stop_tokens: Arc<[TokenId]>,
    /// What applies where a request says nothing.
    pub default_sampling: SamplingParams,
    /// Prompts that are rendered and tokenized at once: it is work for a core each.
    pub prompt_permits: Semaphore,
}

/// Bytes of prompt that a token of context can stand for; a longer prompt is refused before it is tokenized. Real text
/// has 2 to 5, long runs of spaces or dashes up to 16.
const MAX_BYTES_PER_TOKEN: usize = 16;

impl Chat {
    /// On top of an engine that runs the same model.
    pub fn new(model: ChatModel, engine: EngineHandle) -> Self {
        Self { model: Arc::new(model), engine }
    }

    /// As clients call it.
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// Unix seconds.
    pub fn created(&self) -> u64 {
        self.model.created
    }

    /// Prompt and reply together.
    pub fn context_tokens(&self) -> usize {
        self.engine.limits().context_tokens
    }

    /// What applies where a request says nothing.
    pub fn default_sampling(&self) -> &SamplingParams {
        &self.model.default_sampling
    }

    /// Whether the engine takes requests.
    pub fn is_running(&self) -> bool {
        self.engine.is_running()
    }

    /// Ends all replies and refuses new ones.
    pub(crate) fn shut_down(&self) {
        self.engine.shut_down();
    }

    /// Renders, tokenizes, submits. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// Before the first byte of the reply is sent.
    pub async fn start(
        &self,
        request: ChatRequest,
    ) -> Result<impl Stream<Item = ChatEvent> + Unpin + use<>, ChatError> {
        let max_bytes = self.context_tokens() * MAX_BYTES_PER_TOKEN;
        let model = Arc::clone(&self.model);
        let permit = self.model.prompt_permits.acquire().await.expect("the semaphore is never closed");
        let rendered = tokio::task::spawn_blocking(move || {
            let prompt = model.prompt(&request, max_bytes);
            (request, prompt)
        });
        let panicked = |_| ChatError::Tokenizer("the tokenizer failed on it".to_owned());
        let (request, prompt) = rendered.await.map_err(panicked)?;
        drop(permit);
        let Prompt { tokens, parser } = prompt?;
        let usage = Usage { input_tokens: tokens.len(), ..Usage::default() };
        let ChatRequest { sampling, max_output_tokens, stop, .. } = request;
        let stop_tokens = Arc::clone(&self.model.stop_tokens);
        let request = Request { prompt: tokens, sampling, stop_tokens, max_output_tokens };
        let text = text::generate(&self.engine, Arc::clone(&self.model.tokenizer), request, stop)?;
        Ok(read(text, parser, usage))
    }
}

struct Prompt {
    tokens: Vec<TokenId>,
    parser: ReplyParser,
}

impl ChatModel {
    fn prompt(&self, request: &ChatRequest, max_bytes: usize) -> Result<Prompt, ChatError> {
        let rendered = self.template.render(request, &self.tokenizer)?;
        let bytes = rendered.num_bytes();
        if max_bytes < bytes {
            return Err(ChatError::PromptTooLarge { bytes, max_bytes });
        }
        let pieces: Vec<Piece<'_>> = rendered.pieces(&self.tokenizer);
        let tokens = self.tokenizer.encode(&pieces).map_err(|cause| ChatError::Tokenizer(cause.to_string()))?;
        if tokens.is_empty() {
            return Err(ChatError::Template { message: "it rendered an empty prompt".to_owned() });
        }
        let format = self.template.reply_format();
        let parser = ReplyParser::new(format, &rendered.last_words(), !request.tools.is_empty());
        Ok(Prompt { tokens, parser })
    }
}

/// Tells the text of a reply apart as it comes.
fn read(
    text: impl Stream<Item = TextEvent> + Unpin,
    parser: ReplyParser,
    usage: Usage,
) -> impl Stream<Item = ChatEvent> + Unpin {
    let events = text.scan((parser, usage), |(parser, usage), event| {
        let mut events = Vec::new();
        match event {
            TextEvent::Text { text, num_tokens } => {
                usage.count(num_tokens, parser.is_reasoning());
                events.extend(parser.push(&text).into_iter().map(ChatEvent::Delta));
            }
            TextEvent::Finished { reason, num_tokens } => {
                usage.count(num_tokens, parser.is_reasoning());
                events.extend(parser.finish().into_iter().map(ChatEvent::Delta));
                events.push(ChatEvent::Finished(Finished { reason, usage: *usage }));
            }
        }
        std::future::ready(Some(stream::iter(events)))
    });
    events.flatten()
}

impl Usage {
    fn count(&mut self, num_tokens: usize, is_reasoning: bool) {
        self.output_tokens += num_tokens;
        if is_reasoning {
            self.reasoning_tokens += num_tokens;
        }
    }
}
