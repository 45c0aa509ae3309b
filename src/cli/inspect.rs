//! `ortolan inspect DIR`

use super::{SUCCESS, checked_model, memory::Memory, print_line};
use crate::{
    chat::ChatModel,
    config::Config,
    engine::{CacheKind, CacheTensor, EngineConfig},
    model_dir::{ModelDir, variant},
    text::Tokenizer,
};
use std::{collections::BTreeSet, path::Path};

/// Prints what the folder holds, then what keeps it from being served or should be looked at.
pub(super) fn run(path: &Path, variant: &str, config: &Config) -> anyhow::Result<u8> {
    let (config, response_format) = (&config.engine, &config.loading.response_format);
    let dir = checked_model::open_dir(path, variant, config)?;
    let chat = checked_model::chat_model(&dir, response_format);
    for (name, value) in describe(&dir, config).into_iter().chain(describe_chat(&dir, chat.as_ref().ok())) {
        print_line(format_args!("{name:<18} {value}"))?;
    }
    for problem in problems(&dir, config) {
        print_line(format_args!("{:<18} {problem}", "look at"))?;
    }
    chat.map(|_| SUCCESS)
}

fn describe(dir: &ModelDir, config: &EngineConfig) -> Vec<(&'static str, String)> {
    let spec = &dir.spec;
    let [columns, states] = kinds(&spec.cache).map(|kinds| if kinds.is_empty() { "none".to_owned() } else { kinds });
    let data_files =
        dir.onnx.data_files.iter().map(|(name, num_bytes)| format!("{name} ({})", variant::size(*num_bytes)));
    let data_files: Vec<String> = data_files.collect();
    let others = dir.variants.iter().filter(|variant| variant.name != dir.variant.name);
    let others = match variant::list(others) {
        none if none.is_empty() => none,
        others => format!("; there are also {others}"),
    };
    let mut operators: Vec<(&String, &usize)> = dir.onnx.operators.iter().collect();
    operators.sort_by(|left, right| right.1.cmp(left.1).then(left.0.cmp(right.0)));
    let operators = operators.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    let memory = Memory::of(dir, config);
    let providers: Vec<&str> = dir.provider_options.keys().map(String::as_str).collect();
    let mut lines = vec![
        ("folder", dir.path.display().to_string()),
        ("model type", dir.model_type.clone().unwrap_or_else(|| "not told".to_owned())),
        ("variant", format!("{} ({}){others}", dir.variant.name, variant::size(dir.variant.bytes))),
        ("graph", spec.path.display().to_string()),
        ("data files", if data_files.is_empty() { "none".to_owned() } else { data_files.join(", ") }),
        ("exported by", format!("{}, IR version {}", dir.onnx.producer, dir.onnx.ir_version)),
    ];
    lines.extend((!providers.is_empty()).then(|| ("made for", providers.join(", "))));
    lines.extend([
        ("family", spec.family.name().to_owned()),
        ("position ids", if spec.position_ids.is_some() { "fed" } else { "made by the graph" }.to_owned()),
        ("layers", spec.num_layers.to_string()),
        ("keys and values", columns),
        ("states", states),
        ("logits", format!("{} of {} tokens", spec.logits_type.name(), spec.vocab_size)),
        ("context", format!("{} tokens, of which {} are used", spec.context_tokens, memory.context_tokens)),
        ("memory per token", variant::size(spec.cache_bytes_per_token() as u64)),
        match memory.blocks {
            Some(blocks) => {
                ("memory per block", format!("{} for {} tokens", variant::size(blocks.size), blocks.tokens))
            }
            None => ("memory per slot", variant::size(memory.slot)),
        },
        ("cache", cache(&memory)),
        ("manifest", if dir.is_sealed { "every file is as it says" } else { "none" }.to_owned()),
        ("operators", operators),
    ]);
    lines
}

/// What keys and values are held in, why there is so much of it, and how much there could be.
fn cache(memory: &Memory) -> String {
    let (cache, each) = (memory.cache(), memory.for_each_engine());
    let fitting = memory.num_fitting().map(|fitting| format!("; {fitting} would fit beside the weights"));
    let fitting = fitting.unwrap_or_default();
    format!("{cache}, as many as engine.max_batch_size asks for{each}{fitting}")
}

/// Keys and values, and states, each kind once.
fn kinds(cache: &[CacheTensor]) -> [String; 2] {
    let (mut columns, mut states) = (BTreeSet::new(), BTreeSet::new());
    for tensor in cache {
        let element_type = tensor.element_type.name();
        match &tensor.kind {
            CacheKind::Columns { num_heads, head_size, window } => {
                let window = window.map_or_else(String::new, |window| format!(", the last {window} tokens"));
                columns.insert(format!("{num_heads} heads of {head_size} in {element_type}{window}"));
            }
            CacheKind::Blocks { sizes } => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                columns.insert(format!("{} in {element_type}, in blocks", sizes.join(" x ")));
            }
            CacheKind::State { sizes, .. } => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                states.insert(format!("{} in {element_type}", sizes.join(" x ")));
            }
        }
    }
    [columns, states].map(|kinds| kinds.into_iter().collect::<Vec<_>>().join("; "))
}

/// What is left is told where the model cannot be served.
fn describe_chat(dir: &ModelDir, chat: Option<&ChatModel>) -> Vec<(&'static str, String)> {
    let names: Vec<&str> = dir.chat_templates.keys().map(String::as_str).collect();
    let mut lines = vec![
        ("chat template", if names.is_empty() { "none".to_owned() } else { names.join(", ") }),
        ("special tokens", pairs(dir.special_tokens.iter().map(|(name, text)| (name.as_str(), text.clone())))),
    ];
    if let Some(chat) = chat {
        let text = |id: u32| text_of(&chat.tokenizer, id);
        lines.push(("it can say", chat.template.capabilities().to_string()));
        lines.push(("response format", chat.response_format.name().to_owned()));
        lines.push(("stop tokens", chat.stop_tokens.iter().map(|token| text(token.0)).collect::<Vec<_>>().join(", ")));
    }
    lines
}

fn pairs<'n>(pairs: impl Iterator<Item = (&'n str, String)>) -> String {
    pairs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// Number and spelling.
fn text_of(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.added_tokens().iter().find(|token| token.id == id) {
        Some(token) => format!("{} {id}", token.text),
        None => id.to_string(),
    }
}

/// Operators that look at a whole tensor for its scale.
const DYNAMIC: &str = "DynamicQuantize";

/// What may go wrong though the model can be served, and how to mend it.
pub(super) fn problems(dir: &ModelDir, config: &EngineConfig) -> Vec<String> {
    let mut problems = Vec::new();
    let memory = Memory::of(dir, config);
    if let Some(free) = memory.free.filter(|free| *free < memory.needed()) {
        problems.push(format!(
            "weights and {}{} take {}, and {} are free: lower engine.max_batch_size or engine.max_context_tokens, or take a \
             smaller variant",
            memory.cache(),
            memory.for_each_engine(),
            variant::size(memory.needed()),
            variant::size(free),
        ));
    }
    if dir.onnx.operators.keys().any(|operator| operator.starts_with(DYNAMIC)) {
        problems.push(
            "its products are quantized with one scale for all requests of a run, so what a reply says depends a little on \
             those beside it; 4-bit variants do not"
                .to_owned(),
        );
    }
    if let Some(short) = dir.spec.num_short_tokens.filter(|short| *short < memory.context_tokens) {
        problems.push(format!(
            "all texts are computed with its rotary factors for more than {short} tokens: set engine.max_context_tokens = \
             {short} where none is longer"
        ));
    }
    let has_provider = |name: &String| config.providers.iter().any(|provider| provider.name.to_string() == *name);
    if !dir.provider_options.is_empty() && !dir.provider_options.keys().any(has_provider) {
        let names: Vec<&str> = dir.provider_options.keys().map(String::as_str).collect();
        problems.push(format!(
            "the export is for {}, which is not among engine.providers: operators may be missing or slow",
            names.join(" or ")
        ));
    }
    problems
}
