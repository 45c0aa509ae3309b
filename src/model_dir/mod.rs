//! Is this folder a complete and consistent model? Nothing is run here, so `ortolan inspect` needs no runtime library.

mod error;
mod folder;
mod generation;
mod hf;
mod manifest;
mod onnx;
mod signature;
mod tokenizer_config;
pub mod variant;

pub use error::ModelDirError;
pub use generation::Generation;
pub use manifest::write_manifest;
pub use onnx::{OnnxSummary, data_files};
pub use tokenizer_config::DEFAULT_TEMPLATE;
pub use variant::Target;

use crate::engine::ModelSpec;
use folder::Folder;
use hf::HfConfig;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tokenizer_config::TokenizerConfig;
use variant::Variant;

/// What a model folder holds, checked against itself.
#[derive(Debug)]
pub struct ModelDir {
    /// Where `config.json` and the tokenizer are: the folder, or one of the GenAI model builder's in it.
    pub path: PathBuf,
    /// The graph that was chosen.
    pub variant: Variant,
    /// All that there are.
    pub variants: Vec<Variant>,
    /// Whether every file is as `manifest.json` says; false where there is none.
    pub is_sealed: bool,
    /// From the graph, checked against `config.json`.
    pub spec: ModelSpec,
    /// What else the graph says of itself.
    pub onnx: OnnxSummary,
    /// As `transformers` calls the family.
    pub model_type: Option<String>,
    /// `tokenizer.json`
    pub tokenizer: PathBuf,
    /// Jinja sources by name; most folders have one, [`DEFAULT_TEMPLATE`].
    pub chat_templates: BTreeMap<String, String>,
    /// How a reply is told apart, where the tokenizer's config says it.
    pub response_template: Option<Value>,
    /// `bos_token`, `eos_token` and their like, for the template.
    pub special_tokens: BTreeMap<String, String>,
    /// From `generation_config.json` or `genai_config.json`.
    pub generation: Generation,
    /// Options that the exporter wants of execution providers, by the provider's name.
    pub provider_options: BTreeMap<String, BTreeMap<String, String>>,
}

const GENAI_CONFIG: &str = "genai_config.json";
/// Those of graphs that are not merged, as Optimum wrote them until 2023.
const UNMERGED: &str = "decoder_with_past_model.onnx";
/// What a config that leaves out the length of the context is taken for: it is the default of the classes whose configs do.
const UNTOLD_CONTEXT: usize = 131_072;

impl ModelDir {
    /// Reads everything but the weights; those, too, where there is a manifest.
    ///
    /// # Errors
    /// See [`ModelDirError`]; each is one sentence that names the file.
    pub fn open(path: &Path, target: &Target<'_>) -> Result<Self, ModelDirError> {
        let top = Folder::open(path)?;
        let files = top.files()?;
        let is_sealed = manifest::check(&top, &files)?;
        let variants = variant::variants(&files);
        let variant = variant::choose(&files, target).map_err(|cause| {
            let unmerged = files.iter().any(|(name, _)| name.ends_with(UNMERGED));
            ModelDirError::Variant { path: path.to_path_buf(), cause, advice: if unmerged { MERGE } else { "" } }
        })?;
        let folder = top.enter(&variant.dir)?;
        let genai: Option<Value> = folder.json(GENAI_CONFIG)?;
        let config = HfConfig::read(&folder, genai.as_ref())?;
        let mut tokenizer_config = TokenizerConfig::read(&folder)?;
        let tokenizer = folder.require("tokenizer.json")?;
        let file = match &genai {
            Some(genai) => hf::genai_graph(&folder, genai)?,
            None => top.require(&variant.graph)?,
        };
        let graph = onnx::read(&file)?;
        let context_tokens = config.context_tokens.unwrap_or(UNTOLD_CONTEXT);
        let spec = signature::spec(&file, &graph, &config, context_tokens)?;
        let search = genai.as_ref().map(|genai| Generation::of_genai(&genai["search"]));
        let generation = folder.json("generation_config.json")?.or(search).unwrap_or_default();
        Ok(Self {
            path: folder.root().to_path_buf(),
            variant,
            variants,
            is_sealed,
            spec,
            onnx: graph.summary,
            tokenizer,
            chat_templates: tokenizer_config.chat_templates(&folder)?,
            special_tokens: tokenizer_config.special_tokens(&folder)?,
            response_template: tokenizer_config.response_template,
            generation: generation.with_fallback(config.eos_token_id, config.bos_token_id),
            provider_options: genai.as_ref().map(hf::provider_options).unwrap_or_default(),
            model_type: config.model_type,
        })
    }

    /// The chat template that has no other name.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_templates.get(DEFAULT_TEMPLATE).map(String::as_str)
    }
}

const MERGE: &str =
    " (decoder_model.onnx and decoder_with_past_model.onnx are two halves of one: export it again as one graph)";
