//! `tokenizer_config.json` and what stands beside it: chat templates, special tokens, how replies are read.

use super::{ModelDirError, folder::Folder};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The keys that matter of `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    /// How a reply is told apart into reasoning, text and calls, in the form that `transformers` gave it.
    #[serde(default)]
    pub(super) response_template: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Several(Vec<NamedTemplate>),
    /// The oldest spelling.
    Named(BTreeMap<String, String>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The name of a template that has no other.
pub const DEFAULT_TEMPLATE: &str = "default";

impl TokenizerConfig {
    pub(super) fn read(folder: &Folder) -> Result<Self, ModelDirError> {
        Ok(folder.json("tokenizer_config.json")?.unwrap_or_default())
    }

    /// Every chat template by its name. Files of their own win over the config, as in `transformers`.
    pub(super) fn chat_templates(&mut self, folder: &Folder) -> Result<BTreeMap<String, String>, ModelDirError> {
        #[derive(Deserialize)]
        struct InJson {
            chat_template: String,
        }
        let mut templates: BTreeMap<String, String> = match self.chat_template.take() {
            None => BTreeMap::new(),
            Some(TemplateField::One(source)) => BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), source)]),
            Some(TemplateField::Several(named)) => named.into_iter().map(|one| (one.name, one.template)).collect(),
            Some(TemplateField::Named(named)) => named,
        };
        if let Some(InJson { chat_template }) = folder.json("chat_template.json")? {
            templates.insert(DEFAULT_TEMPLATE.to_owned(), chat_template);
        }
        if let Some(source) = folder.text("chat_template.jinja")? {
            templates.insert(DEFAULT_TEMPLATE.to_owned(), source);
        }
        for (file, _) in folder.files()? {
            let name = file.strip_prefix("additional_chat_templates/").and_then(|name| name.strip_suffix(".jinja"));
            let Some(name) = name else { continue };
            if let Some(source) = folder.text(&file)? {
                templates.insert(name.to_owned(), source);
            }
        }
        Ok(templates)
    }

    /// Every `…_token`, a string or an object with `content`; what is not here may be in `special_tokens_map.json`.
    pub(super) fn special_tokens(&self, folder: &Folder) -> Result<BTreeMap<String, String>, ModelDirError> {
        let map: BTreeMap<String, Value> = folder.json("special_tokens_map.json")?.unwrap_or_default();
        let named = map.iter().chain(&self.rest).filter(|(name, _)| name.ends_with("_token"));
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        Ok(named.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn templates(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let folder = Folder::open(dir.path()).unwrap();
        let mut config = TokenizerConfig::read(&folder).unwrap();
        config.chat_templates(&folder).unwrap().into_iter().collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect()
    }

    #[test]
    fn templates_are_one_or_several_and_files_win() {
        assert_eq!(templates(&[]), []);
        let one = ("tokenizer_config.json", r#"{"chat_template": "a"}"#);
        assert_eq!(templates(&[one]), pairs(&[("default", "a")]));
        let several = r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]}"#;
        assert_eq!(templates(&[("tokenizer_config.json", several)]), pairs(&[("default", "a"), ("rag", "b")]));
        let of_processor = ("chat_template.json", r#"{"chat_template": "c"}"#);
        assert_eq!(templates(&[one, of_processor]), pairs(&[("default", "c")]));
        let own = [one, ("chat_template.jinja", "d"), ("additional_chat_templates/tool_use.jinja", "e")];
        assert_eq!(templates(&own), pairs(&[("default", "d"), ("tool_use", "e")]));
    }

    #[test]
    fn special_tokens_are_texts_or_objects() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null, "add_bos_token": true}"#;
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        fs::write(dir.path().join("special_tokens_map.json"), r#"{"bos_token": "<s>", "eos_token": "x"}"#).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let tokens = TokenizerConfig::read(&folder).unwrap().special_tokens(&folder).unwrap();
        assert_eq!(tokens.into_iter().collect::<Vec<_>>(), pairs(&[("bos_token", "<s>"), ("eos_token", "</s>")]));
    }
}
