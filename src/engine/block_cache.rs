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

    /// Forgets what the last blocks of a table hold, as far as they are nobody else's, and returns these.
    pub fn forget_last(&mut self, table: &mut BlockTable) -> Vec<u32> {
        let mut forgotten = Vec::new();
        for block in table.blocks.iter().rev().copied() {
            let Block { num_owners, num_behind, .. } = self.blocks[block as usize];
            if num_owners != 1 || num_behind != 0 {
                break;
            }
            self.forget(block);
            self.blocks[block as usize].num_owners = 1;
            forgotten.push(block);
        }
        table.num_known = table.num_known.min(table.blocks.len() - forgotten.len());
        forgotten
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn cache(num_blocks: usize) -> BlockCache {
        BlockCache::new(BlockLimits { num_blocks, block_tokens: 4 }, true)
    }

    fn tokens(first: u32, len: u32) -> Vec<TokenId> {
        (first..first + len).map(TokenId).collect()
    }

    fn of_salt(tokens: &[TokenId], salt: u64) -> Prefix<'_> {
        Prefix { tokens, salt }
    }

    /// Allocates and computes all of `prompt`; returns the table and how much was reused.
    fn compute(cache: &mut BlockCache, prompt: &[TokenId]) -> (BlockTable, usize) {
        let (mut table, num_reused) = cache.allocate(of_salt(prompt, 0), 0).unwrap();
        assert!(cache.reserve(&mut table, num_reused..prompt.len()));
        cache.settle(&mut table, of_salt(prompt, 0));
        (table, num_reused)
    }

    fn compute_and_release(cache: &mut BlockCache, prompt: &[TokenId]) -> usize {
        let (table, num_reused) = compute(cache, prompt);
        cache.release(table, of_salt(prompt, 0));
        num_reused
    }

    /// How many tokens of a prompt are found, whose last one is never looked up.
    fn num_found(cache: &mut BlockCache, prompt: &[TokenId]) -> usize {
        let (table, num_found) = cache.allocate(of_salt(prompt, 0), 0).unwrap();
        cache.release(table, of_salt(&[], 0));
        num_found
    }

    #[test]
    fn who_begins_alike_shares_full_blocks_but_for_the_last_token() {
        let mut cache = cache(8);
        let (one, _) = compute(&mut cache, &tokens(0, 10));
        let (other, num_reused) = compute(&mut cache, &tokens(0, 10));
        assert_eq!((num_reused, &other.blocks()[..2]), (8, &one.blocks()[..2]));
        assert_ne!(one.blocks()[2], other.blocks()[2]);
        assert_eq!(cache.num_in_use(), 4);
        assert_eq!([8, 9].map(|len| num_found(&mut cache, &tokens(0, len))), [4, 8]);
        // The same tokens elsewhere are not the same: their keys depend on where they are, and on what came before.
        assert_eq!(num_found(&mut cache, &tokens(4, 6)), 0);
        cache.release(one, of_salt(&tokens(0, 10), 0));
        assert_eq!(cache.num_in_use(), 3);
        cache.release(other, of_salt(&tokens(0, 10), 0));
        cache.assert_all_free();
    }

    #[test]
    fn requests_of_another_salt_share_nothing() {
        let mut cache = cache(8);
        let prompt = tokens(0, 10);
        compute_and_release(&mut cache, &prompt);
        let (table, num_reused) = cache.allocate(of_salt(&prompt, 1), 0).unwrap();
        assert_eq!((table.blocks(), num_reused), (&[][..], 0));
    }

    #[test]
    fn what_two_compute_at_once_is_kept_once() {
        let mut cache = cache(8);
        let prompt = tokens(0, 10);
        let mut tables = [(); 2].map(|()| cache.allocate(of_salt(&prompt, 0), 0).unwrap().0);
        for table in &mut tables {
            assert!(cache.reserve(table, 0..10));
        }
        assert_eq!(cache.num_in_use(), 6);
        for table in &mut tables {
            cache.settle(table, of_salt(&prompt, 0));
        }
        let [one, other] = tables;
        assert_eq!((cache.num_in_use(), &one.blocks()[..2]), (4, &other.blocks()[..2]));
        cache.release(one, of_salt(&prompt, 0));
        cache.release(other, of_salt(&prompt, 0));
        cache.assert_all_free();
        assert_eq!(num_found(&mut cache, &prompt), 8);
    }

    #[test]
    fn the_chain_that_was_used_longest_ago_is_given_up_from_its_end() {
        let mut cache = cache(6);
        let chains = [tokens(0, 9), tokens(100, 9)];
        for chain in &chains {
            compute_and_release(&mut cache, chain);
        }
        // The first one is used again, so the second is the oldest.
        assert_eq!(compute_and_release(&mut cache, &chains[0]), 8);
        let mut taken = BlockTable::default();
        let mut found = Vec::new();
        for num_taken in 1..=6 {
            assert!(cache.reserve(&mut taken, 0..num_taken * 4));
            let left = |chain: &Vec<TokenId>| {
                let known = iter::successors(Some((Before::Salt(0), 0)), |(before, len)| {
                    let next = cache.find(*before, chain.get(*len..len + 4)?)?;
                    Some((Before::Block(next), len + 4))
                });
                known.last().unwrap().1
            };
            found.push(chains.each_ref().map(left));
        }
        // Two blocks were empty.
        assert_eq!(found, [[8, 8], [8, 8], [8, 4], [8, 0], [4, 0], [0, 0]]);
        assert!(!cache.reserve(&mut taken, 0..25));
        cache.release(taken, of_salt(&[], 0));
        cache.assert_all_free();
    }

    #[test]
    fn who_finds_too_few_blocks_takes_none() {
        let mut cache = cache(4);
        let (mut table, _) = compute(&mut cache, &tokens(0, 5));
        assert!(!cache.reserve(&mut table, 5..17));
        assert_eq!((table.blocks().len(), cache.num_in_use()), (2, 2));
        // Of three blocks, one is there already.
        let prompt = tokens(0, 12);
        assert!(cache.allocate(of_salt(&prompt, 0), 1).is_none());
        cache.release(table, of_salt(&tokens(0, 5), 0));
        // It is nobody's now, and is needed all the same.
        assert!(cache.allocate(of_salt(&prompt, 0), 2).is_none());
        cache.assert_all_free();
        let (table, num_reused) = cache.allocate(of_salt(&prompt, 0), 1).unwrap();
        assert_eq!((num_reused, cache.num_lacking(&table, 12)), (4, 2));
    }

    #[test]
    fn what_is_forgotten_is_found_no_more_and_what_others_have_stays() {
        let mut cache = cache(8);
        let prompt = tokens(0, 13);
        let (mut table, _) = compute(&mut cache, &prompt);
        cache.settle(&mut table, of_salt(&prompt, 0));
        let (other, num_tokens) = cache.allocate(of_salt(&prompt[..5], 0), 0).unwrap();
        assert_eq!((num_tokens, other.blocks()), (4, &table.blocks()[..1]));
        let own: Vec<u32> = table.blocks()[1..].iter().rev().copied().collect();
        assert_eq!(cache.forget_last(&mut table), own);
        // A sequence of which nothing is to be kept gives all of them back.
        cache.release(table, of_salt(&[], 0));
        assert_eq!((num_found(&mut cache, &prompt), cache.num_in_use()), (4, 1));
        // Then the other has the first one for itself.
        let mut other = other;
        assert_eq!(cache.forget_last(&mut other), other.blocks());
        cache.release(other, of_salt(&[], 0));
        assert_eq!(num_found(&mut cache, &prompt), 0);
        cache.assert_all_free();
    }

    #[test]
    fn what_is_not_to_be_kept_is_not_found() {
        let mut cache = BlockCache::new(BlockLimits { num_blocks: 8, block_tokens: 4 }, false);
        let prompt = tokens(0, 10);
        let (running, _) = compute(&mut cache, &prompt);
        assert_eq!(num_found(&mut cache, &prompt), 0);
        cache.release(running, of_salt(&prompt, 0));
        assert_eq!(num_found(&mut cache, &prompt), 0);
    }

    #[test]
    #[should_panic(expected = "what may be shared is never written")]
    fn a_full_block_cannot_be_written_again() {
        let mut cache = cache(4);
        let (mut table, _) = compute(&mut cache, &tokens(0, 5));
        let _ = cache.reserve(&mut table, 3..6);
    }

    /// A sequence in the property test: all of its tokens, and how many are computed.
    struct Simulated {
        table: BlockTable,
        tokens: Vec<TokenId>,
        num_computed: usize,
        salt: u64,
    }

    /// Blocks, and what has been written into them: position, salt and token.
    struct Memory {
        cache: BlockCache,
        cells: Vec<Option<(usize, u64, TokenId)>>,
        running: Vec<Simulated>,
    }

    impl Memory {
        fn new(num_blocks: usize, block_tokens: usize) -> Self {
            let cells = vec![None; num_blocks * block_tokens];
            Self { cache: BlockCache::new(BlockLimits { num_blocks, block_tokens }, true), cells, running: Vec::new() }
        }

        fn cell(&self, table: &BlockTable, position: usize) -> usize {
            let block_tokens = self.cache.block_tokens;
            table.blocks()[position / block_tokens] as usize * block_tokens + position % block_tokens
        }

        fn admit(&mut self, tokens: Vec<TokenId>, salt: u64) {
            let Some((table, num_computed)) = self.cache.allocate(of_salt(&tokens, salt), 0) else { return };
            assert!(num_computed < tokens.len());
            self.running.push(Simulated { table, tokens, num_computed, salt });
        }

        /// Computes some of what a sequence lacks; false where blocks have run out.
        fn step(&mut self, index: usize, num_tokens: usize) -> bool {
            let Simulated { table, tokens, num_computed, salt } = &mut self.running[index];
            let written = *num_computed..tokens.len().min(*num_computed + num_tokens);
            if !self.cache.reserve(table, written.clone()) {
                return false;
            }
            *num_computed = written.end;
            let new = written.clone().map(|position| Some((position, *salt, tokens[position]))).collect::<Vec<_>>();
            for (position, new) in written.zip(new) {
                let cell = self.cell(&self.running[index].table, position);
                let block = u32::try_from(cell / self.cache.block_tokens).unwrap();
                let num_owners = self.running.iter().filter(|other| other.table.blocks().contains(&block)).count();
                assert_eq!(num_owners, 1, "a block that is written is one sequence's own");
                self.cells[cell] = new;
            }
            let Simulated { table, tokens, num_computed, salt } = &mut self.running[index];
            self.cache.settle(table, of_salt(&tokens[..*num_computed], *salt));
            true
        }

        fn release(&mut self, index: usize) {
            let Simulated { table, tokens, num_computed, salt } = self.running.remove(index);
            self.cache.release(table, of_salt(&tokens[..num_computed], salt));
        }

        /// Each table holds its sequence's tokens, each known block what its chain says, and no block is lost.
        fn check(&mut self) {
            let mut owned = BTreeSet::new();
            for Simulated { table, tokens, num_computed, salt } in &self.running {
                for (position, token) in tokens[..*num_computed].iter().enumerate() {
                    let held = self.cells[self.cell(table, position)];
                    assert_eq!(held, Some((position, *salt, *token)));
                }
                owned.extend(table.blocks().iter().copied());
            }
            assert_eq!(owned.len(), self.cache.num_in_use());
            let mut free = Vec::new();
            while let Some(block) = self.cache.free.pop_first() {
                free.push(block);
            }
            free.iter().for_each(|block| self.cache.free.push_last(*block));
            assert!(owned.is_disjoint(&free.iter().copied().collect()), "what is owned is not handed out");
            for (number, block) in (0..).zip(&self.cache.blocks) {
                let tables = self.running.iter().filter(|sequence| sequence.table.blocks().contains(&number));
                assert_eq!(block.num_owners as usize, tables.count(), "each owner is counted once");
                let behind = self.cache.blocks.iter().filter(|other| other.before == Some(Before::Block(number)));
                assert_eq!(block.num_behind as usize, behind.count());
                let Some(before) = block.before else { continue };
                assert_eq!(self.cache.find(before, &self.cache.tokens[self.cache.range(number)]), Some(number));
                let mut chain = vec![number];
                let salt = loop {
                    match self.cache.blocks[chain[chain.len() - 1] as usize].before.unwrap() {
                        Before::Block(before) => chain.push(before),
                        Before::Salt(salt) => break salt,
                    }
                };
                let cells = chain.iter().rev().flat_map(|number| self.cache.range(*number));
                for (position, cell) in cells.enumerate() {
                    assert_eq!(self.cells[cell], Some((position, salt, self.cache.tokens[cell])));
                }
            }
        }
    }

    proptest! {
        /// Sequences come, compute, say more and leave in any order; what a block is said to hold, it holds.
        #[test]
        fn whatever_comes_the_cache_tells_the_truth(
            num_blocks in 1_usize..24,
            block_tokens in prop_oneof![Just(1_usize), Just(2), Just(4)],
            events in prop::collection::vec((0_u32..8, any::<prop::sample::Index>(), 1_usize..12, 0_u64..2), 1..120),
        ) {
            let mut memory = Memory::new(num_blocks, block_tokens);
            for (what, whom, amount, salt) in events {
                let num_running = memory.running.len();
                match what {
                    // Few beginnings, of which some differ late.
                    0 | 1 => {
                        let mut prompt = tokens(what * 3, u32::try_from(2 * amount).unwrap());
                        prompt.push(TokenId(u32::try_from(whom.index(2)).unwrap()));
                        memory.admit(prompt, salt);
                    }
                    _ if num_running == 0 => {}
                    2 => memory.release(whom.index(num_running)),
                    3 => {
                        let next = TokenId(u32::try_from(salt).unwrap());
                        memory.running[whom.index(num_running)].tokens.push(next);
                    }
                    _ => {
                        if !memory.step(whom.index(num_running), amount) {
                            memory.release(num_running - 1);
                        }
                    }
                }
                memory.check();
            }
            while !memory.running.is_empty() {
                memory.release(0);
            }
            memory.check();
            memory.cache.assert_all_free();
        }
    }
}
