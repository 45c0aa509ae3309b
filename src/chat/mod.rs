//! What text means: prompts are rendered from messages, replies are told apart into reasoning, text and tool calls.

mod adaptation;
mod capabilities;
mod error;
mod event;
mod grammar;
mod histogram;
mod jinja;
mod lease;
mod loader;
mod markup;
mod models;
mod python_json;
mod python_methods;
mod python_text;
mod request;
mod request_stats;
mod response_format;
mod served_model;
mod template;
mod truncation;

pub use crate::text::{Logprob, TokenLogprob};
pub use capabilities::{CallForm, Capabilities};
pub use error::ChatError;
pub use event::{ChatEvent, Delta, Finished, Usage, whole_answer};
pub use histogram::{Histogram, HistogramCounts};
pub use lease::Lease;
pub use loader::{LoadFailure, LoadTime, Loader, ModelEntry};
pub use markup::Prompt;
pub use models::Models;
pub use request::{CallMode, Calls, ChatRequest, Message, OutputFormat, Role, Tool, ToolCall};
pub use request_stats::RequestStats;
pub use response_format::{FormatCalls, FormatError, ReplyParser, ResponseFormat};
pub use served_model::{ModelState, ServedModel};
pub use template::{ChatTemplate, TemplateError, TemplateSources};

use crate::{
    engine::{Constraint, FinishReason, Load, Replicas, Request, SamplingParams, Stats, TokenId},
    text::{self, AddedToken, Detokenizer, GrammarCompiler, GrammarError, Piece, StopStrings, TextEvent, Tokenizer},
};
use futures::{Stream, StreamExt, stream};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// One loaded model, ready to talk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chat {
    model: Arc<ChatModel>,
    engine: Replicas,
    /// Special tokens that the response format needs to see.
    marks: Arc<[AddedToken]>,
    /// Made when the first reply has to follow something, since most models are never asked to.
    grammars: Arc<OnceLock<Result<GrammarCompiler, GrammarError>>>,
}

/// What a chat needs beside the engine.
#[derive(Debug)]
pub struct ChatModel {
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to prompt.
    pub template: ChatTemplate,
    /// How it marks reasoning and tool calls.
    pub response_format: ResponseFormat,
    /// Tokens that end a reply.
    pub stop_tokens: Arc<[TokenId]>,
    /// What applies where a request says nothing.
    pub default_sampling: SamplingParams,
    /// Prompts that are rendered and tokenized at once: it is work for a core each.
    pub prompt_permits: Arc<Semaphore>,
}

/// Bytes of prompt that a token of context can stand for; a longer prompt is refused before it is tokenized. Real text
/// has 2 to 5, long runs of spaces or dashes up to 16.
const MAX_BYTES_PER_TOKEN: usize = 16;

impl Chat {
    /// On top of engines that run the same model.
    pub fn new(mut model: ChatModel, engine: impl Into<Replicas>) -> Self {
        let tokens = model.tokenizer.added_tokens();
        let special = tokens.iter().filter(|token| token.is_special);
        model.response_format = model.response_format.with_special_tokens(special.map(|token| token.text.as_str()));
        let is_mark =
            |token: &&AddedToken| token.is_special && model.response_format.special_tokens().contains(&token.text);
        let marks = tokens.iter().filter(is_mark).cloned().collect();
        Self { model: Arc::new(model), engine: engine.into(), marks, grammars: Arc::default() }
    }

    /// Prompt and reply together.
    pub fn context_tokens(&self) -> usize {
        self.engine.limits().context_tokens
    }

    /// What applies where a request says nothing.
    pub fn default_sampling(&self) -> &SamplingParams {
        &self.model.default_sampling
    }

    /// Whether its engines take requests, all of them.
    pub fn is_running(&self) -> bool {
        self.engine.is_running()
    }

    /// What each of its engines has done so far, and has to do.
    pub fn engine_stats(&self) -> Vec<(Stats, Load)> {
        self.engine.stats()
    }

    /// Ends all replies and refuses new ones.
    pub(crate) fn shut_down(&self) {
        self.engine.shut_down();
    }

    /// Tokens of the prompt that a request makes.
    ///
    /// # Errors
    /// As for a reply, but that the engine has no say.
    pub async fn count_tokens(&self, request: ChatRequest) -> Result<usize, ChatError> {
        Ok(self.prepare(request).await?.1.tokens.len())
    }

    /// Renders, tokenizes, submits. Dropping the stream cancels the request. A stream that ends without `Finished` has
    /// lost its engine.
    ///
    /// # Errors
    /// Before the first byte of the reply is sent.
    pub async fn start(
        &self,
        request: ChatRequest,
    ) -> Result<impl Stream<Item = ChatEvent> + Unpin + use<>, ChatError> {
        self.engine.check_room()?;
        let (request, Start { tokens, parser, constraint }) = self.prepare(request).await?;
        let usage = Usage { input_tokens: tokens.len(), ..Usage::default() };
        let ChatRequest {
            text,
            sampling,
            top_logprobs,
            max_output_tokens,
            stop,
            service_class,
            cache_salt,
            max_draft_tokens,
            ..
        } = request;
        let stop_tokens = Arc::clone(&self.model.stop_tokens);
        let request = Request {
            prompt: tokens,
            sampling,
            constraint,
            top_logprobs,
            stop_tokens,
            max_output_tokens,
            service_class,
            cache_salt,
            max_draft_tokens,
        };
        let marks = if text.is_some() { Arc::default() } else { Arc::clone(&self.marks) };
        let detokenizer = Detokenizer::new(Arc::clone(&self.model.tokenizer), marks);
        let text = text::generate(&self.engine, detokenizer, request)?;
        Ok(Reply { text, parser, stops: StopStrings::new(stop), usage, logprobs: Vec::new() }.into_events())
    }
}

/// What a reply begins with.
struct Start {
    tokens: Vec<TokenId>,
    parser: ReplyParser,
    constraint: Option<Box<dyn Constraint>>,
}

impl Chat {
    /// The request as far as it fits, and what its reply begins with: work for a core, so few do it at once.
    async fn prepare(&self, mut request: ChatRequest) -> Result<(ChatRequest, Start), ChatError> {
        let chat = self.clone();
        let permits = Arc::clone(&self.model.prompt_permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        let prepared = tokio::task::spawn_blocking(move || {
            let _permit = permit; // Held by the work itself, which goes on when the client has left.
            let start = chat.prompt(&mut request)?;
            Ok((request, start))
        });
        prepared.await.map_err(|_| ChatError::Panicked)?
    }

    /// Renders and tokenizes; compiles what the reply has to follow.
    fn prompt(&self, request: &mut ChatRequest) -> Result<Start, ChatError> {
        let (rendered, tokens) = self.fitting_prompt(request)?;
        let is_free = grammar::is_free(request);
        // A model that is held to something when it calls does so in our format if it has none of its own.
        let calls = if is_free { FormatCalls::Own } else { FormatCalls::OwnOrOurs };
        let tools = grammar::callable(request).cloned().collect();
        let parser = match request.text {
            Some(_) => ReplyParser::new(ResponseFormat::verbatim(), FormatCalls::Own, "", Vec::new()),
            None => ReplyParser::new(&self.model.response_format, calls, rendered.last_words(), tools),
        };
        let constraint = if is_free { None } else { Some(self.constraint(request, parser.is_reasoning())?) };
        Ok(Start { tokens, parser, constraint })
    }

    /// The prompt and its tokens: of the whole conversation, or of as much as fits where the request allows that.
    fn fitting_prompt(&self, request: &mut ChatRequest) -> Result<(Prompt, Vec<TokenId>), ChatError> {
        let max_bytes = self.context_tokens() * MAX_BYTES_PER_TOKEN;
        let max_tokens = truncation::max_prompt_tokens(request, self.context_tokens());
        loop {
            let prompt = match &request.text {
                Some(text) => Prompt::plain(text.clone()),
                None => self.model.template.render(request)?,
            };
            let bytes = prompt.num_bytes();
            let (excess_bytes, found) = if max_bytes < bytes {
                (bytes - max_bytes, Err(ChatError::PromptTooLarge { bytes, max_bytes }))
            } else {
                let begins_text = request.text.is_some();
                let tokens = self.model.tokens(&prompt, begins_text)?;
                let excess_tokens = tokens.len().saturating_sub(max_tokens);
                // Without leave to truncate, the engine refuses what is too long.
                ((excess_tokens * bytes).div_ceil(tokens.len()), Ok((prompt, tokens)))
            };
            let is_shorter =
                0 < excess_bytes && request.truncate && truncation::drop_oldest(&mut request.messages, excess_bytes);
            if !is_shorter {
                return found;
            }
        }
    }

    fn constraint(&self, request: &ChatRequest, begins_reasoning: bool) -> Result<Box<dyn Constraint>, ChatError> {
        let vocab_size = self.engine.limits().vocab_size;
        let compiler = self
            .grammars
            .get_or_init(|| GrammarCompiler::new(&self.model.tokenizer, vocab_size, &self.model.stop_tokens));
        let compiler = compiler.as_ref().map_err(|_| ChatError::NoGrammar)?;
        let format = self.model.response_format.writer(FormatCalls::OwnOrOurs, &self.marks);
        grammar::constraint(compiler, request, format, begins_reasoning)
    }
}

impl ChatModel {
    /// Templates write the tokens that begin a text themselves.
    fn tokens(&self, prompt: &Prompt, begins_text: bool) -> Result<Vec<TokenId>, ChatError> {
        let pieces: Vec<Piece<'_>> = prompt.pieces();
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| ChatError::Tokenizer(cause.to_string());
        let mut tokens = if begins_text { self.tokenizer.text_beginning().map_err(failed)? } else { Vec::new() };
        tokens.extend(self.tokenizer.encode(&pieces).map_err(failed)?);
        if tokens.is_empty() {
            return Err(ChatError::Template { message: "it rendered an empty prompt".to_owned() });
        }
        Ok(tokens)
    }
}

/// A reply under way: its text is told apart as it comes, and ends at the first stop string in the visible part.
struct Reply<T> {
    text: T,
    parser: ReplyParser,
    stops: StopStrings,
    usage: Usage,
    /// Of tokens whose text has not been said yet.
    logprobs: Vec<TokenLogprob>,
}

impl<T: Stream<Item = TextEvent> + Unpin> Reply<T> {
    fn into_events(self) -> impl Stream<Item = ChatEvent> + Unpin {
        let steps = stream::unfold(Some(self), |reply| async { reply?.next().await });
        Box::pin(steps.map(stream::iter).flatten())
    }

    /// What one text event says and, unless it is the last, what follows. Dropping the rest cancels the request.
    async fn next(mut self) -> Option<(Vec<ChatEvent>, Option<Self>)> {
        let (deltas, end) = match self.text.next().await? {
            TextEvent::Queued => return Some((vec![ChatEvent::Queued], Some(self))),
            TextEvent::Started => return Some((vec![ChatEvent::Started], Some(self))),
            TextEvent::Text { text, num_tokens, logprobs } => {
                self.logprobs.extend(logprobs);
                self.usage.count(num_tokens, self.parser.is_reasoning());
                let deltas = self.parser.push(&text);
                if deltas.is_empty() && !self.parser.holds_text() {
                    // They were tokens of marks.
                    self.logprobs.clear();
                }
                (deltas, None)
            }
            TextEvent::Finished { reason, num_cached_tokens, num_tokens } => {
                self.usage.cached_tokens = num_cached_tokens;
                self.usage.count(num_tokens, self.parser.is_reasoning());
                (self.parser.finish(reason == FinishReason::Length), Some(reason))
            }
        };
        let mut events = Vec::new();
        for delta in deltas {
            self.say(delta, &mut events);
        }
        let end = if self.stops.is_met() { Some(FinishReason::Stop) } else { end };
        let Some(reason) = end else {
            return Some((events, Some(self)));
        };
        let rest = self.stops.finish();
        self.say_text(rest, &mut events);
        events.push(ChatEvent::Finished(Finished { reason, usage: self.usage }));
        Some((events, None))
    }

    /// Nothing is said after a stop string; what may become one is held back until something else follows.
    fn say(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) {
        if self.stops.is_met() {
            return;
        }
        if let Delta::Text(text) = &delta {
            let text = self.stops.push(text);
            self.say_text(text, events);
        } else {
            let text = self.stops.finish();
            self.say_text(text, events);
            // They are of tokens that are not part of the answer.
            self.logprobs.clear();
            events.push(ChatEvent::Delta(delta));
        }
    }

    fn say_text(&mut self, text: String, events: &mut Vec<ChatEvent>) {
        if text.is_empty() {
            return;
        }
        if !self.logprobs.is_empty() {
            events.push(ChatEvent::Logprobs(std::mem::take(&mut self.logprobs)));
        }
        events.push(ChatEvent::Delta(Delta::Text(text)));
    }
}

impl Usage {
    fn count(&mut self, num_tokens: usize, is_reasoning: bool) {
        self.output_tokens += num_tokens;
        if is_reasoning {
            self.reasoning_tokens += num_tokens;
        }
    }
}
