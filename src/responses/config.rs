//! `[responses]`

use super::{
    encoder::EncodeOptions,
    include::ReplyOptions,
    seal::{KeyError, KeySource, Seal},
};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// How the protocol is spoken. Every default is in `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponsesConfig {
    /// Names and shape of the events that tell reasoning.
    pub reasoning_events: ReasoningEvents,
    /// What `encrypted_content` is sealed with.
    pub encryption_key: KeySource,
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

/// The configuration, ready for use.
#[derive(Clone, Debug)]
pub struct Dialect {
    reasoning_events: ReasoningEvents,
    seal: Arc<Seal>,
}

impl Dialect {
    /// # Errors
    /// When the key cannot be read.
    pub fn new(config: &ResponsesConfig) -> Result<Self, KeyError> {
        let seal = Arc::new(Seal::new(&config.encryption_key)?);
        Ok(Self { reasoning_events: config.reasoning_events, seal })
    }

    /// How the reply to a request is told.
    pub fn encode_options(&self, request: ReplyOptions) -> EncodeOptions {
        EncodeOptions {
            reasoning_events: self.reasoning_events,
            seal: request.encrypted_reasoning.then(|| Arc::clone(&self.seal)),
            obfuscation: request.obfuscation,
            ..EncodeOptions::default()
        }
    }

    /// Text that only this server can read.
    pub(super) fn seal(&self, text: &str) -> String {
        self.seal.seal(text)
    }

    /// Opens what this server has sealed in a request's body.
    pub fn open_input(&self, body: &mut Value) {
        self.seal.open_input(body);
    }
}
