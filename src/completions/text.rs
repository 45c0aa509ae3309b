//! The body of `POST /v1/completions`: texts that are gone on from as they stand, without a chat template.

use super::{
    CompletionRequest,
    request::{Delivery, Envelope, choices, parse_num_choices},
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
        let mut envelope = Envelope::new("cmpl", model, self.service_class, self.delivery);
        envelope.is_chat = false;
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
