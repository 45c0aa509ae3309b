//! Which models are served.

use super::{ChatError, LoadFailure, LoadTime, ModelEntry, ServedModel};
use futures::future::{join_all, try_join_all};
use std::sync::{Arc, Mutex, TryLockError};

/// A name is the client's, so no more of it than this is repeated.
const MAX_ECHOED_CHARS: usize = 128;

/// All served models, in the order of the config. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models {
    served: Arc<[Arc<ServedModel>]>,
    /// Models are loaded one at a time: two at once could need more memory than either keeps, and TensorRT measures while
    /// it builds.
    turn: Arc<Mutex<()>>,
}

impl Models {
    /// At least one, each with its own name. None is loaded yet.
    pub fn new(entries: Vec<ModelEntry>) -> Self {
        assert!(!entries.is_empty(), "the config names at least one model");
        let turn = Arc::default();
        let serve = |entry| Arc::new(ServedModel::new(entry, Arc::clone(&turn)));
        Self { served: entries.into_iter().map(serve).collect(), turn }
    }

    /// The model of that name; the first one when none is named.
    ///
    /// # Errors
    /// `UnknownModel`, which lists those there are.
    pub fn get(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, ChatError> {
        let Some(name) = name else {
            return Ok(self.iter().next().expect("there is at least one"));
        };
        self.iter().find(|model| model.name() == name).ok_or_else(|| ChatError::UnknownModel {
            requested: name.chars().take(MAX_ECHOED_CHARS).collect(),
            served: self.iter().map(|model| model.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// In the order of the config.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.served.iter()
    }

    /// Loads what is to be there from the start. Also ends, without an error, when the process shuts down.
    ///
    /// # Errors
    /// The first model that could not be loaded.
    pub async fn load_at_start(&self) -> Result<(), LoadFailure> {
        let at_start = self.iter().filter(|model| model.load_time() == LoadTime::Start);
        try_join_all(at_start.map(|model| model.load())).await.map(|_| ())
    }

    /// Unloads each model that nobody has used for its time. Never ends.
    pub async fn unload_idle(&self) {
        let unload = |model: &'_ Arc<ServedModel>| {
            let (model, idle_unload) = (Arc::clone(model), model.idle_unload()?);
            Some(async move { model.unload_when_idle(idle_unload).await })
        };
        join_all(self.iter().filter_map(unload)).await;
    }

    /// From now on no model is loaded; requests that wait for one are refused.
    pub fn stop_loading(&self) {
        self.iter().for_each(|model| model.stop_loading());
    }

    /// Ends every reply with [`FinishReason::Shutdown`](crate::engine::FinishReason) and refuses new ones.
    pub fn shut_down(&self) {
        self.iter().for_each(|model| model.shut_down());
    }

    /// Whether a load is going on.
    pub fn is_loading(&self) -> bool {
        matches!(self.turn.try_lock(), Err(TryLockError::WouldBlock))
    }
}
