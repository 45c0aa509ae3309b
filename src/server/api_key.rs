//! `[[server.api_keys]]`: a key as it is configured, which is by its hash.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    str::FromStr,
};
use subtle::{Choice, ConstantTimeEq};

/// A key that is let in, and how much it may ask for. `ortolan key` makes both.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// What the log calls it.
    pub name: String,
    /// Of the key; the key itself is written nowhere.
    pub sha256: KeyHash,
    /// Whose it is; keys of one tenant share what the prefix cache holds. The key's name where it is left out.
    pub tenant: Option<String>,
    /// Requests that generate; where one of these three is left out, there is no such limit.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and replies together.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Replies that are written at once, streamed or not.
    pub max_streams: Option<NonZeroUsize>,
}

/// The SHA-256 of a key. A key is random, so that nothing slower is needed.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub struct KeyHash([u8; 32]);

/// What was written is not repeated: it may be the key.
#[derive(Debug, thiserror::Error)]
#[error("the value is not the 64 hexadecimal digits of a SHA-256 that `ortolan key NAME` prints")]
pub struct NotAHash;

impl KeyHash {
    /// Of a key as a client sends it.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl ConstantTimeEq for KeyHash {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// In constant time, too.
impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl FromStr for KeyHash {
    type Err = NotAHash;

    fn from_str(digits: &str) -> Result<Self, NotAHash> {
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NotAHash);
        }
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..][..2], 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = NotAHash;

    fn try_from(digits: String) -> Result<Self, NotAHash> {
        digits.parse()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of FIPS 180.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = KeyHash::of(b"abc");
        assert_eq!(hash.to_string(), ABC);
        for digits in [ABC, &ABC.to_uppercase()] {
            assert_eq!(hash, digits.parse().unwrap());
        }
        assert_ne!(hash, KeyHash::of(b"Abc"), "keys are case-sensitive");
    }

    #[test]
    fn what_is_no_hash_is_refused_and_not_repeated() {
        let wrong = ["", "ork_secret", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g"), &"é".repeat(32)];
        for digits in wrong {
            let error = digits.parse::<KeyHash>().unwrap_err().to_string();
            insta::allow_duplicates! {
                insta::assert_snapshot!(error, @"the value is not the 64 hexadecimal digits of a SHA-256 that `ortolan key NAME` prints");
            }
        }
    }
}
