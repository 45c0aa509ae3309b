//! What one run of the model computes.

use super::TokenId;
use std::ops::Range;

/// One sequence's part of a batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// KV row.
    pub slot_index: usize,
    /// Position of the first new token; as many tokens are in the KV row already.
    pub start: usize,
    /// Whether the next token is to be sampled, which needs a row of logits.
    pub wants_logits: bool,
    tokens: Range<usize>,
}

/// The rows of one run. It is refilled for each step, so that a steady state allocates nothing.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<Row>,
    tokens: Vec<TokenId>,
}

impl Batch {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.tokens.clear();
    }

    /// Adds a row that computes `new_tokens`, at least one, at positions from `start` on.
    pub fn push(&mut self, slot_index: usize, start: usize, new_tokens: &[TokenId], wants_logits: bool) {
        assert!(!new_tokens.is_empty(), "a row computes something");
        let begin = self.tokens.len();
        self.tokens.extend_from_slice(new_tokens);
        self.rows.push(Row { slot_index, start, wants_logits, tokens: begin..self.tokens.len() });
    }

    /// In the order in which they were pushed.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The new tokens of one of this batch's rows.
    pub fn new_tokens(&self, row: &Row) -> &[TokenId] {
        &self.tokens[row.tokens.clone()]
    }

    /// New tokens of all rows together.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}
