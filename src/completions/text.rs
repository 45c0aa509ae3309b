//! The body of `POST /v1/completions`: texts that are gone on from as they stand, without a chat template.

use super::{
    CompletionRequest,
    request::{Delivery, Envelope, Protocol, choices, parse_num_choices},
};
use crate::{
    chat::ChatRequest,
    engine::{SamplingParams, ServiceClass},
    responses::{Field, InvalidRequest, Labels, Object, Sampling, UnknownFields, parse_service_tier, parse_stop},
};
use serde_json::Value;
use std::num::NonZeroU32;

const MAX_PROMPTS: usize = 8;
/// Of all prompts together.
const MAX_CHOICES: usize = 16;
const MAX_LOGPROBS: u32 = 5;
/// So the protocol has it.
const DEFAULT_MAX_TOKENS: NonZeroU32 = NonZeroU32::new(16).expect("not zero");

/// A request that this version can honour in every field.
#[derive(Debug)]
pub struct TextCompletion {
    model: Option<String>,
    delivery: Delivery,
    num_choices: u32,
    prompts: Vec<String>,
    echoes: bool,
    sampling: Sampling,
    stop: Vec<String>,
    max_tokens: NonZeroU32,
    logprobs: Option<u32>,
    service_class: ServiceClass,
}

impl CompletionRequest for TextCompletion {
    const INPUT: &str = "prompt";

    fn parse(body: &Value, unknown_fields: UnknownFields) -> Result<Self, InvalidRequest> {
        let body = Field::root(body).object()?;
        Labels::parse(&body)?;
        let prompts = parse_prompts(&body.require("prompt")?)?;
        let num_choices = parse_num_choices(&body)?;
        if MAX_CHOICES < prompts.len() * num_choices as usize {
            let why = format!("asks for more than {MAX_CHOICES} texts, all prompts together; ask for fewer");
            return Err(InvalidRequest::invalid("n", why));
        }
        refuse_unsupported(&body, num_choices)?;
        let request = Self {
            model: body.optional("model", Field::text)?.map(str::to_owned),
            delivery: Delivery::parse(&body)?,
            num_choices,
            prompts,
            echoes: body.optional("echo", Field::boolean)?.unwrap_or(false),
            sampling: Sampling::parse(&body)?,
            stop: body.optional("stop", parse_stop)?.unwrap_or_default(),
            max_tokens: body.optional("max_tokens", Field::count)?.unwrap_or(DEFAULT_MAX_TOKENS),
            logprobs: body.optional("logprobs", |field| field.integer(0..=MAX_LOGPROBS))?,
            service_class: body.optional("service_tier", parse_service_tier)?.unwrap_or_default(),
        };
        if request.echoes && (request.logprobs.is_some() || 1 < request.prompts.len()) {
            let why = "cannot be combined with `logprobs` or several prompts: only new tokens have probabilities";
            return Err(InvalidRequest::invalid("echo", why));
        }
        unknown_fields.check(&body)?;
        Ok(request)
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn is_streamed(&self) -> bool {
        self.delivery.is_streamed
    }

    fn begin(self, model: &str, defaults: &SamplingParams, cache_salt: u64) -> (Envelope, Vec<ChatRequest>) {
        let mut envelope = Envelope::new(Protocol::Text, model, self.service_class, self.delivery);
        if self.echoes {
            envelope.echo.clone_from(&self.prompts[0]);
        }
        let sampling = self.sampling.over(defaults);
        let requests = self.prompts.into_iter().flat_map(|prompt| {
            let request = ChatRequest {
                text: Some(prompt),
                sampling: sampling.clone(),
                max_output_tokens: Some(self.max_tokens),
                top_logprobs: self.logprobs,
                stop: self.stop.clone(),
                service_class: self.service_class,
                cache_salt,
                ..ChatRequest::default()
            };
            choices(&request, self.num_choices).collect::<Vec<_>>()
        });
        (envelope, requests.collect())
    }
}

/// One text or some.
fn parse_prompts(field: &Field) -> Result<Vec<String>, InvalidRequest> {
    let parse = |field: &Field| match field.text()? {
        "" => Err(field.invalid("is empty, and it must have a character")),
        text => Ok(text.to_owned()),
    };
    if field.value().is_string() {
        return Ok(vec![parse(field)?]);
    }
    let prompts = field.elements().map_err(|_| field.wrong_type("a string or an array of strings"))?;
    match prompts.len() {
        0 => Err(field.invalid("holds no text")),
        num_prompts if MAX_PROMPTS < num_prompts => {
            Err(field.invalid(format!("may hold at most {MAX_PROMPTS} texts, and it holds {num_prompts}")))
        }
        _ => prompts
            .map(|prompt| match prompt.value() {
                Value::Number(_) | Value::Array(_) => Err(prompt.unsupported("is of tokens; send the text itself")),
                Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_) => parse(&prompt),
            })
            .collect(),
    }
}

fn refuse_unsupported(body: &Object, num_choices: u32) -> Result<(), InvalidRequest> {
    if body.get("suffix").is_some() {
        return Err(InvalidRequest::unsupported_parameter("suffix", "texts are gone on from; leave it out"));
    }
    if body.optional("best_of", |field| field.integer(1..=u32::MAX))?.is_some_and(|best_of| best_of != num_choices) {
        return Err(InvalidRequest::unsupported_parameter(
            "best_of",
            "all texts are given back; ask for them with `n`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completions::request::tests::line;
    use insta::{assert_compact_debug_snapshot, assert_snapshot};
    use serde_json::json;

    fn parse(body: &Value) -> Result<TextCompletion, InvalidRequest> {
        TextCompletion::parse(body, UnknownFields::Refuse)
    }

    fn begin(body: &Value) -> (Envelope, Vec<ChatRequest>) {
        parse(body).unwrap().begin("tiny", &SamplingParams { top_k: 20, ..SamplingParams::default() }, 7)
    }

    #[test]
    fn a_prompt_alone_has_the_protocols_sixteen_tokens() {
        let (envelope, requests) = begin(&json!({ "prompt": "Once" }));
        assert!(envelope.id.starts_with("cmpl-") && envelope.echo.is_empty(), "{envelope:?}");
        assert_compact_debug_snapshot!(requests, @r#"[ChatRequest { messages: [], text: Some("Once"), tools: [], calls: Calls { mode: Auto, allowed: None, max_calls: None }, format: Text, enable_thinking: None, template_arguments: {}, sampling: SamplingParams { temperature: 1.0, top_k: 20, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, logit_bias: [], seed: None }, max_output_tokens: Some(16), top_logprobs: None, truncate: false, stop: [], service_class: Default, cache_salt: 7, max_draft_tokens: None }]"#);
    }

    #[test]
    fn all_that_is_said_reaches_each_text() {
        let body = json!({
            "model": "tiny", "prompt": ["a", "b"], "n": 2, "best_of": 2, "seed": 1, "stream": true,
            "stream_options": { "include_usage": true }, "stop": ["x", "y"], "max_tokens": 3, "logprobs": 0,
            "temperature": 0.5, "logit_bias": { "5": 2 }, "service_tier": "priority", "user": "ada",
        });
        let parsed = parse(&body).unwrap();
        assert_eq!((parsed.model(), parsed.is_streamed()), (Some("tiny"), true));
        let (envelope, requests) = begin(&body);
        assert_eq!((envelope.service_tier, envelope.includes_usage), ("priority", true));
        let texts: Vec<_> =
            requests.iter().map(|request| (request.text.as_deref().unwrap(), request.sampling.seed.unwrap())).collect();
        assert_eq!(texts, [("a", 1), ("a", 2), ("b", 1), ("b", 2)], "those of one prompt stand together");
        assert_compact_debug_snapshot!(requests[0], @r#"ChatRequest { messages: [], text: Some("a"), tools: [], calls: Calls { mode: Auto, allowed: None, max_calls: None }, format: Text, enable_thinking: None, template_arguments: {}, sampling: SamplingParams { temperature: 0.5, top_k: 20, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, logit_bias: [(TokenId(5), 2.0)], seed: Some(1) }, max_output_tokens: Some(3), top_logprobs: Some(0), truncate: false, stop: ["x", "y"], service_class: Priority, cache_salt: 7, max_draft_tokens: None }"#);
    }

    #[test]
    fn an_echo_is_the_prompt() {
        assert_eq!(begin(&json!({ "prompt": ["Once"], "echo": true, "n": 2 })).0.echo, "Once");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let with = |fields: Value| {
            let mut body = json!({ "prompt": "hi" });
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            body
        };
        let bodies = [
            json!("hi"),
            json!({}),
            with(json!({ "prompt": "" })),
            with(json!({ "prompt": 5 })),
            with(json!({ "prompt": [] })),
            with(json!({ "prompt": ["a", ""] })),
            with(json!({ "prompt": ["a", null] })),
            with(json!({ "prompt": [1, 2] })),
            with(json!({ "prompt": [[1, 2]] })),
            with(json!({ "prompt": vec!["a"; 9] })),
            with(json!({ "prompt": vec!["a"; 8], "n": 3 })),
            with(json!({ "n": 9 })),
            with(json!({ "best_of": 2 })),
            with(json!({ "suffix": "b" })),
            with(json!({ "max_tokens": 0 })),
            with(json!({ "logprobs": 6 })),
            with(json!({ "logprobs": true })),
            with(json!({ "echo": 1 })),
            with(json!({ "echo": true, "logprobs": 1 })),
            with(json!({ "echo": true, "prompt": ["a", "b"] })),
            with(json!({ "temperature": -1 })),
            with(json!({ "messages": [] })),
        ];
        let errors: String = bodies.iter().map(|body| line(parse(body).expect_err(&body.to_string()))).collect();
        assert_snapshot!(errors, @r#"
         invalid_type: the body must be an object, and it is the string "hi"
        prompt missing_required_parameter: `prompt` is required
        prompt invalid_value: `prompt` is empty, and it must have a character
        prompt invalid_type: `prompt` must be a string or an array of strings, and it is 5
        prompt invalid_value: `prompt` holds no text
        prompt[1] invalid_value: `prompt[1]` is empty, and it must have a character
        prompt[1] invalid_type: `prompt[1]` must be a string, and it is null
        prompt[0] unsupported_value: `prompt[0]` is of tokens; send the text itself
        prompt[0] unsupported_value: `prompt[0]` is of tokens; send the text itself
        prompt invalid_value: `prompt` may hold at most 8 texts, and it holds 9
        n invalid_value: `n` asks for more than 16 texts, all prompts together; ask for fewer
        n invalid_value: `n` must be an integer from 1 to 8, and it is 9
        best_of unsupported_parameter: `best_of` is not supported: all texts are given back; ask for them with `n`
        suffix unsupported_parameter: `suffix` is not supported: texts are gone on from; leave it out
        max_tokens invalid_value: `max_tokens` must be an integer from 1 to 4294967295, and it is 0
        logprobs invalid_value: `logprobs` must be an integer from 0 to 5, and it is 6
        logprobs invalid_type: `logprobs` must be an integer from 0 to 5, and it is true
        echo invalid_type: `echo` must be true or false, and it is 1
        echo invalid_value: `echo` cannot be combined with `logprobs` or several prompts: only new tokens have probabilities
        echo invalid_value: `echo` cannot be combined with `logprobs` or several prompts: only new tokens have probabilities
        temperature invalid_value: `temperature` must be a number from 0 to 2, and it is -1
        messages unknown_parameter: `messages` is not a field of this request
        "#);
    }
}
