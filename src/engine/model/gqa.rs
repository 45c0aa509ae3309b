//! Graphs with `GroupQueryAttention`: keys and values are written into one buffer, in place.

use super::{
    LoadError, Logits, Model, ModelError, ModelLimits,
    error::words,
    ffi::{Buffer, Tensor},
    graph::{Graph, c_name, signed},
};
use crate::engine::Batch;
use std::ffi::CString;

/// One buffer `[num_slots, num_heads, context_tokens, head_size]` per layer and side, bound as past and as present.
/// The operator reads only what the attention mask covers, so a slot needs no cleaning before it is used again.
pub(super) struct GqaModel {
    /// Before the graph, since fields drop in order and an allocator must not outlive its session.
    kv: Vec<Slab>,
    graph: Graph,
}

struct Slab {
    past: CString,
    present: CString,
    buffer: Buffer,
    slot_bytes: usize,
    slot_shape: [i64; 4],
    element_type: super::ElementType,
}

impl GqaModel {
    pub(super) fn new(graph: Graph, num_slots: usize) -> Result<Self, LoadError> {
        let context_tokens = graph.limits().context_tokens;
        let num_bytes = graph.spec().kv_bytes_per_token().saturating_mul(context_tokens).saturating_mul(num_slots);
        if isize::try_from(num_bytes).is_err() {
            return Err(LoadError::KvCache { num_bytes, message: "no machine has as much memory".to_owned() });
        }
        let failed = |error: ort::Error| LoadError::KvCache { num_bytes, message: words(&error) };
        let mut kv = Vec::new();
        for tensor in &graph.spec().kv {
            let slot_bytes = tensor.bytes_per_token() * context_tokens;
            let allocator = graph.device_allocator().map_err(failed)?;
            kv.push(Slab {
                past: c_name(&tensor.past),
                present: c_name(&tensor.present),
                buffer: Buffer::allocate(allocator, slot_bytes * num_slots).map_err(failed)?,
                slot_bytes,
                slot_shape: [1, signed(tensor.num_heads), signed(context_tokens), signed(tensor.head_size)],
                element_type: tensor.element_type,
            });
        }
        Ok(Self { kv, graph })
    }
}

impl Model for GqaModel {
    fn limits(&self) -> ModelLimits {
        self.graph.limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let Self { kv, graph } = self;
        for row in batch.rows() {
            graph.run_row(batch.new_tokens(row), row.start, |run| {
                for slab in kv.iter() {
                    let first_byte = row.slot_index * slab.slot_bytes;
                    let slot = Tensor::from_buffer(&slab.buffer, first_byte, &slab.slot_shape, slab.element_type)?;
                    run.bind_input(&slab.past, &slot)?;
                    run.bind_output(&slab.present, &slot)?;
                }
                Ok(())
            })?;
            if row.wants_logits {
                graph.push_last_scores(logits);
            }
        }
        Ok(())
    }
}
