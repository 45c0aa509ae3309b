//! Graphs with `GroupQueryAttention`: keys and values are written into one buffer, in place.

use super::{
    LoadError, Logits, Model, ModelError, ModelLimits,
    error::words,
    ffi::{Buffer, Run, Tensor},
    graph::{Graph, c_name, signed},
    inputs::InputRow,
    plan::{Plan, PlanLimits, PlannedRun},
};
use crate::engine::Batch;
use std::{ffi::CString, ops::Range, time::Duration};

/// One buffer `[num_slots, num_heads, context_tokens, head_size]` per layer and side, bound as past and as present.
/// The operator reads only what the attention mask covers, so a slot needs no cleaning before it is used again.
pub(super) struct GqaModel {
    /// Before the graph, since fields drop in order and an allocator must not outlive its session.
    kv: Vec<Slab>,
    graph: Graph,
    plan: Plan,
    run_overhead_tokens: usize,
    /// The batch's row in each slot of a run.
    occupants: Vec<Option<usize>>,
}

/// What a run costs beside its tokens where the config leaves it open. On a CPU, a run of one token takes as long as four
/// or five more in the same run; on a GPU, tokens are all but free until there are hundreds.
const CPU_RUN_OVERHEAD_TOKENS: usize = 4;
const GPU_RUN_OVERHEAD_TOKENS: usize = 256;

struct Slab {
    past: CString,
    present: CString,
    buffer: Buffer,
    num_heads: usize,
    context_tokens: usize,
    /// Size of one head's key or value.
    token_bytes: usize,
    head_size: usize,
    element_type: super::ElementType,
}

impl Slab {
    fn head_bytes(&self) -> usize {
        self.context_tokens * self.token_bytes
    }

    fn slot_bytes(&self) -> usize {
        self.num_heads * self.head_bytes()
    }

    /// `[slots, num_heads, context_tokens, head_size]`
    fn view(&self, slots: &Range<usize>) -> ort::Result<Tensor<'_>> {
        let shape = [slots.len(), self.num_heads, self.context_tokens, self.head_size].map(signed);
        Tensor::from_buffer(&self.buffer, slots.start * self.slot_bytes(), &shape, self.element_type)
    }

    /// Where each head of two slots begins.
    fn heads(&self, one: usize, other: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (head_bytes, slot_bytes) = (self.head_bytes(), self.slot_bytes());
        let begin = move |slot: usize, head: usize| slot * slot_bytes + head * head_bytes;
        (0..self.num_heads).map(move |head| (begin(one, head), begin(other, head)))
    }
}

impl GqaModel {
    pub(super) fn new(graph: Graph, num_slots: usize, run_overhead_tokens: u32) -> Result<Self, LoadError> {
        let run_overhead_tokens = match run_overhead_tokens {
            0 if graph.is_on_host() => CPU_RUN_OVERHEAD_TOKENS,
            0 => GPU_RUN_OVERHEAD_TOKENS,
            set => set as usize,
        };
        let context_tokens = graph.limits().context_tokens;
        let num_bytes = graph.spec().kv_bytes_per_token().saturating_mul(context_tokens).saturating_mul(num_slots);
        if isize::try_from(num_bytes).is_err() {
            return Err(LoadError::KvCache { num_bytes, message: "no machine has as much memory".to_owned() });
        }
        let failed = |error: ort::Error| LoadError::KvCache { num_bytes, message: words(&error) };
        let mut kv = Vec::new();
        for tensor in &graph.spec().kv {
            let allocator = graph.device_allocator().map_err(failed)?;
            let num_bytes = tensor.bytes_per_token() * context_tokens * num_slots;
            kv.push(Slab {
                past: c_name(&tensor.past),
                present: c_name(&tensor.present),
                buffer: Buffer::allocate(allocator, num_bytes).map_err(failed)?,
                num_heads: tensor.num_heads,
                context_tokens,
                token_bytes: tensor.head_size * tensor.element_type.num_bytes(),
                head_size: tensor.head_size,
                element_type: tensor.element_type,
            });
        }
        Ok(Self { kv, graph, plan: Plan::default(), run_overhead_tokens, occupants: Vec::new() })
    }

    fn fill_inputs(&mut self, batch: &Batch, run: &PlannedRun) {
        let Self { graph, plan, occupants, .. } = self;
        occupants.clear();
        occupants.resize(run.slots.len(), None);
        let mut longest = 0;
        for index in plan.rows(run) {
            let row = &batch.rows()[*index];
            occupants[row.slot_index - run.slots.start] = Some(*index);
            longest = longest.max(row.end());
        }
        graph.inputs.begin(run.width, longest.max(run.width));
        for occupant in occupants {
            match *occupant {
                Some(index) => {
                    let row = &batch.rows()[index];
                    let new_tokens = batch.new_tokens(row);
                    let input = InputRow { index, new_tokens, start: row.start, num_logits: row.num_logits };
                    graph.inputs.push(&input, [0..row.end(), row.end()..row.end()]);
                }
                None => graph.inputs.push_idle(),
            }
        }
    }
}

/// Past and present of the same slots, in the same place.
fn bind_kv<'d>((kv, slots): &'d (&[Slab], Range<usize>), run: &mut Run<'_, 'd>) -> ort::Result<()> {
    for slab in *kv {
        let view = slab.view(slots)?;
        run.bind_input(&slab.past, &view)?;
        run.bind_output(&slab.present, &view)?;
    }
    Ok(())
}

impl Model for GqaModel {
    fn limits(&self) -> ModelLimits {
        ModelLimits {
            can_rewind: true,
            can_verify_drafts: self.graph.can_pad(),
            can_move_slots: self.graph.is_on_host(),
            ..self.graph.limits()
        }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        self.plan.fill(
            batch,
            PlanLimits {
                run_overhead_tokens: self.run_overhead_tokens,
                can_pad: self.graph.can_pad(),
                context_tokens: self.graph.limits().context_tokens,
            },
        );
        for index in 0..self.plan.runs().len() {
            let run = self.plan.runs()[index].clone();
            self.fill_inputs(batch, &run);
            self.graph.run(logits, &(self.kv.as_slice(), run.slots), bind_kv)?;
        }
        Ok(())
    }

    fn time_in_runs(&self) -> Duration {
        self.graph.time_in_runs
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        for slab in &mut self.kv {
            for (from, to) in slab.heads(from, to) {
                slab.buffer.copy(from, to, num_tokens * slab.token_bytes);
            }
        }
        Ok(())
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        for slab in &mut self.kv {
            for (one, other) in slab.heads(one, other) {
                slab.buffer.swap(one, other, num_tokens * slab.token_bytes);
            }
        }
    }
}
