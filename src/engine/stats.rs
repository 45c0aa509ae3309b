//! What an engine has done since it started.

use super::Copied;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// Counters that only grow, and how things stand: written by the engine thread, read by anyone.
#[derive(Debug, Default)]
pub(super) struct Counters {
    steps: AtomicU64,
    busy_nanos: AtomicU64,
    run_nanos: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    guessed_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    preemptions: AtomicU64,
    running: AtomicUsize,
    bytes_to_device: AtomicU64,
    bytes_to_host: AtomicU64,
    blocks_in_use: AtomicUsize,
    has_failed: AtomicBool,
}

/// What an engine has to do at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Requests that have a slot.
    pub running: usize,
    /// Requests that have none yet.
    pub waiting: usize,
    /// Tokens of the prompts of those.
    pub waiting_tokens: usize,
    /// Slots: each has the memory for a whole context, unless keys and values lie in blocks.
    pub slots: usize,
    /// Blocks that hold what running requests need.
    pub blocks_in_use: usize,
    /// Blocks; none where keys and values lie in slots.
    pub blocks: usize,
    /// More requests may not wait.
    pub max_waiting: usize,
    /// More tokens of prompts may not wait.
    pub max_waiting_tokens: usize,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Steps with something to compute.
    pub steps: u64,
    /// Time that these took, from one look at the queue to the next.
    pub busy: Duration,
    /// Time of it that the backend ran the graph.
    pub running: Duration,
    /// Tokens of prompts that were admitted.
    pub prompt_tokens: u64,
    /// Of these, tokens that the cache held.
    pub cached_tokens: u64,
    /// Tokens that were sampled.
    pub generated_tokens: u64,
    /// Tokens that were guessed ahead.
    pub guessed_tokens: u64,
    /// Of these, guesses that were right.
    pub accepted_tokens: u64,
    /// What has crossed the bus.
    pub copied: Copied,
    /// Requests that had to give up their blocks to others, and went on later.
    pub preemptions: u64,
}

impl Counters {
    pub(super) fn count_step(&self, busy: Duration, running: Duration, generated_tokens: u64) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.busy_nanos.fetch_add(nanos(busy), Ordering::Relaxed);
        self.run_nanos.fetch_add(nanos(running), Ordering::Relaxed);
        self.generated_tokens.fetch_add(generated_tokens, Ordering::Relaxed);
    }

    pub(super) fn set_running(&self, requests: usize, blocks_in_use: usize) {
        self.running.store(requests, Ordering::Relaxed);
        self.blocks_in_use.store(blocks_in_use, Ordering::Relaxed);
    }

    pub(super) fn set_copied(&self, copied: Copied) {
        self.bytes_to_device.store(copied.to_device, Ordering::Relaxed);
        self.bytes_to_host.store(copied.to_host, Ordering::Relaxed);
    }

    /// How the last run went.
    pub(super) fn note_run(&self, has_failed: bool) {
        self.has_failed.store(has_failed, Ordering::Relaxed);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(super) fn blocks_in_use(&self) -> usize {
        self.blocks_in_use.load(Ordering::Relaxed)
    }

    pub(super) fn count_preemption(&self) {
        self.preemptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_admission(&self, prompt_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached_tokens as u64, Ordering::Relaxed);
    }

    pub(super) fn count_guess(&self, guessed_tokens: usize, accepted_tokens: usize) {
        self.guessed_tokens.fetch_add(guessed_tokens as u64, Ordering::Relaxed);
        self.accepted_tokens.fetch_add(accepted_tokens as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            steps: read(&self.steps),
            busy: Duration::from_nanos(read(&self.busy_nanos)),
            running: Duration::from_nanos(read(&self.run_nanos)),
            prompt_tokens: read(&self.prompt_tokens),
            cached_tokens: read(&self.cached_tokens),
            generated_tokens: read(&self.generated_tokens),
            guessed_tokens: read(&self.guessed_tokens),
            accepted_tokens: read(&self.accepted_tokens),
            copied: Copied { to_device: read(&self.bytes_to_device), to_host: read(&self.bytes_to_host) },
            preemptions: read(&self.preemptions),
        }
    }
}

impl Load {
    /// Share of the memory for keys and values that running requests hold: blocks or, without these, slots.
    pub fn cache_usage(&self) -> f64 {
        let (in_use, all) =
            if self.blocks == 0 { (self.running, self.slots) } else { (self.blocks_in_use, self.blocks) };
        in_use as f64 / all as f64
    }
}

impl Stats {
    /// What was done since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            steps: self.steps - earlier.steps,
            busy: self.busy - earlier.busy,
            running: self.running - earlier.running,
            prompt_tokens: self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens: self.cached_tokens - earlier.cached_tokens,
            generated_tokens: self.generated_tokens - earlier.generated_tokens,
            guessed_tokens: self.guessed_tokens - earlier.guessed_tokens,
            accepted_tokens: self.accepted_tokens - earlier.accepted_tokens,
            copied: Copied {
                to_device: self.copied.to_device - earlier.copied.to_device,
                to_host: self.copied.to_host - earlier.copied.to_host,
            },
            preemptions: self.preemptions - earlier.preemptions,
        }
    }
}
