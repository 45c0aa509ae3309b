//! The JSON files of a Hugging Face model folder; only the keys that are needed.

use super::ModelDirError;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, fs, io, path::Path};

/// `config.json`
#[derive(Debug, Default, Deserialize)]
pub(super) struct HfConfig {
    pub(super) model_type: Option<String>,
    pub(super) vocab_size: Option<usize>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) hidden_size: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) eos_token_id: Option<TokenIds>,
}

impl HfConfig {
    /// Elements of one attention head.
    pub(super) fn head_size(&self) -> Option<usize> {
        let divided = || self.hidden_size?.checked_div(self.num_attention_heads?);
        self.head_dim.or_else(divided)
    }

    /// Heads that keys and values have.
    pub(super) fn num_kv_heads(&self) -> Option<usize> {
        self.num_key_value_heads.or(self.num_attention_heads)
    }
}

/// One token or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(u32),
    Several(Vec<u32>),
}

impl TokenIds {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// `tokenizer_config.json`
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// The only template, or the one called `default`.
    pub(super) fn default_chat_template(&self) -> Option<String> {
        match self.chat_template.as_ref()? {
            TemplateField::One(template) => Some(template.clone()),
            TemplateField::Several(templates) => {
                let default = templates.iter().find(|template| template.name == "default");
                default.map(|template| template.template.clone())
            }
        }
    }

    /// Every `…_token`: a string, or an object with `content`.
    pub(super) fn special_tokens(&self) -> BTreeMap<String, String> {
        let named = self.rest.iter().filter(|(name, _)| name.ends_with("_token"));
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        named.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
    }
}

/// Reads a file that must be there.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelDirError> {
    let text = read_optional_text(path)?.ok_or_else(|| ModelDirError::Missing { path: path.to_path_buf() })?;
    serde_json::from_str(&text)
        .map_err(|error| ModelDirError::Invalid { path: path.to_path_buf(), message: error.to_string() })
}

/// Reads a file that may be missing.
pub(super) fn read_optional_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelDirError> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}

/// Reads a file that may be missing.
pub(super) fn read_optional_text(path: &Path) -> Result<Option<String>, ModelDirError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelDirError::Unreadable { path: path.to_path_buf(), source }),
    }
}
