//! The memory for keys and values: slots and, for models that keep them in blocks, those.

use super::{BlockCache, BlockTable, EngineConfig, KvCache, Model, Prefix, Slot, TokenId};
use std::{mem, ops::Range};

/// Hands out places. Where there are blocks, a slot is a place in the batch and retains nothing: the blocks do.
#[derive(Debug)]
pub(super) struct Cache {
    slots: KvCache,
    blocks: Option<BlockCache>,
}

/// What a running sequence owns: a slot and, where there are blocks, those that hold its tokens.
#[derive(Debug)]
pub(super) struct Place {
    slot: Slot,
    table: BlockTable,
}

impl Place {
    pub(super) fn slot_index(&self) -> usize {
        self.slot.index()
    }

    /// Numbers of its blocks; none where there are only slots.
    pub(super) fn blocks(&self) -> &[u32] {
        self.table.blocks()
    }
}

impl Cache {
    pub(super) fn new(config: &EngineConfig, model: &impl Model) -> Self {
        let limits = model.limits();
        if let Some(blocks) = limits.blocks {
            // So a sequence that is alone never lacks a block, and none waits for ever.
            assert!(
                limits.context_tokens <= blocks.num_blocks * blocks.block_tokens,
                "the blocks hold a whole context"
            );
            assert!(!limits.can_move_slots, "a slot beside blocks holds nothing that could be moved");
        }
        Self {
            slots: KvCache::new(config.max_batch_size, config.prefix_cache && limits.blocks.is_none(), model),
            blocks: limits.blocks.map(|blocks| BlockCache::new(blocks, config.prefix_cache)),
        }
    }

    /// Blocks that running sequences own.
    pub(super) fn num_blocks_in_use(&self) -> usize {
        self.blocks.as_ref().map_or(0, BlockCache::num_in_use)
    }

    /// Whether a slot is free.
    pub(super) fn has_slot(&self) -> bool {
        self.slots.has_room()
    }

    /// Blocks that a running sequence needs before long: for the tokens that it has, and one to go on.
    pub(super) fn num_wanted_blocks(&self, place: &Place, num_tokens: usize) -> usize {
        self.blocks.as_ref().map_or(0, |blocks| blocks.num_lacking(&place.table, num_tokens) + 1)
    }

    /// A place, and how many tokens of the prompt it holds already. None where all slots are taken, or where the prompt
    /// would need some of the `num_spared` blocks that others want.
    pub(super) fn allocate<'t>(
        &mut self,
        prompt: Prefix<'_>,
        num_spared: usize,
        running: impl Iterator<Item = (usize, Prefix<'t>)>,
        model: &mut impl Model,
    ) -> Option<(Place, usize)> {
        if !self.has_slot() {
            return None;
        }
        let in_blocks = match &mut self.blocks {
            Some(blocks) => Some(blocks.allocate(prompt, num_spared)?),
            None => None,
        };
        let (slot, num_in_slot) = self.slots.allocate(prompt, running, model).expect("a slot is free");
        let (table, num_tokens) = in_blocks.unwrap_or((BlockTable::default(), num_in_slot));
        Some((Place { slot, table }, num_tokens))
    }

    /// Makes room for a row that writes these positions. False where too few blocks are free.
    #[must_use]
    pub(super) fn reserve(&mut self, place: &mut Place, positions: Range<usize>) -> bool {
        self.blocks.as_mut().is_none_or(|blocks| blocks.reserve(&mut place.table, positions))
    }

    /// Lets others use what a running sequence has computed.
    pub(super) fn settle(&mut self, place: &mut Place, computed: Prefix<'_>) {
        if let Some(blocks) = &mut self.blocks {
            blocks.settle(&mut place.table, computed);
        }
    }

    /// Forgets what a place holds and gives its blocks back, of which it returns those that nobody else has: they may hold
    /// something else from now on. Of several that share some, the last one has these for itself.
    pub(super) fn forget(&mut self, place: &mut Place) -> Vec<u32> {
        let Some(blocks) = &mut self.blocks else { return Vec::new() };
        let forgotten = blocks.forget_last(&mut place.table);
        blocks.release(mem::take(&mut place.table), Prefix { tokens: &[], salt: 0 });
        forgotten
    }

    /// Gives a place back, with the tokens whose keys and values it holds.
    pub(super) fn release(&mut self, place: Place, tokens: Vec<TokenId>, salt: u64) {
        if let Some(blocks) = &mut self.blocks {
            blocks.release(place.table, Prefix { tokens: &tokens, salt });
        }
        self.slots.release(place.slot, tokens, salt);
    }

    /// See [`KvCache::close_gap`].
    pub(super) fn close_gap(&mut self, first: usize, place: &mut Place, num_tokens: usize, model: &mut impl Model) {
        self.slots.close_gap(first, &mut place.slot, num_tokens, model);
    }

    /// Asserts that nothing leaked.
    pub(super) fn assert_all_free(&self) {
        self.slots.assert_all_free();
        if let Some(blocks) = &self.blocks {
            blocks.assert_all_free();
        }
    }
}
