//! Reasoning that the client keeps for us: it can be sent back, but neither read nor made up.

use super::compaction;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{fmt, fs, io, path::PathBuf};

/// First byte of a token. Another layout would get another one.
const VERSION: u8 = 1;
/// So long that a random one never comes twice.
const NONCE_BYTES: usize = 24;
/// 64 hexadecimal digits.
const KEY_BYTES: usize = 32;

/// `responses.encryption_key`: where the key comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub enum KeySource {
    /// A new one for each process.
    Random,
    /// The setting itself.
    Key(Key),
    /// A file that holds it in hexadecimal digits.
    File(PathBuf),
}

/// Never printed.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

/// Why there is no key. The setting is not repeated: it may be a key that lacks a digit.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a key, and no file either.
    #[error("`responses.encryption_key` is neither 64 hexadecimal digits nor a file that can be read: {0}")]
    Unreadable(io::Error),
    /// The file holds something else.
    #[error("the file that `responses.encryption_key` names must hold 64 hexadecimal digits")]
    NotHex,
}

/// What a token was made for; it opens for nothing else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// `encrypted_content` of a reasoning item.
    Reasoning,
    /// `encrypted_content` of a compaction item.
    Compaction,
}

impl Purpose {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Reasoning => b"reasoning",
            Self::Compaction => b"compaction",
        }
    }
}

/// Seals and opens with one key.
pub struct Seal {
    cipher: XChaCha20Poly1305,
}

impl Seal {
    /// # Errors
    /// When the file of the key cannot be read, or holds none.
    pub fn new(source: &KeySource) -> Result<Self, KeyError> {
        let Key(key) = match source {
            KeySource::Random => Key(rand::random()),
            KeySource::Key(key) => key.clone(),
            KeySource::File(path) => {
                let digits = fs::read_to_string(path).map_err(KeyError::Unreadable)?;
                Key::parse(digits.trim()).ok_or(KeyError::NotHex)?
            }
        };
        Ok(Self { cipher: XChaCha20Poly1305::new(&key.into()) })
    }

    /// Version, nonce and ciphertext, in letters that need no escape anywhere.
    pub(super) fn seal(&self, purpose: Purpose, text: &str) -> String {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: text.as_bytes(), aad: purpose.name() };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).expect("a reply fits in memory");
        BASE64.encode([&[VERSION], &nonce[..], &sealed].concat())
    }

    /// None for what this key did not seal.
    pub(super) fn open(&self, purpose: Purpose, token: &str) -> Option<String> {
        let bytes = BASE64.decode(token).ok()?;
        let (nonce, sealed) = bytes.strip_prefix(&[VERSION])?.split_first_chunk::<NONCE_BYTES>()?;
        let text = self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: purpose.name() }).ok()?;
        String::from_utf8(text).ok()
    }

    /// Gives each reasoning item that has only `encrypted_content` the text that was sealed in it, and puts the summary in the
    /// place of each compaction. What does not open, perhaps because the key has changed, is left as it is.
    pub fn open_items(&self, items: &mut [Value]) {
        for item in items {
            if item["type"] == "compaction" || item["type"] == "compaction_summary" {
                let open = |token| self.open(Purpose::Compaction, token);
                if let Some(summary) = item["encrypted_content"].as_str().and_then(open) {
                    *item = compaction::expand(&summary);
                }
                continue;
            }
            if item["type"] != "reasoning" || item["content"].as_array().is_some_and(|parts| !parts.is_empty()) {
                continue;
            }
            let open = |token| self.open(Purpose::Reasoning, token);
            if let Some(text) = item["encrypted_content"].as_str().and_then(open) {
                item["content"] = json!([{ "type": "reasoning_text", "text": text }]);
            }
        }
    }
}

impl Seal {
    /// Gives each reasoning item that can be read, and has none, its `encrypted_content`.
    pub(super) fn seal_reasoning(&self, items: &mut [Value]) {
        for item in items.iter_mut().filter(|item| item["type"] == "reasoning" && item["encrypted_content"].is_null()) {
            let told = if item["content"].is_array() { &item["content"] } else { &item["summary"] };
            let texts = told.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str());
            let text: String = texts.collect();
            item["encrypted_content"] = self.seal(Purpose::Reasoning, &text).into();
        }
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

impl From<String> for KeySource {
    fn from(setting: String) -> Self {
        match Key::parse(&setting) {
            Some(key) => Self::Key(key),
            None if setting.is_empty() => Self::Random,
            None => Self::File(setting.into()),
        }
    }
}

impl Key {
    /// A new key, as a setting has it.
    pub(super) fn random_digits() -> String {
        let bytes: [u8; KEY_BYTES] = rand::random();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn parse(digits: &str) -> Option<Self> {
        let mut key = [0; KEY_BYTES];
        if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..][..2], 16).ok()?;
        }
        Some(Self(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn seal(setting: &str) -> Seal {
        Seal::new(&KeySource::from(setting.to_owned())).unwrap()
    }

    #[test]
    fn what_was_sealed_can_be_opened() {
        let seal = seal("");
        for text in ["", "Hm.", "größer 🦉", &"x".repeat(100_000)] {
            let token = seal.seal(Purpose::Reasoning, text);
            assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            assert_eq!(seal.open(Purpose::Reasoning, &token).as_deref(), Some(text));
        }
        assert_ne!(
            seal.seal(Purpose::Reasoning, "Hm."),
            seal.seal(Purpose::Reasoning, "Hm."),
            "equal texts do not show"
        );
    }

    #[test]
    fn nothing_else_can_be_opened() {
        let seal = seal("");
        let token = seal.seal(Purpose::Reasoning, "Hm.");
        for index in 0..token.len() {
            assert_eq!(seal.open(Purpose::Reasoning, &token[..index]), None, "cut at {index}");
            let other = if token.as_bytes()[index] == b'A' { "B" } else { "A" };
            let changed = [&token[..index], other, &token[index + 1..]].concat();
            assert_eq!(seal.open(Purpose::Reasoning, &changed), None, "changed at {index}");
        }
        for garbage in ["", "AQ", "a b", "größer", &"A".repeat(1000), &format!("{token}A"), &format!("{token}=")] {
            assert_eq!(seal.open(Purpose::Reasoning, garbage), None, "{garbage}");
        }
        assert_eq!(self::seal("").open(Purpose::Reasoning, &token), None, "each process has its own key");
    }

    #[test]
    fn a_key_outlives_the_process() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{digits}").unwrap();
        let token = seal(&digits).seal(Purpose::Reasoning, "Hm.");
        assert_eq!(seal(file.path().to_str().unwrap()).open(Purpose::Reasoning, &token).unwrap(), "Hm.");
    }

    #[test]
    fn a_key_is_never_shown() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        assert_eq!(format!("{:?}", KeySource::from(digits.clone())), "Key(Key(…))");
        let error = |setting: &str| Seal::new(&KeySource::from(setting.to_owned())).unwrap_err();
        insta::assert_snapshot!(error(&digits[1..]), @"`responses.encryption_key` is neither 64 hexadecimal digits nor a file that can be read: No such file or directory (os error 2)");
        let empty = tempfile::NamedTempFile::new().unwrap();
        insta::assert_snapshot!(error(empty.path().to_str().unwrap()), @"the file that `responses.encryption_key` names must hold 64 hexadecimal digits");
    }

    #[test]
    fn the_input_is_opened_in_place() {
        let seal = seal("");
        let token = seal.seal(Purpose::Reasoning, "Hm.");
        let mut body = json!({ "input": [
            { "type": "reasoning", "summary": [], "encrypted_content": token },
            { "type": "reasoning", "content": [{ "type": "reasoning_text", "text": "Own." }], "encrypted_content": token },
            { "type": "reasoning", "content": null, "encrypted_content": "foreign" },
            { "type": "compaction", "encrypted_content": seal.seal(Purpose::Compaction, "They agreed.") },
            { "type": "compaction", "encrypted_content": token }, // It was made for something else.
        ] });
        let before = body.clone();
        seal.open_items(body["input"].as_array_mut().unwrap());
        assert_eq!(body["input"][0]["content"], json!([{ "type": "reasoning_text", "text": "Hm." }]));
        assert_eq!(body["input"][3], compaction::expand("They agreed."));
        for index in [1, 2, 4] {
            assert_eq!(body["input"][index], before["input"][index]);
        }
        let mut harmless = [json!([]), json!(3), json!(null), json!({ "type": "reasoning" })];
        let before = harmless.clone();
        seal.open_items(&mut harmless);
        assert_eq!(harmless, before);
    }
}
