//! What a graph on a device is fed through and answers through, so that little crosses the bus and nothing waits for it
//! more often than once in a step.

use super::{
    FloatType, Logits, ModelSpec, NUM_TOP_SCORES, Wanted,
    capture::{Captures, Recurring, let_capture, not_capturing},
    ffi::{Buffer, Memory, Piece, Run, Tensor, Transfers},
    graph::signed,
    inputs::{ALIGNMENT, Fed, MAX_INPUTS, Stage},
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
    memory: Arc<Memory>,
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

/// What [`top_scores`] adds to the graph: of each run of a step the values, the tokens and the totals of its rows.
struct Top {
    buffer: Buffer,
    width: usize,
    /// Where each run's rows begin, how many they are, and where in the buffer they lie.
    runs: Vec<TopRun>,
}

#[derive(Clone, Copy)]
struct TopRun {
    first_row: usize,
    num_rows: usize,
    first_byte: usize,
}

impl TopRun {
    /// Where the tokens begin, the totals, and what comes behind: numbers that take eight bytes before those that take four.
    fn places(self, width: usize) -> [usize; 4] {
        let pairs = self.num_rows * width;
        let tokens = self.first_byte;
        let values = tokens + pairs * size_of::<i64>();
        let totals = values + pairs * size_of::<f32>();
        [tokens, values, totals, totals + self.num_rows * size_of::<f32>()]
    }
}

impl Top {
    /// Where the rows of the step's next run lie.
    fn next_run(&self, first_row: usize, num_rows: usize) -> TopRun {
        let behind = self.runs.last().map_or(0, |run| run.places(self.width)[3].next_multiple_of(ALIGNMENT));
        TopRun { first_row, num_rows, first_byte: behind }
    }

    /// Bytes that so many rows take, in runs of any number of them.
    fn num_bytes(num_rows: usize, width: usize) -> usize {
        let row = TopRun { first_row: 0, num_rows: 1, first_byte: 0 }.places(width)[3];
        num_rows * row.next_multiple_of(ALIGNMENT)
    }
}

/// Inputs of a run as a family has them.
pub(super) trait Feed {
    /// Lets the graph score something where nothing is wanted: operators on a device do not take empty tensors.
    fn prepare(&mut self, spec: &ModelSpec);

    /// Dimensions of the scores that the graph computes, the vocabulary aside.
    fn scored_shape(&self, spec: &ModelSpec) -> Vec<usize>;

    /// Of each row of scores that is wanted, the batch's row and its place among those that the graph computes.
    fn scored_places(&self, spec: &ModelSpec) -> impl Iterator<Item = (usize, usize)>;

    /// At least as many bytes as [`feed`](Self::feed) stages, what lies between inputs aside.
    fn num_bytes(&self, spec: &ModelSpec) -> usize;

    /// What the graph takes beside its cache.
    fn feed<'d>(
        &'d mut self,
        stage: &mut Stage<'_, 'd>,
        spec: &ModelSpec,
        has_top_scores: bool,
    ) -> ort::Result<[Option<Fed<'d>>; MAX_INPUTS]>;
}

/// Bytes of inputs that there is room for at first.
const FIRST_INPUT_BYTES: usize = 1 << 16;

/// A graph, and what it is run with.
pub(super) struct Opened<'g> {
    pub(super) session: &'g mut Session,
    pub(super) binding: &'g mut IoBinding,
    pub(super) spec: &'g ModelSpec,
    /// What the run has in common with others.
    pub(super) recurring: Option<Recurring>,
}

impl Device {
    /// With room for so many rows of scores, on a provider that captures runs or does not.
    pub(super) fn new(
        memory: &Arc<Memory>,
        captures: bool,
        spec: &ModelSpec,
        (num_rows, has_top): (usize, bool),
    ) -> ort::Result<Self> {
        let width = NUM_TOP_SCORES.min(spec.vocab_size);
        let top = || Ok::<_, ort::Error>(Top { buffer: Buffer::allocate(memory, 1)?, width, runs: Vec::new() });
        let mut device = Self {
            transfers: Transfers::new(memory)?,
            memory: Arc::clone(memory),
            staged: Vec::new(),
            inputs: Buffer::allocate(memory, FIRST_INPUT_BYTES)?,
            scores: Buffer::allocate(memory, 1)?,
            top: if has_top { Some(top()?) } else { None },
            num_rows: 0,
            wanted: Vec::new(),
            vocab_size: spec.vocab_size,
            logits_type: spec.logits_type,
            captures: Captures::new(captures)?,
            time_in_runs: Duration::ZERO,
        };
        device.begin(num_rows)?;
        Ok(device)
    }

    pub(super) fn copied(&self) -> Copied {
        self.transfers.copied
    }

    fn row_bytes(&self) -> usize {
        self.vocab_size * ElementType::Float(self.logits_type).num_bytes()
    }

    /// Starts a step that computes at most so many rows of scores.
    pub(super) fn begin(&mut self, num_rows: usize) -> ort::Result<()> {
        let_capture();
        let _asking = not_capturing();
        self.num_rows = 0;
        self.wanted.clear();
        if self.scores.num_bytes() < num_rows * self.row_bytes() {
            // Both or none: where memory runs out, the next step asks again.
            let scores = Buffer::allocate(&self.memory, num_rows * self.row_bytes())?;
            let of_best = |top: &Top| Buffer::allocate(&self.memory, Top::num_bytes(num_rows, top.width));
            let of_best = self.top.as_ref().map(of_best).transpose()?;
            self.captures.forget();
            self.scores = scores;
            if let (Some(top), Some(buffer)) = (&mut self.top, of_best) {
                top.buffer = buffer;
            }
        }
        self.top.iter_mut().for_each(|top| top.runs.clear());
        Ok(())
    }

    /// Computes the rows that `inputs` holds. Returns the outputs that the runtime allocated.
    pub(super) fn run<K: ?Sized>(
        &mut self,
        graph: Opened<'_>,
        inputs: &mut impl Feed,
        cache: &K,
        bind_cache: impl for<'d> FnOnce(&'d K, &mut Run<'_, 'd>) -> ort::Result<()>,
    ) -> ort::Result<Vec<Tensor<'static>>> {
        let asking = not_capturing();
        let Opened { session, binding, spec, recurring } = graph;
        inputs.prepare(spec);
        let shape = inputs.scored_shape(spec);
        let num_bytes = inputs.num_bytes(spec) + MAX_INPUTS * ALIGNMENT;
        if self.inputs.num_bytes() < num_bytes {
            self.captures.forget();
            self.inputs = Buffer::allocate(&self.memory, num_bytes.next_power_of_two())?;
        }
        let row_bytes = self.row_bytes();
        let Self { transfers, staged, inputs: place, scores, top, num_rows, wanted, captures, time_in_runs, .. } = self;
        wanted.extend(inputs.scored_places(spec).map(|(row, place)| (row, *num_rows + place)));
        staged.clear();
        let mut stage = Stage::Device { staged, buffer: place };
        let fed = inputs.feed(&mut stage, spec, top.is_some())?;
        let began = Instant::now();
        transfers.upload(staged, place)?;
        let num_computed = shape.iter().product::<usize>();
        let mut dimensions: Vec<i64> = shape.iter().copied().map(signed).collect();
        dimensions.push(signed(self.vocab_size));
        let logits_type = ElementType::Float(self.logits_type);
        let scores = Tensor::from_buffer(scores, *num_rows * row_bytes, &dimensions, logits_type)?;
        let of_run = top.as_ref().map(|top| top.next_run(*num_rows, num_computed));
        // What is captured finds and leaves everything where it was the first time.
        let recurring = recurring.filter(|_| *num_rows == 0);
        let mut run = Run::new(session, binding);
        for (name, tensor) in fed.iter().flatten() {
            run.bind_input(name, tensor)?;
        }
        run.bind_output(c"logits", &scores)?;
        if let (Some(Top { buffer, width, .. }), Some(of_run)) = (top.as_ref(), of_run) {
            let [tokens, values, totals, _] = of_run.places(*width);
            let (pairs, column) = ([signed(num_computed), signed(*width)], [signed(num_computed), 1]);
            run.bind_output(top_scores::TOKENS, &Tensor::over_buffer::<i64>(buffer, tokens, &pairs)?)?;
            run.bind_output(top_scores::VALUES, &Tensor::over_buffer::<f32>(buffer, values, &pairs)?)?;
            run.bind_output(top_scores::TOTALS, &Tensor::over_buffer::<f32>(buffer, totals, &column)?)?;
        }
        bind_cache(cache, &mut run)?;
        drop(asking);
        let (mut waiting, asked) = (None, Instant::now());
        let outputs = captures.run(recurring, |options| {
            waiting.get_or_insert_with(|| asked.elapsed());
            run.execute(Some(options))
        })?;
        drop(run);
        if let (Some(top), Some(of_run)) = (top, of_run) {
            top.runs.push(of_run);
        }
        *num_rows += num_computed;
        *time_in_runs += began.elapsed() - waiting.unwrap_or_default();
        Ok(outputs)
    }

    /// Ends a step: brings what its rows want to the host. Without any, nothing is waited for.
    pub(super) fn finish(&mut self, batch: &Batch, logits: &mut Logits) -> ort::Result<()> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let _asking = not_capturing();
        let is_best = |row: usize| self.top.is_some() && batch.rows()[row].wanted != Wanted::All;
        let (best, all): (Vec<_>, Vec<_>) = self.wanted.iter().copied().partition(|(row, _)| is_best(*row));
        let mut pieces = Vec::new();
        if let (Some(Top { buffer, width, runs }), false) = (&self.top, best.is_empty()) {
            // Those of all rows: they are less than what single copies would cost.
            let end = runs.last().map_or(0, |run| run.places(*width)[3]);
            pieces.push(Piece { buffer, bytes: 0..end });
        }
        let num_best_bytes = pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
        let row_bytes = self.row_bytes();
        pieces.extend(all.iter().map(|(_, place)| row(&self.scores, *place, row_bytes)));
        let began = Instant::now();
        let bytes = self.transfers.download(pieces.into_iter())?;
        self.time_in_runs += began.elapsed();
        let (best_bytes, all_bytes) = bytes.split_at(num_best_bytes);
        write_all(&all, all_bytes, self.logits_type, logits);
        if let Some(Top { width, runs, .. }) = &self.top {
            let last_token = u32::try_from(self.vocab_size - 1).expect("vocabularies are small");
            for (row, place) in best {
                let run = runs[runs.partition_point(|run| run.first_row <= place) - 1];
                let (place, [tokens, values, totals, _]) = (place - run.first_row, run.places(*width));
                let pairs = (place * width..(place + 1) * width).map(|at| {
                    let token = word(best_bytes, tokens + at * size_of::<i64>());
                    // Padding of the vocabulary is among the best only where these are impossible.
                    let token = TokenId(token.min(last_token));
                    (f32::from_bits(word(best_bytes, values + at * size_of::<f32>())), token)
                });
                logits.push_top(row, pairs, f32::from_bits(word(best_bytes, totals + place * size_of::<f32>())));
            }
        }
        Ok(())
    }

    /// Brings all scores of these rows of the batch to the host.
    pub(super) fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> ort::Result<()> {
        let _asking = not_capturing();
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

/// The lower 32 bits of the number that begins at this byte.
fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..].first_chunk().expect("numbers lie inside what was asked for");
    u32::from_le_bytes(*bytes)
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
