//! What a request says about picking tokens.

use super::{
    error::{InvalidRequest, excerpt},
    field::{Field, Object},
};
use crate::engine::{SamplingParams, TokenId};

const MAX_BIASED_TOKENS: usize = 1024;
const MAX_STOP_TEXTS: usize = 16;
const MAX_STOP_CHARS: usize = 256;
const MAX_REPETITION_PENALTY: f32 = 10.0;

/// None leaves a setting to the model.
#[derive(Debug)]
pub(crate) struct Sampling {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<Vec<(TokenId, f32)>>,
    seed: Option<u64>,
}

impl Sampling {
    pub(crate) fn parse(body: &Object) -> Result<Self, InvalidRequest> {
        Ok(Self {
            temperature: body.optional("temperature", |field| field.number(0.0..=2.0))?,
            top_k: body.optional("top_k", |field| field.integer(0..=u32::MAX))?,
            top_p: body.optional("top_p", |field| field.positive_number(1.0))?,
            min_p: body.optional("min_p", |field| field.number(0.0..=1.0))?,
            repetition_penalty: body
                .optional("repetition_penalty", |field| field.positive_number(MAX_REPETITION_PENALTY))?,
            presence_penalty: body.optional("presence_penalty", |field| field.number(-2.0..=2.0))?,
            frequency_penalty: body.optional("frequency_penalty", |field| field.number(-2.0..=2.0))?,
            logit_bias: body.optional("logit_bias", parse_logit_bias)?,
            seed: body.optional("seed", parse_seed)?,
        })
    }

    /// The request's settings, and the model's where the request has none.
    pub(crate) fn over(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: self.logit_bias.as_ref().unwrap_or(&defaults.logit_bias).clone(),
            seed: self.seed.or(defaults.seed),
        }
    }
}

/// `{"15339": -100}`; whether the model has such a token is the engine's to say.
fn parse_logit_bias(field: &Field) -> Result<Vec<(TokenId, f32)>, InvalidRequest> {
    let biases = field.value().as_object().ok_or_else(|| field.wrong_type("an object of token ids and numbers"))?;
    if MAX_BIASED_TOKENS < biases.len() {
        return Err(
            field.invalid(format!("may name at most {MAX_BIASED_TOKENS} tokens, and it names {}", biases.len()))
        );
    }
    let parse = |(token, bias): (&String, &serde_json::Value)| {
        let name = excerpt(token);
        let token = token.parse().map_err(|_| field.invalid(format!("names `{name}`, which is not a token id")))?;
        let number = serde::Deserialize::deserialize(bias).ok().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = number.ok_or_else(|| field.invalid(format!("must give `{name}` a number from -100 to 100")))?;
        Ok((TokenId(token), bias))
    };
    biases.iter().map(parse).collect()
}

/// Any 64 bits; a negative seed is as good as another.
fn parse_seed(field: &Field) -> Result<u64, InvalidRequest> {
    let seed = field.value();
    seed.as_u64()
        .or_else(|| seed.as_i64().map(i64::cast_unsigned))
        .ok_or_else(|| field.wrong_type("an integer of at most 64 bits"))
}

/// One text or a list of them.
pub(crate) fn parse_stop(field: &Field) -> Result<Vec<String>, InvalidRequest> {
    let parse = |field: &Field| match field.text_up_to(MAX_STOP_CHARS)? {
        "" => Err(field.invalid("is empty, and it must have a character")),
        text => Ok(text.to_owned()),
    };
    if field.value().is_string() {
        return Ok(vec![parse(field)?]);
    }
    let texts = field.elements().map_err(|_| field.wrong_type("a string or an array of strings"))?;
    if MAX_STOP_TEXTS < texts.len() {
        return Err(field.invalid(format!("may hold at most {MAX_STOP_TEXTS} texts, and it holds {}", texts.len())));
    }
    texts.map(|text| parse(&text)).collect()
}
