//! `prompt`: texts that the operator keeps, by id and version, with places for variables.

use super::error::{InvalidRequest, excerpt};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// All that a folder holds: `greeting.md` is the prompt `greeting`, and `greeting@2.md` its version 2.
#[derive(Clone, Debug, Default)]
pub struct Prompts(BTreeMap<String, String>);

/// The operator should look at the folder.
#[derive(Debug, thiserror::Error)]
#[error("`responses.prompts`: {} cannot be read: {cause}", path.display())]
pub struct PromptsError {
    /// The folder, or a file in it.
    pub path: PathBuf,
    cause: io::Error,
}

/// More is no prompt.
const MAX_FILE_BYTES: usize = 1 << 20;
const MAX_VARIABLES: usize = 64;
const MAX_VARIABLE_BYTES: usize = 64 * 1024;
const SUFFIX: &str = ".md";

impl Prompts {
    /// Reads the folder once; an empty path means that there is none.
    ///
    /// # Errors
    /// When it or one of its files cannot be read, is not UTF-8 or is too large.
    pub fn load(folder: &Path) -> Result<Self, PromptsError> {
        if folder.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        let error = |path: &Path| {
            let path = path.to_path_buf();
            move |cause| PromptsError { path, cause }
        };
        let mut prompts = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(error(folder))? {
            let path = entry.map_err(error(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            let Some(name) = name else { continue };
            let text = fs::read_to_string(&path).map_err(error(&path))?;
            if MAX_FILE_BYTES < text.len() {
                let too_large =
                    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_FILE_BYTES} bytes"));
                return Err(error(&path)(too_large));
            }
            prompts.insert(name.to_owned(), text.trim_end().to_owned());
        }
        Ok(Self(prompts))
    }

    /// Puts the text in front of a request's input, as the developer's words, where its body names a prompt.
    ///
    /// # Errors
    /// For a prompt that is not there, and for variables that do not go with it.
    pub fn fill(&self, body: &mut Value) -> Result<(), InvalidRequest> {
        let Some(body) = body.as_object_mut() else { return Ok(()) };
        let Some(prompt) = body.remove("prompt").filter(|prompt| !prompt.is_null()) else { return Ok(()) };
        let fields = prompt.as_object().ok_or_else(|| InvalidRequest::wrong_type("prompt", "an object", &prompt))?;
        let text = self.text(fields)?;
        let message = json!({ "type": "message", "role": "developer", "content": text });
        let mut input = vec![message];
        match body.remove("input") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => input.extend(items),
            Some(words) => input.push(json!({ "type": "message", "role": "user", "content": words })),
        }
        body.insert("input".to_owned(), Value::Array(input));
        Ok(())
    }

    fn text(&self, prompt: &Map<String, Value>) -> Result<String, InvalidRequest> {
        let string = |name: &'static str| match prompt.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(InvalidRequest::wrong_type(&format!("prompt.{name}"), "a string", other)),
        };
        let id = string("id")?.ok_or_else(|| InvalidRequest::missing("prompt.id"))?;
        let name = string("version")?.map_or_else(|| id.to_owned(), |version| format!("{id}@{version}"));
        let text = self.0.get(&name).ok_or_else(|| {
            InvalidRequest::invalid(
                "prompt.id",
                format!("and version name no prompt that is kept here: `{}`", excerpt(&name)),
            )
        })?;
        let variables = match prompt.get("variables") {
            None | Some(Value::Null) => &Map::new(),
            Some(Value::Object(variables)) if variables.len() <= MAX_VARIABLES => variables,
            Some(Value::Object(_)) => {
                return Err(InvalidRequest::invalid(
                    "prompt.variables",
                    format!("may hold at most {MAX_VARIABLES} variables"),
                ));
            }
            Some(other) => return Err(InvalidRequest::wrong_type("prompt.variables", "an object", other)),
        };
        substitute(text, variables)
    }
}

/// Every `{{name}}` gives way to the variable; what a variable says is not searched again.
fn substitute(text: &str, variables: &Map<String, Value>) -> Result<String, InvalidRequest> {
    let error =
        |name: &str, why: &str| Err(InvalidRequest::invalid("prompt.variables", format!("{why} `{}`", excerpt(name))));
    let mut used = Vec::new();
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, place)) = rest.split_once("{{") {
        let Some((name, after)) = place.split_once("}}") else { break };
        let name = name.trim();
        filled.push_str(before);
        match variables.get(name) {
            Some(Value::String(value)) if value.len() <= MAX_VARIABLE_BYTES => filled.push_str(value),
            Some(Value::String(_)) => return error(name, "has more than 65536 bytes in"),
            Some(_) => return error(name, "must give a string to"),
            None => return error(name, "lacks"),
        }
        used.push(name);
        rest = after;
    }
    filled.push_str(rest);
    match variables.keys().find(|name| !used.contains(&name.as_str())) {
        Some(name) => error(name, "holds what the prompt does not use:"),
        None => Ok(filled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn prompts() -> Prompts {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("greet.md"), "Greet {{ name }} in {{language}}.\n").unwrap();
        fs::write(folder.path().join("greet@2.md"), "Hello {{name}}").unwrap();
        fs::write(folder.path().join("notes.txt"), "not a prompt").unwrap();
        Prompts::load(folder.path()).unwrap()
    }

    fn filled(prompt: &Value, input: &Value) -> Result<String, String> {
        let mut body = json!({ "prompt": prompt, "input": input });
        prompts().fill(&mut body).map_err(|error| error.to_string())?;
        assert!(body.get("prompt").is_none());
        Ok(body["input"].to_string())
    }

    #[test]
    fn a_prompt_comes_before_the_input() {
        let prompt = json!({ "id": "greet", "variables": { "name": "{{language}}", "language": "French" } });
        assert_snapshot!(filled(&prompt, &json!("hi")).unwrap(), @r#"[{"type":"message","role":"developer","content":"Greet {{language}} in French."},{"type":"message","role":"user","content":"hi"}]"#);
        let prompt = json!({ "id": "greet", "version": "2", "variables": { "name": "Ann" } });
        assert_snapshot!(filled(&prompt, &Value::Null).unwrap(), @r#"[{"type":"message","role":"developer","content":"Hello Ann"}]"#);
        let mut none = json!({ "input": "hi", "prompt": null });
        prompts().fill(&mut none).unwrap();
        assert_eq!(none, json!({ "input": "hi" }));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let errors: Vec<String> = [
            json!("greet"),
            json!({ "version": "2" }),
            json!({ "id": "../../etc/passwd" }),
            json!({ "id": "greet", "version": "3" }),
            json!({ "id": "greet", "variables": { "name": "Ann" } }),
            json!({ "id": "greet@2", "variables": { "name": 1 } }),
            json!({ "id": "greet@2", "variables": { "name": "Ann", "age": "3" } }),
        ]
        .iter()
        .map(|prompt| filled(prompt, &json!("hi")).unwrap_err())
        .collect();
        assert_snapshot!(errors.join("\n"), @r#"
        `prompt` must be an object, and it is the string "greet"
        `prompt.id` is required
        `prompt.id` and version name no prompt that is kept here: `../../etc/passwd`
        `prompt.id` and version name no prompt that is kept here: `greet@3`
        `prompt.variables` lacks `language`
        `prompt.variables` must give a string to `name`
        `prompt.variables` holds what the prompt does not use: `age`
        "#);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_none_is_none() {
        assert!(Prompts::load(Path::new("")).unwrap().0.is_empty());
        let error = Prompts::load(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("`responses.prompts`: /nowhere cannot be read"), "{error}");
    }
}
