//! All that is read of a model before its graph is opened, and whether it can be served.

use super::machine;
use crate::{
    chat::{ChatModel, ChatTemplate, ResponseFormat, TemplateSources},
    config::ModelConfig,
    engine::{EngineConfig, TokenId},
    model_dir::{ModelDir, Target},
    text::Tokenizer,
};
use anyhow::{Context, bail};
use std::{collections::BTreeMap, path::Path, sync::Arc, thread};
use tokio::sync::Semaphore;

/// A model folder that is complete.
#[derive(Debug)]
pub(super) struct CheckedModel {
    pub(super) dir: ModelDir,
    pub(super) chat: ChatModel,
}

/// The name of a template for conversations with tools.
const TOOL_USE: &str = "tool_use";
/// In the config, leaves a choice to ortolan.
const AUTO: &str = "auto";

impl CheckedModel {
    pub(super) fn open(config: &ModelConfig) -> anyhow::Result<Self> {
        let dir = open_dir(&config.path, &config.variant, &config.engine)?;
        let chat = chat_model(&dir, &config.response_format)?;
        Ok(Self { dir, chat })
    }
}

/// Opens a folder with the graph that is called so, or the one that suits the machine best.
pub(super) fn open_dir(path: &Path, variant: &str, config: &EngineConfig) -> anyhow::Result<ModelDir> {
    Ok(ModelDir::open(path, &target(variant, config))?)
}

/// What a graph is chosen for: a variant's name, or this machine.
pub(super) fn target<'v>(variant: &'v str, config: &EngineConfig) -> Target<'v> {
    let device = machine::device(&config.providers);
    let variant = Some(variant).filter(|variant| *variant != AUTO);
    // Not what is free at the moment, so that the same graph is taken at every start.
    Target { variant, device, memory_bytes: machine::memory(device).map(|memory| memory.total) }
}

/// What a chat needs of a folder.
pub(super) fn chat_model(dir: &ModelDir, response_format: &str) -> anyhow::Result<ChatModel> {
    let tokenizer = Tokenizer::load(&dir.tokenizer)?;
    let num_trained_tokens = tokenizer.num_trained_tokens();
    if dir.spec.vocab_size < num_trained_tokens {
        bail!(
            "{} has {num_trained_tokens} tokens and the graph scores only {}; take tokenizer and graph from one export",
            dir.tokenizer.display(),
            dir.spec.vocab_size
        );
    }
    let Some(source) = dir.chat_template() else {
        bail!("{} has no chat template; add chat_template.jinja", dir.path.display());
    };
    let sources = TemplateSources { default: source, tool_use: dir.chat_templates.get(TOOL_USE).map(String::as_str) };
    let cannot_be_served = || format!("the model folder {} cannot be served", dir.path.display());
    let template = ChatTemplate::new(sources, special_tokens(dir, &tokenizer), tokenizer.added_tokens())
        .with_context(cannot_be_served)?;
    let in_templates = sources.tool_use.unwrap_or(source);
    let declared = dir.response_template.as_ref();
    let response_format = ResponseFormat::pick(dir.model_type.as_deref(), in_templates, declared, response_format)
        .with_context(cannot_be_served)?;
    let stop_tokens = stop_tokens(dir, &tokenizer, &template, &response_format);
    if stop_tokens.is_empty() {
        bail!("{} names no end-of-text token; set `eos_token_id` in generation_config.json", dir.path.display());
    }
    Ok(ChatModel {
        tokenizer: Arc::new(tokenizer),
        template,
        response_format,
        stop_tokens: stop_tokens.into(),
        default_sampling: dir.generation.sampling(),
        prompt_permits: Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from))),
    })
}

/// Those that the tokenizer's config names; the one that begins a text may only be told by its number.
fn special_tokens(dir: &ModelDir, tokenizer: &Tokenizer) -> BTreeMap<String, String> {
    let mut tokens = dir.special_tokens.clone();
    let added = tokenizer.added_tokens();
    let text = |token: TokenId| added.iter().find(|added| added.id == token.0).map(|added| added.text.clone());
    if let Some(text) = dir.generation.bos_token().and_then(text) {
        tokens.entry("bos_token".to_owned()).or_insert(text);
    }
    tokens
}

/// Every token that the folder says to end a text with, and the one that its template ends turns with: of many exports the
/// configs only know the former.
fn stop_tokens(
    dir: &ModelDir,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    response_format: &ResponseFormat,
) -> Vec<TokenId> {
    let eos = dir.special_tokens.get("eos_token").and_then(|text| tokenizer.token(text));
    let end = template.end_of_turn().unwrap_or_default();
    let ending = end_token(tokenizer, response_format, &end);
    let mut tokens = dir.generation.stop_tokens();
    tokens.extend(eos.into_iter().chain(ending));
    tokens.extend(response_format.ends().filter_map(|text| tokenizer.token(text)));
    // What the graph does not score is never said.
    tokens.retain(|token| token.index() < dir.spec.vocab_size);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// The token that a turn's end begins with, behind those that only end a part of it.
fn end_token(tokenizer: &Tokenizer, response_format: &ResponseFormat, mut end: &str) -> Option<TokenId> {
    loop {
        let first = tokenizer.added_tokens().iter().filter(|token| token.is_special && end.starts_with(&token.text));
        let first = first.max_by_key(|token| token.text.len())?;
        if !response_format.is_mark(&first.text) {
            return Some(TokenId(first.id));
        }
        end = end[first.text.len()..].trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What ends a turn that the template ends like this.
    fn end<'t>(format: &str, special: &[&'t str], behind: &str) -> Option<&'t str> {
        let added: Vec<_> = special
            .iter()
            .enumerate()
            .map(|(index, text)| {
                json!({ "id": index + 1, "content": text, "special": true, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false })
            })
            .collect();
        let model = json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [] });
        let description = json!({ "version": "1.0", "added_tokens": added, "model": model });
        let tokenizer = Tokenizer::parse(description.to_string().as_bytes()).unwrap();
        let token = end_token(&tokenizer, &ResponseFormat::named(format).unwrap(), behind)?;
        Some(special[token.index() - 1])
    }

    #[test]
    fn a_turn_ends_with_the_first_token_that_is_no_mark_of_a_part() {
        let chatml = ["<|im_end|>", "<|im_start|>"];
        assert_eq!(end("hermes", &chatml, "<|im_end|>\n"), Some("<|im_end|>"));
        assert_eq!(end("gemma-3", &["<end_of_turn>"], "<end_of_turn>\n"), Some("<end_of_turn>"));
        // They end messages, of which a reply has several; the format itself names what ends a reply.
        assert_eq!(end("gpt-oss", &["<|end|>", "<|return|>"], "<|end|>"), None);
        assert_eq!(end("gpt-oss", &["<|end|>", "<|return|>"], "<|return|>"), None);
        assert!(ResponseFormat::named("gpt-oss").unwrap().ends().any(|end| end == "<|return|>"));
        let cohere = ["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"];
        assert_eq!(end("command-r", &cohere, "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"), Some(cohere[1]));
        assert_eq!(end("plain", &["<|end|>", "<|end|><|x|>"], "<|end|><|x|>"), Some("<|end|><|x|>"), "the longest");
        assert_eq!(end("plain", &chatml, "\n\nUser:"), None);
    }
}
