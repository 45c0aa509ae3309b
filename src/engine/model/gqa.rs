//! Graphs with `GroupQueryAttention`: keys and values are written into one buffer, in place.

use super::{
    CacheKind, CacheTensor, ElementType, LoadError, Logits, Model, ModelError, ModelLimits,
    capture::{Recurring, not_capturing},
    error::words,
    ffi::{Buffer, Rows, Run, Tensor},
    graph::{Graph, c_name, signed},
    inputs::InputRow,
    plan::{Plan, PlanLimits, PlannedRun},
    spec::MAX_CACHE_RANK,
};
use crate::engine::{Batch, Copied};
use std::{ffi::CString, ops::Range, time::Duration};

/// One buffer per tensor of the cache, with a part for each slot. The slots of a run are bound as past and as present.
/// The operator attends only to what the attention mask covers, so columns need no cleaning before a slot is used again, as long
/// as they hold numbers; a state does, and a sequence's first run reads zeros instead.
pub(super) struct GqaModel {
    /// Before the graph, since fields drop in order and an allocator must not outlive its session.
    cache: Vec<Slab>,
    spare: Option<Buffer>,
    /// What went wrong since the last run.
    failure: Option<ModelError>,
    graph: Graph,
    plan: Plan,
    run_overhead_tokens: usize,
    /// Tokens of which every tensor still has a column, so that the last ones can be taken back.
    rewindable_tokens: usize,
    /// So wide is a mask at least: where texts may become long, all are computed as long ones are from their first token on.
    min_mask_width: usize,
    /// The batch's row in each slot of a run.
    occupants: Vec<Option<usize>>,
}

/// What a run costs beside its tokens where the config leaves it open. On a CPU, a run of one token takes as long as four
/// or five more in the same run; on a GPU, tokens are all but free until there are hundreds.
const CPU_RUN_OVERHEAD_TOKENS: usize = 4;
const GPU_RUN_OVERHEAD_TOKENS: usize = 256;

/// Columns that a device is told of at least while it decodes. Their number is rounded up to powers of two, so that
/// steps recur; what a row really has, each is told by itself.
const MIN_COLUMNS: usize = 256;

/// `[slots, heads, columns, …]`; a state is one column of one head.
struct Slab {
    past: CString,
    present: CString,
    buffer: Buffer,
    num_heads: usize,
    num_columns: usize,
    column_bytes: usize,
    /// As the graph sees it, for one slot.
    shape: [i64; MAX_CACHE_RANK],
    rank: usize,
    element_type: ElementType,
    state: Option<State>,
}

/// What a tensor needs that is not read by position.
struct State {
    /// What a sequence begins with.
    zeros: Tensor<'static>,
    /// Where the buffer's second half begins, which present is bound to and copied from where it cannot be written in
    /// place.
    second_half: Option<usize>,
}

impl Slab {
    fn new(tensor: &CacheTensor, graph: &Graph, num_slots: usize) -> ort::Result<Self> {
        let element_bytes = tensor.element_type.num_bytes();
        let (num_heads, num_columns, column_bytes, sizes) = match &tensor.kind {
            CacheKind::Columns { num_heads, head_size, window } => {
                let num_columns = graph.num_columns(*window);
                (*num_heads, num_columns, head_size * element_bytes, vec![*num_heads, num_columns, *head_size])
            }
            CacheKind::State { sizes, .. } => (1, 1, sizes.iter().product::<usize>() * element_bytes, sizes.clone()),
            CacheKind::Blocks { .. } => unreachable!("blocks are another family's"),
        };
        let num_bytes = num_slots * num_heads * num_columns * column_bytes;
        let (mut shape, rank) = ([1; MAX_CACHE_RANK], 1 + sizes.len());
        shape[1..rank].copy_from_slice(&sizes.into_iter().map(signed).collect::<Vec<_>>());
        let state = match tensor.kind {
            CacheKind::Columns { .. } | CacheKind::Blocks { .. } => None,
            CacheKind::State { is_in_place, .. } => Some(State {
                zeros: Tensor::zeros(graph.memory(), &shape[..rank], tensor.element_type)?,
                second_half: (!is_in_place).then_some(num_bytes),
            }),
        };
        let halves = if state.as_ref().is_some_and(|state| state.second_half.is_some()) { 2 } else { 1 };
        Ok(Self {
            past: c_name(&tensor.past),
            present: c_name(&tensor.present),
            buffer: graph.allocate(halves * num_bytes)?,
            num_heads,
            num_columns,
            column_bytes,
            shape,
            rank,
            element_type: tensor.element_type,
            state,
        })
    }

    fn head_bytes(&self) -> usize {
        self.num_columns * self.column_bytes
    }

    fn slot_bytes(&self) -> usize {
        self.num_heads * self.head_bytes()
    }

    /// Past or present of these slots.
    fn view(&self, slots: &Range<usize>, first_byte: usize) -> ort::Result<Tensor<'_>> {
        let mut shape = self.shape;
        shape[0] = signed(slots.len());
        let first_byte = first_byte + slots.start * self.slot_bytes();
        Tensor::from_buffer(&self.buffer, first_byte, &shape[..self.rank], self.element_type)
    }

    /// What so many tokens have left in each head of a slot.
    fn used(&self, num_tokens: usize) -> Rows {
        let num_bytes = num_tokens.min(self.num_columns) * self.column_bytes;
        Rows { pitch: self.head_bytes(), num_bytes, count: self.num_heads }
    }

    fn copy(&mut self, from: usize, to: usize, num_tokens: usize) -> ort::Result<()> {
        let (slot_bytes, used) = (self.slot_bytes(), self.used(num_tokens));
        self.buffer.copy(from * slot_bytes, to * slot_bytes, used)
    }

    fn swap(&mut self, one: usize, other: usize, num_tokens: usize, spare: Option<&mut Buffer>) -> ort::Result<()> {
        let (slot_bytes, used) = (self.slot_bytes(), self.used(num_tokens));
        self.buffer.swap(one * slot_bytes, other * slot_bytes, used, spare)
    }

    /// Brings what a run has written beside the state to where the next run reads it.
    fn settle(&mut self, slots: &Range<usize>) -> ort::Result<()> {
        let Some(State { second_half: Some(second_half), .. }) = self.state else { return Ok(()) };
        let (begin, num_bytes) = (slots.start * self.slot_bytes(), slots.len() * self.slot_bytes());
        self.buffer.copy(second_half + begin, begin, Rows { pitch: num_bytes, num_bytes, count: 1 })
    }
}

impl GqaModel {
    pub(super) fn new(graph: Graph, num_slots: usize, run_overhead_tokens: u32) -> Result<Self, LoadError> {
        let run_overhead_tokens = match run_overhead_tokens {
            0 if graph.is_on_host() => CPU_RUN_OVERHEAD_TOKENS,
            0 => GPU_RUN_OVERHEAD_TOKENS,
            set => set as usize,
        };
        let (spec, context_tokens) = (graph.spec(), graph.limits().context_tokens);
        let num_bytes = spec.cache_bytes_per_slot(context_tokens) * num_slots;
        let mut cache = Vec::with_capacity(spec.cache.len());
        for tensor in &spec.cache {
            let failed = |error: ort::Error| LoadError::KvCache { num_bytes, message: words(&error) };
            cache.push(Slab::new(tensor, &graph, num_slots).map_err(failed)?);
        }
        // What two slots exchange lies here in between, on a device that the host does not reach.
        let largest = cache.iter().map(Slab::slot_bytes).max().unwrap_or(0);
        let spare = if graph.is_on_host() { None } else { Some(graph.allocate(largest.max(1))) };
        let failed = |error: ort::Error| LoadError::KvCache { num_bytes, message: words(&error) };
        let spare = spare.transpose().map_err(failed)?;
        let in_columns = |slab: &Slab| if slab.state.is_some() { 0 } else { slab.num_columns };
        let rewindable_tokens = cache.iter().map(in_columns).min().unwrap_or(0).min(context_tokens);
        let short = graph.spec().num_short_tokens.filter(|short| *short < context_tokens);
        let min_mask_width = short.map_or(0, |short| short + 1);
        let (plan, occupants) = (Plan::default(), Vec::new());
        Ok(Self {
            cache,
            spare,
            failure: None,
            graph,
            plan,
            run_overhead_tokens,
            rewindable_tokens,
            min_mask_width,
            occupants,
        })
    }

    fn plan_limits(&self) -> PlanLimits {
        let has_states = self.graph.spec().has_states();
        PlanLimits {
            run_overhead_tokens: self.run_overhead_tokens,
            can_pad: self.graph.can_pad(),
            // The operator wants to know how much an idle slot holds beside a window, and is told of one token.
            can_idle: self.graph.can_pad() && !self.graph.spec().has_windows(),
            begins_alone: has_states,
            context_tokens: self.graph.limits().context_tokens,
        }
    }

    /// Returns what a run that decodes has in common with others.
    fn fill_inputs(&mut self, batch: &Batch, run: &PlannedRun) -> Option<Recurring> {
        let Self { graph, plan, occupants, min_mask_width, .. } = self;
        occupants.clear();
        occupants.resize(run.slots.len(), None);
        let mut longest = *min_mask_width;
        for index in plan.rows(run) {
            let row = &batch.rows()[*index];
            occupants[row.slot_index - run.slots.start] = Some(*index);
            longest = longest.max(row.end());
        }
        let mut max_columns = longest.max(run.width);
        if run.width == 1 && !graph.is_on_host() {
            max_columns = max_columns.next_power_of_two().max(MIN_COLUMNS).min(graph.limits().context_tokens);
        }
        graph.inputs.begin(run.width, max_columns);
        for occupant in occupants.iter() {
            match *occupant {
                Some(index) => {
                    let row = &batch.rows()[index];
                    let new_tokens = batch.new_tokens(row);
                    let (start, num_logits, wanted) = (row.start, row.num_logits, row.wanted);
                    let input = InputRow { index, new_tokens, start, num_logits, wanted };
                    graph.inputs.push(&input, 0..row.end());
                }
                None => graph.inputs.push_idle(),
            }
        }
        let is_full = occupants.iter().all(Option::is_some) && graph.inputs.scored_rows.len() == occupants.len();
        let recurs = graph.can_capture() && run.width == 1 && is_full;
        recurs.then_some(Recurring { first_slot: run.slots.start, num_rows: run.slots.len(), max_columns })
    }
}

/// Past and present of the same slots, in the same place where that can be.
fn bind_cache<'d>((cache, planned): &'d (&[Slab], PlannedRun), run: &mut Run<'_, 'd>) -> ort::Result<()> {
    for slab in *cache {
        let view = slab.view(&planned.slots, 0)?;
        match &slab.state {
            Some(State { zeros, .. }) if planned.begins => run.bind_input(&slab.past, zeros)?,
            Some(_) | None => run.bind_input(&slab.past, &view)?,
        }
        match slab.state {
            Some(State { second_half: Some(second_half), .. }) => {
                run.bind_output(&slab.present, &slab.view(&planned.slots, second_half)?)?;
            }
            Some(_) | None => run.bind_output(&slab.present, &view)?,
        }
    }
    Ok(())
}

impl Model for GqaModel {
    fn limits(&self) -> ModelLimits {
        let limits = self.graph.limits();
        ModelLimits {
            rewindable_tokens: self.rewindable_tokens,
            can_verify_drafts: self.graph.can_pad() && limits.context_tokens <= self.rewindable_tokens,
            can_move_slots: true,
            ..limits
        }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.plan.fill(batch, self.plan_limits());
        let num_scored = self.plan.runs().iter().map(|run| {
            let num_wanted = self.plan.rows(run).iter().map(|index| batch.rows()[*index].num_logits).sum();
            self.graph.num_computed_rows(run.slots.len(), run.width, num_wanted)
        });
        let num_scored = num_scored.sum();
        self.graph.begin(num_scored)?;
        for index in 0..self.plan.runs().len() {
            let run = self.plan.runs()[index].clone();
            let recurring = self.fill_inputs(batch, &run);
            let slots = run.slots.clone();
            self.graph.run(logits, recurring, &(self.cache.as_slice(), run), bind_cache)?;
            let _asking = not_capturing();
            self.cache.iter_mut().try_for_each(|slab| slab.settle(&slots))?;
        }
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

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        let _asking = not_capturing();
        Ok(self.cache.iter_mut().try_for_each(|slab| slab.copy(from, to, num_tokens))?)
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        let _asking = not_capturing();
        let spare = &mut self.spare;
        let swapped = self.cache.iter_mut().try_for_each(|slab| slab.swap(one, other, num_tokens, spare.as_mut()));
        self.failure = swapped.err().map(ModelError::from).or(self.failure.take());
    }

    /// A CPU's operators read no more than they attend to.
    fn wipe(&mut self, slot_index: usize, _blocks: &[u32]) -> Result<(), ModelError> {
        if self.graph.is_on_host() {
            return Ok(());
        }
        let _asking = not_capturing();
        Ok(self.cache.iter_mut().try_for_each(|slab| {
            let num_bytes = slab.slot_bytes();
            slab.buffer.zero(slot_index * num_bytes, num_bytes)
        })?)
    }
}
