//! Which files of a repository a model needs.

use super::relative;
use crate::model_dir::variant::{ListedFile, Variant};

/// Beside the graph and its weights. What is not there was not needed by the model's own tools either.
const FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// More templates, each in a file.
const TEMPLATES: &str = "additional_chat_templates/";
/// Without it no model can be served, so gigabytes should not be fetched.
const TOKENIZER: &str = "tokenizer.json";

/// Their paths, the graph's last; none where there is no tokenizer.
pub(super) fn paths<'f>(files: &'f [ListedFile], variant: &'f Variant) -> Option<Vec<&'f str>> {
    let in_dir = |(path, _): &'f ListedFile| Some((path.as_str(), relative(path, &variant.dir)?));
    let named: Vec<(&str, &str)> = files.iter().filter_map(in_dir).collect();
    let is_needed = |name: &str| {
        FILES.contains(&name) || name.strip_prefix(TEMPLATES).is_some_and(|template| !template.contains('/'))
    };
    let beside = named.iter().filter(|(_, name)| is_needed(name)).map(|(path, _)| *path);
    let paths = beside.chain(variant.external_data.iter().map(String::as_str)).chain([variant.graph.as_str()]);
    named.iter().any(|(_, name)| *name == TOKENIZER).then(|| paths.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_dir::variant::{Target, choose};

    fn needed(paths_there: &[&str], variant: &str) -> Option<Vec<String>> {
        let files: Vec<ListedFile> = paths_there.iter().map(|path| ((*path).to_owned(), 1)).collect();
        let variant = choose(&files, &Target { variant: Some(variant), ..Target::CPU }).unwrap();
        Some(paths(&files, &variant)?.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn other_variants_and_other_files_are_left_out() {
        let there = [
            "README.md",
            "additional_chat_templates/rag.jinja",
            "config.json",
            "merges.txt",
            "model.safetensors",
            "onnx/model_fp16.onnx",
            "onnx/model_q4.onnx",
            "onnx/model_q4.onnx_data",
            "quantize_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        let expected = [
            "additional_chat_templates/rag.jinja",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/model_q4.onnx_data",
            "onnx/model_q4.onnx",
        ];
        assert_eq!(needed(&there, "q4").unwrap(), expected);
    }

    #[test]
    fn a_model_without_its_tokenizer_is_none() {
        let there = ["merges.txt", "model.onnx", "other/tokenizer.json", "vocab.json"];
        assert_eq!(needed(&there, "fp32"), None);
    }

    #[test]
    fn a_folder_of_its_own_needs_nothing_else() {
        let there =
            ["config.json", "cpu/genai_config.json", "cpu/model.onnx", "cpu/model.onnx.data", "cpu/tokenizer.json"];
        let expected = ["cpu/genai_config.json", "cpu/tokenizer.json", "cpu/model.onnx.data", "cpu/model.onnx"];
        assert_eq!(needed(&there, "cpu").unwrap(), expected);
    }
}
