//! Blocks that nobody owns, in the order in which they are taken.

/// A list that any block can leave at once: each one knows its neighbours.
#[derive(Debug)]
pub(super) struct FreeList {
    /// By number of the block; the last one stands before the first block and behind the last.
    links: Vec<Link>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

impl FreeList {
    /// Holds all blocks.
    pub(super) fn new(num_blocks: usize) -> Self {
        let end = u32::try_from(num_blocks).expect("blocks are numbered with 32 bits");
        let neighbours = |block| Link {
            previous: if block == 0 { end } else { block - 1 },
            next: if block == end { 0 } else { block + 1 },
        };
        Self { links: (0..=end).map(neighbours).collect(), len: num_blocks }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The block that is taken next.
    pub(super) fn pop_first(&mut self) -> Option<u32> {
        let first = self.links[self.end() as usize].next;
        if first == self.end() {
            return None;
        }
        self.remove(first);
        Some(first)
    }

    /// Adds a block that is taken before all others.
    pub(super) fn push_first(&mut self, block: u32) {
        let first = self.links[self.end() as usize].next;
        self.insert(block, Link { previous: self.end(), next: first });
    }

    /// Adds a block that is taken after all others.
    pub(super) fn push_last(&mut self, block: u32) {
        let last = self.links[self.end() as usize].previous;
        self.insert(block, Link { previous: last, next: self.end() });
    }

    /// Takes a block out, which must be there.
    pub(super) fn remove(&mut self, block: u32) {
        let Link { previous, next } = self.links[block as usize];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.len -= 1;
    }

    fn insert(&mut self, block: u32, neighbours: Link) {
        self.links[neighbours.previous as usize].next = block;
        self.links[neighbours.next as usize].previous = block;
        self.links[block as usize] = neighbours;
        self.len += 1;
    }

    #[expect(clippy::cast_possible_truncation, reason = "`new` has checked it")]
    fn end(&self) -> u32 {
        (self.links.len() - 1) as u32
    }
}
