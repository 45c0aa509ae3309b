//! Tokens to text, only ever in whole characters.

use super::{AddedToken, Tokenizer};
use crate::engine::TokenId;
use std::sync::Arc;

/// Turns tokens into text as they come. A character may be spread over several tokens, and how a token reads may depend
/// on the one before it, so each text is the difference between decoding a few tokens with and without the new ones.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Special tokens that are text all the same.
    visible: Arc<[AddedToken]>,
    /// Tokens from the beginning of the last text that was given out.
    window: Vec<TokenId>,
    /// How many of them have been given out.
    num_given: usize,
}

/// Tokens that may be held back. A character has at most four bytes, so more are not half a character but bytes that are
/// not UTF-8 at all.
const MAX_HELD: usize = 8;

impl Detokenizer {
    /// At the beginning of a text, in which `visible` special tokens are spelled and no others.
    pub fn new(tokenizer: Arc<Tokenizer>, visible: Arc<[AddedToken]>) -> Self {
        Self { tokenizer, visible, window: Vec::new(), num_given: 0 }
    }

    /// Whose tokens they are.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The text that became whole with this token; may be empty.
    pub fn push(&mut self, token: TokenId) -> String {
        if let Some(text) =
            self.visible.iter().find(|visible| visible.id == token.0).map(|visible| visible.text.clone())
        {
            // It is between two texts: how the next one reads depends on the one before it.
            return self.finish() + &text;
        }
        self.window.push(token);
        let text = self.tokenizer.decode(&self.window);
        let is_half = text.ends_with('\u{FFFD}')
            && self.window.len() - self.num_given < MAX_HELD
            && !self.tokenizer.ends_in_replacement_character(&self.window);
        if is_half {
            return String::new();
        }
        let new = self.give_out(&text);
        if new.is_empty() {
            self.forget(token);
        }
        new
    }

    /// Lets go of a token that said nothing. Nothing depends on a special one; another may be a space that is left out at
    /// the beginning of a text, and how the next token reads depends on it.
    fn forget(&mut self, token: TokenId) {
        if self.tokenizer.is_special(token) {
            self.window.pop();
        } else if MAX_HELD <= self.window.len() - self.num_given {
            self.window.truncate(self.num_given);
        }
    }

    /// What was held back and can still be read. Half a character at the end of a reply that was cut is left out.
    pub fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.window);
        let whole = if self.tokenizer.ends_in_replacement_character(&self.window) {
            text.as_str()
        } else {
            text.trim_end_matches('\u{FFFD}')
        };
        self.give_out(whole)
    }

    fn give_out(&mut self, text: &str) -> String {
        let given = self.tokenizer.decode(&self.window[..self.num_given]);
        let new = text.get(given.len()..).unwrap_or_default().to_owned();
        if !new.is_empty() {
            self.window.drain(..self.num_given);
            self.num_given = self.window.len();
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Piece, tokenizer::tests::byte_level};
    use proptest::prelude::*;

    fn pieces(tokens: &[TokenId]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::new(byte_level()), Arc::default());
        let mut pieces: Vec<String> = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        pieces.push(detokenizer.finish());
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    fn tokens(text: &str) -> Vec<TokenId> {
        byte_level().encode(&[Piece::Plain(text)]).unwrap()
    }

    #[test]
    fn a_character_comes_whole() {
        assert_eq!(pieces(&tokens("aé👍🏽z")), ["a", "é", "👍", "🏽", "z"]);
    }

    #[test]
    fn a_special_token_is_text_only_where_it_is_a_mark() {
        let tokenizer = Arc::new(byte_level());
        let visible = tokenizer.added_tokens().iter().filter(|token| token.id == 257).cloned().collect();
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), visible);
        let tokens = tokenizer.encode(&[Piece::Template("a<|im_start|>b<|im_end|>é<|im_end|><|im_end|>")]).unwrap();
        let text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        assert_eq!(text + &detokenizer.finish(), "ab<|im_end|>é<|im_end|><|im_end|>");
    }

    #[test]
    fn half_a_character_at_the_end_is_left_out() {
        let tokens = tokens("ok👍");
        assert_eq!(pieces(&tokens[..tokens.len() - 1]), ["o", "k"]);
    }

    #[test]
    fn bytes_that_are_not_utf8_do_not_hold_up_the_rest() {
        let lone_byte = tokens("é")[1];
        let mut broken = vec![lone_byte; 20];
        broken.extend(tokens("x"));
        let text = pieces(&broken).concat();
        assert_eq!(text.replace('\u{FFFD}', ""), "x");
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "([a-z ]|é|你|👩‍👩‍👧|\u{FFFD}|\u{301}|\\PC){0,24}") {
            let pieces = pieces(&tokens(&text));
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
