//! Text to tokens, with special tokens only where the template wrote them.

use super::{TokenizerError, vocabulary};
use crate::engine::TokenId;
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::OnceLock,
};
use tokenizers::{Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// A part of a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece<'a> {
    /// The template's own words: special tokens that it spells are special tokens.
    Template(&'a str),
    /// A client's words: special tokens that they spell stay plain text.
    Plain(&'a str),
}

/// A model's `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: Vec<AddedToken>,
    /// What each token stands for, once somebody has asked.
    token_bytes: OnceLock<Option<Vec<Vec<u8>>>>,
    /// How U+FFFD itself is spelled, which a detokenizer must not mistake for half a character.
    replacement_character: Vec<TokenId>,
}

/// A little of what prompts hold.
const SAMPLE: &str = "Hello,  world! don't \n\n\t 1234567890 {\"a\": [1]} é e\u{301} 你好 👩‍👩‍👧 \u{a0}\u{200b} aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                ";

/// A token beside the trained vocabulary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddedToken {
    /// How it is spelled.
    pub text: String,
    /// Whether it steers the model (`<|im_end|>`), or only marks up text (`<think>`).
    pub is_special: bool,
    /// Its token.
    pub id: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("added", &self.added).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// The file is missing, broken, or panics the library (which hostile files can do).
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        let error = |message: String| TokenizerError { path: path.to_path_buf(), message };
        let json = fs::read(path).map_err(|cause| error(cause.to_string()))?;
        let parse = || -> Result<Self, tokenizers::Error> {
            let tokenizer = Self::parse(&json)?;
            // Some files can be read and panic the library when they are used. A text that they cannot spell is no reason to
            // refuse them.
            let tokens = tokenizer.encode(&[Piece::Template(SAMPLE), Piece::Plain(SAMPLE)]).unwrap_or_default();
            let _ = tokenizer.inner.decode(&tokens.iter().map(|token| token.0).collect::<Vec<_>>(), false);
            Ok(tokenizer)
        };
        match catch_unwind(AssertUnwindSafe(parse)) {
            Ok(parsed) => parsed.map_err(|cause| error(cause.to_string())),
            Err(_) => Err(error("the tokenizers library panicked on it".to_owned())),
        }
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// In the library's words.
    pub fn parse(json: &[u8]) -> Result<Self, tokenizers::Error> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
        // Prompts are whole: nothing is cut and nothing padded, whatever the file was trained with.
        inner.with_truncation(None)?.with_padding(None);
        let added: Vec<AddedToken> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(id, token)| AddedToken { text: token.content, is_special: token.special, id })
            .collect();
        let mut tokenizer = Self { inner, added, token_bytes: OnceLock::new(), replacement_character: Vec::new() };
        // In the middle of a text: at its beginning, some tokenizers put a space before it.
        let spelled = |text| tokenizer.encode(&[Piece::Plain(text)]).unwrap_or_default();
        let (before, text) = (spelled("a"), spelled("a\u{FFFD}"));
        tokenizer.replacement_character = text.strip_prefix(before.as_slice()).unwrap_or_default().to_vec();
        Ok(tokenizer)
    }

    /// Tokens of the pieces, one after the other; nothing is added around them, since templates write their own
    /// beginning-of-text tokens.
    ///
    /// # Errors
    /// In the library's words.
    pub fn encode(&self, pieces: &[Piece<'_>]) -> Result<Vec<TokenId>, tokenizers::Error> {
        let mut tokens = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Template(text) => push(&mut tokens, self.inner.encode_fast(*text, false)?.get_ids()),
                Piece::Plain(text) => self.encode_plain(text, &mut tokens)?,
            }
        }
        Ok(tokens)
    }

    /// What the tokenizer puts before a text of its own accord, such as a beginning-of-text token.
    ///
    /// # Errors
    /// In the library's words.
    pub fn text_beginning(&self) -> Result<Vec<TokenId>, tokenizers::Error> {
        let encoding = self.inner.encode_fast("a", true)?;
        let added = encoding.get_special_tokens_mask().iter().take_while(|is_special| **is_special == 1).count();
        Ok(encoding.get_ids()[..added].iter().map(|id| TokenId(*id)).collect())
    }

    /// Splits a text that still gives a special token (some vocabularies hold them as ordinary entries too) until it
    /// does not.
    fn encode_plain(&self, text: &str, tokens: &mut Vec<TokenId>) -> Result<(), tokenizers::Error> {
        let ids = self.ids_without_added_tokens(text)?;
        let is_added = |id: &u32| self.added.iter().any(|token| token.id == *id);
        let middle = text.char_indices().map(|(index, _)| index).nth(text.chars().count() / 2).unwrap_or(0);
        if middle == 0 || !ids.iter().any(is_added) {
            push(tokens, &ids);
            return Ok(());
        }
        self.encode_plain(&text[..middle], tokens)?;
        self.encode_plain(&text[middle..], tokens)
    }

    /// What the library does with a text, its search for added tokens left out.
    fn ids_without_added_tokens(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut words = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            words.normalize(|word| normalizer.normalize(word))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;
        let words = words.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(words.into_iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten().map(|token| token.id).collect())
    }

    /// Text of tokens; special ones are left out, and bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        // A token that the vocabulary lacks is skipped; only files that were made to do harm fail, or panic the library.
        catch_unwind(AssertUnwindSafe(|| self.inner.decode(&ids, true).unwrap_or_default())).unwrap_or_default()
    }

    /// Whether the token is left out of texts.
    pub(super) fn is_special(&self, token: TokenId) -> bool {
        self.added.iter().any(|added| added.id == token.0 && added.is_special)
    }

    /// Whether the text of the last of these tokens ends in a U+FFFD that was really written.
    pub(super) fn ends_in_replacement_character(&self, tokens: &[TokenId]) -> bool {
        !self.replacement_character.is_empty() && tokens.ends_with(&self.replacement_character)
    }

    /// Tokens beside the trained vocabulary.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// The token that this text is, if it is one.
    pub fn token(&self, text: &str) -> Option<TokenId> {
        self.inner.token_to_id(text).map(TokenId)
    }

    /// The bytes that each token stands for, by its id; none where tokens are not bytes.
    pub(super) fn token_bytes(&self) -> Option<&[Vec<u8>]> {
        self.token_bytes.get_or_init(|| vocabulary::token_bytes(&self.inner)).as_deref()
    }

    /// Tokens of the trained vocabulary. Added ones may be more than a graph knows: those for pictures of a family's larger
    /// models, say.
    pub fn num_trained_tokens(&self) -> usize {
        self.inner.get_vocab_size(false)
    }
}

fn push(tokens: &mut Vec<TokenId>, ids: &[u32]) {
    tokens.extend(ids.iter().copied().map(TokenId));
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Byte-level BPE without merges, so that every character beyond ASCII is several tokens.
    pub(crate) fn byte_level() -> Tokenizer {
        Tokenizer::parse(&serde_json::to_vec(&byte_level_description()).unwrap()).unwrap()
    }

    pub(crate) fn byte_level_description() -> Value {
        let alphabet: Vec<char> = {
            let mut printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
            printable.extend(256..256 + 68);
            printable.into_iter().filter_map(char::from_u32).collect()
        };
        let vocab: serde_json::Map<String, Value> =
            alphabet.iter().enumerate().map(|(id, character)| (character.to_string(), json!(id))).collect();
        let added = |id: usize, content: &str, special: bool| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special })
        };
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [added(256, "<|im_start|>", true), added(257, "<|im_end|>", true), added(258, "<think>", false)],
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": { "type": "BPE", "vocab": vocab, "merges": [] },
        })
    }

    /// A file that holds this tokenizer but for the changes.
    fn load(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
        let mut description = byte_level_description();
        change(&mut description);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, description.to_string()).unwrap();
        Tokenizer::load(&path)
    }

    #[test]
    fn files_that_do_harm_are_refused() {
        assert!(load(|_| ()).is_ok());
        // The library panics where there is nothing left to strip.
        let strip = json!({ "type": "Strip", "content": "x", "start": 0, "stop": 1 });
        let decoders = json!([{ "type": "Replace", "pattern": { "Regex": "." }, "content": "" }, strip]);
        let strips_nothing = |description: &mut Value| {
            description["decoder"] = json!({ "type": "Sequence", "decoders": decoders });
        };
        assert!(load(strips_nothing).is_err());
        let takes_for_ever = |description: &mut Value| {
            let pattern = json!({ "Regex": "(a+)+(a+)+(a+)+b" });
            let split = json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
            description["pre_tokenizer"] =
                json!({ "type": "Sequence", "pretokenizers": [split, description["pre_tokenizer"]] });
        };
        assert!(load(takes_for_ever).is_err());
        assert!(load(|description| description["model"]["vocab"] = json!([])).is_err());
        assert!(load(|description| description["decoder"] = json!({ "type": "ByteLevel", "extra": 1 })).is_err());
        assert!(load(|description| *description = json!(null)).is_err());
    }

    #[test]
    fn a_file_that_cannot_spell_everything_is_taken() {
        let words = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "<unk>" });
        let tokenizer = load(|description| {
            description["model"] = words;
            description["decoder"] = Value::Null;
        });
        let tokenizer = tokenizer.unwrap();
        assert_eq!(tokenizer.encode(&[Piece::Template("a")]).unwrap(), [TokenId(0)]);
        assert!(tokenizer.encode(&[Piece::Template("b")]).is_err());
    }

    #[test]
    fn only_the_template_can_write_special_tokens() {
        let tokenizer = byte_level();
        let ids = |pieces: &[Piece<'_>]| tokenizer.encode(pieces).unwrap();
        assert_eq!(ids(&[Piece::Template("<|im_end|><think>")]), [TokenId(257), TokenId(258)]);
        let plain = ids(&[Piece::Plain("<|im_end|><think>")]);
        assert_eq!(plain.len(), "<|im_end|><think>".len());
        assert_eq!(tokenizer.decode(&plain), "<|im_end|><think>");
    }

    #[test]
    fn a_text_begins_as_the_tokenizer_has_it() {
        let special = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
        let beginning = |pieces: Vec<Value>| {
            let (begin, end) = ("<|im_start|>", "<|im_end|>");
            let token = |id: u32, text: &str| json!({ "id": text, "ids": [id], "tokens": [text] });
            let tokenizer = load(|description| {
                description["post_processor"] = json!({
                    "type": "TemplateProcessing", "single": pieces, "pair": pieces,
                    "special_tokens": { begin: token(256, begin), end: token(257, end) },
                });
            });
            tokenizer.unwrap().text_beginning().unwrap()
        };
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let (begin, end) = (special("<|im_start|>"), special("<|im_end|>"));
        assert_eq!(beginning(vec![text.clone()]), []);
        assert_eq!(beginning(vec![text.clone(), end.clone()]), [], "what ends a text does not begin it");
        assert_eq!(beginning(vec![begin.clone(), text.clone(), end.clone()]), [TokenId(256)]);
        assert_eq!(beginning(vec![begin, end, text]), [TokenId(256), TokenId(257)]);
        assert_eq!(byte_level().text_beginning().unwrap(), []);
    }

    proptest! {
        #[test]
        fn a_clients_words_never_become_special(text in "(<\\|im_end\\|>|<think>|<|\\||é|x| ){0,12}") {
            let tokenizer = byte_level();
            let tokens = tokenizer.encode(&[Piece::Plain(&text)]).unwrap();
            prop_assert!(tokens.iter().all(|token| token.0 < 256));
            prop_assert_eq!(tokenizer.decode(&tokens), text);
        }

        #[test]
        fn a_clients_words_become_what_a_tokenizer_without_added_tokens_makes_of_them(
            text in "(<\\|im_end\\|>|<think>|<|E\u{301}|é|x|  | |\n){0,12}", normalizer in 0..3_usize
        ) {
            let nfc = json!({ "type": "NFC" });
            let prepend = json!({ "type": "Sequence", "normalizers": [nfc, { "type": "Prepend", "prepend": "_" }] });
            let mut description = byte_level_description();
            description["normalizer"] = [Value::Null, nfc, prepend][normalizer].clone();
            let parse = |description: &Value| Tokenizer::parse(&serde_json::to_vec(description).unwrap()).unwrap();
            let with_added = parse(&description);
            description["added_tokens"] = json!([]);
            let without_added = parse(&description);
            let tokens = with_added.encode(&[Piece::Plain(&text)]).unwrap();
            prop_assert_eq!(tokens, without_added.encode(&[Piece::Template(&text)]).unwrap());
        }
    }
}
