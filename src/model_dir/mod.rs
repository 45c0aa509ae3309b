//! Is this folder a complete and consistent model? Nothing is run here, so `ortolan inspect` needs no runtime library.

mod error;
mod generation;
mod hf;
mod onnx;
mod signature;
pub mod variant;

pub use error::ModelDirError;
pub use generation::Generation;
pub use onnx::OnnxSummary;

use crate::engine::ModelSpec;
use hf::{HfConfig, TokenizerConfig};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What a model folder holds, checked against itself.
#[derive(Debug)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// From the graph, checked against `config.json`.
    pub spec: ModelSpec,
    /// What else the graph says of itself.
    pub onnx: OnnxSummary,
    /// `model_type` of `config.json`.
    pub model_type: Option<String>,
    /// `tokenizer.json`
    pub tokenizer: PathBuf,
    /// Jinja source, from `chat_template.jinja` or `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// `bos_token`, `eos_token` and their like, for the template.
    pub special_tokens: BTreeMap<String, String>,
    /// From `generation_config.json`.
    pub generation: Generation,
}

/// Where exporters put the graph, most usual first.
const ONNX_FILES: [&str; 2] = ["onnx/model.onnx", "model.onnx"];

impl ModelDir {
    /// Reads everything but the weights.
    ///
    /// # Errors
    /// See [`ModelDirError`]; each is one sentence that names the file.
    pub fn open(path: &Path) -> Result<Self, ModelDirError> {
        if !path.is_dir() {
            return Err(ModelDirError::NotAFolder { path: path.to_path_buf() });
        }
        let config_path = path.join("config.json");
        let config: HfConfig = hf::read_json(&config_path)?;
        let context_tokens = config.max_position_embeddings.ok_or(ModelDirError::NoContext { path: config_path })?;
        let tokenizer_config: TokenizerConfig = hf::read_optional_json(&path.join("tokenizer_config.json"))?;
        let generation: Generation = hf::read_optional_json(&path.join("generation_config.json"))?;
        let tokenizer = path.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(ModelDirError::Missing { path: tokenizer });
        }
        let file = find_onnx(path)?;
        let graph = onnx::read(&file)?;
        let spec = signature::spec(&file, &graph, &config, context_tokens)?;
        Ok(Self {
            spec,
            onnx: graph.summary,
            model_type: config.model_type.clone(),
            tokenizer,
            chat_template: match hf::read_optional_text(&path.join("chat_template.jinja"))? {
                Some(source) => Some(source),
                None => tokenizer_config.default_chat_template(),
            },
            special_tokens: tokenizer_config.special_tokens(),
            generation: generation.with_fallback(config.eos_token_id),
            path: path.to_path_buf(),
        })
    }
}

fn find_onnx(path: &Path) -> Result<PathBuf, ModelDirError> {
    let candidates = ONNX_FILES.map(|file| path.join(file));
    let found = candidates.iter().find(|file| file.is_file());
    found.cloned().ok_or_else(|| ModelDirError::Missing { path: path.join(ONNX_FILES[0]) })
}
