//! `generation_config.json`: how the model's authors want it sampled and where its replies end.

use crate::engine::{SamplingParams, TokenId};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Settings of the model's authors; what they leave open is none.
#[derive(Debug, Default, Deserialize)]
pub struct Generation {
    eos_token_id: Option<TokenIds>,
    bos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    #[serde(default, deserialize_with = "number")]
    temperature: Option<f32>,
    #[serde(default, deserialize_with = "number")]
    top_k: Option<f32>,
    #[serde(default, deserialize_with = "number")]
    top_p: Option<f32>,
    #[serde(default, deserialize_with = "number")]
    min_p: Option<f32>,
    #[serde(default, deserialize_with = "number")]
    repetition_penalty: Option<f32>,
}

/// What is no number, or one below 0, leaves the setting open: some files spell "none" as -1.
#[expect(clippy::cast_possible_truncation, reason = "settings of sampling need no more")]
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_f64().filter(|number| 0.0 <= *number).map(|number| number as f32))
}

/// One token or several. Some files spell "none" as -1.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(from = "Value")]
pub(super) struct TokenIds(Vec<u32>);

impl TokenIds {
    /// `None` where the value names no token.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Vec<u32> = match value.as_array() {
            Some(several) => several.iter().filter_map(id).collect(),
            None => id(value).into_iter().collect(),
        };
        Some(Self(ids)).filter(|ids| !ids.0.is_empty())
    }
}

impl From<Value> for TokenIds {
    fn from(value: Value) -> Self {
        Self::of(&value).unwrap_or_default()
    }
}

impl Generation {
    /// The `search` of `genai_config.json`, which says nothing of tokens.
    pub(super) fn of_genai(search: &Value) -> Self {
        Self::deserialize(search).unwrap_or_default()
    }

    /// Takes the tokens of another file where this one names none.
    pub(super) fn with_fallback(mut self, eos_token_id: Option<TokenIds>, bos_token_id: Option<u32>) -> Self {
        self.eos_token_id = self.eos_token_id.filter(|ids| !ids.0.is_empty()).or(eos_token_id);
        self.bos_token_id =
            self.bos_token_id.filter(|ids| !ids.0.is_empty()).or(bos_token_id.map(|id| TokenIds(vec![id])));
        self
    }

    /// Token that begins a text, for templates that name it.
    pub fn bos_token(&self) -> Option<TokenId> {
        self.bos_token_id.as_ref()?.0.first().copied().map(TokenId)
    }

    /// Tokens that end a reply.
    pub fn stop_tokens(&self) -> Vec<TokenId> {
        self.eos_token_id.iter().flat_map(|ids| &ids.0).copied().map(TokenId).collect()
    }

    /// What applies where a request says nothing. `do_sample: false` means the best token each time; a file without it is
    /// sampled, as the protocol's default temperature of 1 says (`transformers` would be greedy).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "negative ones were left out")]
    pub fn sampling(&self) -> SamplingParams {
        let plain = SamplingParams::default();
        let temperature = match self.do_sample {
            Some(false) => 0.0,
            Some(true) | None => self.temperature.unwrap_or(plain.temperature),
        };
        SamplingParams {
            temperature,
            top_k: self.top_k.map_or(plain.top_k, |top_k| top_k as u32),
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
        assert_eq!(parse("{}").with_fallback(Some(TokenIds(vec![3])), None).stop_tokens(), [TokenId(3)]);
        assert_eq!(parse(r#"{"eos_token_id": -1}"#).stop_tokens(), []);
        let bos = |json| parse(json).with_fallback(None, Some(5)).bos_token();
        let first = [r#"{"bos_token_id": -1}"#, r#"{"bos_token_id": [7, 9]}"#].map(bos);
        assert_eq!(first, [Some(TokenId(5)), Some(TokenId(7))]);
    }

    #[test]
    fn sampling_is_what_the_file_says_and_nothing_else() {
        assert_eq!(parse("{}").sampling(), SamplingParams::default());
        let odd = r#"{"temperature": "warm", "top_k": -1, "top_p": null, "min_p": -0.5, "do_sample": null}"#;
        assert_eq!(parse(odd).sampling(), SamplingParams::default());
        assert_eq!(parse(r#"{"top_k": 50.0}"#).sampling().top_k, 50);
        assert_eq!(parse(r#"{"do_sample": false, "temperature": 0.6}"#).sampling().temperature, 0.0);
        let sampling = parse(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#).sampling();
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.6, 20, 0.95));
    }
}
