//! `[[models]]`: what an entry leaves open comes from `[loading]` and `[engine]`.

use super::{Origins, leaves, nearest};
use crate::{chat::LoadTime, engine::EngineConfig, hub::Repo};
use ::config::{Map, Value, ValueKind};
use serde::Deserialize;
use std::path::PathBuf;

/// One served model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// As clients call it.
    pub name: String,
    /// A folder as exported to Hugging Face, relative to the working directory; empty where `repo` names it.
    #[serde(default)]
    pub path: PathBuf,
    /// Its repository on the hub.
    pub repo: Option<Repo>,
    /// When it is loaded.
    pub load: LoadTime,
    /// Seconds without a request until it is unloaded; 0 keeps it.
    pub idle_unload: u64,
    /// Which of the folder's graphs, such as `q4f16`; `auto` picks one.
    pub variant: String,
    /// How it marks reasoning and calls, by name; `auto` finds out.
    pub response_format: String,
    /// Its own engine's.
    pub engine: EngineConfig,
}

/// `[loading]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadingConfig {
    /// When a model is loaded.
    pub load: LoadTime,
    /// Seconds without a request until a model is unloaded; 0 keeps it.
    pub idle_unload: u64,
    /// Which of a folder's graphs, such as `q4f16`; `auto` picks one.
    pub variant: String,
    /// How models mark reasoning and calls, by name; `auto` finds out.
    pub response_format: String,
}

/// Keys of an entry that have no default.
const OWN_KEYS: [&str; 3] = ["name", "path", "repo"];
/// The section whose keys stand in an entry as they are.
const LOADING: &str = "loading";
/// The section that is a table of the same name in an entry.
const ENGINE: &str = "engine";

/// The first key in `[[models]]` of a layer that is not a setting, and the most similar one that is.
pub(super) fn unknown_key(layer: &Map<String, Value>, known: &Origins) -> Option<(String, String)> {
    let ValueKind::Array(models) = &layer.get("models")?.kind else { return None };
    for (index, model) in models.iter().enumerate() {
        let ValueKind::Table(model) = &model.kind else { continue };
        let place = |key: &str| format!("models[{index}].{key}");
        let of_sections = known.keys().filter_map(|key| match key.split_once('.') {
            Some((LOADING, key)) => Some(key),
            Some((ENGINE, _)) => Some(key.as_str()),
            Some(_) | None => None,
        });
        let settings: Vec<String> = of_sections.chain(OWN_KEYS).map(place).collect();
        let keys = leaves(model).into_iter().map(|(key, _)| place(&key));
        if let Some(unknown) = keys.into_iter().find(|key| !settings.contains(key)) {
            let nearest = nearest(&unknown, &settings);
            return Some((unknown, nearest));
        }
    }
    None
}

/// Gives every entry what it leaves open. Values of a wrong kind are left to be refused by their types.
pub(super) fn complete(root: &mut Value) {
    let ValueKind::Table(root) = &mut root.kind else { return };
    let section = |name: &str| root.get(name).cloned().unwrap_or_else(|| Map::<String, Value>::new().into());
    let mut defaults = section(LOADING);
    fill(&mut defaults, &Map::from([(ENGINE.to_owned(), section(ENGINE))]).into());
    let Some(ValueKind::Array(models)) = root.get_mut("models").map(|models| &mut models.kind) else { return };
    for model in models {
        fill(model, &defaults);
    }
}

/// Adds the keys that a table lacks.
fn fill(value: &mut Value, defaults: &Value) {
    if let (ValueKind::Table(table), ValueKind::Table(defaults)) = (&mut value.kind, &defaults.kind) {
        for (key, default) in defaults {
            let own = table.entry(key.clone()).or_insert_with(|| default.clone());
            fill(own, default);
        }
    }
}
