//! `ortolan key`: makes an API key, and the entry that lets it in.

use super::{SUCCESS, print_line};
use crate::server::KeyHash;
use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use clap::Args;
use serde_json::json;
use std::io::{self, Read, Write};

/// Tells people and scanners of leaked secrets what it is.
const PREFIX: &str = "ork_";
/// 128 random bits in base64: hashes of anything shorter could be tried out.
const MIN_KEY_CHARS: usize = 22;
/// Fits in a header with much room.
const MAX_KEY_CHARS: usize = 1024;

#[derive(Args, Debug)]
pub(super) struct KeyArgs {
    /// What the log calls the key.
    name: String,
    /// Read a key that there is already from standard input, and print only its entry.
    #[arg(long)]
    hash: bool,
}

pub(super) fn run(args: &KeyArgs) -> anyhow::Result<u8> {
    if args.name.is_empty() {
        bail!("the key needs a name, for the log; write `ortolan key NAME`");
    }
    let key = if args.hash {
        read_key(io::stdin())?
    } else {
        let key = format!("{PREFIX}{}", BASE64.encode(rand::random::<[u8; 32]>()));
        // Apart from the entry, so that what is appended to a file is never the key.
        writeln!(io::stderr(), "the key, which is shown only now: {key}").context("the key cannot be shown")?;
        key
    };
    // A string in JSON is one in TOML.
    let (name, hash) = (json!(args.name), KeyHash::of(key.as_bytes()));
    print_line(format_args!("[[server.api_keys]]\nname = {name}\nsha256 = \"{hash}\""))?;
    Ok(SUCCESS)
}

/// The key is never repeated.
fn read_key(source: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    // With its line ending; what is longer is refused below.
    let mut source = source.take(MAX_KEY_CHARS as u64 + 3);
    source.read_to_string(&mut text).context("standard input holds no key")?;
    let key = text.trim_end_matches(['\r', '\n']);
    if !(MIN_KEY_CHARS..=MAX_KEY_CHARS).contains(&key.len()) {
        bail!("the key on standard input must have {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("the key on standard input must be one word of ASCII characters, as it is sent in a header");
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_there_is_already_is_one_word() {
        let read = |text: &str| read_key(text.as_bytes()).map_err(|error| error.to_string());
        let key = "k".repeat(MIN_KEY_CHARS);
        for text in [key.clone(), format!("{key}\n"), format!("{key}\r\n")] {
            assert_eq!(read(&text), Ok(key.clone()));
        }
        let wrong = [String::new(), key[1..].to_owned(), "k".repeat(5000), format!("{key} {key}"), format!("{key}é")];
        for text in wrong {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with("the key on standard input must "), "{error}");
        }
    }
}
