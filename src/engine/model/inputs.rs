//! Host memory of what a run reads, kept from run to run.

use super::{
    GraphEdits, IntType, ModelSpec, Wanted,
    device::Feed,
    ffi::{Buffer, Element, Tensor, bytes_of},
    graph::{c_name, index, signed},
    sequence_lengths::{SEQLENS_K, TOTAL_SEQUENCE_LENGTH},
    top_scores::INVERSE_TEMPERATURES,
};
use crate::engine::TokenId;
use ort::memory::{Allocator, MemoryInfo};
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
    /// `[rows]`, tokens that a row has with the new ones, less one; and the most that any has.
    seqlens_k: Vec<i32>,
    total_sequence_length: [i32; 1],
    /// `[scored]`, places in `[rows, width]`.
    pub(super) logits_indices: Vec<i64>,
    /// For each of them, the batch's row, and what its sampler multiplies scores by.
    pub(super) scored_rows: Vec<usize>,
    scored_temperatures: Vec<f32>,
    /// The same for every row of scores that the graph computes, wanted or not.
    inverse_temperatures: Vec<f32>,
    /// What was done to the graph, and so to its inputs.
    edits: GraphEdits,
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
    num_logits: [i32; 1],
}

/// An input's name and what it is fed.
pub(super) type Fed<'d> = (&'d CStr, Tensor<'d>);

/// Inputs that a graph may take beside its cache.
pub(super) const MAX_INPUTS: usize = 10;

/// Where the numbers lie that a run reads.
pub(super) enum Stage<'s, 'd> {
    /// Where they are.
    Host(&'s MemoryInfo<'s>),
    /// In a buffer, once what is staged has been brought there.
    Device {
        /// One input behind the other.
        staged: &'s mut Vec<u8>,
        buffer: &'d Buffer,
    },
}

/// Where one input may begin behind another: operators read several numbers at once.
pub(super) const ALIGNMENT: usize = 256;

impl<'d> Stage<'_, 'd> {
    pub(super) fn tensor<T: Element>(&mut self, numbers: &'d [T], shape: &[i64]) -> ort::Result<Tensor<'d>> {
        match self {
            Self::Host(memory) => Tensor::from_slice(memory, numbers, shape),
            Self::Device { staged, buffer } => {
                let first_byte = staged.len().next_multiple_of(ALIGNMENT);
                staged.resize(first_byte, 0);
                staged.extend_from_slice(bytes_of(numbers));
                Tensor::over_buffer::<T>(buffer, first_byte, shape)
            }
        }
    }

    /// A number that a graph reads on the host, wherever it runs.
    pub(super) fn on_host<T: Element>(&self, numbers: &'d [T], shape: &[i64]) -> ort::Result<Tensor<'d>> {
        match self {
            Self::Host(memory) => Tensor::from_slice(memory, numbers, shape),
            Self::Device { .. } => Tensor::from_slice(Allocator::default().memory_info(), numbers, shape),
        }
    }
}

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
    /// How much of their scores is wanted.
    pub(super) wanted: Wanted,
}

impl Inputs {
    /// For a graph with these inputs.
    pub(super) fn new(spec: &ModelSpec, edits: GraphEdits) -> Self {
        Self { num_logits_name: spec.num_logits.as_ref().map(|input| c_name(&input.name)), edits, ..Self::default() }
    }

    /// Starts a run of `width` tokens per row, over keys and values of `mask_width` columns with the new ones.
    pub(super) fn begin(&mut self, width: usize, mask_width: usize) {
        self.token_ids.clear();
        self.attention_mask.clear();
        self.position_ids.clear();
        self.query_seqlens.clear();
        self.seqlens_k.clear();
        self.logits_indices.clear();
        self.scored_rows.clear();
        self.scored_temperatures.clear();
        (self.max_logits, self.is_padded) = (1, false);
        (self.width, self.mask_width) = (width, mask_width);
    }

    /// How many places of each row the graph scores, where it is not told which.
    fn num_places(&self, spec: &ModelSpec) -> usize {
        match &spec.num_logits {
            _ if spec.has_last_logits_only => 1,
            Some(_) => self.num_scored_places(),
            None => self.width,
        }
    }

    /// What nobody wants is computed at temperature 1.
    fn spread_temperatures(&mut self, spec: &ModelSpec) {
        let mut spread = std::mem::take(&mut self.inverse_temperatures);
        spread.clear();
        spread.resize(self.scored_shape(spec).iter().product(), 1.0);
        for ((_, place), inverse) in self.scored_places(spec).zip(&self.scored_temperatures) {
            spread[place] = *inverse;
        }
        self.inverse_temperatures = spread;
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
        let inverse = match row.wanted {
            Wanted::All => 1.0,
            Wanted::Top { temperature } => temperature.recip(),
        };
        self.scored_temperatures.resize(self.logits_indices.len(), inverse);
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
        if self.edits.sequence_lengths {
            self.seqlens_k.push(i32::try_from(attended.end - 1).expect("a context is shorter than 2^31"));
            return;
        }
        let first_column = self.attention_mask.len();
        self.attention_mask.resize(first_column + self.mask_width, 0);
        self.attention_mask[first_column..][attended].fill(1);
    }

    pub(super) fn num_rows(&self) -> usize {
        self.query_seqlens.len()
    }

    /// How many of each row's last places hold all that is scored: all of them where rows are padded behind their tokens.
    fn num_scored_places(&self) -> usize {
        if self.is_padded { self.width } else { self.max_logits }
    }
}

impl Feed for Inputs {
    fn prepare(&mut self, _spec: &ModelSpec) {
        if self.edits.logits_indices && self.logits_indices.is_empty() {
            self.logits_indices.push(0);
        }
    }

    /// Of each row of the run so many places, or of one row those that are picked.
    fn scored_shape(&self, spec: &ModelSpec) -> Vec<usize> {
        if self.edits.logits_indices {
            vec![1, self.logits_indices.len()]
        } else {
            vec![self.num_rows(), self.num_places(spec)]
        }
    }

    fn scored_places(&self, spec: &ModelSpec) -> impl Iterator<Item = (usize, usize)> {
        let (width, num_places) = (self.width, self.num_places(spec));
        let places = self.logits_indices.iter().enumerate().map(move |(number, place)| match index(*place) {
            _ if self.edits.logits_indices => number,
            place => place / width * num_places + place % width + num_places - width,
        });
        self.scored_rows.iter().copied().zip(places)
    }

    fn num_bytes(&self, spec: &ModelSpec) -> usize {
        let num_axes = spec.position_ids.and_then(|positions| positions.num_axes).unwrap_or(1);
        let num_scored: usize = self.scored_shape(spec).iter().product();
        let num_wide = self.token_ids.len() + self.attention_mask.len() + num_axes * self.position_ids.len();
        let num_wide = num_wide + self.logits_indices.len();
        let num_narrow = self.query_seqlens.len() + self.seqlens_k.len() + num_scored;
        num_wide * size_of::<i64>() + num_narrow * size_of::<i32>()
    }

    fn feed<'d>(
        &'d mut self,
        stage: &mut Stage<'_, 'd>,
        spec: &ModelSpec,
        has_top_scores: bool,
    ) -> ort::Result<[Option<Fed<'d>>; MAX_INPUTS]> {
        let edits = self.edits;
        // All places are spelled 0.
        let num_places = if edits.logits_indices { self.width } else { self.num_places(spec) };
        self.num_logits = [if num_places == self.width { 0 } else { signed(num_places) }];
        self.has_past = [self.width < self.mask_width];
        self.total_sequence_length = [i32::try_from(self.mask_width).expect("a context is shorter than 2^31")];
        self.repeat_positions(spec.position_ids.and_then(|positions| positions.num_axes).unwrap_or(1));
        if has_top_scores {
            self.spread_temperatures(spec);
        }
        let (num_rows, width, mask_width) = (signed(self.num_rows()), signed(self.width), signed(self.mask_width));
        let Self { narrow, .. } = self;
        let token_ids = integers(stage, &self.token_ids, &[num_rows, width], (spec.ids_type, &mut narrow.token_ids))?;
        let mut fed = [const { None }; MAX_INPUTS];
        fed[0] = Some((c"input_ids", token_ids));
        if let (Some(mask_type), false) = (spec.mask_type, edits.sequence_lengths) {
            let int_type = (mask_type, &mut narrow.attention_mask);
            let mask = integers(stage, &self.attention_mask, &[num_rows, mask_width], int_type)?;
            fed[1] = Some((c"attention_mask", mask));
        }
        if let Some(positions) = spec.position_ids {
            let shape = [signed(positions.num_axes.unwrap_or(1)), num_rows, width];
            let shape = &shape[usize::from(positions.num_axes.is_none())..];
            let int_type = (positions.int_type, &mut narrow.position_ids);
            fed[2] = Some((c"position_ids", integers(stage, &self.position_ids, shape, int_type)?));
        }
        if let (Some(name), Some(input)) = (&self.num_logits_name, &spec.num_logits) {
            let shape = &[1][usize::from(!input.is_vector)..];
            let number = match input.int_type {
                IntType::I64 => stage.on_host(&self.num_logits, shape)?,
                IntType::I32 => {
                    narrow.num_logits = self.num_logits.map(narrowed);
                    stage.on_host(&narrow.num_logits, shape)?
                }
            };
            fed[3] = Some((name, number));
        }
        if spec.has_cache_branch {
            fed[4] = Some((c"use_cache_branch", stage.on_host(&self.has_past, &[1])?));
        }
        if edits.query_seqlens {
            fed[5] = Some((c"query_seqlens", stage.tensor(&self.query_seqlens, &[num_rows])?));
        }
        if edits.logits_indices {
            let shape = [1, signed(self.logits_indices.len())];
            fed[6] = Some((c"logits_indices", stage.tensor(&self.logits_indices, &shape)?));
        }
        if edits.sequence_lengths {
            fed[7] = Some((SEQLENS_K, stage.tensor(&self.seqlens_k, &[num_rows])?));
            fed[8] = Some((TOTAL_SEQUENCE_LENGTH, stage.on_host(&self.total_sequence_length, &[])?));
        }
        if has_top_scores {
            let shape = [signed(self.inverse_temperatures.len()), 1];
            fed[9] = Some((INVERSE_TEMPERATURES, stage.tensor(&self.inverse_temperatures, &shape)?));
        }
        Ok(fed)
    }
}

/// A tensor of integers in the graph's own format.
pub(super) fn integers<'d>(
    stage: &mut Stage<'_, 'd>,
    wide: &'d [i64],
    shape: &[i64],
    (int_type, narrow): (IntType, &'d mut Vec<i32>),
) -> ort::Result<Tensor<'d>> {
    match int_type {
        IntType::I64 => stage.tensor(wide, shape),
        IntType::I32 => {
            narrow.clear();
            narrow.extend(wide.iter().copied().map(narrowed));
            stage.tensor(narrow, shape)
        }
    }
}

fn narrowed(number: i64) -> i32 {
    i32::try_from(number).expect("tokens and positions are below 2^31")
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
            inputs.push(
                &InputRow { index: 4, new_tokens: &new_tokens, start: 2, num_logits: 2, wanted: Wanted::All },
                0..5,
            );
            inputs.push_idle();
            let new_tokens = tokens(&[5]);
            inputs.push(
                &InputRow { index: 1, new_tokens: &new_tokens, start: 3, num_logits: 1, wanted: Wanted::All },
                1..5,
            );
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
        inputs.push(
            &InputRow { index: 0, new_tokens: &tokens(&[7, 8]), start: 0, num_logits: 0, wanted: Wanted::All },
            0..2,
        );
        assert_eq!(inputs.num_scored_places(), 1);
    }
}
