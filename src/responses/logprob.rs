//! How probable each token was, as the protocol tells it.

use crate::chat;
use serde::Serialize;

/// Of one token that was said. Deltas and parts have the same fields: clients disagree on which a delta may lack.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    said: Logprob,
    top_logprobs: Vec<Logprob>,
}

/// A token and its probability.
#[derive(Clone, Debug, Serialize)]
struct Logprob {
    /// Lossy where the token is not whole characters; `bytes` is exact.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// JSON has no infinity: a token that cannot be has what the protocol's own service says of it.
pub(crate) fn tellable(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

impl From<chat::TokenLogprob> for TokenLogprob {
    fn from(token: chat::TokenLogprob) -> Self {
        Self { said: token.token.into(), top_logprobs: token.top.into_iter().map(Into::into).collect() }
    }
}

impl From<chat::Logprob> for Logprob {
    fn from(chat::Logprob { bytes, logprob }: chat::Logprob) -> Self {
        Self { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: tellable(logprob), bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_and_no_chance_at_all_can_be_told() {
        let token = |bytes: &[u8], logprob| chat::Logprob { bytes: bytes.to_vec(), logprob };
        let top = vec![token(b"\xf0\x9f", -0.25), token(b" a", f32::NEG_INFINITY)];
        let said = TokenLogprob::from(chat::TokenLogprob { token: token(b"\xf0\x9f", -0.25), top });
        insta::assert_snapshot!(serde_json::to_string(&said).unwrap(), @r#"{"token":"�","logprob":-0.25,"bytes":[240,159],"top_logprobs":[{"token":"�","logprob":-0.25,"bytes":[240,159]},{"token":" a","logprob":-9999.0,"bytes":[32,97]}]}"#);
    }
}
