//! Who owns which block of the KV cache, and which tokens the blocks still hold.
//!
//! A block that is full is known by its tokens and by the block before it, back to the salt at the beginning: the blocks
//! of a sequence are a chain, and sequences that begin alike share the first blocks of theirs. Only full blocks are shared,
//! so that nobody writes what another one reads. Blocks that nobody owns stay known until they are needed.

mod free_list;

use super::{BlockLimits, Prefix, TokenId};
use free_list::FreeList;
use std::{
    hash::{BuildHasher, RandomState},
    iter,
    ops::Range,
};

/// The blocks of one sequence, in the order of its tokens. Not `Clone`: a block cannot be given back twice.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// So many of the first ones are full and known: they are written no more.
    num_known: usize,
}

impl BlockTable {
    /// Numbers of the blocks.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// Hands out blocks. What they hold belongs to the model.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Vec<Block>,
    /// What the known blocks hold, as many tokens for each block.
    tokens: Vec<TokenId>,
    /// Of the known blocks, the first one of each hash.
    buckets: Vec<Option<u32>>,
    hasher: RandomState,
    free: FreeList,
    block_tokens: usize,
    retains: bool,
}

#[derive(Clone, Debug, Default)]
struct Block {
    num_owners: u32,
    /// What comes before it, if it is known.
    before: Option<Before>,
    /// Known blocks that come behind it. It is known for longer than they are, so its number stands for what it holds.
    num_behind: u32,
    /// The next known block with the same hash.
    next_in_bucket: Option<u32>,
}

/// What comes before a block.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Before {
    /// Nothing: it is the first block of a request with this salt.
    Salt(u64),
    /// A known block.
    Block(u32),
}

impl BlockCache {
    /// All blocks free and empty. With `retains`, full blocks are known, and a freed one stays so until it is needed.
    pub fn new(limits: BlockLimits, retains: bool) -> Self {
        let BlockLimits { num_blocks, block_tokens } = limits;
        assert!(block_tokens.is_power_of_two(), "a block holds a power of two of tokens");
        Self {
            blocks: vec![Block::default(); num_blocks],
            tokens: vec![TokenId(0); if retains { num_blocks * block_tokens } else { 0 }],
            buckets: vec![None; num_blocks],
            hasher: RandomState::new(),
            free: FreeList::new(num_blocks),
            block_tokens,
            retains,
        }
    }

    /// Blocks that sequences own.
    pub fn num_in_use(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Blocks that a table lacks to hold so many tokens.
    pub fn num_lacking(&self, table: &BlockTable, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_tokens).saturating_sub(table.blocks.len())
    }

    /// A table with what is known of the beginning of `prompt`, but never with all of it: the last token has to be computed
    /// for its scores. Also returns how many tokens that is. None where there are too few free blocks to hold the rest of
    /// the prompt, too, and to leave `num_spared` free; the rest is taken with [`reserve`](Self::reserve).
    pub fn allocate(&mut self, prompt: Prefix<'_>, num_spared: usize) -> Option<(BlockTable, usize)> {
        let mut table = BlockTable::default();
        let mut before = Before::Salt(prompt.salt);
        for tokens in prompt.tokens[..prompt.tokens.len() - 1].chunks_exact(self.block_tokens) {
            let Some(known) = self.find(before, tokens) else { break };
            table.blocks.push(known);
            before = Before::Block(known);
        }
        let free = table.blocks.iter().filter(|block| self.blocks[**block as usize].num_owners == 0);
        if self.free.len() < free.count() + self.num_lacking(&table, prompt.tokens.len()) + num_spared {
            return None;
        }
        table.blocks.iter().for_each(|block| self.own(*block));
        table.num_known = table.blocks.len();
        let num_tokens = table.num_known * self.block_tokens;
        Some((table, num_tokens))
    }

    /// Takes the blocks that a table lacks for a row that writes these positions. False, and takes none, where there are
    /// too few.
    #[must_use]
    pub fn reserve(&mut self, table: &mut BlockTable, positions: Range<usize>) -> bool {
        assert!(table.num_known * self.block_tokens <= positions.start, "what may be shared is never written");
        let num_lacking = self.num_lacking(table, positions.end);
        if self.free.len() < num_lacking {
            return false;
        }
        for _ in 0..num_lacking {
            let block = self.free.pop_first().expect("there are enough");
            self.forget(block);
            self.blocks[block as usize].num_owners = 1;
            table.blocks.push(block);
        }
        true
    }

    /// Makes the blocks known that are full by now. Where another one that holds the same is known already, it takes the
    /// place of the table's own, which is free again. `computed` is what the table's blocks hold.
    pub fn settle(&mut self, table: &mut BlockTable, computed: Prefix<'_>) {
        let skipped = table.num_known * self.block_tokens;
        if !self.retains || computed.tokens.len() < skipped {
            return;
        }
        for tokens in computed.tokens[skipped..].chunks_exact(self.block_tokens) {
            let before = match table.num_known.checked_sub(1) {
                Some(last) => Before::Block(table.blocks[last]),
                None => Before::Salt(computed.salt),
            };
            let block = table.blocks[table.num_known];
            match self.find(before, tokens) {
                Some(known) => {
                    self.own(known);
                    self.disown(block);
                    table.blocks[table.num_known] = known;
                }
                None => self.learn(block, before, tokens),
            }
            table.num_known += 1;
        }
    }

    /// Gives all blocks of a table back. `computed` is what they hold; less is no harm.
    pub fn release(&mut self, mut table: BlockTable, computed: Prefix<'_>) {
        self.settle(&mut table, computed);
        // The end of a chain is given up before its beginning, without which it could not be found.
        table.blocks.iter().rev().for_each(|block| self.disown(*block));
    }

    /// Asserts that no block leaked.
    pub fn assert_all_free(&self) {
        assert_eq!(self.num_in_use(), 0, "a KV block leaked");
    }

    fn own(&mut self, block: u32) {
        let owned = &mut self.blocks[block as usize];
        owned.num_owners += 1;
        if owned.num_owners == 1 {
            self.free.remove(block);
        }
    }

    fn disown(&mut self, block: u32) {
        let owned = &mut self.blocks[block as usize];
        owned.num_owners -= 1;
        match owned {
            Block { num_owners: 0, before: Some(_), .. } => self.free.push_last(block),
            Block { num_owners: 0, before: None, .. } => self.free.push_first(block),
            Block { .. } => {}
        }
    }

    /// The known block with these tokens behind `before`. Whatever hashes say, both are compared.
    fn find(&self, before: Before, tokens: &[TokenId]) -> Option<u32> {
        let bucket = self.bucket(before, tokens);
        self.in_bucket(bucket).find(|block| {
            self.blocks[*block as usize].before == Some(before) && self.tokens[self.range(*block)] == *tokens
        })
    }

    /// Notes what a block holds.
    fn learn(&mut self, block: u32, before: Before, tokens: &[TokenId]) {
        let range = self.range(block);
        self.tokens[range].copy_from_slice(tokens);
        let bucket = self.bucket(before, tokens);
        let next_in_bucket = self.buckets[bucket].replace(block);
        let learned = &mut self.blocks[block as usize];
        (learned.before, learned.next_in_bucket) = (Some(before), next_in_bucket);
        if let Before::Block(before) = before {
            self.blocks[before as usize].num_behind += 1;
        }
    }

    /// Forgets what a block holds.
    fn forget(&mut self, block: u32) {
        let forgotten = std::mem::take(&mut self.blocks[block as usize]);
        assert_eq!(forgotten.num_behind, 0, "the end of a chain is given up first");
        let Some(before) = forgotten.before else { return };
        if let Before::Block(before) = before {
            self.blocks[before as usize].num_behind -= 1;
        }
        let bucket = self.bucket(before, &self.tokens[self.range(block)]);
        let previous = self.in_bucket(bucket).find(|other| self.blocks[*other as usize].next_in_bucket == Some(block));
        match previous {
            Some(previous) => self.blocks[previous as usize].next_in_bucket = forgotten.next_in_bucket,
            None => self.buckets[bucket] = forgotten.next_in_bucket,
        }
    }

    fn in_bucket(&self, bucket: usize) -> impl Iterator<Item = u32> {
        iter::successors(self.buckets[bucket], |block| self.blocks[*block as usize].next_in_bucket)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is a number of a bucket")]
    fn bucket(&self, before: Before, tokens: &[TokenId]) -> usize {
        (self.hasher.hash_one((before, tokens)) % self.buckets.len() as u64) as usize
    }

    /// Where in `tokens` those of a block are.
    fn range(&self, block: u32) -> Range<usize> {
        let begin = block as usize * self.block_tokens;
        begin..begin + self.block_tokens
    }
}
