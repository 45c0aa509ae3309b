//! Graphs with `PagedAttention`: keys and values lie in blocks that rows share, and all rows of a step are packed into one
//! run, whatever their lengths.

use super::{
    BlockLimits, CacheKind, ElementType, LoadError, Logits, Model, ModelError, ModelLimits, ModelSpec, Wanted,
    capture::{Recurring, not_capturing},
    device::Feed,
    error::words,
    ffi::{Buffer, Run, Tensor},
    graph::{Graph, c_name, index, signed},
    inputs::{Fed, MAX_INPUTS, Stage, integers},
    top_scores::INVERSE_TEMPERATURES,
};
use crate::engine::{Batch, Copied, EngineConfig};
use std::{ffi::CString, time::Duration};

/// One pool of blocks per tensor of the cache, bound as past and as present. A block has the same number in all of them.
pub(super) struct PagedModel {
    /// Before the graph, since fields drop in order and an allocator must not outlive its session.
    cache: Vec<Pool>,
    graph: Graph,
    inputs: PackedInputs,
    blocks: BlockLimits,
}

/// `[num_blocks, block_tokens, …]`
struct Pool {
    past: CString,
    present: CString,
    buffer: Buffer,
    shape: Vec<i64>,
    element_type: ElementType,
}

impl PagedModel {
    /// With as many blocks as `engine.memory_share` of the device's free memory holds, and no more than all slots can need.
    pub(super) fn new(graph: Graph, config: &EngineConfig) -> Result<Self, LoadError> {
        let (spec, context_tokens) = (graph.spec(), graph.limits().context_tokens);
        let block_tokens = spec.block_tokens().expect("the family was told by its blocks");
        let block_bytes = spec.cache_bytes_per_token().saturating_mul(block_tokens);
        let per_context = context_tokens.div_ceil(block_tokens);
        let failed = |num_bytes| move |error: ort::Error| LoadError::KvCache { num_bytes, message: words(&error) };
        let wanted = per_context.saturating_mul(config.max_batch_size.get() as usize);
        let share = graph.memory().num_free_bytes().map_err(failed(0))?.map(|free| share_of(free, config.memory_share));
        let num_blocks = share.map_or(wanted, |share| wanted.min(share / block_bytes.max(1)));
        if let Some(share) = share.filter(|_| num_blocks < per_context) {
            let num_bytes = per_context.saturating_mul(block_bytes);
            return Err(LoadError::Blocks { context_tokens, num_bytes, share });
        }
        let mut cache = Vec::with_capacity(spec.cache.len());
        for tensor in &spec.cache {
            let CacheKind::Blocks { sizes } = &tensor.kind else { unreachable!("the family was told by its blocks") };
            let num_bytes = num_blocks * block_tokens * tensor.bytes_per_token();
            let shape = [num_blocks, block_tokens].iter().chain(sizes).copied().map(signed).collect();
            cache.push(Pool {
                past: c_name(&tensor.past),
                present: c_name(&tensor.present),
                buffer: graph.allocate(num_bytes).map_err(failed(num_blocks * block_bytes))?,
                shape,
                element_type: tensor.element_type,
            });
        }
        let blocks = BlockLimits { num_blocks, block_tokens };
        tracing::info!(
            num_blocks,
            block_tokens,
            bytes = num_blocks * block_bytes,
            "allocated blocks for keys and values"
        );
        let inputs = PackedInputs { blocks_per_row: per_context, block_tokens, ..PackedInputs::default() };
        Ok(Self { cache, graph, inputs, blocks })
    }
}

/// A part of a number of bytes, as exactly as a float tells.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "bytes of a device's memory, of which a share between 0 and 1 is taken"
)]
fn share_of(num_bytes: usize, share: f32) -> usize {
    (num_bytes as f64 * f64::from(share)) as usize
}

fn bind_cache<'d>(cache: &'d [Pool], run: &mut Run<'_, 'd>) -> ort::Result<()> {
    for pool in cache {
        let view = Tensor::from_buffer(&pool.buffer, 0, &pool.shape, pool.element_type)?;
        run.bind_input(&pool.past, &view)?;
        run.bind_output(&pool.present, &view)?;
    }
    Ok(())
}

impl Model for PagedModel {
    fn limits(&self) -> ModelLimits {
        let limits = self.graph.limits();
        ModelLimits {
            rewindable_tokens: limits.context_tokens,
            can_verify_drafts: !self.graph.spec().has_last_logits_only,
            can_move_slots: false,
            blocks: Some(self.blocks),
            ..limits
        }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let recurring = self.inputs.fill(batch).filter(|_| self.graph.can_capture());
        self.inputs.prepare(self.graph.spec());
        self.graph.begin(self.inputs.num_computed(self.graph.spec()))?;
        self.graph.run_packed(&mut self.inputs, recurring, self.cache.as_slice(), bind_cache)?;
        self.graph.finish(batch, logits)
    }

    fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        self.graph.complete(batch_rows, logits)
    }

    fn time_in_runs(&self) -> Duration {
        self.graph.time_in_runs()
    }

    fn copied(&self) -> Copied {
        self.graph.copied()
    }

    fn wipe(&mut self, _slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        let _asking = not_capturing();
        for Pool { buffer, .. } in &mut self.cache {
            let block_bytes = buffer.num_bytes() / self.blocks.num_blocks;
            blocks.iter().try_for_each(|block| buffer.zero(*block as usize * block_bytes, block_bytes))?;
        }
        Ok(())
    }
}

/// The inputs of one run: rows one behind the other, without padding.
#[derive(Debug, Default)]
struct PackedInputs {
    /// `[tokens]`
    token_ids: Vec<i64>,
    narrow_token_ids: Vec<i32>,
    /// `[rows + 1]`, where each row's tokens begin, and where the last one's end.
    cumulative_sequence_lengths: Vec<i32>,
    /// `[rows]`
    past_sequence_lengths: Vec<i32>,
    /// `[rows, blocks_per_row]`
    block_table: Vec<i32>,
    blocks_per_row: usize,
    block_tokens: usize,
    /// The most new tokens of a row, the most tokens that a row has with them, and at least how many the longest has: by
    /// these the operator chooses its kernels.
    attention_metadata: [i32; 3],
    /// `[scored]`
    logits_indices: Vec<i32>,
    /// For each of them, the batch's row.
    scored_rows: Vec<usize>,
    inverse_temperatures: Vec<f32>,
    /// The same for all rows of scores, where the graph does not ask which are wanted.
    all_temperatures: Vec<f32>,
}

/// Stands in the table where a row has no block.
const NO_BLOCK: i32 = -1;
/// Tokens that rows are said to have at least while all of them decode. Their number is rounded up to powers of two, so
/// that steps recur.
const MIN_TOKENS: usize = 256;

impl PackedInputs {
    /// Returns what a run that decodes has in common with others.
    fn fill(&mut self, batch: &Batch) -> Option<Recurring> {
        self.token_ids.clear();
        self.cumulative_sequence_lengths.clear();
        self.past_sequence_lengths.clear();
        self.block_table.clear();
        self.logits_indices.clear();
        self.scored_rows.clear();
        self.inverse_temperatures.clear();
        self.cumulative_sequence_lengths.push(0);
        let (mut most_new, mut longest) = (0, 0);
        for (number, row) in batch.rows().iter().enumerate() {
            self.token_ids.extend(batch.new_tokens(row).iter().map(|token| i64::from(token.0)));
            let end = self.token_ids.len();
            self.cumulative_sequence_lengths.push(small(end));
            self.past_sequence_lengths.push(small(row.start));
            let blocks = &batch.blocks(row)[..row.end().div_ceil(self.block_tokens)];
            self.block_table.extend(blocks.iter().map(|block| small(*block as usize)));
            self.block_table.resize((1 + number) * self.blocks_per_row, NO_BLOCK);
            let inverse = match row.wanted {
                Wanted::All => 1.0,
                Wanted::Top { temperature } => temperature.recip(),
            };
            for place in end - row.num_logits..end {
                self.logits_indices.push(small(place));
                self.scored_rows.push(number);
                self.inverse_temperatures.push(inverse);
            }
            (most_new, longest) = (row.num_tokens().max(most_new), row.end().max(longest));
        }
        let num_rows = batch.rows().len();
        let recurs = most_new == 1 && self.logits_indices.len() == num_rows;
        let mut at_least = longest;
        if recurs {
            let most = self.blocks_per_row * self.block_tokens;
            longest = longest.next_power_of_two().clamp(MIN_TOKENS.min(most), most);
            // Fewer would have been rounded to less.
            at_least = if longest <= MIN_TOKENS { 1 } else { longest.next_power_of_two() / 2 + 1 };
        }
        self.attention_metadata = [most_new, longest, at_least].map(small);
        recurs.then_some(Recurring { first_slot: 0, num_rows, max_columns: longest })
    }

    /// Rows of scores that the graph computes.
    fn num_computed(&self, spec: &ModelSpec) -> usize {
        match () {
            () if spec.has_logits_indices => self.logits_indices.len(),
            () if spec.has_last_logits_only => self.past_sequence_lengths.len(),
            () => self.token_ids.len(),
        }
    }

    /// Of each row of scores that is wanted, its place among these.
    fn places(&self, spec: &ModelSpec) -> impl Iterator<Item = usize> {
        self.logits_indices.iter().zip(&self.scored_rows).enumerate().map(|(number, (place, row))| match () {
            () if spec.has_logits_indices => number,
            () if spec.has_last_logits_only => *row,
            () => index(i64::from(*place)),
        })
    }
}

/// Positions and counts fit into 32 bits, as the operator wants them.
fn small(number: usize) -> i32 {
    i32::try_from(number).expect("contexts, blocks and steps are smaller than 2^31")
}

impl Feed for PackedInputs {
    fn prepare(&mut self, spec: &ModelSpec) {
        if spec.has_logits_indices && self.logits_indices.is_empty() {
            self.logits_indices.push(0);
            self.inverse_temperatures.push(1.0);
        }
    }

    fn scored_shape(&self, spec: &ModelSpec) -> Vec<usize> {
        vec![self.num_computed(spec)]
    }

    fn scored_places(&self, spec: &ModelSpec) -> impl Iterator<Item = (usize, usize)> {
        self.scored_rows.iter().copied().zip(self.places(spec))
    }

    fn num_bytes(&self, _spec: &ModelSpec) -> usize {
        let num_narrow = self.cumulative_sequence_lengths.len()
            + self.past_sequence_lengths.len()
            + self.block_table.len()
            + self.logits_indices.len();
        let num_scored = self.token_ids.len().max(self.logits_indices.len());
        (2 * self.token_ids.len() + num_narrow + num_scored) * size_of::<i32>()
    }

    fn feed<'d>(
        &'d mut self,
        stage: &mut Stage<'_, 'd>,
        spec: &ModelSpec,
        has_top_scores: bool,
    ) -> ort::Result<[Option<Fed<'d>>; MAX_INPUTS]> {
        let num_rows = signed(self.past_sequence_lengths.len());
        if !spec.has_logits_indices {
            let mut all = std::mem::take(&mut self.all_temperatures);
            all.clear();
            all.resize(self.num_computed(spec), 1.0);
            self.places(spec).zip(&self.inverse_temperatures).for_each(|(place, inverse)| all[place] = *inverse);
            self.all_temperatures = all;
        }
        let mut fed = [const { None }; MAX_INPUTS];
        let num_tokens = [signed(self.token_ids.len())];
        let int_type = (spec.ids_type, &mut self.narrow_token_ids);
        fed[0] = Some((c"input_ids", integers(stage, &self.token_ids, &num_tokens, int_type)?));
        let lengths = stage.tensor(&self.cumulative_sequence_lengths, &[num_rows + 1])?;
        fed[1] = Some((c"cumulative_sequence_lengths", lengths));
        fed[2] = Some((c"past_sequence_lengths", stage.tensor(&self.past_sequence_lengths, &[num_rows])?));
        let shape = [num_rows, signed(self.blocks_per_row)];
        fed[3] = Some((c"block_table", stage.tensor(&self.block_table, &shape)?));
        if spec.has_attention_metadata {
            fed[4] = Some((c"attention_metadata", stage.on_host(&self.attention_metadata, &[3])?));
        }
        if spec.has_logits_indices {
            let shape = [signed(self.logits_indices.len())];
            fed[5] = Some((c"logits_indices", stage.tensor(&self.logits_indices, &shape)?));
        }
        if has_top_scores {
            let of_scored = spec.has_logits_indices;
            let inverse = if of_scored { &self.inverse_temperatures } else { &self.all_temperatures };
            fed[6] = Some((INVERSE_TEMPERATURES, stage.tensor(inverse, &[signed(inverse.len()), 1])?));
        }
        Ok(fed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FloatType, GraphFamily, IntType};
    use super::*;
    use crate::engine::TokenId;
    use std::collections::BTreeMap;

    #[test]
    fn rows_are_packed_one_behind_the_other_and_told_their_blocks() {
        let mut inputs = PackedInputs { blocks_per_row: 3, block_tokens: 4, ..PackedInputs::default() };
        let mut batch = Batch::default();
        for _ in 0..2 {
            batch.clear();
            batch.push(7, 5, &[TokenId(1)], Some(&[]));
            batch.set_blocks(&[8, 3, 2]);
            batch.want(Wanted::Top { temperature: 0.5 });
            batch.push(2, 0, &[TokenId(4), TokenId(5), TokenId(6)], None);
            batch.set_blocks(&[9]);
            batch.push(3, 2, &[TokenId(7)], Some(&[TokenId(8)]));
            batch.set_blocks(&[1]);
            assert_eq!(inputs.fill(&batch), None);
            assert_eq!(inputs.token_ids, [1, 4, 5, 6, 7, 8]);
            assert_eq!(inputs.cumulative_sequence_lengths, [0, 1, 4, 6]);
            assert_eq!(inputs.past_sequence_lengths, [5, 0, 2]);
            // A block that the row does not reach yet is not told.
            assert_eq!(inputs.block_table, [8, 3, -1, 9, -1, -1, 1, -1, -1]);
            assert_eq!(inputs.attention_metadata, [3, 6, 6]);
            assert_eq!((&inputs.logits_indices[..], &inputs.scored_rows[..]), (&[0, 4, 5][..], &[0, 2, 2][..]));
            assert_eq!(inputs.inverse_temperatures, [2.0, 1.0, 1.0]);
        }
        // Rows that all decode recur, and are told lengths that do not change with each step.
        batch.clear();
        batch.push(0, 5, &[TokenId(1)], Some(&[]));
        batch.set_blocks(&[8, 3]);
        assert_eq!(inputs.fill(&batch), Some(Recurring { first_slot: 0, num_rows: 1, max_columns: 12 }));
        assert_eq!(inputs.attention_metadata, [1, 12, 1]);
    }
    #[test]
    fn what_recurs_is_told_the_same_whenever_it_does_and_it_is_true() {
        for (blocks_per_row, block_tokens) in [(10, 64), (16, 64), (3, 64), (2, 256)] {
            let mut inputs = PackedInputs { blocks_per_row, block_tokens, ..PackedInputs::default() };
            let (mut batch, mut told) = (Batch::default(), BTreeMap::new());
            let blocks: Vec<u32> = (0..).take(blocks_per_row).collect();
            for len in 1..=blocks_per_row * block_tokens {
                batch.clear();
                batch.push(0, len - 1, &[TokenId(1)], Some(&[]));
                batch.set_blocks(&blocks);
                let Recurring { max_columns, .. } = inputs.fill(&batch).unwrap();
                let [most_new, at_most, at_least] = inputs.attention_metadata.map(i64::from).map(index);
                assert!(most_new == 1 && at_least <= len && len <= at_most, "{len}: {:?}", inputs.attention_metadata);
                assert_eq!(*told.entry(max_columns).or_insert(inputs.attention_metadata), inputs.attention_metadata);
                assert!(len <= 256 || len <= 2 * at_least, "{len} tokens are said to be {at_least} at least");
            }
        }
    }

    fn spec(has_logits_indices: bool, has_last_logits_only: bool) -> ModelSpec {
        ModelSpec {
            path: "/nowhere/model.onnx".into(),
            family: GraphFamily::Paged,
            cache: Vec::new(),
            num_layers: 1,
            ids_type: IntType::I64,
            mask_type: None,
            num_short_tokens: None,
            own_block_tokens: None,
            position_ids: None,
            num_logits: None,
            has_cache_branch: false,
            logits_type: FloatType::F16,
            has_logits_indices,
            has_attention_metadata: true,
            has_last_logits_only,
            vocab_size: 100,
            context_tokens: 4096,
        }
    }

    /// Rows of scores that a run computes, and where of which row of the batch are those that are wanted.
    #[test]
    fn scores_are_found_whichever_tokens_the_graph_scores() {
        let mut inputs = PackedInputs { blocks_per_row: 1, block_tokens: 4, ..PackedInputs::default() };
        let scored = |inputs: &mut PackedInputs, tokens: &[(usize, bool)], spec: &ModelSpec| {
            let mut batch = Batch::default();
            for (slot_index, (num_tokens, is_scored)) in tokens.iter().enumerate() {
                batch.push(slot_index, 0, &vec![TokenId(1); *num_tokens], is_scored.then_some(&[]));
                batch.set_blocks(&[0]);
            }
            inputs.fill(&batch);
            inputs.prepare(spec);
            (inputs.scored_shape(spec), inputs.scored_places(spec).collect::<Vec<_>>())
        };
        let rows = [(2, true), (3, false), (1, true)];
        let [told, all, last] = [(true, false), (false, false), (false, true)].map(|(told, last)| spec(told, last));
        assert_eq!(scored(&mut inputs, &rows, &told), (vec![2], vec![(0, 0), (2, 1)]));
        assert_eq!(scored(&mut inputs, &rows, &all), (vec![6], vec![(0, 1), (2, 5)]));
        assert_eq!(scored(&mut inputs, &rows, &last), (vec![3], vec![(0, 0), (2, 2)]));
        // Something is scored also where nothing is wanted.
        assert_eq!(scored(&mut inputs, &[(3, false)], &told), (vec![1], vec![]));
        assert_eq!(scored(&mut inputs, &[(3, false)], &last), (vec![1], vec![]));
    }
}
