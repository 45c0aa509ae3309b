//! Graphs whose present is past with the new tokens appended: each run's output is the next run's input.

use super::{
    CacheKind, CacheTensor, LoadError, Logits, Model, ModelError, ModelLimits,
    ffi::{Run, Tensor},
    graph::{Graph, c_name, signed},
    inputs::InputRow,
};
use crate::engine::{Batch, Copied, Row};
use ndarray::{ArrayView3, ArrayViewMut3, s};
use ort::memory::Allocator;
use std::{ffi::CString, ops::Range, time::Duration};

/// Keys, values and states live in groups: sequences that ran together last time and, if the same ones run next, go on without a
/// copy. Any other set is put together from their groups, on the host.
pub(super) struct ConcatModel {
    cache: Vec<Link>,
    /// Before the graph, since fields drop in order and a value must not outlive its session.
    groups: Vec<Group>,
    /// Where the runtime puts what it returns.
    allocator: Allocator,
    graph: Graph,
}

/// An output and the input that it becomes.
struct Link {
    past: CString,
    present: CString,
    tensor: CacheTensor,
}

/// Sequences in neighbouring rows of the same tensors.
struct Group {
    /// `[members, num_heads, num_columns, head_size]`, or `[members, …]` of a state.
    cache: Vec<Tensor<'static>>,
    members: Vec<Member>,
    num_columns: usize,
}

/// One row of a group. Its tokens lie in the last columns, one behind the other: a graph with a window measures it in columns.
/// What is before them is masked.
#[derive(Clone, Debug)]
struct Member {
    /// `None` when the sequence has left the group.
    slot_index: Option<usize>,
    columns: Range<usize>,
}

impl Member {
    fn is(&self, slot_index: usize, num_tokens: usize) -> bool {
        self.slot_index == Some(slot_index) && self.columns.len() == num_tokens
    }
}

impl ConcatModel {
    pub(super) fn new(graph: Graph) -> Result<Self, LoadError> {
        let link = |tensor: &CacheTensor| Link {
            past: c_name(&tensor.past),
            present: c_name(&tensor.present),
            tensor: tensor.clone(),
        };
        let cache = graph.spec().cache.iter().map(link).collect();
        let allocator = graph.device_allocator().map_err(|error| graph.failed(&error))?;
        Ok(Self { cache, groups: Vec::new(), allocator, graph })
    }

    /// Rows that can run together: those that decode, all of them where the graph is told positions, else those that
    /// are at the same one. A row that computes more than one token runs alone, which costs it nothing.
    fn sets(&self, batch: &Batch) -> Vec<Vec<usize>> {
        let mut sets: Vec<Vec<usize>> = Vec::new();
        for (index, row) in batch.rows().iter().enumerate() {
            let goes_with = |set: &&mut Vec<usize>| {
                let first = &batch.rows()[set[0]];
                let both_decode = [first, row].iter().all(|row| row.num_tokens() == 1 && 0 < row.start);
                both_decode && (self.graph.spec().position_ids.is_some() || first.start == row.start)
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

    /// How many tokens of each of these rows share a run: all of them, but for the branch for rows that go on, which is made
    /// for single tokens.
    fn step(&self, batch: &Batch, set: &[usize]) -> usize {
        let first = &batch.rows()[set[0]];
        if self.graph.spec().has_cache_branch && 0 < first.start { 1 } else { first.num_tokens() }
    }

    /// Computes the tokens in this range of each of these rows, which are equally long.
    fn run(
        &mut self,
        batch: &Batch,
        set: &[usize],
        tokens: Range<usize>,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        let rows: Vec<&Row> = set.iter().map(|index| &batch.rows()[*index]).collect();
        let wanted: Vec<(usize, usize)> = rows.iter().map(|row| (row.slot_index, row.start + tokens.start)).collect();
        let mut group = self.take_group(&wanted)?;
        let num_columns = group.num_columns + tokens.len();
        let inputs = &mut self.graph.inputs;
        inputs.begin(tokens.len(), num_columns);
        for ((index, row), member) in set.iter().zip(&rows).zip(&group.members) {
            let num_behind = row.num_tokens() - tokens.end;
            let input = InputRow {
                index: *index,
                new_tokens: &batch.new_tokens(row)[tokens.clone()],
                start: row.start + tokens.start,
                num_logits: row.num_logits.saturating_sub(num_behind).min(tokens.len()),
                wanted: row.wanted,
            };
            inputs.push(&input, member.columns.start..num_columns);
        }
        let cache = (self.cache.as_slice(), &group, &self.allocator);
        match self.graph.run(logits, None, &cache, bind_cache) {
            Ok(present) => group.cache = present,
            Err(error) => {
                self.put_back(group);
                return Err(error);
            }
        }
        group.num_columns = num_columns;
        group.members.iter_mut().for_each(|member| member.columns.end = num_columns);
        self.check(&group)?;
        self.groups.push(group);
        Ok(())
    }

    /// Keeps a group that was not computed, for those of its members that go on.
    fn put_back(&mut self, group: Group) {
        if self.can_rewind() {
            self.groups.push(group);
        }
    }

    /// Else a failed run is the end of its sequences.
    fn can_rewind(&self) -> bool {
        self.graph.is_on_host() && !self.graph.spec().has_states()
    }

    /// Whether a run has returned as much as its inputs and the new tokens make.
    fn check(&self, group: &Group) -> Result<(), ModelError> {
        for (link, present) in self.cache.iter().zip(&group.cache).filter(|_| self.graph.is_on_host()) {
            let per_member = match &link.tensor.kind {
                CacheKind::Columns { num_heads, head_size, .. } => num_heads * group.num_columns * head_size,
                CacheKind::State { sizes, .. } => sizes.iter().product(),
                CacheKind::Blocks { .. } => unreachable!("blocks are another family's"),
            };
            let expected = group.members.len() * per_member * link.tensor.element_type.num_bytes();
            let found = present.host_bytes()?.len();
            if found != expected {
                let name = &link.tensor.present;
                let message = format!("the graph returned {found} bytes in `{name}` where {expected} were expected");
                return Err(ModelError::new(message));
            }
        }
        Ok(())
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
        if let Err(error) = self.break_up() {
            self.put_back(group);
            return Err(error);
        }
        Ok(group)
    }

    /// Gives what is left of groups that lost a member tensors of its own: those of the group are as large as ever.
    fn break_up(&mut self) -> Result<(), ModelError> {
        let is_broken = |group: &Group| group.members.iter().any(|member| member.slot_index.is_none());
        let mut left = Vec::new();
        for member in self.groups.iter().filter(|group| is_broken(group)).flat_map(|group| &group.members) {
            if let Some(slot_index) = member.slot_index {
                left.push(self.put_together(&[(slot_index, member.columns.len())])?);
            }
        }
        self.groups.retain(|group| !is_broken(group));
        self.groups.append(&mut left);
        Ok(())
    }

    /// A copy of the first tokens of these slots, of each as many as are told.
    fn put_together(&self, wanted: &[(usize, usize)]) -> Result<Group, ModelError> {
        let num_columns = wanted.iter().map(|(_, num_tokens)| *num_tokens).max().unwrap_or(0);
        if 0 < num_columns && !self.graph.is_on_host() {
            return Err(ModelError::new("keys and values on this device cannot be put together on the host"));
        }
        let cache = (0..self.cache.len()).map(|number| match &self.cache[number].tensor.kind {
            CacheKind::Columns { num_heads, head_size, .. } => {
                self.put_columns_together(number, [*num_heads, *head_size], (wanted, num_columns))
            }
            CacheKind::State { sizes, .. } => self.put_states_together(number, sizes, wanted),
            CacheKind::Blocks { .. } => unreachable!("blocks are another family's"),
        });
        let cache = cache.collect::<Result<_, _>>()?;
        let member = |(slot_index, num_tokens): &(usize, usize)| Member {
            slot_index: Some(*slot_index),
            columns: num_columns - num_tokens..num_columns,
        };
        Ok(Group { cache, members: wanted.iter().map(member).collect(), num_columns })
    }

    fn put_columns_together(
        &self,
        number: usize,
        [num_heads, head_size]: [usize; 2],
        (wanted, num_columns): (&[(usize, usize)], usize),
    ) -> Result<Tensor<'static>, ModelError> {
        let element_type = self.cache[number].tensor.element_type;
        let shape = [wanted.len(), num_heads, num_columns, head_size].map(signed);
        if num_columns == 0 {
            return Ok(Tensor::empty(self.allocator.memory_info(), &shape, element_type)?);
        }
        // Zeros, since a masked column that is not a number would still spoil the sum.
        let mut tensor = Tensor::zeros(&shape, element_type)?;
        let token_bytes = head_size * element_type.num_bytes();
        let heads = |num_members: usize, num_columns: usize| [num_members, num_heads, num_columns * token_bytes];
        let mut target = ArrayViewMut3::from_shape(heads(wanted.len(), num_columns), tensor.host_bytes_mut()?)?;
        for (place, (slot_index, num_tokens)) in wanted.iter().enumerate().filter(|(_, (_, tokens))| 0 < *tokens) {
            let (group, row) = self.find(*slot_index).expect("a sequence goes on where it was");
            let kept = group.cache[number].host_bytes()?;
            let source = ArrayView3::from_shape(heads(group.members.len(), group.num_columns), kept)?;
            let begin = group.members[row].columns.start * token_bytes;
            let source = source.slice(s![row, .., begin..begin + num_tokens * token_bytes]);
            target.slice_mut(s![place, .., (num_columns - num_tokens) * token_bytes..]).assign(&source);
        }
        Ok(tensor)
    }

    /// States begin as zeros, and are of all tokens that their slots hold.
    fn put_states_together(
        &self,
        number: usize,
        sizes: &[usize],
        wanted: &[(usize, usize)],
    ) -> Result<Tensor<'static>, ModelError> {
        let shape: Vec<i64> = [wanted.len()].iter().chain(sizes).copied().map(signed).collect();
        let mut tensor = Tensor::zeros(&shape, self.cache[number].tensor.element_type)?;
        let bytes = tensor.host_bytes_mut()?;
        let state_bytes = bytes.len() / wanted.len();
        for (state, (slot_index, num_tokens)) in bytes.chunks_exact_mut(state_bytes).zip(wanted) {
            if *num_tokens == 0 {
                continue;
            }
            let (group, row) = self.find(*slot_index).expect("a sequence goes on where it was");
            assert_eq!(group.members[row].columns.len(), *num_tokens, "nothing is taken out of a state");
            state.copy_from_slice(&group.cache[number].host_bytes()?[row * state_bytes..][..state_bytes]);
        }
        Ok(tensor)
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
fn bind_cache<'d>(
    (cache, group, allocator): &'d (&[Link], &Group, &Allocator),
    run: &mut Run<'_, 'd>,
) -> ort::Result<()> {
    for (link, past) in cache.iter().zip(&group.cache) {
        run.bind_input(&link.past, past)?;
        run.bind_new_output(&link.present, allocator.memory_info())?;
    }
    Ok(())
}

impl Model for ConcatModel {
    fn limits(&self) -> ModelLimits {
        let (is_on_host, limits) = (self.graph.is_on_host(), self.graph.limits());
        let has_cache_branch = self.graph.spec().has_cache_branch;
        ModelLimits {
            // What does not fit into the first run of a sequence comes in runs of one token.
            chunk_tokens: if has_cache_branch { limits.context_tokens } else { limits.chunk_tokens },
            rewindable_tokens: if self.can_rewind() { limits.context_tokens } else { 0 },
            can_move_slots: is_on_host,
            ..limits
        }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let sets = self.sets(batch);
        let num_scored = sets.iter().map(|set| {
            let rows = set.iter().map(|index| &batch.rows()[*index]);
            let num_wanted = rows.map(|row| row.num_logits).sum();
            let width = batch.rows()[set[0]].num_tokens();
            let step = self.step(batch, set);
            // What is wanted is in the last of its runs.
            let before = (width.div_ceil(step) - 1) * self.graph.num_computed_rows(set.len(), step, 0);
            before + self.graph.num_computed_rows(set.len(), step, num_wanted)
        });
        let num_scored = num_scored.sum();
        self.graph.begin(num_scored)?;
        for set in sets {
            let width = batch.rows()[set[0]].num_tokens();
            let step = self.step(batch, &set);
            for first in (0..width).step_by(step) {
                self.run(batch, &set, first..first + step, logits)?;
            }
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
