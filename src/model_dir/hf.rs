//! What a model's authors say of it, in `config.json` and in `genai_config.json`.

use super::{ModelDirError, folder::Folder, generation::TokenIds};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// Facts that a graph leaves open. What no file tells is none.
#[derive(Debug, Default, PartialEq)]
pub(super) struct HfConfig {
    pub(super) model_type: Option<String>,
    pub(super) vocab_size: Option<usize>,
    pub(super) context_tokens: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) hidden_size: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<TokenIds>,
}

impl HfConfig {
    /// From `config.json`, and from `genai_config.json` what that does not tell: the exporter copies only the latter.
    pub(super) fn read(folder: &Folder, genai: Option<&Value>) -> Result<Self, ModelDirError> {
        let config: Option<Value> = folder.json("config.json")?;
        let from_config = config.as_ref().map(Self::of_config);
        let from_genai = genai.map(Self::of_genai);
        match (from_config, from_genai) {
            (None, None) => Err(ModelDirError::Missing { path: folder.root().join("config.json") }),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (Some(config), Some(genai)) => Ok(config.or(genai)),
        }
    }

    /// Families differ in the names, and models with eyes and ears keep the sizes of what reads text under `text_config`.
    fn of_config(config: &Value) -> Self {
        const TEXT: [&str; 3] = ["text_config", "llm_config", "language_config"];
        let of_text = TEXT.iter().find_map(|name| config.get(*name)).unwrap_or(config);
        let find = |places: [&'_ Value; 2], names: &[&str]| {
            let mut values = places.iter().flat_map(|place| names.iter().filter_map(|name| place.get(*name)));
            values.find(|value| !value.is_null()).cloned()
        };
        let size = |names: &[&str]| {
            find([of_text, config], names).and_then(|size| size.as_u64()).and_then(|size| usize::try_from(size).ok())
        };
        let fact = |name: &str| find([config, of_text], &[name]);
        Self {
            model_type: fact("model_type").and_then(|name| name.as_str().map(str::to_owned)),
            vocab_size: size(&["vocab_size"]),
            context_tokens: size(&["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"]),
            num_hidden_layers: size(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]),
            num_attention_heads: size(&["num_attention_heads", "n_head", "n_heads"]),
            num_key_value_heads: size(&["num_key_value_heads", "num_kv_heads", "multi_query_group_num"]),
            hidden_size: size(&["hidden_size", "n_embd", "d_model"]),
            head_dim: size(&["head_dim", "kv_channels"]),
            bos_token_id: fact("bos_token_id").as_ref().and_then(token_id),
            eos_token_id: fact("eos_token_id").as_ref().and_then(TokenIds::of),
        }
    }

    fn of_genai(genai: &Value) -> Self {
        let model = &genai["model"];
        let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        let decoder = |name: &str| size(&model["decoder"][name]);
        Self {
            model_type: model["type"].as_str().map(str::to_owned),
            vocab_size: size(&model["vocab_size"]),
            context_tokens: size(&model["context_length"]),
            num_hidden_layers: decoder("num_hidden_layers"),
            num_attention_heads: decoder("num_attention_heads"),
            num_key_value_heads: decoder("num_key_value_heads"),
            hidden_size: decoder("hidden_size"),
            head_dim: decoder("head_size"),
            bos_token_id: token_id(&model["bos_token_id"]),
            eos_token_id: TokenIds::of(&model["eos_token_id"]),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            model_type: self.model_type.or(other.model_type),
            vocab_size: self.vocab_size.or(other.vocab_size),
            context_tokens: self.context_tokens.or(other.context_tokens),
            num_hidden_layers: self.num_hidden_layers.or(other.num_hidden_layers),
            num_attention_heads: self.num_attention_heads.or(other.num_attention_heads),
            num_key_value_heads: self.num_key_value_heads.or(other.num_key_value_heads),
            hidden_size: self.hidden_size.or(other.hidden_size),
            // Some configs state none, and then their classes have one that is not hidden_size / num_attention_heads.
            head_dim: self.head_dim.or(other.head_dim),
            bos_token_id: self.bos_token_id.or(other.bos_token_id),
            // The exporter merges those of all files.
            eos_token_id: other.eos_token_id.or(self.eos_token_id),
        }
    }

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

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The graph that `genai_config.json` names.
///
/// # Errors
/// When it is of a kind that ortolan does not run.
pub(super) fn genai_graph(folder: &Folder, genai: &Value) -> Result<PathBuf, ModelDirError> {
    let decoder = &genai["model"]["decoder"];
    let unsupported = |message: &str| ModelDirError::Unsupported {
        path: folder.root().join("genai_config.json"),
        message: message.to_owned(),
    };
    if decoder["pipeline"].as_array().is_some_and(|stages| !stages.is_empty()) {
        return Err(unsupported("it names several graphs that make up one decoder; take an export for CPU or CUDA"));
    }
    if !genai["model"]["encoder"].is_null() {
        return Err(unsupported("it has an encoder, and only decoder-only models are served"));
    }
    let file = decoder["filename"].as_str().ok_or_else(|| unsupported("it does not say `model.decoder.filename`"))?;
    folder.require(file)
}

/// What the exporter wants of execution providers, by their names in lower case.
pub(super) fn provider_options(genai: &Value) -> BTreeMap<String, BTreeMap<String, String>> {
    let listed = genai["model"]["decoder"]["session_options"]["provider_options"].as_array();
    let providers = listed.into_iter().flatten().filter_map(Value::as_object).flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let options = |options: &Value| {
        let options = options.as_object().into_iter().flatten();
        options.map(|(key, value)| (key.clone(), text(value))).collect()
    };
    providers.map(|(name, values)| (name.to_lowercase(), options(values))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_differ_between_families() {
        let gpt2 = json!({ "n_positions": 1024, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12 });
        let gpt2 = HfConfig::of_config(&gpt2);
        assert_eq!((gpt2.context_tokens, gpt2.head_size(), gpt2.num_kv_heads()), (Some(1024), Some(64), Some(12)));
        let gemma = json!({
            "model_type": "gemma3", "eos_token_id": [1, 106], "vocab_size": 7,
            "text_config": { "model_type": "gemma3_text", "hidden_size": 2560, "vocab_size": 262_208 }
        });
        let gemma = HfConfig::of_config(&gemma);
        assert_eq!((gemma.model_type.as_deref(), gemma.vocab_size), (Some("gemma3"), Some(262_208)));
        assert_eq!((gemma.hidden_size, gemma.context_tokens), (Some(2560), None));
    }

    #[test]
    fn options_of_providers_are_texts() {
        let session_options = json!({ "provider_options": [{ "cuda": { "enable_cuda_graph": "0", "arena": 2 } }, 7] });
        let genai = json!({ "model": { "decoder": { "session_options": session_options } } });
        insta::assert_compact_debug_snapshot!(provider_options(&genai), @r#"{"cuda": {"arena": "2", "enable_cuda_graph": "0"}}"#);
        assert_eq!(provider_options(&json!({})), BTreeMap::new());
    }

    #[test]
    fn the_exporters_own_file_tells_the_rest() {
        let genai = json!({ "model": {
            "type": "phi3", "context_length": 4096, "vocab_size": 32_064, "eos_token_id": [32_000, 32_007],
            "decoder": { "head_size": 96, "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
                         "num_hidden_layers": 32 }
        }});
        let config = json!({ "model_type": "phi3", "eos_token_id": 32_000 });
        let both = HfConfig::of_config(&config).or(HfConfig::of_genai(&genai));
        assert_eq!(both, HfConfig::of_genai(&genai));
    }
}
