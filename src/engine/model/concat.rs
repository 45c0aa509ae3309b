//! Graphs whose present is past with the new tokens appended: each run's output is the next run's input.

use super::{
    KvTensor, Logits, Model, ModelError, ModelLimits,
    ffi::Tensor,
    graph::{Graph, c_name, signed},
};
use crate::engine::Batch;
use ort::memory::Allocator;
use std::ffi::CString;

/// Keys and values of each slot, as the last run returned them.
pub(super) struct ConcatModel {
    names: Vec<Names>,
    /// Before the graph, since fields drop in order and a value must not outlive its session.
    slots: Vec<Vec<Tensor<'static>>>,
    graph: Graph,
}

struct Names {
    past: CString,
    present: CString,
}

impl ConcatModel {
    pub(super) fn new(graph: Graph, num_slots: usize) -> Self {
        let names = |tensor: &KvTensor| Names { past: c_name(&tensor.past), present: c_name(&tensor.present) };
        Self {
            names: graph.spec().kv.iter().map(names).collect(),
            slots: (0..num_slots).map(|_| Vec::new()).collect(),
            graph,
        }
    }
}

/// What a sequence starts with.
fn empty_kv(graph: &Graph, allocator: &Allocator) -> ort::Result<Vec<Tensor<'static>>> {
    let empty = |tensor: &KvTensor| {
        let shape = [1, signed(tensor.num_heads), 0, signed(tensor.head_size)];
        Tensor::empty(allocator, &shape, tensor.element_type)
    };
    graph.spec().kv.iter().map(empty).collect()
}

impl Model for ConcatModel {
    fn limits(&self) -> ModelLimits {
        self.graph.limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let Self { graph, names, slots } = self;
        let allocator = graph.device_allocator()?;
        for row in batch.rows() {
            let slot = &mut slots[row.slot_index];
            if row.start == 0 {
                *slot = empty_kv(graph, &allocator)?;
            }
            let present = graph.run_row(batch.new_tokens(row), row.start, |run| {
                for (names, past) in names.iter().zip(slot.iter()) {
                    run.bind_input(&names.past, past)?;
                    run.bind_new_output(&names.present, allocator.memory_info())?;
                }
                Ok(())
            })?;
            *slot = present;
            if row.wants_logits {
                graph.push_last_scores(logits);
            }
        }
        Ok(())
    }
}
