//! Which models are served.

use super::{Chat, ChatError};
use std::sync::Arc;

/// A name is the client's, so no more of it than this is repeated.
const MAX_ECHOED_CHARS: usize = 128;

/// All loaded models, in the order of the config. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models(Arc<[Chat]>);

impl Models {
    /// At least one, each with its own name.
    pub fn new(chats: Vec<Chat>) -> Self {
        assert!(!chats.is_empty(), "the config names at least one model");
        Self(chats.into())
    }

    /// The model of that name; the first one when none is named.
    ///
    /// # Errors
    /// `UnknownModel`, which lists those there are.
    pub fn get(&self, name: Option<&str>) -> Result<&Chat, ChatError> {
        let Some(name) = name else {
            return Ok(self.iter().next().expect("there is at least one"));
        };
        self.iter().find(|chat| chat.name() == name).ok_or_else(|| ChatError::UnknownModel {
            requested: name.chars().take(MAX_ECHOED_CHARS).collect(),
            served: self.iter().map(Chat::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// In the order of the config.
    pub fn iter(&self) -> impl Iterator<Item = &Chat> {
        self.0.iter()
    }

    /// Ends every reply with [`FinishReason::Shutdown`](crate::engine::FinishReason) and refuses new ones.
    pub fn shut_down(&self) {
        self.iter().for_each(Chat::shut_down);
    }
}
