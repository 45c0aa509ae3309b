//! Several sequences pick their tokens at once.

use super::{Scores, Sequence, sequence::Taken};
use rayon::{
    ThreadPool, ThreadPoolBuilder,
    iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator},
};
use std::thread;

/// Threads that are started when they first pay.
#[derive(Debug)]
pub(super) struct SamplingThreads {
    /// One is the engine's own.
    num_threads: usize,
    vocab_size: usize,
    pool: Option<ThreadPool>,
}

/// Fewer scores are weighed sooner than the threads wake.
const MIN_SCORES: usize = 1 << 21;
/// More would wait for each other's memory.
const MAX_THREADS: usize = 8;

impl SamplingThreads {
    /// 0 threads takes one for each core that the process may use.
    pub(super) fn new(num_threads: usize, vocab_size: usize) -> Self {
        let num_threads = match num_threads {
            0 => thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
            set => set,
        };
        Self { num_threads, vocab_size, pool: None }
    }

    /// Whether so many rows of scores to draw from are worth more than one thread. (The best score alone is found as fast as
    /// memory is read, which more threads do not speed up.) Starts the threads.
    pub(super) fn pay(&mut self, num_drawn: usize) -> bool {
        if self.num_threads == 1 || num_drawn * self.vocab_size < MIN_SCORES {
            return false;
        }
        if self.pool.is_none() {
            let name = |number| format!("sampling {number}");
            match ThreadPoolBuilder::new().num_threads(self.num_threads).thread_name(name).build() {
                Ok(pool) => self.pool = Some(pool),
                Err(error) => {
                    tracing::warn!(%error, "tokens are picked by one thread");
                    self.num_threads = 1;
                }
            }
        }
        self.pool.is_some()
    }

    /// Each sequence takes its scores, of its row of the batch. Returns what became of those.
    pub(super) fn take_scores(&self, sequences: Vec<(&mut Sequence, (usize, Scores<'_>))>) -> Vec<(usize, Taken)> {
        let pool = self.pool.as_ref().expect("the threads were started");
        let take_scores = |(sequence, (row, mut scores)): (&mut Sequence, (usize, Scores<'_>))| {
            (row, sequence.take_scores(&mut scores, self.vocab_size))
        };
        pool.install(|| sequences.into_par_iter().with_max_len(1).map(take_scores).collect())
    }
}
