//! `generation_config.json`: how the model's authors want it sampled and where its replies end.

use super::hf::TokenIds;
use crate::engine::{SamplingParams, TokenId};
use serde::Deserialize;

/// Settings of the model's authors; what they leave open is none.
#[derive(Debug, Default, Deserialize)]
pub struct Generation {
    eos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Generation {
    /// Takes the end tokens of `config.json` where this file names none.
    pub(super) fn with_fallback(mut self, eos_token_id: Option<TokenIds>) -> Self {
        self.eos_token_id = self.eos_token_id.or(eos_token_id);
        self
    }

    /// Tokens that end a reply.
    pub fn stop_tokens(&self) -> Vec<TokenId> {
        let ids = self.eos_token_id.clone().map(TokenIds::into_vec).unwrap_or_default();
        ids.into_iter().map(TokenId).collect()
    }

    /// What applies where a request says nothing. `do_sample: false` means the best token each time; a file without it is
    /// sampled, as the protocol's default temperature of 1 says (`transformers` would be greedy).
    pub fn sampling(&self) -> SamplingParams {
        let plain = SamplingParams::default();
        let temperature = match self.do_sample {
            Some(false) => 0.0,
            Some(true) | None => self.temperature.unwrap_or(plain.temperature),
        };
        SamplingParams {
            temperature,
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
            ..plain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Generation {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn end_tokens_are_one_or_several() {
        assert_eq!(parse(r#"{"eos_token_id": 7}"#).stop_tokens(), [TokenId(7)]);
        assert_eq!(parse(r#"{"eos_token_id": [7, 9]}"#).stop_tokens(), [TokenId(7), TokenId(9)]);
        assert_eq!(parse("{}").with_fallback(Some(TokenIds::One(3))).stop_tokens(), [TokenId(3)]);
    }

    #[test]
    fn sampling_is_what_the_file_says_and_nothing_else() {
        assert_eq!(parse("{}").sampling(), SamplingParams::default());
        assert_eq!(parse(r#"{"do_sample": false, "temperature": 0.6}"#).sampling().temperature, 0.0);
        let sampling = parse(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#).sampling();
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.6, 20, 0.95));
    }
}
