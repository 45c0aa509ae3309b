//! `[responses]`

use super::{
    encoder::EncodeOptions,
    error::InvalidRequest,
    include::ReplyOptions,
    prompts::{Prompts, PromptsError},
    seal::{Key, KeyError, KeySource, Purpose, Seal},
};
use crate::store::{Store, StoreError};
use serde::Deserialize;
use serde_json::Value;
use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
};

/// How the protocol is spoken. Every default is in `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponsesConfig {
    /// Names and shape of the events that tell reasoning.
    pub reasoning_events: ReasoningEvents,
    /// What `encrypted_content` is sealed with.
    pub encryption_key: KeySource,
    /// The folder of the prompts that requests may name; empty for none.
    pub prompts: PathBuf,
    /// Background responses that this process writes at once.
    pub background_jobs: NonZeroUsize,
    /// Background responses that may be unfinished, of all clients and processes.
    pub max_background: NonZeroU64,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DialectError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There are no prompts.
    #[error(transparent)]
    Prompts(#[from] PromptsError),
}

/// Protocols differ in how they tell raw reasoning.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEvents {
    /// `response.reasoning_text.*`, as OpenAI and most servers and clients have it.
    #[default]
    OpenAi,
    /// `response.reasoning.*`, as Open Responses has it.
    OpenResponses,
    /// As if it were a summary, which both have.
    Summary,
}

impl ResponsesConfig {
    /// Takes the key that goes with the store where none is set: so what was sealed can be opened by every process that
    /// shares the store, and after a restart.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn complete(&mut self, store: &Store) -> Result<(), StoreError> {
        const NAME: &str = "encryption_key";
        if let KeySource::Random = self.encryption_key {
            self.encryption_key = store.secret(NAME, &Key::random_digits()).await?.into();
        }
        Ok(())
    }
}

/// The configuration, ready for use.
#[derive(Clone, Debug)]
pub struct Dialect {
    reasoning_events: ReasoningEvents,
    seal: Arc<Seal>,
    prompts: Arc<Prompts>,
    background_jobs: NonZeroUsize,
    max_background: NonZeroU64,
}

impl Dialect {
    /// # Errors
    /// When the key or the prompts cannot be read.
    pub fn new(config: &ResponsesConfig) -> Result<Self, DialectError> {
        let seal = Arc::new(Seal::new(&config.encryption_key)?);
        let prompts = Arc::new(Prompts::load(&config.prompts)?);
        let ResponsesConfig { reasoning_events, background_jobs, max_background, .. } = *config;
        Ok(Self { reasoning_events, seal, prompts, background_jobs, max_background })
    }

    /// How the reply to a request is told.
    pub fn encode_options(&self, request: ReplyOptions) -> EncodeOptions {
        EncodeOptions {
            reasoning_events: self.reasoning_events,
            seal: request.encrypted_reasoning.then(|| Arc::clone(&self.seal)),
            obfuscation: request.obfuscation,
            compaction: None,
            first_number: 0,
        }
    }

    pub(super) fn reasoning_events(&self) -> ReasoningEvents {
        self.reasoning_events
    }

    pub(super) fn background_jobs(&self) -> usize {
        self.background_jobs.get()
    }

    pub(super) fn max_background(&self) -> u64 {
        self.max_background.get()
    }

    /// A summary that only this server can read.
    pub fn seal_compaction(&self, summary: &str) -> String {
        self.seal.seal(Purpose::Compaction, summary)
    }

    /// Puts into a request's body what it only names or holds sealed: prompts, reasoning, compactions.
    ///
    /// # Errors
    /// When it names a prompt that is not there.
    pub fn resolve(&self, body: &mut Value) -> Result<(), InvalidRequest> {
        self.open(body.get_mut("input").and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice));
        self.prompts.fill(body)
    }

    /// Puts what items hold sealed into its place.
    pub(super) fn open(&self, items: &mut [Value]) {
        self.seal.open_items(items);
    }

    /// Gives each reasoning item the `encrypted_content` that a client asks for.
    pub(super) fn seal_reasoning(&self, items: &mut [Value]) {
        self.seal.seal_reasoning(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::SamplingParams,
        responses::{CreateResponse, UnknownFields},
    };
    use ::config::{Config, File, FileFormat};
    use serde_json::json;

    /// The built-in defaults, and `toml` over them.
    fn parse(toml: &str) -> Result<ResponsesConfig, ::config::ConfigError> {
        let file = |toml: &str| File::from_str(toml, FileFormat::Toml);
        let defaults = Config::builder().add_source(file(include_str!("../../config/default.toml")));
        defaults.add_source(file(toml)).build()?.get("responses")
    }

    fn dialect(toml: &str) -> Dialect {
        Dialect::new(&parse(toml).unwrap()).unwrap()
    }

    #[test]
    fn each_style_has_its_name() {
        for (name, style) in [
            ("openai", ReasoningEvents::OpenAi),
            ("openresponses", ReasoningEvents::OpenResponses),
            ("summary", ReasoningEvents::Summary),
        ] {
            let config = parse(&format!("[responses]\nreasoning_events = \"{name}\"")).unwrap();
            assert_eq!(config.reasoning_events, style);
        }
        assert_eq!(parse("").unwrap().reasoning_events, ReasoningEvents::OpenAi);
        assert!(parse("[responses]\nreasoning_events = \"raw\"").is_err());
    }

    #[test]
    fn a_reply_is_told_as_configured_and_asked_for() {
        let dialect = dialect("[responses]\nreasoning_events = \"summary\"");
        let all = ReplyOptions { encrypted_reasoning: true, logprobs: true, obfuscation: true };
        let (plain, full) = (dialect.encode_options(ReplyOptions::default()), dialect.encode_options(all));
        assert_eq!(
            (plain.reasoning_events, full.reasoning_events),
            (ReasoningEvents::Summary, ReasoningEvents::Summary)
        );
        assert_eq!((plain.seal.is_some(), plain.obfuscation), (false, false));
        assert_eq!((full.seal.is_some(), full.obfuscation), (true, true));
    }

    #[test]
    fn sealed_reasoning_reaches_the_chat() {
        let (here, elsewhere) = (dialect(""), dialect(""));
        let reasoning = |encrypted_content| {
            let mut body = json!({ "input": [
                { "role": "user", "content": "hi" },
                { "type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": encrypted_content },
                { "role": "assistant", "content": "Hello" },
                { "role": "user", "content": "again" },
            ] });
            here.resolve(&mut body).unwrap();
            let request = CreateResponse::parse(&body, UnknownFields::Refuse).unwrap();
            request.begin("tiny", &SamplingParams::default()).1.messages[1].reasoning.clone()
        };
        assert_eq!(reasoning(here.seal.seal(Purpose::Reasoning, "Hm.")).as_deref(), Some("Hm."));
        assert_eq!(reasoning(elsewhere.seal.seal(Purpose::Reasoning, "Hm.")), None);
    }
}
