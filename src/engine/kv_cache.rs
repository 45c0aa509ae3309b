//! Who owns which row of the KV tensors.

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

/// Hands out rows of the KV tensors. The tensors themselves belong to the model.
#[derive(Debug)]
pub struct KvCache {
    free: Vec<Slot>,
    capacity: usize,
}

impl KvCache {
    /// All rows free.
    pub fn new(rows: NonZeroU32) -> Self {
        let capacity = rows.get() as usize;
        Self { free: (0..capacity).rev().map(Slot).collect(), capacity }
    }

    /// Takes a free row, if there is one.
    pub fn allocate(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// Gives a row back.
    pub fn release(&mut self, slot: Slot) {
        self.free.push(slot);
        assert!(self.free.len() <= self.capacity);
    }

    /// Asserts that no row leaked.
    pub fn assert_all_free(&self) {
        assert_eq!(self.free.len(), self.capacity, "a KV slot leaked");
    }
}
