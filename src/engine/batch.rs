//! What one run of the model computes.

use super::{TokenId, Wanted};
use std::ops::Range;

/// One sequence's part of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// KV row or, where keys and values lie in blocks, place in the batch.
    pub slot_index: usize,
    /// Position of the first new token; as many tokens are in the cache already.
    pub start: usize,
    /// How many of the last new tokens are to be followed by a sampled one, which needs a row of scores for each: none in
    /// the middle of a prompt, one at its end and while decoding, more where a draft is to be verified.
    pub num_logits: usize,
    /// How much of those scores is wanted.
    pub wanted: Wanted,
    tokens: Range<usize>,
    blocks: Range<usize>,
}

impl Row {
    /// New tokens, at least one.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Position behind the last new token.
    pub fn end(&self) -> usize {
        self.start + self.num_tokens()
    }
}

/// The rows of one run. It is refilled for each step, so that a steady state allocates nothing.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<Row>,
    tokens: Vec<TokenId>,
    blocks: Vec<u32>,
}

impl Batch {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.tokens.clear();
        self.blocks.clear();
    }

    /// Adds a row that computes `new_tokens`, at least one, at positions from `start` on. With a draft, the last of them is
    /// scored, and so is each token of the draft, which comes behind it and is only guessed.
    pub fn push(&mut self, slot_index: usize, start: usize, new_tokens: &[TokenId], draft: Option<&[TokenId]>) {
        assert!(!new_tokens.is_empty(), "a row computes something");
        let begin = self.tokens.len();
        self.tokens.extend_from_slice(new_tokens);
        self.tokens.extend_from_slice(draft.unwrap_or_default());
        let num_logits = draft.map_or(0, |draft| 1 + draft.len());
        let none = self.blocks.len()..self.blocks.len();
        self.rows.push(Row {
            slot_index,
            start,
            num_logits,
            wanted: Wanted::All,
            tokens: begin..self.tokens.len(),
            blocks: none,
        });
    }

    /// Tells in which blocks the last row's keys and values lie, in the order of its tokens and at least up to its end.
    pub fn set_blocks(&mut self, blocks: &[u32]) {
        let row = self.rows.last_mut().expect("a row was pushed");
        self.blocks.truncate(row.blocks.start);
        self.blocks.extend_from_slice(blocks);
        row.blocks.end = self.blocks.len();
    }

    /// Says how much of the last row's scores is wanted, where that is not all.
    pub fn want(&mut self, wanted: Wanted) {
        self.rows.last_mut().expect("a row was pushed").wanted = wanted;
    }

    /// In the order in which they were pushed.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The new tokens of one of this batch's rows.
    pub fn new_tokens(&self, row: &Row) -> &[TokenId] {
        &self.tokens[row.tokens.clone()]
    }

    /// The blocks of one of this batch's rows; none where keys and values lie in slots.
    pub fn blocks(&self, row: &Row) -> &[u32] {
        &self.blocks[row.blocks.clone()]
    }

    /// New tokens of all rows together.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}
