//! The layers and the limits of the code, as data.

use std::{fs, path::Path};

/// Who may use whom. Higher layers come first.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["config", "telemetry", "server", "responses", "store", "chat", "text", "engine", "hub", "model_dir"]),
    ("config", &["telemetry", "server", "responses", "store", "chat", "engine", "hub"]),
    ("telemetry", &[]),
    ("server", &["completions", "responses", "store", "chat", "engine"]),
    ("responses", &["store", "chat", "engine"]),
    ("completions", &["responses", "chat", "engine"]),
    ("store", &[]),
    ("chat", &["text", "engine"]),
    ("text", &["engine"]),
    ("engine", &[]),
    ("hub", &["model_dir"]),
    ("model_dir", &["engine"]),
];
/// Of a source file without its tests, and of a file of tests.
const MAX_LINES: usize = 500;
const MAX_TEST_LINES: usize = 600;
/// Crates that only one layer may name.
const OWNERS: &[(&str, &str)] = &[
    ("actix_web", "server"),
    ("subtle", "server"),
    ("ort::", "engine"),
    ("tokenizers::", "text"),
    ("llguidance", "text"),
    ("minijinja", "chat"),
    ("ureq", "hub"),
    ("rusqlite", "store"),
    ("tokio_postgres", "store"),
    ("deadpool_postgres", "store"),
    ("actix_ws", "server"),
    ("prometheus_client", "server"),
    ("regex_automata", "chat"),
    ("regex_syntax", "chat"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("anyhow", "cli"),
];

#[test]
fn the_code_is_tidy() {
    let mut problems = Vec::new();
    for (layer, may_use) in LAYERS {
        let files = rust_files(&Path::new("src").join(layer));
        assert!(!files.is_empty(), "layer `{layer}` is gone: mend the list");
        for (path, source) in files {
            let code = without_tests(&source);
            if MAX_LINES < code.lines().count() {
                problems.push(format!("{path}: more than {MAX_LINES} lines"));
            }
            for used in used_layers(code) {
                if used != *layer && !may_use.contains(&used) {
                    problems.push(format!("{path}: `{layer}` may not use `{used}`"));
                }
            }
            for (name, owner) in OWNERS {
                if owner != layer && names_crate(code, name) {
                    problems.push(format!("{path}: only `{owner}` names `{name}`"));
                }
            }
            if code.contains("unsafe ") && !path.contains("engine/model/ffi") {
                problems.push(format!("{path}: unsafe code belongs in engine/model/ffi.rs or below it"));
            }
        }
    }
    for (path, source) in rust_files(Path::new("tests/it")) {
        if MAX_TEST_LINES < source.lines().count() {
            problems.push(format!("{path}: more than {MAX_TEST_LINES} lines"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The tests of a file stand at its end, in a module of their own.
fn without_tests(source: &str) -> &str {
    let is_module = |index: &usize| {
        let line = source[*index..].lines().nth(1).unwrap_or_default();
        line.split(' ').any(|word| word == "mod") && line.ends_with('{')
    };
    let tests = source.match_indices("#[cfg(test)]").map(|(index, _)| index).find(is_module);
    &source[..tests.unwrap_or(source.len())]
}

/// Whether a line of code (not of a comment) uses the crate.
fn names_crate(code: &str, name: &str) -> bool {
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let starts_word =
        |before: &str| !before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == ':');
    let uses = |line: &str| line.match_indices(name).any(|(index, _)| starts_word(&line[..index]));
    code.lines().filter(|line| !is_comment(line)).any(uses)
}

/// Layers named after `crate::`, alone or in braces.
fn used_layers(code: &str) -> impl Iterator<Item = &'static str> {
    let mentions: Vec<&str> = code.split("crate::").skip(1).collect();
    LAYERS.iter().map(|(layer, _)| *layer).filter(move |layer| {
        let is_word = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        mentions.iter().any(|mention| match mention.strip_prefix('{') {
            Some(list) => {
                let list = list.split("};").next().unwrap();
                list.split([',', '\n', '{']).any(|name| name.trim().strip_prefix(*layer).is_some_and(is_word))
            }
            None => mention.strip_prefix(*layer).is_some_and(is_word),
        })
    })
}

fn rust_files(path: &Path) -> Vec<(String, String)> {
    let single = path.with_extension("rs");
    let mut paths = vec![single];
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    let is_source = |path: &&std::path::PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let read = |path: &std::path::PathBuf| Some((path.display().to_string(), fs::read_to_string(path).ok()?));
    paths.iter().filter(is_source).filter_map(read).collect()
}
