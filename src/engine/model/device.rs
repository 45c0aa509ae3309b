//! What a graph on a device is fed through and answers through, so that little crosses the bus and nothing waits for it
//! more often than once in a step.

use super::{
    FloatType, GraphEdits, Logits, ModelSpec, NUM_TOP_SCORES, ProviderConfig, Wanted,
    capture::{Captures, Recurring},
    ffi::{Buffer, Piece, Run, Stream, Tensor, Transfers},
    graph::signed,
    inputs::{Inputs, Stage},
    top_scores,
};
use crate::engine::{Batch, Copied, ElementType, TokenId};
use half::{bf16, f16};
use ort::session::{IoBinding, Session};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Inputs and scores of a step, on the device. Made before the first run.
pub(super) struct Device {
    transfers: Transfers,
    provider: ProviderConfig,
    stream: Option<Arc<Stream>>,
    /// Of one run, as they will lie on the device.
    staged: Vec<u8>,
    inputs: Buffer,
    /// `[rows, vocab_size]`, of all runs of a step.
    scores: Buffer,
    /// The same rows' best.
    top: Option<Top>,
    /// Rows of scores that the step has computed so far.
    num_rows: usize,
    /// Those that are wanted: of which row of the batch, and where they lie.
    wanted: Vec<(usize, usize)>,
    vocab_size: usize,
    logits_type: FloatType,
    captures: Captures,
    pub(super) time_in_runs: Duration,
}

/// What [`top_scores`] adds to the graph.
struct Top {
    values: Buffer,
    tokens: Buffer,
    totals: Buffer,
    width: usize,
}

/// Bytes of inputs that there is room for at first.
const FIRST_INPUT_BYTES: usize = 1 << 16;

/// A graph, and what it is run with.
pub(super) struct Opened<'g> {
    pub(super) session: &'g mut Session,
    pub(super) binding: &'g mut IoBinding,
    pub(super) spec: &'g ModelSpec,
    pub(super) edits: GraphEdits,
}

impl Device {
    /// With room for so many rows of scores.
    pub(super) fn new(
        session: &Session,
        provider: ProviderConfig,
        stream: Option<Arc<Stream>>,
        spec: &ModelSpec,
        (num_rows, has_top): (usize, bool),
    ) -> ort::Result<Self> {
        let allocate = |num_bytes| Buffer::allocate(provider.allocator(session)?, num_bytes, stream.clone());
        let width = NUM_TOP_SCORES.min(spec.vocab_size);
        let top =
            || Ok::<_, ort::Error>(Top { values: allocate(1)?, tokens: allocate(1)?, totals: allocate(1)?, width });
        let mut device = Self {
            transfers: Transfers::new(stream.as_ref())?,
            staged: Vec::new(),
            inputs: allocate(FIRST_INPUT_BYTES)?,
            scores: allocate(1)?,
            top: if has_top { Some(top()?) } else { None },
            num_rows: 0,
            wanted: Vec::new(),
            vocab_size: spec.vocab_size,
            logits_type: spec.logits_type,
            captures: Captures::new()?,
            time_in_runs: Duration::ZERO,
            provider,
            stream,
        };
        device.begin(session, num_rows)?;
        Ok(device)
    }

    pub(super) fn copied(&self) -> Copied {
        self.transfers.copied
    }

    fn allocate(&self, session: &Session, num_bytes: usize) -> ort::Result<Buffer> {
        Buffer::allocate(self.provider.allocator(session)?, num_bytes, self.stream.clone())
    }

    fn row_bytes(&self) -> usize {
        self.vocab_size * ElementType::Float(self.logits_type).num_bytes()
    }

    /// Starts a step that computes at most so many rows of scores.
    pub(super) fn begin(&mut self, session: &Session, num_rows: usize) -> ort::Result<()> {
        self.num_rows = 0;
        self.wanted.clear();
        if self.scores.num_bytes() < num_rows * self.row_bytes() {
            self.captures.forget();
            self.scores = self.allocate(session, num_rows * self.row_bytes())?;
            if let Some(width) = self.top.as_ref().map(|top| top.width) {
                let num_bytes = num_rows * width * size_of::<f32>();
                self.top = Some(Top {
                    values: self.allocate(session, num_bytes)?,
                    tokens: self.allocate(session, num_bytes)?,
                    totals: self.allocate(session, num_rows * size_of::<f32>())?,
                    width,
                });
            }
        }
        Ok(())
    }

    /// Computes the rows that `inputs` holds. Returns the outputs that the runtime allocated.
    pub(super) fn run<K: ?Sized>(
        &mut self,
        graph: Opened<'_>,
        inputs: &mut Inputs,
        recurring: Option<Recurring>,
        cache: &K,
        bind_cache: impl for<'d> FnOnce(&'d K, &mut Run<'_, 'd>) -> ort::Result<()>,
    ) -> ort::Result<Vec<Tensor<'static>>> {
        let Opened { session, binding, spec, edits } = graph;
        if edits.logits_indices {
            inputs.score_something();
        }
        let shape = inputs.scored_shape(spec, edits);
        let num_bytes = inputs.num_bytes(spec, edits);
        if self.inputs.num_bytes() < num_bytes {
            self.captures.forget();
            self.inputs = self.allocate(session, num_bytes.next_power_of_two())?;
        }
        let row_bytes = self.row_bytes();
        let Self { transfers, staged, inputs: place, scores, top, num_rows, wanted, captures, time_in_runs, .. } = self;
        wanted.extend(inputs.scored_places(spec, edits).map(|(row, place)| (row, *num_rows + place)));
        staged.clear();
        let mut stage = Stage::Device { staged, buffer: place };
        let fed = inputs.feed(&mut stage, spec, edits)?;
        let began = Instant::now();
        transfers.upload(staged, place)?;
        let num_computed = shape.iter().product::<usize>();
        let mut dimensions: Vec<i64> = shape.iter().copied().map(signed).collect();
        dimensions.push(signed(self.vocab_size));
        let logits_type = ElementType::Float(self.logits_type);
        let scores = Tensor::from_buffer(scores, *num_rows * row_bytes, &dimensions, logits_type)?;
        let mut run = Run::new(session, binding);
        for (name, tensor) in fed.iter().flatten() {
            run.bind_input(name, tensor)?;
        }
        run.bind_output(c"logits", &scores)?;
        if let Some(Top { values, tokens, totals, width }) = top {
            let pairs = [signed(num_computed), signed(*width)];
            let first_pair = *num_rows * *width * size_of::<f32>();
            run.bind_output(top_scores::VALUES, &Tensor::over_buffer::<f32>(values, first_pair, &pairs)?)?;
            run.bind_output(top_scores::TOKENS, &Tensor::over_buffer::<i32>(tokens, first_pair, &pairs)?)?;
            let first_total = *num_rows * size_of::<f32>();
            let column = [signed(num_computed), 1];
            run.bind_output(top_scores::TOTALS, &Tensor::over_buffer::<f32>(totals, first_total, &column)?)?;
        }
        bind_cache(cache, &mut run)?;
        // What is captured finds and leaves everything where it was the first time.
        let recurring = recurring.filter(|_| *num_rows == 0);
        let outputs = run.execute(Some(captures.options(recurring)?))?;
        *num_rows += num_computed;
        *time_in_runs += began.elapsed();
        Ok(outputs)
    }

    /// Ends a step: brings what its rows want to the host. Without any, nothing is waited for.
    pub(super) fn finish(&mut self, batch: &Batch, logits: &mut Logits) -> ort::Result<()> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let is_best = |row: usize| self.top.is_some() && batch.rows()[row].wanted != Wanted::All;
        let (best, all): (Vec<_>, Vec<_>) = self.wanted.iter().copied().partition(|(row, _)| is_best(*row));
        let mut pieces = Vec::new();
        if let (Some(top), false) = (&self.top, best.is_empty()) {
            // Those of all rows: they are less than what single copies would cost.
            let pairs = 0..self.num_rows * top.width * size_of::<f32>();
            pieces.push(Piece { buffer: &top.values, bytes: pairs.clone() });
            pieces.push(Piece { buffer: &top.tokens, bytes: pairs });
            pieces.push(Piece { buffer: &top.totals, bytes: 0..self.num_rows * size_of::<f32>() });
        }
        let num_best_bytes = pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
        let row_bytes = self.row_bytes();
        pieces.extend(all.iter().map(|(_, place)| row(&self.scores, *place, row_bytes)));
        let began = Instant::now();
        let bytes = self.transfers.download(pieces.into_iter())?;
        self.time_in_runs += began.elapsed();
        let (best_bytes, all_bytes) = bytes.split_at(num_best_bytes);
        write_all(&all, all_bytes, self.logits_type, logits);
        if let (Some(top), false) = (&self.top, best.is_empty()) {
            let (values, rest) = best_bytes.split_at(self.num_rows * top.width * size_of::<f32>());
            let (tokens, totals) = rest.split_at(values.len());
            for (row, place) in best {
                let pairs = (place * top.width..(place + 1) * top.width)
                    .map(|at| (f32::from_bits(word(values, at)), TokenId(word(tokens, at))));
                logits.push_top(row, pairs, f32::from_bits(word(totals, place)));
            }
        }
        Ok(())
    }

    /// Brings all scores of these rows of the batch to the host.
    pub(super) fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> ort::Result<()> {
        let rows: Vec<_> = self.wanted.iter().copied().filter(|(row, _)| batch_rows.contains(row)).collect();
        let row_bytes = self.row_bytes();
        let bytes = self.transfers.download(rows.iter().map(|(_, place)| row(&self.scores, *place, row_bytes)))?;
        write_all(&rows, bytes, self.logits_type, logits);
        Ok(())
    }
}

fn row(scores: &Buffer, place: usize, row_bytes: usize) -> Piece<'_> {
    Piece { buffer: scores, bytes: place * row_bytes..(place + 1) * row_bytes }
}

/// The 32 bits of one number.
fn word(bytes: &[u8], at: usize) -> u32 {
    let (words, _) = bytes.as_chunks();
    u32::from_ne_bytes(words[at])
}

/// Adds rows of scores, which lie one behind the other.
fn write_all(rows: &[(usize, usize)], bytes: &[u8], logits_type: FloatType, logits: &mut Logits) {
    let batch_rows: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
    let scores = logits.extend(&batch_rows);
    let (halves, _) = bytes.as_chunks();
    match logits_type {
        FloatType::F32 => {
            let (words, _) = bytes.as_chunks();
            scores.iter_mut().zip(words).for_each(|(score, word)| *score = f32::from_ne_bytes(*word));
        }
        FloatType::F16 => {
            scores.iter_mut().zip(halves).for_each(|(score, half)| *score = f16::from_ne_bytes(*half).to_f32());
        }
        FloatType::BF16 => {
            scores.iter_mut().zip(halves).for_each(|(score, half)| *score = bf16::from_ne_bytes(*half).to_f32());
        }
    }
}
