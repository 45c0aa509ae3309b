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
    can_rewind: bool,
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
            can_rewind: limits.can_rewind,
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
    ///
    /// # Errors
    /// When the backend fails: then neither row holds anything of use.
    pub fn close_gap(
        &mut self,
        first: usize,
        slot: &mut Slot,
        num_tokens: usize,
        model: &mut impl Model,
    ) -> Result<(), ModelError> {
        if !self.can_move_slots {
            return Ok(());
        }
        let Some(gap) = self.free.iter_mut().find(|free| first < free.slot.0 && free.slot.0 < slot.0) else {
            return Ok(());
        };
        model.swap_slots(gap.slot.0, slot.0, num_tokens.max(gap.tokens.len()))?;
        std::mem::swap(&mut gap.slot, slot);
        self.free.sort_unstable_by_key(|free| free.slot.0);
        Ok(())
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
        let free = self.free.iter().enumerate().map(|(position, free)| {
            let num_tokens = free.prefix().common_with(&prompt);
            let is_usable = self.can_rewind || num_tokens == free.tokens.len();
            (Source::Free(position), if is_usable { num_tokens } else { 0 })
        });
        let running = running.filter(|_| self.can_move_slots);
        let running = running.map(|(row, prefix)| (Source::Running(row), prefix.common_with(&prompt)));
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
                    model.swap_slots(first.slot.0, chosen.slot.0, longer)?;
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
        if let Some((Source::Free(position), num_tokens)) = source {
            return (position, num_tokens);
        }
        (self.least_recently_used(None).unwrap_or(0), 0)
    }
}
