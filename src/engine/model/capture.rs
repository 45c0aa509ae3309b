//! Runs that recur are captured once and replayed: a decode step launches some hundred operators, each of which takes the
//! host as long as a small one takes the device.
//!
//! ONNX Runtime captures what runs under an id that it has not seen, in a run or two more than asked for, and replays it from
//! then on without a look at what is bound: everything has to lie where it lay, and have the same shape. What it has captured of
//! a run that failed it replays as well, so an id under which one has failed is never used again.

use super::Fault;
use ort::{Result, session::RunOptions};
use std::{
    collections::HashMap,
    ptr,
    sync::{
        Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// While one thread captures, CUDA refuses others what could wait for the device, such as taking memory from it, and the
/// capture fails with them. So all that is asked of a device is asked beside this, and a capture waits for a moment in which
/// nobody asks.
static CAPTURING: RwLock<()> = RwLock::new(());

/// To be held while a device is asked for anything. One thread may hold it twice: who is to capture does not wait in line.
pub(super) fn not_capturing() -> RwLockReadGuard<'static, ()> {
    CAPTURING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by who is about to capture.
static NEXT: Mutex<()> = Mutex::new(());

/// To be passed at the beginning of a step. Several engines ask by turns all the time, and so none would ever capture: who is
/// about to goes before the steps that begin now.
pub(super) fn let_capture() {
    drop(NEXT.lock());
}

/// Alone, if that can be had within this time, and nobody loads a model, which takes longer.
fn alone(patience: Duration) -> Option<RwLockWriteGuard<'static, ()>> {
    let (_next, began) = (NEXT.lock(), Instant::now());
    loop {
        match CAPTURING.try_write() {
            Ok(alone) => return Some(alone),
            Err(TryLockError::Poisoned(alone)) => return Some(alone.into_inner()),
            Err(TryLockError::WouldBlock) => {
                if 0 < NUM_LOADING.load(Ordering::Relaxed) || patience <= began.elapsed() {
                    return None;
                }
                thread::yield_now();
            }
        }
    }
}

/// Longer than most steps take.
const PATIENCE: Duration = Duration::from_millis(50);

static NUM_LOADING: AtomicUsize = AtomicUsize::new(0);

/// To be held while a model is loaded.
pub(super) struct Loading(());

impl Loading {
    pub(super) fn begin() -> Self {
        NUM_LOADING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        NUM_LOADING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a run goes beside those of other threads.
pub(super) enum Turn {
    Beside(#[expect(dead_code, reason = "held until the run has ended")] RwLockReadGuard<'static, ()>),
    /// It is captured.
    Alone(#[expect(dead_code, reason = "held until the run has ended")] RwLockWriteGuard<'static, ()>),
}

/// What makes two runs launch the same work in the same places.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Recurring {
    /// Where its slots begin.
    pub(super) first_slot: usize,
    /// Rows, of one token each, all of them scored.
    pub(super) num_rows: usize,
    /// What the operators are told of the longest row, so that they share the work among as many threads as that takes.
    pub(super) max_columns: usize,
}

/// Runs that have been seen, and those of them that are captured.
pub(super) struct Captures {
    seen: HashMap<Recurring, Seen>,
    num_captured: usize,
    next_id: u64,
    plain: RunOptions,
}

#[derive(Default)]
struct Seen {
    num_times: usize,
    options: Option<RunOptions>,
}

/// A run that is seen less often costs less than capturing it. A power of two: where it was not possible then, it is tried again
/// when the run has been seen twice as often.
const MIN_TIMES: usize = 4;
/// Each takes some memory of the device, which is never given back.
const MAX_CAPTURED: usize = 256;
/// Kinds of runs that are remembered.
const MAX_SEEN: usize = 4096;

/// Under this id nothing is captured.
const NO_CAPTURE: &str = "-1";
const ID: &str = "gpu_graph_id";

impl Captures {
    /// Where runs are captured, all of a graph runs on the device. Else some of it may run on the host, and what that leaves
    /// behind is only there when the run has been waited for.
    pub(super) fn new(is_whole: bool) -> Result<Self> {
        Ok(Self {
            seen: HashMap::new(),
            num_captured: 0,
            next_id: 1,
            plain: if is_whole { options(NO_CAPTURE)? } else { RunOptions::new()? },
        })
    }

    /// Something lies in another place from now on.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// Runs, and captures the run or replays it where it recurs. Where that fails, the run, which finds all as it was, is done
    /// without, unless the device is lost; and where it could not be captured, none is from then on.
    pub(super) fn run<T>(
        &mut self,
        run: Option<Recurring>,
        mut execute: impl FnMut(&RunOptions) -> Result<T>,
    ) -> Result<T> {
        let plain = &raw const self.plain;
        let (options, turn) = self.options(run)?;
        let is_plain = ptr::eq(options, plain);
        let error = match execute(options) {
            Err(error) if !is_plain && Fault::of(&error.to_string()) != Fault::DeviceLost => error,
            ran => return ran,
        };
        self.forget();
        if matches!(turn, Turn::Alone(_)) {
            tracing::warn!(%error, "a run could not be captured; from now on each launches its operators one by one");
            self.num_captured = MAX_CAPTURED;
        } else {
            tracing::warn!(%error, "a captured run could not be replayed; what recurs is captured anew");
        }
        execute(&self.plain)
    }

    /// What to run with, and when: some other time where it would be captured and the moment is not right.
    fn options(&mut self, run: Option<Recurring>) -> Result<(&RunOptions, Turn)> {
        let Some(run) = run else { return Ok((&self.plain, Turn::Beside(not_capturing()))) };
        if MAX_SEEN <= self.seen.len() {
            self.seen.retain(|_, seen| seen.options.is_some());
        }
        let seen = self.seen.entry(run).or_default();
        seen.num_times += 1;
        let is_time = MIN_TIMES <= seen.num_times && seen.num_times.is_power_of_two();
        let is_due = seen.options.is_none() && is_time && self.num_captured < MAX_CAPTURED;
        let alone = if is_due { alone(PATIENCE) } else { None };
        if alone.is_some() {
            seen.options = Some(options(&self.next_id.to_string())?);
            self.next_id += 1;
            self.num_captured += 1;
        }
        let turn = alone.map_or_else(|| Turn::Beside(not_capturing()), Turn::Alone);
        Ok((seen.options.as_ref().unwrap_or(&self.plain), turn))
    }
}

/// The device is waited for when scores are fetched, and not after each run.
fn options(id: &str) -> Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.disable_device_sync()?;
    options.set(ID, id)?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::super::runtime;
    use super::*;
    use std::sync::mpsc;

    fn run(num_rows: usize) -> Recurring {
        Recurring { first_slot: 0, num_rows, max_columns: 256 }
    }

    /// Whether it has options of its own, and runs alone.
    fn is_captured(captures: &mut Captures, run: Option<Recurring>) -> (bool, bool) {
        let plain = &raw const captures.plain;
        let (options, turn) = captures.options(run).unwrap();
        (!ptr::eq(options, plain), matches!(turn, Turn::Alone(_)))
    }

    #[test]
    fn who_is_to_capture_goes_before_steps_that_begin_later() {
        let _alone = TESTS.lock();
        let asking = not_capturing();
        let capturing = thread::spawn(|| alone(Duration::from_secs(600)).is_some());
        while NEXT.try_lock().is_ok() {
            thread::yield_now();
        }
        // It waits for what is being asked, and others for it.
        let (begun, steps) = mpsc::sync_channel(1);
        let step = thread::spawn(move || {
            let_capture();
            begun.send(()).unwrap();
        });
        assert!(steps.recv_timeout(Duration::from_millis(20)).is_err());
        drop(asking);
        assert!(capturing.join().unwrap());
        step.join().unwrap();
        steps.recv().unwrap();
        // Not for ever, and not at all for a load.
        let _asking = not_capturing();
        assert!(alone(Duration::ZERO).is_none());
        let _loading = Loading::begin();
        assert!(alone(Duration::from_secs(600)).is_none());
    }

    /// The process has one lock for all of them.
    static TESTS: Mutex<()> = Mutex::new(());

    /// Of so many runs, what was tried: `c` a captured one, `p` a plain one. Of the captured ones, one fails with this message.
    fn tried(num_runs: usize, failing: usize, message: &str) -> (String, Result<()>) {
        let mut captures = Captures::new(true).unwrap();
        let (plain, mut tried) = (&raw const captures.plain, String::new());
        let ran = (0..num_runs).try_for_each(|_| {
            captures.run(Some(run(1)), |options| {
                let is_plain = ptr::eq(options, plain);
                tried.push(if is_plain { 'p' } else { 'c' });
                let is_failing = !is_plain && tried.matches('c').count() == failing;
                if is_failing { Err(ort::Error::new(message)) } else { Ok(()) }
            })
        });
        (tried, ran)
    }

    #[test]
    fn what_fails_as_it_is_captured_or_replayed_is_run_without() {
        let _alone = TESTS.lock();
        runtime::for_tests();
        let tried = |failing, message| {
            let (tried, ran) = tried(10, failing, message);
            (tried, ran.is_ok())
        };
        assert_eq!(tried(9, ""), ("pppccccccc".to_owned(), true));
        // None is captured any more.
        assert_eq!(tried(1, "it cannot be captured"), ("pppcppppppp".to_owned(), true));
        assert_eq!(tried(2, "it cannot be replayed"), ("pppccppppcc".to_owned(), true));
        for failing in [1, 2] {
            let (tried, is_ok) = tried(failing, "CUDA failure 700: an illegal memory access was encountered");
            assert_eq!((tried.len(), is_ok), (3 + failing, false), "{tried}");
        }
    }

    #[test]
    fn what_recurs_is_captured_once_and_alone() {
        let _alone = TESTS.lock();
        runtime::for_tests();
        let mut captures = Captures::new(true).unwrap();
        for _ in 0..2 * MIN_TIMES {
            assert_eq!(is_captured(&mut captures, None), (false, false));
        }
        for time in 1..2 * MIN_TIMES {
            let expected = (MIN_TIMES <= time, time == MIN_TIMES);
            assert_eq!(is_captured(&mut captures, Some(run(1))), expected, "{time}");
        }
        assert_eq!(is_captured(&mut captures, Some(run(2))), (false, false));
        // Not while another thread asks the device for something, but when it is tried again.
        let asking = not_capturing();
        let is_captured_there = |captures: &mut Captures| {
            thread::scope(|scope| scope.spawn(|| is_captured(captures, Some(run(2)))).join()).unwrap()
        };
        for time in 2..=MIN_TIMES {
            assert_eq!(is_captured_there(&mut captures), (false, false), "{time}");
        }
        drop(asking);
        for time in MIN_TIMES + 1..=2 * MIN_TIMES {
            let is_now = time == 2 * MIN_TIMES;
            assert_eq!(is_captured(&mut captures, Some(run(2))), (is_now, is_now), "{time}");
        }
        // What lies elsewhere now is captured anew.
        captures.forget();
        assert_eq!(is_captured(&mut captures, Some(run(1))), (false, false));
    }
}
