//! Who owns which row of the KV tensors, and which tokens the free rows still hold.
//!
//! A sequence that finishes leaves its keys and values behind; a request whose prompt starts with the same tokens goes on
//! from there. Running sequences are kept in neighbouring rows, since a run of the graph spans from the first to the last.

use super::{Model, ModelError, TokenId};
use std::num::NonZeroU32;

/// Ownership of one KV row. Not `Clone`: a row cannot be freed twice.
#[derive(Debug)]
pub struct Slot(usize);

impl Slot {
    /// Row number in the KV tensors.
    pub fn index(&self) -> usize {
        self.0
    }
}

/// Tokens whose keys and values a slot holds, for requests with the same salt only.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'t> {
    /// From position 0 on.
    pub tokens: &'t [TokenId],
    /// Of the request that computed them.
    pub salt: u64,
}

impl Prefix<'_> {
    fn common_with(&self, prompt: &Self) -> usize {
        if self.salt != prompt.salt {
            return 0;
        }
        self.tokens.iter().zip(prompt.tokens).take_while(|(ours, theirs)| ours == theirs).count()
    }
}

/// Hands out rows of the KV tensors. The tensors themselves belong to the model.
#[derive(Debug)]
pub struct KvCache {
    /// By row number.
    free: Vec<FreeSlot>,
    capacity: usize,
    retains: bool,
    rewindable_tokens: usize,
    can_move_slots: bool,
    /// Counts releases.
    clock: u64,
}

/// A row that nobody owns.
#[derive(Debug)]
struct FreeSlot {
    slot: Slot,
    tokens: Vec<TokenId>,
    salt: u64,
    released: u64,
}

impl FreeSlot {
    fn prefix(&self) -> Prefix<'_> {
        Prefix { tokens: &self.tokens, salt: self.salt }
    }

    /// Gives up what the row holds.
    fn clear(&mut self) {
        self.tokens.clear();
        self.released = 0;
    }
}

/// Where the longest common prefix was found.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Position in the list of free rows.
    Free(usize),
    /// Row number of a running sequence.
    Running(usize),
}

/// A shorter one is computed again rather than kept: that costs less than moving it.
const MIN_RETAINED_TOKENS: usize = 16;

impl KvCache {
    /// All rows free and empty. With `retains`, a freed row keeps its tokens until the row is needed.
    pub fn new(rows: NonZeroU32, retains: bool, model: &impl Model) -> Self {
        let limits = model.limits();
        let empty = |row| FreeSlot { slot: Slot(row), tokens: Vec::new(), salt: 0, released: 0 };
        Self {
            free: (0..rows.get() as usize).map(empty).collect(),
            capacity: rows.get() as usize,
            retains,
            rewindable_tokens: limits.rewindable_tokens,
            can_move_slots: limits.can_move_slots,
            clock: 0,
        }
    }

    /// Whether a row is free.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes the first free row, with as much of the prompt in it as any row holds, but never all: the last token has to
    /// be computed for its scores. Returns the row and how many tokens of the prompt it holds.
    pub fn allocate<'t>(
        &mut self,
        prompt: Prefix<'_>,
        running: impl Iterator<Item = (usize, Prefix<'t>)>,
        model: &mut impl Model,
    ) -> Option<(Slot, usize)> {
        if self.free.is_empty() {
            return None;
        }
        let reusable = Prefix { tokens: &prompt.tokens[..prompt.tokens.len() - 1], ..prompt };
        let source = if self.retains { self.longest_common_prefix(reusable, running) } else { None };
        let prepared = if self.can_move_slots {
            self.fill_first(source, model).map(|num_tokens| (0, num_tokens))
        } else {
            Ok(self.choose_in_place(source))
        };
        let (position, num_tokens) = prepared.unwrap_or_else(|error| {
            tracing::warn!(%error, "a prefix could not be moved and is computed again");
            self.free.iter_mut().for_each(FreeSlot::clear);
            (0, 0)
        });
        Some((self.free.remove(position).slot, num_tokens))
    }

    /// Gives a row back, with the tokens whose keys and values it holds.
    pub fn release(&mut self, slot: Slot, mut tokens: Vec<TokenId>, salt: u64) {
        if !self.retains || tokens.len() < MIN_RETAINED_TOKENS {
            tokens.clear();
        }
        self.clock += 1;
        let released = if tokens.is_empty() { 0 } else { self.clock };
        let position = self.free.partition_point(|free| free.slot.0 < slot.0);
        self.free.insert(position, FreeSlot { slot, tokens, salt, released });
        assert!(self.free.len() <= self.capacity);
    }

    /// Gives a running sequence the first free row between `first` and its own, if there is one, so that no run spans a
    /// row with nothing to do. `num_tokens` is what the sequence's row holds.
    pub fn close_gap(&mut self, first: usize, slot: &mut Slot, num_tokens: usize, model: &mut impl Model) {
        let between = |free: &&mut FreeSlot| first < free.slot.0 && free.slot.0 < slot.0;
        if let Some(gap) = self.free.iter_mut().filter(|_| self.can_move_slots).find(between) {
            model.swap_slots(gap.slot.0, slot.0, num_tokens.max(gap.tokens.len()));
            std::mem::swap(&mut gap.slot, slot);
            self.free.sort_unstable_by_key(|free| free.slot.0);
        }
    }

    /// Asserts that no row leaked.
    pub fn assert_all_free(&self) {
        let rows = self.free.iter().map(|free| free.slot.0);
        assert!(rows.eq(0..self.capacity), "a KV slot leaked");
    }

    /// Free rows win over running ones, from which a prefix has to be copied.
    fn longest_common_prefix<'t>(
        &self,
        prompt: Prefix<'_>,
        running: impl Iterator<Item = (usize, Prefix<'t>)>,
    ) -> Option<(Source, usize)> {
        let usable = |prefix: Prefix<'_>| {
            let num_tokens = prefix.common_with(&prompt);
            let held = prefix.tokens.len();
            if held <= self.rewindable_tokens || num_tokens == held { num_tokens } else { 0 }
        };
        let free = self.free.iter().enumerate();
        let free = free.map(|(position, free)| (Source::Free(position), usable(free.prefix())));
        let running = running.filter(|_| self.can_move_slots);
        let running = running.map(|(row, prefix)| (Source::Running(row), usable(prefix)));
        let longest = running.chain(free).max_by_key(|(_, num_tokens)| *num_tokens)?;
        Some(longest).filter(|(_, num_tokens)| MIN_RETAINED_TOKENS <= *num_tokens)
    }

    /// The free row that is missed least: an empty one, else the one released longest ago, other than `spared`.
    fn least_recently_used(&self, spared: Option<usize>) -> Option<usize> {
        let others = (0..self.free.len()).filter(|position| Some(*position) != spared);
        others.min_by_key(|position| self.free[*position].released)
    }

    /// Brings the source's prefix into the first free row; what that row holds goes to the row that is missed least.
    fn fill_first(&mut self, source: Option<(Source, usize)>, model: &mut impl Model) -> Result<usize, ModelError> {
        if let Some((Source::Free(position), num_tokens)) = source {
            let is_most_of_it = self.free[position].tokens.len() <= 2 * num_tokens;
            if is_most_of_it || self.free.len() == 1 {
                if position != 0 {
                    let [first, chosen] = self.free.get_disjoint_mut([0, position]).expect("two free rows");
                    let longer = first.tokens.len().max(num_tokens);
                    model.swap_slots(first.slot.0, chosen.slot.0, longer);
                    std::mem::swap(&mut first.slot, &mut chosen.slot);
                    self.free.swap(0, position);
                }
                return Ok(num_tokens);
            }
        }
        let spared = match source {
            Some((Source::Free(position), _)) => Some(position),
            _ => None,
        };
        if let Some(victim) = self.least_recently_used(spared)
            && victim != 0
            && !self.free[0].tokens.is_empty()
        {
            let [first, victim] = self.free.get_disjoint_mut([0, victim]).expect("two free rows");
            model.copy_slot(first.slot.0, victim.slot.0, first.tokens.len())?;
            victim.tokens.clone_from(&first.tokens);
            (victim.salt, victim.released) = (first.salt, first.released);
        }
        match source {
            None | Some((Source::Free(0), _)) => {}
            Some((Source::Free(position), num_tokens)) => {
                model.copy_slot(self.free[position].slot.0, self.free[0].slot.0, num_tokens)?;
            }
            Some((Source::Running(row), num_tokens)) => model.copy_slot(row, self.free[0].slot.0, num_tokens)?,
        }
        Ok(source.map_or(0, |(_, num_tokens)| num_tokens))
    }

    /// Without moving anything: the row with the prefix, unless most of what it holds would be lost and another row is
    /// missed less.
    fn choose_in_place(&self, source: Option<(Source, usize)>) -> (usize, usize) {
        let missed_least = self.least_recently_used(None).unwrap_or(0);
        match source {
            Some((Source::Free(position), num_tokens))
                if position == missed_least || self.free[position].tokens.len() <= 2 * num_tokens =>
            {
                (position, num_tokens)
            }
            _ => (missed_least, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Batch, Logits, ModelLimits};
    use proptest::prelude::*;
    use std::time::Duration;

    /// Only holds tokens.
    struct Memory {
        rows: Vec<Vec<TokenId>>,
        limits: ModelLimits,
    }

    impl Memory {
        fn new(num_rows: usize, can_move_slots: bool, rewindable_tokens: usize) -> Self {
            let limits = ModelLimits {
                vocab_size: 8,
                context_tokens: 100,
                chunk_tokens: 32,
                rewindable_tokens,
                can_verify_drafts: false,
                can_move_slots,
                blocks: None,
            };
            Self { rows: vec![Vec::new(); num_rows], limits }
        }
    }

    impl Model for Memory {
        fn limits(&self) -> ModelLimits {
            self.limits
        }

        fn forward(&mut self, _batch: &Batch, _logits: &mut Logits) -> Result<(), ModelError> {
            Ok(())
        }

        fn time_in_runs(&self) -> Duration {
            Duration::ZERO
        }

        fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
            let held = self.rows[from].len();
            assert!(held <= self.limits.rewindable_tokens || num_tokens == held, "a part cannot be copied");
            self.rows[to] = self.rows[from][..num_tokens].to_vec();
            Ok(())
        }

        fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
            self.rows.swap(one, other);
            self.rows[one].truncate(num_tokens);
            self.rows[other].truncate(num_tokens);
        }
    }

    fn cache(num_rows: u32, can_move_slots: bool) -> (KvCache, Memory) {
        cache_over(Memory::new(num_rows as usize, can_move_slots, 100))
    }

    fn cache_over(memory: Memory) -> (KvCache, Memory) {
        let num_rows = u32::try_from(memory.rows.len()).unwrap();
        (KvCache::new(NonZeroU32::new(num_rows).unwrap(), true, &memory), memory)
    }

    fn tokens(first: u32, len: u32) -> Vec<TokenId> {
        (first..first + len).map(TokenId).collect()
    }

    /// Allocates and computes all of `prompt`; returns the slot and how much was reused.
    fn compute(cache: &mut KvCache, memory: &mut Memory, prompt: &[TokenId]) -> (Slot, usize) {
        let (slot, num_reused) = cache.allocate(Prefix { tokens: prompt, salt: 0 }, [].into_iter(), memory).unwrap();
        assert_eq!(memory.rows[slot.index()].get(..num_reused), Some(&prompt[..num_reused]));
        memory.rows[slot.index()] = prompt.to_vec();
        (slot, num_reused)
    }

    /// What the free rows hold, by row.
    fn held(cache: &KvCache) -> Vec<usize> {
        cache.free.iter().map(|free| free.tokens.len()).collect()
    }

    #[test]
    fn the_least_recently_used_row_is_given_up() {
        for can_move_slots in [false, true] {
            let (mut cache, mut memory) = cache(3, can_move_slots);
            for first in [100, 200, 300] {
                let (slot, _) = compute(&mut cache, &mut memory, &tokens(first, 20));
                cache.release(slot, tokens(first, 20), 0);
            }
            // 100 is used again, so that 200 is the oldest when a new one needs a row.
            for (first, expected) in [(100, 19), (400, 0), (100, 19), (300, 19), (200, 0)] {
                let (slot, num_reused) = compute(&mut cache, &mut memory, &tokens(first, 20));
                assert_eq!(num_reused, expected, "{first}");
                cache.release(slot, tokens(first, 20), 0);
            }
            cache.assert_all_free();
        }
    }

    #[test]
    fn a_short_prefix_is_copied_from_a_long_conversation_that_stays() {
        let (mut cache, mut memory) = cache(2, true);
        let (slot, _) = compute(&mut cache, &mut memory, &tokens(0, 90));
        cache.release(slot, tokens(0, 90), 0);
        let mut other = tokens(0, 20);
        other.extend(tokens(500, 5));
        let (slot, num_reused) = compute(&mut cache, &mut memory, &other);
        assert_eq!((slot.index(), num_reused, held(&cache)), (0, 20, vec![90]));
        cache.release(slot, other, 0);
        assert_eq!(compute(&mut cache, &mut memory, &tokens(0, 90)).1, 89);
    }

    #[test]
    fn where_nothing_moves_a_short_prefix_does_not_cost_a_long_conversation() {
        let (mut cache, mut memory) = cache(2, false);
        let (slot, _) = compute(&mut cache, &mut memory, &tokens(0, 90));
        cache.release(slot, tokens(0, 90), 0);
        let mut other = tokens(0, 20);
        other.extend(tokens(500, 5));
        let (slot, num_reused) = compute(&mut cache, &mut memory, &other);
        assert_eq!((slot.index(), num_reused, held(&cache)), (1, 0, vec![90]));
        cache.release(slot, other, 0);
        assert_eq!(compute(&mut cache, &mut memory, &tokens(0, 90)).1, 89);
    }

    #[test]
    fn a_prefix_that_is_being_used_is_copied() {
        let (mut cache, mut memory) = cache(2, true);
        let prompt = tokens(0, 40);
        let (running, _) = compute(&mut cache, &mut memory, &prompt);
        let prefix = Prefix { tokens: &prompt, salt: 0 };
        let others = [(running.index(), prefix)].into_iter();
        let (slot, num_reused) = cache.allocate(prefix, others, &mut memory).unwrap();
        assert_eq!((slot.index(), num_reused), (1, 39));
        assert_eq!(memory.rows[1], prompt[..39]);
    }

    #[test]
    fn what_cannot_be_cut_back_is_used_whole_or_not_at_all() {
        let (mut cache, mut memory) = cache_over(Memory::new(3, true, 39));
        let held = tokens(0, 40);
        let (running, _) = compute(&mut cache, &mut memory, &held);
        let mut longer = held.clone();
        longer.extend(tokens(500, 5));
        let prefix = Prefix { tokens: &held, salt: 0 };
        let others = [(running.index(), prefix)];
        let mut reused = |prompt: &[TokenId]| {
            let prompt = Prefix { tokens: prompt, salt: 0 };
            let (slot, num_reused) = cache.allocate(prompt, others.into_iter(), &mut memory).unwrap();
            cache.release(slot, Vec::new(), 0);
            num_reused
        };
        assert_eq!([reused(&held), reused(&longer), reused(&tokens(0, 30))], [0, 40, 0]);
        cache.release(running, held.clone(), 0);
        // The same once nobody runs it.
        let (slot, num_reused) =
            cache.allocate(Prefix { tokens: &held, salt: 0 }, [].into_iter(), &mut memory).unwrap();
        assert_eq!(num_reused, 0);
        cache.release(slot, Vec::new(), 0);
        assert_eq!(compute(&mut cache, &mut memory, &longer).1, 40);
        // One token less can be cut back.
        let (mut cache, mut memory) = cache_over(Memory::new(2, true, 39));
        let (slot, _) = compute(&mut cache, &mut memory, &held[..39]);
        cache.release(slot, held[..39].to_vec(), 0);
        assert_eq!(compute(&mut cache, &mut memory, &held[..30]).1, 29);
    }

    #[test]
    fn a_gap_between_running_rows_is_closed() {
        let (mut cache, mut memory) = cache(4, true);
        let mut slots: Vec<Slot> =
            (0..4).map(|row| compute(&mut cache, &mut memory, &tokens(row * 100, 20)).0).collect();
        let mut last = slots.pop().unwrap();
        cache.release(slots.remove(1), tokens(100, 20), 0);
        cache.close_gap(0, &mut last, 20, &mut memory);
        assert_eq!((last.index(), memory.rows[1].clone()), (1, tokens(300, 20)));
        // The row that was freed has moved, with what it holds.
        assert_eq!((held(&cache), memory.rows[3].clone()), (vec![20], tokens(100, 20)));
        assert_eq!(compute(&mut cache, &mut memory, &tokens(100, 20)).1, 19);
    }

    proptest! {
        /// Rows are taken, used and given back in any order; what a row is said to hold, it holds.
        #[test]
        fn whatever_comes_the_cache_tells_the_truth(
            num_rows in 1_u32..5,
            (can_move_slots, rewindable_tokens) in (any::<bool>(), prop_oneof![Just(0), Just(30), Just(100)]),
            requests in prop::collection::vec((0_u64..2, 0_u32..3, 1_u32..60, 0_u32..2, any::<prop::sample::Index>()), 1..60),
        ) {
            let (mut cache, mut memory) = cache_over(Memory::new(num_rows as usize, can_move_slots, rewindable_tokens));
            let mut running: Vec<(Slot, Vec<TokenId>, u64)> = Vec::new();
            for (salt, first, len, end, leaves) in requests {
                let mut prompt = tokens(first * 1000, len);
                prompt.push(TokenId(7000 + end));
                if !cache.has_room() {
                    let (slot, tokens, salt) = running.remove(leaves.index(running.len()));
                    cache.release(slot, tokens, salt);
                }
                let others: Vec<(usize, Prefix<'_>)> =
                    running.iter().map(|(slot, tokens, salt)| (slot.index(), Prefix { tokens, salt: *salt })).collect();
                let prefix = Prefix { tokens: &prompt, salt };
                let (slot, num_reused) = cache.allocate(prefix, others.into_iter(), &mut memory).unwrap();
                prop_assert!(num_reused < prompt.len());
                let held = &memory.rows[slot.index()];
                prop_assert_eq!(held.get(..num_reused), Some(&prompt[..num_reused]));
                prop_assert!(held.len() <= rewindable_tokens || num_reused == 0 || num_reused == held.len());
                memory.rows[slot.index()] = prompt.clone();
                running.push((slot, prompt, salt));
                let first = running.iter().map(|(slot, ..)| slot.index()).min().unwrap();
                let (last, tokens, _) = running.iter_mut().max_by_key(|(slot, ..)| slot.index()).unwrap();
                cache.close_gap(first, last, tokens.len(), &mut memory);
                for (slot, tokens, _) in &running {
                    prop_assert_eq!(&memory.rows[slot.index()], tokens);
                }
                for free in &cache.free {
                    prop_assert_eq!(memory.rows[free.slot.index()].get(..free.tokens.len()), Some(&free.tokens[..]));
                }
                let mut rows: Vec<usize> = running.iter().map(|(slot, ..)| slot.index()).collect();
                rows.extend(cache.free.iter().map(|free| free.slot.index()));
                rows.sort_unstable();
                prop_assert_eq!(rows, (0..num_rows as usize).collect::<Vec<_>>());
            }
        }
    }
}
