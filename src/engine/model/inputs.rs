//! Host memory of what a run reads, kept from run to run.

use super::{
    GraphEdits, IntType, ModelSpec,
    ffi::Tensor,
    graph::{c_name, signed},
};
use crate::engine::TokenId;
use ort::memory::MemoryInfo;
use std::{
    ffi::{CStr, CString},
    ops::Range,
};

/// The inputs of one run, filled row by row.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// `[rows, width]`, padded with zeros on the right.
    pub(super) token_ids: Vec<i64>,
    /// `[rows, mask_width]`, 1 where a row attends to a column of its keys and values.
    pub(super) attention_mask: Vec<i64>,
    /// `[axes, rows, width]`
    pub(super) position_ids: Vec<i64>,
    /// `[rows]`, tokens that are not padding.
    pub(super) query_seqlens: Vec<i32>,
    /// `[scored]`, places in `[rows, width]`.
    pub(super) logits_indices: Vec<i64>,
    /// For each of them, the batch's row.
    pub(super) scored_rows: Vec<usize>,
    /// The most that a row has scored, and at least one.
    max_logits: usize,
    is_padded: bool,
    width: usize,
    mask_width: usize,
    /// Name of the input that tells how many places to score, and what it is told.
    num_logits_name: Option<CString>,
    num_logits: [i64; 1],
    /// Whether rows go on from something.
    has_past: [bool; 1],
    narrow: Narrow,
}

/// The same for graphs that take 32-bit integers.
#[derive(Debug, Default)]
struct Narrow {
    token_ids: Vec<i32>,
    attention_mask: Vec<i32>,
    position_ids: Vec<i32>,
    num_logits: Vec<i32>,
}

/// An input's name and what it is fed.
pub(super) type Fed<'d> = (&'d CStr, Tensor<'d>);

/// Inputs that a graph may take beside its cache.
const MAX_INPUTS: usize = 7;

/// What a run computes of one row.
#[derive(Debug)]
pub(super) struct InputRow<'b> {
    /// Number of the row in the batch.
    pub(super) index: usize,
    /// At most as many as the run is wide.
    pub(super) new_tokens: &'b [TokenId],
    /// Position of the first of them.
    pub(super) start: usize,
    /// How many of the last ones are scored.
    pub(super) num_logits: usize,
}

impl Inputs {
    /// For a graph with these inputs.
    pub(super) fn new(spec: &ModelSpec) -> Self {
        Self { num_logits_name: spec.num_logits.as_ref().map(|input| c_name(&input.name)), ..Self::default() }
    }

    /// Starts a run of `width` tokens per row, over keys and values of `mask_width` columns with the new ones.
    pub(super) fn begin(&mut self, width: usize, mask_width: usize) {
        self.token_ids.clear();
        self.attention_mask.clear();
        self.position_ids.clear();
        self.query_seqlens.clear();
        self.logits_indices.clear();
        self.scored_rows.clear();
        (self.max_logits, self.is_padded) = (1, false);
        (self.width, self.mask_width) = (width, mask_width);
    }

    /// What the graph takes of the rows that were added, where it is to score `num_places` of each.
    pub(super) fn feed<'d>(
        &'d mut self,
        memory: &MemoryInfo<'_>,
        spec: &ModelSpec,
        edits: GraphEdits,
        num_places: usize,
    ) -> ort::Result<[Option<Fed<'d>>; MAX_INPUTS]> {
        // All places are spelled 0.
        self.num_logits = [if num_places == self.width { 0 } else { signed(num_places) }];
        self.has_past = [self.width < self.mask_width];
        self.repeat_positions(spec.position_ids.and_then(|positions| positions.num_axes).unwrap_or(1));
        let (num_rows, width, mask_width) = (signed(self.num_rows()), signed(self.width), signed(self.mask_width));
        let Self { narrow, .. } = self;
        let token_ids = integers(memory, &self.token_ids, &[num_rows, width], (spec.ids_type, &mut narrow.token_ids))?;
        let mut fed = [Some((c"input_ids", token_ids)), None, None, None, None, None, None];
        if let Some(mask_type) = spec.mask_type {
            let int_type = (mask_type, &mut narrow.attention_mask);
            let mask = integers(memory, &self.attention_mask, &[num_rows, mask_width], int_type)?;
            fed[1] = Some((c"attention_mask", mask));
        }
        if let Some(positions) = spec.position_ids {
            let shape = [signed(positions.num_axes.unwrap_or(1)), num_rows, width];
            let shape = &shape[usize::from(positions.num_axes.is_none())..];
            let int_type = (positions.int_type, &mut narrow.position_ids);
            fed[2] = Some((c"position_ids", integers(memory, &self.position_ids, shape, int_type)?));
        }
        if let (Some(name), Some(input)) = (&self.num_logits_name, &spec.num_logits) {
            let shape = &[1][usize::from(!input.is_vector)..];
            let int_type = (input.int_type, &mut narrow.num_logits);
            fed[3] = Some((name, integers(memory, &self.num_logits, shape, int_type)?));
        }
        if spec.has_cache_branch {
            fed[4] = Some((c"use_cache_branch", Tensor::from_slice(memory, &self.has_past, &[1])?));
        }
        if edits.query_seqlens {
            fed[5] = Some((c"query_seqlens", Tensor::from_slice(memory, &self.query_seqlens, &[num_rows])?));
        }
        if edits.logits_indices {
            let shape = [1, signed(self.logits_indices.len())];
            fed[6] = Some((c"logits_indices", Tensor::from_slice(memory, &self.logits_indices, &shape)?));
        }
        Ok(fed)
    }

    /// Words have the same position on each axis.
    fn repeat_positions(&mut self, num_axes: usize) {
        let num_positions = self.position_ids.len();
        (1..num_axes).for_each(|_| self.position_ids.extend_from_within(..num_positions));
    }

    /// Adds a row that attends to the given columns.
    pub(super) fn push(&mut self, row: &InputRow<'_>, attended: Range<usize>) {
        let num_tokens = row.new_tokens.len();
        assert!(num_tokens <= self.width, "the widest row sets the width");
        let end = self.num_rows() * self.width + num_tokens;
        self.logits_indices.extend(signed(end - row.num_logits)..signed(end));
        self.scored_rows.resize(self.logits_indices.len(), row.index);
        self.max_logits = self.max_logits.max(row.num_logits);
        self.token_ids.extend(row.new_tokens.iter().map(|token| i64::from(token.0)));
        self.push_padded(num_tokens, row.start, attended);
    }

    /// Adds a row that computes nothing. Only where the graph takes `query_seqlens`.
    pub(super) fn push_idle(&mut self) {
        // The operator wants at least one column, and neither reads nor writes it.
        self.push_padded(0, 0, 0..1);
    }

    fn push_padded(&mut self, num_tokens: usize, start: usize, attended: Range<usize>) {
        self.is_padded |= num_tokens < self.width;
        self.query_seqlens.push(i32::try_from(num_tokens).expect("a context is shorter than 2^31"));
        self.token_ids.resize(self.num_rows() * self.width, 0);
        self.position_ids.extend(signed(start)..signed(start + self.width));
        let first_column = self.attention_mask.len();
        self.attention_mask.resize(first_column + self.mask_width, 0);
        self.attention_mask[first_column..][attended].fill(1);
    }

    pub(super) fn num_rows(&self) -> usize {
        self.query_seqlens.len()
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// How many of each row's last places hold all that is scored: all of them where rows are padded behind their tokens.
    pub(super) fn num_scored_places(&self) -> usize {
        if self.is_padded { self.width } else { self.max_logits }
    }
}

/// A tensor of integers in the graph's own format.
fn integers<'d>(
    memory: &MemoryInfo<'_>,
    wide: &'d [i64],
    shape: &[i64],
    (int_type, narrow): (IntType, &'d mut Vec<i32>),
) -> ort::Result<Tensor<'d>> {
    match int_type {
        IntType::I64 => Tensor::from_slice(memory, wide, shape),
        IntType::I32 => {
            narrow.clear();
            narrow
                .extend(wide.iter().map(|number| i32::try_from(*number).expect("tokens and positions are below 2^31")));
            Tensor::from_slice(memory, narrow, shape)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_their_scored_places_counted_over_the_run() {
        let mut inputs = Inputs::default();
        let tokens = |ids: &[u32]| -> Vec<TokenId> { ids.iter().copied().map(TokenId).collect() };
        for _ in 0..2 {
            inputs.begin(3, 6);
            let new_tokens = tokens(&[7, 8, 9]);
            inputs.push(&InputRow { index: 4, new_tokens: &new_tokens, start: 2, num_logits: 2 }, 0..5);
            inputs.push_idle();
            let new_tokens = tokens(&[5]);
            inputs.push(&InputRow { index: 1, new_tokens: &new_tokens, start: 3, num_logits: 1 }, 1..5);
        }
        assert_eq!(inputs.num_rows(), 3);
        assert_eq!(inputs.token_ids, [7, 8, 9, 0, 0, 0, 5, 0, 0]);
        assert_eq!(inputs.position_ids, [2, 3, 4, 0, 1, 2, 3, 4, 5]);
        assert_eq!(inputs.attention_mask, [1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0]);
        assert_eq!(inputs.query_seqlens, [3, 0, 1]);
        assert_eq!((&inputs.logits_indices[..], &inputs.scored_rows[..]), (&[1, 2, 6][..], &[4, 4, 1][..]));
        assert_eq!(inputs.num_scored_places(), 3);
        inputs.repeat_positions(3);
        assert_eq!(inputs.position_ids, [[2, 3, 4, 0, 1, 2, 3, 4, 5]; 3].concat());
        // Without padding, what is scored is at the end.
        inputs.begin(2, 2);
        inputs.push(&InputRow { index: 0, new_tokens: &tokens(&[7, 8]), start: 0, num_logits: 0 }, 0..2);
        assert_eq!(inputs.num_scored_places(), 1);
    }
}
