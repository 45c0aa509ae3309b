//! Graphs whose present is past with the new tokens appended: each run's output is the next run's input.

use super::{
    KvTensor, Logits, Model, ModelError, ModelLimits,
    ffi::{Run, Tensor},
    graph::{Graph, c_name, signed},
    inputs::InputRow,
};
use crate::engine::{Batch, Row};
use ort::memory::Allocator;
use std::{ffi::CString, ops::Range, time::Duration};

/// Keys and values live in groups: sequences that ran together last time and, if the same ones run next, go on without a
/// copy. Any other set is put together from their groups, on the host.
pub(super) struct ConcatModel {
    kv: Vec<Layer>,
    /// Before the graph, since fields drop in order and a value must not outlive its session.
    groups: Vec<Group>,
    graph: Graph,
}

/// Keys or values of one layer.
struct Layer {
    past: CString,
    present: CString,
    spec: KvTensor,
}

/// Sequences in neighbouring rows of the same tensors.
struct Group {
    /// `[members, num_heads, num_columns, head_size]` of each layer.
    kv: Vec<Tensor<'static>>,
    members: Vec<Member>,
    num_columns: usize,
}

/// One row of a group. Its tokens lie at the start, then in the columns that all members share since they are together;
/// columns in between are another's, and masked.
#[derive(Clone, Debug)]
struct Member {
    /// `None` when the sequence has left the group.
    slot_index: Option<usize>,
    num_own: usize,
    shared: Range<usize>,
}

impl Member {
    fn num_tokens(&self) -> usize {
        self.num_own + self.shared.len()
    }

    /// Columns of the first `num_tokens` tokens.
    fn columns(&self, num_tokens: usize) -> [Range<usize>; 2] {
        let num_own = num_tokens.min(self.num_own);
        [0..num_own, self.shared.start..self.shared.start + (num_tokens - num_own)]
    }

    fn is(&self, slot_index: usize, num_tokens: usize) -> bool {
        self.slot_index == Some(slot_index) && self.num_tokens() == num_tokens
    }
}

impl ConcatModel {
    pub(super) fn new(graph: Graph) -> Self {
        let layer =
            |spec: &KvTensor| Layer { past: c_name(&spec.past), present: c_name(&spec.present), spec: spec.clone() };
        Self { kv: graph.spec().kv.iter().map(layer).collect(), groups: Vec::new(), graph }
    }

    /// Rows that can run together: those that decode, all of them where the graph is told positions, else those that
    /// are at the same one. A row that computes more than one token runs alone, which costs it nothing.
    fn sets(&self, batch: &Batch) -> Vec<Vec<usize>> {
        let mut sets: Vec<Vec<usize>> = Vec::new();
        for (index, row) in batch.rows().iter().enumerate() {
            let goes_with = |set: &&mut Vec<usize>| {
                let first = &batch.rows()[set[0]];
                let both_decode = [first, row].iter().all(|row| row.num_tokens() == 1 && 0 < row.start);
                both_decode && (self.graph.spec().has_position_ids || first.start == row.start)
            };
            match sets.iter_mut().filter(|_| self.graph.is_on_host()).find(goes_with) {
                Some(set) => set.push(index),
                None => sets.push(vec![index]),
            }
        }
        for set in &mut sets {
            set.sort_unstable_by_key(|index| batch.rows()[*index].slot_index);
        }
        sets
    }

    /// Takes the group whose members are just these, or puts one together.
    fn take_group(&mut self, wanted: &[(usize, usize)]) -> Result<Group, ModelError> {
        let is_wanted = |group: &Group| {
            let mut pairs = group.members.iter().zip(wanted);
            group.members.len() == wanted.len() && pairs.all(|(member, (slot, len))| member.is(*slot, *len))
        };
        if let Some(position) = self.groups.iter().position(is_wanted) {
            return Ok(self.groups.swap_remove(position));
        }
        let group = self.put_together(wanted)?;
        for (slot_index, _) in wanted {
            self.forget(*slot_index);
        }
        self.break_up()?;
        Ok(group)
    }

    /// Gives what is left of groups that lost a member tensors of its own: those of the group are as large as ever.
    fn break_up(&mut self) -> Result<(), ModelError> {
        let is_broken = |group: &Group| group.members.iter().any(|member| member.slot_index.is_none());
        let mut left = Vec::new();
        for member in self.groups.iter().filter(|group| is_broken(group)).flat_map(|group| &group.members) {
            if let Some(slot_index) = member.slot_index {
                left.push(self.put_together(&[(slot_index, member.num_tokens())])?);
            }
        }
        self.groups.retain(|group| !is_broken(group));
        self.groups.append(&mut left);
        Ok(())
    }

    /// A copy of the first tokens of these slots, of each as many as are told.
    fn put_together(&self, wanted: &[(usize, usize)]) -> Result<Group, ModelError> {
        let num_columns = wanted.iter().map(|(_, num_tokens)| *num_tokens).max().unwrap_or(0);
        let mut kv = Vec::with_capacity(self.kv.len());
        for (number, layer) in self.kv.iter().enumerate() {
            let KvTensor { num_heads, head_size, element_type, .. } = layer.spec;
            let shape = [wanted.len(), num_heads, num_columns, head_size].map(signed);
            if num_columns == 0 {
                kv.push(Tensor::empty(self.graph.device_allocator()?.memory_info(), &shape, element_type)?);
                continue;
            }
            if !self.graph.is_on_host() {
                return Err(ModelError::new("keys and values on this device cannot be put together on the host"));
            }
            // Zeros, since a masked column that is not a number would still spoil the sum.
            let mut tensor = Tensor::zeros(&shape, element_type)?;
            let token_bytes = head_size * element_type.num_bytes();
            let heads = tensor.host_bytes_mut()?.chunks_exact_mut(num_columns * token_bytes);
            for (place, head) in heads.enumerate() {
                let (slot_index, num_tokens) = wanted[place / num_heads];
                if num_tokens == 0 {
                    continue;
                }
                let (group, row) = self.find(slot_index).expect("a sequence goes on where it was");
                let source_head = row * num_heads + place % num_heads;
                let source = &group.kv[number].host_bytes()?[source_head * group.num_columns * token_bytes..];
                let mut end = 0;
                for columns in group.members[row].columns(num_tokens) {
                    let (from, begin) = (&source[columns.start * token_bytes..columns.end * token_bytes], end);
                    end += from.len();
                    head[begin..end].copy_from_slice(from);
                }
            }
            kv.push(tensor);
        }
        let member = |(slot_index, num_tokens): &(usize, usize)| Member {
            slot_index: Some(*slot_index),
            num_own: *num_tokens,
            shared: num_columns..num_columns,
        };
        Ok(Group { kv, members: wanted.iter().map(member).collect(), num_columns })
    }

    /// A slot's group and its row there.
    fn find(&self, slot_index: usize) -> Option<(&Group, usize)> {
        let row_of = |group: &Group| group.members.iter().position(|member| member.slot_index == Some(slot_index));
        self.groups.iter().find_map(|group| Some((group, row_of(group)?)))
    }

    /// Empties a slot.
    fn forget(&mut self, slot_index: usize) {
        for member in self.groups.iter_mut().flat_map(|group| &mut group.members) {
            if member.slot_index == Some(slot_index) {
                member.slot_index = None;
            }
        }
    }
}

/// Past as it was, present wherever the runtime puts it.
fn bind_kv<'d>((kv, group, allocator): &'d (&[Layer], &Group, &Allocator), run: &mut Run<'_, 'd>) -> ort::Result<()> {
    for (layer, past) in kv.iter().zip(&group.kv) {
        run.bind_input(&layer.past, past)?;
        run.bind_new_output(&layer.present, allocator.memory_info())?;
    }
    Ok(())
}

impl Model for ConcatModel {
    fn limits(&self) -> ModelLimits {
        let is_on_host = self.graph.is_on_host();
        ModelLimits { can_rewind: is_on_host, can_move_slots: is_on_host, ..self.graph.limits() }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let allocator = self.graph.device_allocator()?;
        for set in self.sets(batch) {
            let rows: Vec<&Row> = set.iter().map(|index| &batch.rows()[*index]).collect();
            let wanted: Vec<(usize, usize)> = rows.iter().map(|row| (row.slot_index, row.start)).collect();
            let mut group = self.take_group(&wanted)?;
            let width = rows[0].num_tokens();
            let num_columns = group.num_columns + width;
            let inputs = &mut self.graph.inputs;
            inputs.begin(width, num_columns);
            for ((index, row), member) in set.iter().zip(&rows).zip(&mut group.members) {
                member.shared.end = num_columns;
                let new_tokens = batch.new_tokens(row);
                let input = InputRow { index: *index, new_tokens, start: row.start, num_logits: row.num_logits };
                inputs.push(&input, member.columns(member.num_tokens()));
            }
            group.kv = self.graph.run(logits, &(self.kv.as_slice(), &group, &allocator), bind_kv)?;
            group.num_columns = num_columns;
            self.groups.push(group);
        }
        Ok(())
    }

    fn time_in_runs(&self) -> Duration {
        self.graph.time_in_runs
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        let mut copy = self.put_together(&[(from, num_tokens)])?;
        self.forget(to);
        self.break_up()?;
        copy.members[0].slot_index = Some(to);
        self.groups.push(copy);
        Ok(())
    }

    fn swap_slots(&mut self, one: usize, other: usize, _num_tokens: usize) {
        for member in self.groups.iter_mut().flat_map(|group| &mut group.members) {
            member.slot_index = match member.slot_index {
                Some(slot) if slot == one => Some(other),
                Some(slot) if slot == other => Some(one),
                unchanged => unchanged,
            };
        }
    }
}
