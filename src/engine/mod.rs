//! Tokens in, tokens out.
//!
//! One OS thread owns every mutable thing here, so nothing is locked. Others hold an [`EngineHandle`].

mod batch;
mod block_cache;
mod cache;
mod config;
mod constraint;
mod draft;
mod error;
mod handle;
mod kv_cache;
mod model;
mod recovery;
mod replicas;
mod request;
mod sampler;
mod sampling_threads;
mod scheduler;
mod sequence;
mod stats;

pub use batch::{Batch, Row};
pub use block_cache::{BlockCache, BlockTable};
pub use config::{EngineConfig, TopScoresIn};
pub use constraint::{Constraint, ConstraintError};
pub use error::EngineError;
pub use handle::{EngineHandle, TokenStream};
pub use kv_cache::{KvCache, Prefix, Slot};
pub use model::{
    BlockLimits, CacheKind, CacheTensor, Canary, CanaryError, Copied, CudaLibrary, ElementType, Fault, FloatType,
    GraphEdits, GraphFamily, IntType, LoadError, Logits, Model, ModelError, ModelLimits, ModelSpec, NUM_TOP_SCORES,
    NumLogits, PositionIds, ProviderConfig, ProviderName, Runtime, Scores, TopScores, Wanted, load,
};
pub(crate) use model::{DataFileError, MAX_CACHE_RANK, locate_data_file, proto};
pub use replicas::Replicas;
pub use request::{FinishReason, Request, ServiceClass, TokenEvent, TokenId};
pub use sampler::{Picked, SampleError, Sampler, SamplingParams};
pub use scheduler::Scheduler;
pub use sequence::Sequence;
pub use stats::{Load, Stats};

use cache::Cache;
use handle::Command;
use sampling_threads::SamplingThreads;
use sequence::Taken;
use stats::Counters;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Runs sequences to completion, one batch per step.
#[derive(Debug)]
pub struct Engine<M> {
    commands: mpsc::Receiver<Command>,
    stopping: Arc<AtomicBool>,
    scheduler: Scheduler,
    kv_cache: Cache,
    model: M,
    sampling_threads: SamplingThreads,
    batch: Batch,
    logits: Logits,
    counters: Arc<Counters>,
    /// What is computed again whenever the engine has been idle for so long, and where it is in doubt.
    canary: Option<(Canary, Duration)>,
    /// Whether something went wrong in this step that may be the device's fault.
    is_in_doubt: bool,
    is_lost: bool,
}

/// Why an engine has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// It was told to, or nobody could ask it for anything any more.
    Shutdown,
    /// Its device computes nothing any more, or nothing right. What the process has on it is not given back: that could
    /// wait for the device.
    DeviceLost,
}

impl<M: Model> Engine<M> {
    /// Builds the engine and the handle that feeds it.
    pub fn new(config: &EngineConfig, model: M) -> (Self, EngineHandle) {
        let limits = model.limits();
        let counters = Arc::new(Counters::default());
        let canary = model.canary().filter(|_| !config.canary_interval.is_zero());
        let canary = canary.map(|canary| (canary, config.canary_interval));
        let (handle, commands, stopping) = EngineHandle::new(config, limits, Arc::clone(&counters));
        let engine = Self {
            commands,
            stopping,
            scheduler: Scheduler::new(config.step_tokens(limits.chunk_tokens)),
            kv_cache: Cache::new(config, &model),
            model,
            sampling_threads: SamplingThreads::new(config.sampling_threads, limits.vocab_size),
            batch: Batch::default(),
            logits: Logits::new(limits.vocab_size),
            counters,
            canary,
            is_in_doubt: false,
            is_lost: false,
        };
        (engine, handle)
    }

    /// Runs until [`EngineHandle::shut_down`], or until every handle is gone and every sequence has finished, or until the
    /// device is lost.
    pub fn run(mut self) -> End {
        while !self.is_lost && self.receive() {
            self.step();
        }
        let reason = if self.is_lost { FinishReason::DeviceLost } else { FinishReason::Shutdown };
        self.scheduler.finish_all(reason, &mut self.kv_cache);
        self.kv_cache.assert_all_free();
        if !self.is_lost {
            return End::Shutdown;
        }
        self.close(reason);
        std::mem::forget(self);
        End::DeviceLost
    }

    /// Retires, schedules, runs the model once, emits the tokens of each row that reached its end.
    fn step(&mut self) {
        let (began, ran_before) = (Instant::now(), self.model.time_in_runs());
        self.scheduler.retire_cancelled(&mut self.kv_cache);
        self.scheduler.schedule(&mut self.kv_cache, &mut self.model, &self.counters, &mut self.batch);
        self.counters.set_running(self.scheduler.num_running(), self.kv_cache.num_blocks_in_use());
        if self.batch.rows().is_empty() {
            return;
        }
        self.logits.clear();
        let computed = self.model.forward(&self.batch, &mut self.logits);
        self.counters.note_run(computed.is_err());
        let num_generated = match computed {
            Ok(()) => self.sample(),
            Err(error) => {
                self.recover(&error);
                0
            }
        };
        self.wipe_failed();
        self.scheduler.retire_finished(&mut self.kv_cache);
        self.counters.set_running(self.scheduler.num_running(), self.kv_cache.num_blocks_in_use());
        self.counters.count_step(began.elapsed(), self.model.time_in_runs() - ran_before, num_generated);
        self.counters.set_copied(self.model.copied());
        self.settle_doubt();
    }

    /// Returns how many tokens were sampled.
    fn sample(&mut self) -> u64 {
        let (rows, vocab_size) = (self.batch.rows(), self.model.limits().vocab_size);
        for row in rows {
            self.scheduler.running_mut(row.slot_index).advance(row);
        }
        let num_wanted: usize = rows.iter().map(|row| row.num_logits).sum();
        assert_eq!(self.logits.num_rows(), num_wanted, "the model scores what rows want");
        let drawn = rows.iter().filter(|row| row.wanted == Wanted::All);
        let drawn = drawn.filter(|row| !self.scheduler.running_mut(row.slot_index).is_greedy());
        let num_drawn = drawn.map(|row| row.num_logits).sum();
        let scores = self.logits.by_batch_row_mut();
        let taken: Vec<(usize, Taken)> = if self.sampling_threads.pay(num_drawn) {
            let scores = scores.map(|(row, scores)| (rows[row].slot_index, (row, scores)));
            self.sampling_threads.take_scores(self.scheduler.running_with(scores))
        } else {
            let take = |(row, mut scores): (usize, Scores<'_>)| {
                (row, self.scheduler.running_mut(rows[row].slot_index).take_scores(&mut scores, vocab_size))
            };
            scores.map(take).collect()
        };
        let of_all = self.take_all(&taken);
        let taken = || taken.iter().chain(&of_all);
        self.is_in_doubt |= taken().any(|(_, taken)| taken.is_spoiled);
        let num_generated: usize = taken().map(|(_, taken)| taken.num_picked).sum();
        let rows = self.batch.rows();
        for row in rows.iter().filter(|row| 1 < row.num_logits) {
            let num_accepted = self.scheduler.running_mut(row.slot_index).num_accepted();
            self.counters.count_guess(row.num_logits - 1, num_accepted);
        }
        num_generated as u64
    }

    /// Goes on where the best scores did not tell what comes next.
    fn take_all(&mut self, taken: &[(usize, Taken)]) -> Vec<(usize, Taken)> {
        let left = taken.iter().filter(|(_, taken)| taken.wants_all);
        let num_picked: BTreeMap<usize, usize> = left.map(|(row, taken)| (*row, taken.num_picked)).collect();
        if num_picked.is_empty() {
            return Vec::new();
        }
        let mut rows: Vec<usize> = num_picked.keys().copied().collect();
        loop {
            self.logits.clear();
            let Err(error) = self.model.complete(&rows, &mut self.logits) else { break };
            self.give_up_scores(&error, &mut rows);
            if rows.is_empty() {
                return Vec::new();
            }
        }
        let (rows, vocab_size) = (self.batch.rows(), self.model.limits().vocab_size);
        let take = |(row, scores): (usize, Scores<'_>)| {
            let Scores::All(scores) = scores else { unreachable!("all were asked for") };
            let mut scores = Scores::All(&mut scores[num_picked[&row] * vocab_size..]);
            (row, self.scheduler.running_mut(rows[row].slot_index).take_scores(&mut scores, vocab_size))
        };
        self.logits.by_batch_row_mut().map(take).collect()
    }

    /// Takes every request that has come, so that one whose client leaves while it waits is forgotten at once; their
    /// number is limited by the permits. Waits only when there is nothing to run. False when the engine is to stop.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            match self.wait_for_command() {
                Some(Command::Submit(submission)) => self.scheduler.add(*submission),
                Some(Command::Wake) => {}
                None => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Submit(submission) => self.scheduler.add(*submission),
                Command::Wake => {}
            }
        }
        !self.stopping.load(Ordering::Acquire)
    }
}

impl<M> Engine<M> {
    /// Takes no more requests, and ends those that got in.
    fn close(&mut self, reason: FinishReason) {
        self.counters.set_running(0, 0);
        self.commands.close();
        // Unlike `try_recv`, this waits for a sender that is in the middle of sending.
        while let Some(command) = self.commands.blocking_recv() {
            if let Command::Submit(submission) = command {
                submission.finish(reason);
            }
        }
    }
}

impl<M> Drop for Engine<M> {
    /// Whatever ends the engine thread, every request that got in is told so.
    fn drop(&mut self) {
        self.close(FinishReason::Shutdown);
    }
}
