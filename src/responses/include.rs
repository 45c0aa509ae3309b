//! What a reply holds beside what the model says, by request: `include` and `stream_options`.

use super::{
    error::InvalidRequest,
    field::{Field, Object},
};

/// Nothing, unless it is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReplyOptions {
    /// Reasoning items have `encrypted_content`, to be sent back.
    pub encrypted_reasoning: bool,
    /// Texts have `logprobs`.
    pub logprobs: bool,
    /// Deltas are padded.
    pub obfuscation: bool,
}

const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";
const LOGPROBS: &str = "message.output_text.logprobs";
/// All of the protocol. What the others ask for, no item here has.
pub(super) const INCLUDES: &[&str] = &[
    ENCRYPTED_REASONING,
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
];

impl ReplyOptions {
    pub(super) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        let mut options = Self::default();
        for name in body.optional("include", Field::elements)?.into_iter().flatten() {
            match name.choice(INCLUDES)? {
                ENCRYPTED_REASONING => options.encrypted_reasoning = true,
                LOGPROBS => options.logprobs = true,
                _ => {}
            }
        }
        if let Some(stream) = body.optional("stream_options", Field::object)? {
            options.obfuscation = stream.optional("include_obfuscation", Field::boolean)?.unwrap_or(false);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(body: &Value) -> Result<ReplyOptions, InvalidRequest> {
        ReplyOptions::parse(&Field::root(body).object().unwrap())
    }

    #[test]
    fn nothing_is_added_unasked() {
        for body in [
            json!({}),
            json!({ "include": null, "stream_options": null }),
            json!({ "include": ["file_search_call.results"], "stream_options": { "include_obfuscation": false } }),
        ] {
            assert_eq!(parse(&body).unwrap(), ReplyOptions::default());
        }
    }

    #[test]
    fn what_is_asked_for_is_added() {
        let body = json!({ "include": INCLUDES, "stream_options": { "include_obfuscation": true } });
        let all = ReplyOptions { encrypted_reasoning: true, logprobs: true, obfuscation: true };
        assert_eq!(parse(&body).unwrap(), all);
    }

    #[test]
    fn what_the_protocol_does_not_have_is_refused() {
        let bodies = [
            json!({ "include": "all" }),
            json!({ "include": [1] }),
            json!({ "include": [LOGPROBS, "all"] }),
            json!({ "stream_options": [] }),
            json!({ "stream_options": { "include_obfuscation": "yes" } }),
        ];
        let errors: Vec<String> = bodies.iter().map(|body| parse(body).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        `include` must be an array, and it is the string "all"
        `include[0]` must be a string, and it is 1
        `include[1]` is `all`, and it must be one of `reasoning.encrypted_content`, `message.output_text.logprobs`, `code_interpreter_call.outputs`, `computer_call_output.output.image_url`, `file_search_call.results`, `message.input_image.image_url`, `web_search_call.action.sources`, `web_search_call.results`
        `stream_options` must be an object, and it is an array
        `stream_options.include_obfuscation` must be true or false, and it is the string "yes"
        "#);
    }
}
