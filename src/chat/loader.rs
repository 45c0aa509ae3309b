//! How a model comes into memory. Chats know nothing of folders and sessions, so whoever does hands this down.

use super::Chat;
use serde::Deserialize;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// Opens one model.
pub trait Loader: Debug + Send + Sync {
    /// Blocks for as long as it takes. Never called twice at once, and only after the chat that it made before has been
    /// shut down, whose memory is free when this returns.
    ///
    /// # Errors
    /// One sentence for the operator.
    fn load(&self) -> Result<Chat, LoadFailure>;
}

/// What is served under one name.
#[derive(Debug)]
pub struct ModelEntry {
    /// As clients call it.
    pub name: String,
    /// Unix seconds.
    pub created: u64,
    /// Prompt and reply together; a chat that is loaded knows better.
    pub context_tokens: usize,
    /// When it is loaded.
    pub load: LoadTime,
    /// Without a request for this long, it is unloaded; `None` keeps it.
    pub idle_unload: Option<Duration>,
    /// Requests that may wait for one load.
    pub max_waiting: usize,
    /// Brings it into memory.
    pub loader: Arc<dyn Loader>,
}

/// When a model is loaded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub enum LoadTime {
    /// When the process starts; it is not ready before.
    Start,
    /// When the first request names it.
    FirstUse,
}

impl TryFrom<String> for LoadTime {
    type Error = String;

    /// As the config spells it.
    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "start" => Ok(Self::Start),
            "first_use" => Ok(Self::FirstUse),
            _ => Err(format!("`{name}` is no time to load a model; write `start` or `first_use`")),
        }
    }
}

/// Why a model could not be loaded, for the operator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadFailure(Arc<str>);

impl LoadFailure {
    /// In one sentence.
    pub fn new(message: impl Into<Arc<str>>) -> Self {
        Self(message.into())
    }
}
