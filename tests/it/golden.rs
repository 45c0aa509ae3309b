//! What other implementations recorded (`scripts/record-golden`) is what ortolan does: greedy tokens and prompts.

use crate::{
    engine::{config, drain, is_on_gpu},
    tiny_model::{GPU_MODELS, endless, has_small_weights, is_oldest, open, runtime, start, tiny_models, token_ids},
};
use ortolan::{
    chat::{ChatRequest, ChatTemplate, Message, Role, Tool, ToolCall},
    engine::{LoadError, ModelSpec, TokenId, load},
    model_dir::{ModelDir, Target},
    text::{Piece, Tokenizer},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Golden<C> {
    cases: Vec<C>,
}

#[derive(Deserialize)]
struct Completion {
    input_ids: Vec<u32>,
    output_ids: Vec<u32>,
}

/// A conversation as `transformers` takes it.
#[derive(Deserialize)]
struct Rendering {
    name: String,
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    options: Options,
    add_generation_prompt: Option<bool>,
    rendered: String,
    input_ids: Vec<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    enable_thinking: Option<bool>,
}

fn golden<C: for<'de> Deserialize<'de>>(name: &str) -> Vec<C> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("json");
    let golden: Golden<C> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    golden.cases
}

fn starter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/starter")
}

fn assert_says(name: &str, spec: ModelSpec, cases: &[Completion]) {
    assert_eq!(differences(name, spec, cases), [""; 0]);
}

/// Where a model says something else.
fn differences(name: &str, spec: ModelSpec, cases: &[Completion]) -> Vec<String> {
    assert!(3 <= cases.len());
    let mut differences = Vec::new();
    // Chunks, and slots that are used again.
    let (handle, engine) = start(spec, &config(3, 16));
    for case in cases {
        let limit = u32::try_from(case.output_ids.len()).unwrap();
        let output = token_ids(&drain(handle.submit(endless(&case.input_ids, limit)).unwrap()));
        if output != case.output_ids {
            differences.push(format!("{name} says {output:?} instead of {:?}", case.output_ids));
        }
    }
    drop(handle);
    engine.join().unwrap();
    differences
}

/// Of small weights, others have recorded what a CPU makes.
#[test]
fn tiny_models_say_what_other_implementations_say() {
    let is_alike = |name: &String| !is_on_gpu() || !has_small_weights(&open(name));
    let of_model = |name: String| differences(&name, open(&name).spec, &golden(&name));
    assert_eq!(tiny_models().into_iter().filter(is_alike).flat_map(of_model).collect::<Vec<_>>(), [""; 0]);
}

/// On a CPU they are refused, and the operator is told why.
#[test]
fn gpu_models_say_what_other_implementations_say() {
    let config = config(3, 16);
    if is_on_gpu() {
        let of_model = |name: &str| differences(name, open(name).spec, &golden(name));
        assert_eq!(GPU_MODELS.into_iter().flat_map(of_model).collect::<Vec<_>>(), [""; 0]);
        return;
    }
    let refusals = GPU_MODELS.map(|name| {
        let spec = open(name).spec;
        let path = spec.path.display().to_string();
        let error = load(runtime(), spec, &config).err().unwrap();
        // The oldest runtime knows less of them.
        assert!(is_oldest() || matches!(error, LoadError::OtherDevice { .. }), "{name}: {error}");
        error.to_string().replace(&path, "FILE")
    });
    if !is_oldest() {
        insta::assert_snapshot!(refusals.join("\n"), @"
        the model FILE is made for another device: GroupQueryAttention (CPU): q_norm_weight / k_norm_weight inputs are not supported. The per-head Q/K RMS normalization prologue is implemented only on the CUDA and WebGPU EPs; take an export for this one
        the model FILE is made for another device: Could not find an implementation for PagedAttention(1) node with name '/model/layers.0/attn/PagedAttention'; take an export for this one
        the model FILE is made for another device: Could not find an implementation for PagedAttention(1) node with name '/model/layers.0/attn/PagedAttention'; take an export for this one
        ");
    }
}

#[test]
fn the_starter_says_what_other_implementations_say() {
    assert_says("starter", ModelDir::open(&starter(), &Target::CPU).unwrap().spec, &golden("starter"));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => panic!("role {other}"),
    };
    let mut message = Message::text(role, text(&value["content"]));
    for call in value["tool_calls"].as_array().into_iter().flatten() {
        let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
        message.tool_calls.push(ToolCall { id, name, arguments: call["function"]["arguments"].to_string() });
    }
    message.tool_call_id = value["tool_call_id"].as_str().map(str::to_owned);
    message
}

fn tool(value: &Value) -> Tool {
    let function = &value["function"];
    Tool {
        name: text(&function["name"]),
        description: function["description"].as_str().map(str::to_owned),
        parameters: function.get("parameters").cloned(),
        strict: false,
        is_enforceable: true,
    }
}

fn request(case: &Rendering) -> ChatRequest {
    ChatRequest {
        messages: case.messages.iter().map(message).collect(),
        tools: case.tools.iter().map(tool).collect(),
        enable_thinking: case.options.enable_thinking,
        ..ChatRequest::default()
    }
}

/// Tokens are the same too, but where a client's words spell a special token.
#[test]
fn the_starters_prompts_are_those_of_transformers() {
    let dir = ModelDir::open(&starter(), &Target::CPU).unwrap();
    let tokenizer = Tokenizer::load(&dir.tokenizer).unwrap();
    let template =
        ChatTemplate::new(dir.chat_template().unwrap(), dir.special_tokens.clone(), tokenizer.added_tokens()).unwrap();
    let mut num_plain = 0;
    for case in golden::<Rendering>("chat_template_starter") {
        if case.add_generation_prompt == Some(false) {
            continue; // ortolan always asks for a reply.
        }
        let rendered = template.render(&request(&case)).unwrap();
        let pieces = rendered.pieces();
        let spell = |piece: &Piece<'_>| match piece {
            Piece::Template(text) | Piece::Plain(text) => (*text).to_owned(),
        };
        assert_eq!(pieces.iter().map(spell).collect::<String>(), case.rendered, "{}", case.name);
        let tokens: Vec<u32> = tokenizer.encode(&pieces).unwrap().into_iter().map(|TokenId(id)| id).collect();
        if pieces.iter().any(|piece| matches!(piece, Piece::Plain(_))) {
            num_plain += 1;
            let end = tokenizer.token("<|im_end|>").unwrap().0;
            let count = |ids: &[u32]| ids.iter().filter(|id| **id == end).count();
            assert_eq!((count(&tokens), count(&case.input_ids)), (1, 2), "{}", case.name);
        } else {
            assert_eq!(tokens, case.input_ids, "{}", case.name);
        }
    }
    assert_eq!(num_plain, 1);
}
