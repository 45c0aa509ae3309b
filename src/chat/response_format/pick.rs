//! Which format a model has.

use super::{
    FormatError, ResponseFormat,
    template::{Part, Template},
};
use serde_json::{Value, json};
use std::sync::OnceLock;

/// Built-in formats. Where a chat template holds the texts of several, the first is meant: those with rarer marks come
/// first.
const BUILT_IN: &[(&str, &str)] = &[
    ("gpt-oss", include_str!("../../../config/response_formats/gpt-oss.json")),
    ("kimi-k2", include_str!("../../../config/response_formats/kimi-k2.json")),
    ("minimax-m2", include_str!("../../../config/response_formats/minimax-m2.json")),
    ("glm-4", include_str!("../../../config/response_formats/glm-4.json")),
    ("deepseek-v3.2", include_str!("../../../config/response_formats/deepseek-v3.2.json")),
    ("deepseek", include_str!("../../../config/response_formats/deepseek.json")),
    ("deepseek-v3.1", include_str!("../../../config/response_formats/deepseek-v3.1.json")),
    ("gemma-4", include_str!("../../../config/response_formats/gemma-4.json")),
    ("functiongemma", include_str!("../../../config/response_formats/functiongemma.json")),
    ("command-r", include_str!("../../../config/response_formats/command-r.json")),
    ("lfm2", include_str!("../../../config/response_formats/lfm2.json")),
    ("phi-4-mini", include_str!("../../../config/response_formats/phi-4-mini.json")),
    ("granite-3", include_str!("../../../config/response_formats/granite-3.json")),
    ("nemotron", include_str!("../../../config/response_formats/nemotron.json")),
    ("jamba", include_str!("../../../config/response_formats/jamba.json")),
    ("gigachat-3", include_str!("../../../config/response_formats/gigachat-3.json")),
    ("mistral", include_str!("../../../config/response_formats/mistral.json")),
    ("seed-oss", include_str!("../../../config/response_formats/seed-oss.json")),
    ("minicpm-5", include_str!("../../../config/response_formats/minicpm-5.json")),
    ("qwen3-coder", include_str!("../../../config/response_formats/qwen3-coder.json")),
    ("hermes", include_str!("../../../config/response_formats/hermes.json")),
    ("glm-4-0414", include_str!("../../../config/response_formats/glm-4-0414.json")),
    ("llama-4-pythonic", include_str!("../../../config/response_formats/llama-4-pythonic.json")),
    ("functionary-3.1", include_str!("../../../config/response_formats/functionary-3.1.json")),
    ("llama-3", include_str!("../../../config/response_formats/llama-3.json")),
    ("gemma-3", include_str!("../../../config/response_formats/gemma-3.json")),
    ("think", include_str!("../../../config/response_formats/think.json")),
    ("plain", include_str!("../../../config/response_formats/plain.json")),
];
/// What the config says where the folder decides.
const AUTO: &str = "auto";
/// A format that models without one are held to when they must call.
const FALLBACK: &str = "hermes";
/// The format of a model that is not known to mark anything.
const NOTHING_MARKED: &str = "plain";

impl ResponseFormat {
    /// The format that is `configured` by name; for `auto` the folder's own, else the built-in one whose marks its chat
    /// template knows, or that the type of the model is known to have.
    ///
    /// # Errors
    /// There is no format of that name, or the folder's own cannot be used.
    pub fn pick(
        model_type: Option<&str>,
        chat_template: &str,
        response_template: Option<&Value>,
        configured: &str,
    ) -> Result<Self, FormatError> {
        if configured != AUTO {
            return Self::named(configured);
        }
        if let Some(own) = response_template {
            return Template::new(own).map(|template| Self::new("of the folder", template));
        }
        let built_in: Vec<(&str, Value)> = BUILT_IN.iter().map(|(name, text)| (*name, parsed(text))).collect();
        let ready = |(name, json): &(&str, Value)| {
            Template::new(json).map(|template| Self::new(name, template.without_unknown_reasoning(chat_template)))
        };
        let found = built_in.iter().find(|(_, json)| is_known_by(json, chat_template)).map(ready).transpose()?;
        if let Some(found) = found.as_ref().filter(|found| found.has(Part::Calls)) {
            return Ok(found.clone());
        }
        // A chat template may leave it to the model how to call.
        let of_type = built_in.iter().find(|(_, json)| is_of_type(json, model_type)).map(ready).transpose()?;
        let hears_more = |of_type: &Self| found.is_none() || of_type.has(Part::Reasoning);
        match of_type.filter(hears_more).or(found) {
            Some(format) => Ok(format),
            None => Self::named(NOTHING_MARKED),
        }
    }

    /// For texts that are no replies: nothing is marked, and white space at either end is theirs.
    pub(crate) fn verbatim() -> &'static Self {
        static FORMAT: OnceLock<ResponseFormat> = OnceLock::new();
        FORMAT.get_or_init(|| {
            let data = json!({ "fields": { "content": { "content_args": { "strip": false } } } });
            Self::new("verbatim", Template::new(&data).expect("a test reads it"))
        })
    }

    /// A built-in format.
    ///
    /// # Errors
    /// There is none of that name; the error lists those that there are.
    pub fn named(name: &str) -> Result<Self, FormatError> {
        let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) else {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            return Err(FormatError::Unknown { name: name.to_owned(), known });
        };
        Template::new(&parsed(text)).map(|template| Self::new(name, template))
    }

    /// Names of the built-in formats.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }
}

/// Calls for models that have no way of their own.
pub(super) fn fallback() -> &'static ResponseFormat {
    static FORMAT: OnceLock<ResponseFormat> = OnceLock::new();
    FORMAT.get_or_init(|| ResponseFormat::named(FALLBACK).expect("a test reads all built-in formats"))
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("a test reads all built-in formats")
}

/// Whether a chat template holds all texts of one of the format's lists.
fn is_known_by(format: &Value, chat_template: &str) -> bool {
    let lists = format["detect"].as_array().into_iter().flatten().filter_map(Value::as_array);
    let mut lists = lists.map(|texts| texts.iter().filter_map(Value::as_str));
    lists.any(|mut texts| texts.all(|text| chat_template.contains(text)))
}

fn is_of_type(format: &Value, model_type: Option<&str>) -> bool {
    format["model_types"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|known| known.as_str() == model_type && model_type.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_format_can_be_used() {
        for name in ResponseFormat::names() {
            assert_eq!(ResponseFormat::named(name).unwrap().name(), name);
        }
    }

    #[test]
    fn a_name_that_is_not_known_is_told_the_known_ones() {
        let error = ResponseFormat::pick(None, "", None, "hermse").unwrap_err();
        insta::assert_snapshot!(error, @"there is no response format `hermse`; known are gpt-oss, kimi-k2, minimax-m2, glm-4, deepseek-v3.2, deepseek, deepseek-v3.1, gemma-4, functiongemma, command-r, lfm2, phi-4-mini, granite-3, nemotron, jamba, gigachat-3, mistral, seed-oss, minicpm-5, qwen3-coder, hermes, glm-4-0414, llama-4-pythonic, functionary-3.1, llama-3, gemma-3, think, plain, and `auto`");
    }

    #[test]
    fn the_config_comes_before_the_folder_and_the_folder_before_its_chat_template() {
        let own = serde_json::json!({ "start_anchor": "<a>", "fields": { "content": {} } });
        let pick = |own, configured| {
            ResponseFormat::pick(None, "<tool_call> \"name\"", own, configured).unwrap().name().to_owned()
        };
        assert_eq!(pick(Some(&own), "mistral"), "mistral");
        assert_eq!(pick(Some(&own), "auto"), "of the folder");
        assert_eq!(pick(None, "auto"), "hermes");
    }

    #[test]
    fn chat_templates_are_known_by_their_rarest_mark() {
        let pick = |source: &str| ResponseFormat::pick(Some("llama"), source, None, "auto").unwrap().name().to_owned();
        for (source, name) in [
            ("<tool_call>\\n{\"name\": <function-name>", "hermes"),
            ("<tool_call>\\n<function=example", "qwen3-coder"),
            ("<tool_call>{{ name }}<arg_key>", "glm-4"),
            ("<|start|>assistant<|channel|>final<|message|>", "gpt-oss"),
            ("[TOOL_CALLS]", "mistral"),
            ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json", "deepseek"),
            ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>", "deepseek-v3.1"),
            ("<|python_tag|> {\"name\": function name, \"parameters\":", "llama-3"),
            ("<TOOLCALL>[", "nemotron"),
            ("<tool_calls>[ <tool_call>", "jamba"),
            ("<seed:tool_call> <function=", "seed-oss"),
            ("<function=f> <|eom_id|>", "functionary-3.1"),
            ("<think>", "think"),
            ("{{ messages }}", "plain"),
        ] {
            assert_eq!(pick(source), name, "{source}");
        }
    }

    #[test]
    fn templates_in_the_shapes_of_real_ones_are_known() {
        let mut paths: Vec<_> =
            std::fs::read_dir("tests/templates").unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
        paths.sort();
        let mut by_format: Vec<(String, Vec<String>)> =
            ResponseFormat::names().map(|name| (name.to_owned(), Vec::new())).collect();
        for path in paths {
            let source = std::fs::read_to_string(&path).unwrap();
            let format = ResponseFormat::pick(None, &source, None, "auto").unwrap();
            let of_format = by_format.iter_mut().find(|(name, _)| name == format.name()).unwrap();
            of_format.1.push(path.file_stem().unwrap().display().to_string());
        }
        by_format.retain(|(_, templates)| !templates.is_empty());
        let lines: Vec<String> =
            by_format.iter().map(|(format, templates)| format!("{format}: {}", templates.join(", "))).collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        gpt-oss: gpt-oss
        kimi-k2: kimi-k2
        minimax-m2: minimax-m2
        glm-4: glm-4.5
        deepseek: deepseek-r1
        deepseek-v3.1: deepseek-v3.1
        gemma-4: gemma-4
        lfm2: lfm-2
        phi-4-mini: phi-4-mini
        granite-3: granite-3
        nemotron: nemotron-nano
        jamba: jamba
        mistral: mistral-tekken, mistral-v3
        qwen3-coder: qwen-3-coder, qwen-3.5
        hermes: exaone, granite-4, qwen-2.5, qwen-3
        glm-4-0414: glm-4
        llama-4-pythonic: llama-4
        llama-3: llama-3.1
        gemma-3: gemma-1, gemma-3
        think: hunyuan, smollm-3
        plain: alpaca, chatml, command-r-plus-tools, command-r, deepseek-v2, falcon-3, features, internlm-2, llama-2, llama-3.2, llama-3, mistral-v1, mixtral, olmo-2, parts-only, phi-3.5, phi-3, phi-4, qwen-1.5, smollm-2, vicuna, yi, zephyr
        ");
    }

    #[test]
    fn a_chat_template_that_leaves_calls_to_the_model_has_the_format_of_its_type() {
        let pick =
            |of_type, source| ResponseFormat::pick(Some(of_type), source, None, "auto").unwrap().name().to_owned();
        assert_eq!(pick("smollm3", "List of tools: <think>"), "hermes");
        assert_eq!(pick("phi3", "<think>"), "think", "that of the type knows no reasoning");
        assert_eq!(pick("phi3", ""), "phi-4-mini");
    }

    #[test]
    fn a_chat_template_without_reasoning_has_a_format_without() {
        let thinks = |source: &str| {
            let format = ResponseFormat::pick(None, source, None, "auto").unwrap();
            format.template.fields_of(Part::Reasoning).next().is_some()
        };
        assert_eq!([thinks("<tool_call>"), thinks("<tool_call></think>")], [false, true]);
    }
}
