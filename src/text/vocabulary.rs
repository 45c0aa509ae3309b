//! The bytes that each token stands for.

use tokenizers::{DecoderWrapper, Tokenizer};

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spelling {
    /// Each byte is a printable character (GPT-2's byte-level BPE).
    ByteLevel,
    /// Plain text with `▁` for a space, and `<0xE2>` for a byte that is in no piece (SentencePiece).
    ByteFallback,
}

/// Far more than any vocabulary has. An id of a broken file may be any number.
const MAX_TOKENS: u32 = 1 << 22;

/// What each token of the vocabulary stands for, by its id. Added tokens stand for their own text. None when the decoder
/// is of a kind whose tokens are not bytes, or an id is too high.
pub(super) fn token_bytes(tokenizer: &Tokenizer) -> Option<Vec<Vec<u8>>> {
    let spelling = tokenizer.get_decoder().and_then(spelling)?;
    let added = tokenizer.get_added_tokens_decoder();
    let bytes = |id: u32| match (added.get(&id), tokenizer.id_to_token(id)) {
        (Some(token), _) => token.content.clone().into_bytes(),
        (None, Some(token)) if spelling == Spelling::ByteLevel => byte_level(&token),
        (None, Some(token)) => byte_fallback(&token),
        (None, None) => Vec::new(),
    };
    let last = tokenizer.get_vocab(true).into_values().max().filter(|last| *last < MAX_TOKENS)?;
    Some((0..=last).map(bytes).collect())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the tokens of all other kinds are not bytes")]
fn spelling(decoder: &DecoderWrapper) -> Option<Spelling> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::ByteFallback(_) | DecoderWrapper::Metaspace(_) => Some(Spelling::ByteFallback),
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().find_map(spelling),
        _ => None,
    }
}

/// A token with a character that stands for no byte is its own text.
fn byte_level(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Printable bytes stand for themselves, the others, in their order, for the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character).checked_sub(0x100) {
        None => u8::try_from(u32::from(character)).ok().filter(is_printable),
        Some(place) => (0..=u8::MAX).filter(|byte| !is_printable(byte)).nth(place as usize),
    }
}

fn byte_fallback(token: &str) -> Vec<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_level_description;
    use serde_json::json;

    fn parse(description: &serde_json::Value) -> Tokenizer {
        Tokenizer::from_bytes(serde_json::to_vec(description).unwrap()).unwrap()
    }

    #[test]
    fn each_byte_has_its_token_and_each_token_its_bytes() {
        let bytes = token_bytes(&parse(&byte_level_description())).unwrap();
        let mut single: Vec<u8> = bytes.iter().filter(|bytes| bytes.len() == 1).map(|bytes| bytes[0]).collect();
        single.sort_unstable();
        assert_eq!(single, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(bytes[256], b"<|im_start|>");
    }

    #[test]
    fn an_id_that_no_vocabulary_has_takes_no_memory() {
        let mut description = byte_level_description();
        description["model"]["vocab"]["x"] = json!(u32::MAX);
        assert_eq!(token_bytes(&parse(&description)), None);
    }

    #[test]
    fn pieces_may_be_text_or_bytes() {
        let decoders =
            json!([{ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }]);
        let vocab = json!({ "<unk>": 0, "<0xE2>": 1, "▁a": 2, "<0xyz>": 3 });
        let description = json!({
            "version": "1.0", "added_tokens": [], "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>" },
        });
        let expected: [&[u8]; 4] = [b"<unk>", b"\xE2", b" a", b"<0xyz>"];
        assert_eq!(token_bytes(&parse(&description)).unwrap(), expected);
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
        let description = json!({
            "version": "1.0", "added_tokens": [], "decoder": metaspace,
            "model": { "type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.0]], "unk_id": 0 },
        });
        let expected: [&[u8]; 2] = [b"<unk>", b" a"];
        assert_eq!(token_bytes(&parse(&description)).unwrap(), expected);
    }
}
