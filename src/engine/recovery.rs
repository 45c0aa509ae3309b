//! What is done when a run fails, and how an engine finds out that the next one would.

use super::{Canary, CanaryError, Engine, Fault, FinishReason, Model, ModelError, Prefix, TokenId, handle::Command};
use std::{
    fmt::Display,
    iter,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

impl<M: Model> Engine<M> {
    /// Ends the sequences of the batch that cannot go on; the others compute their rows again.
    pub(super) fn recover(&mut self, error: &ModelError) {
        match error.fault() {
            Fault::OutOfMemory => self.give_up_newest(error),
            Fault::DeviceLost => self.lose_device(error),
            Fault::Other => {
                tracing::error!(%error, rows = self.batch.rows().len(), "model run failed");
                for row in self.batch.rows() {
                    self.scheduler.running_mut(row.slot_index).fail(FinishReason::Error);
                }
                self.is_in_doubt = true;
            }
        }
    }

    /// Ends sequences whose scores could not be fetched, and takes their rows away from the others, for which that can be
    /// tried again: what was computed is still there.
    pub(super) fn give_up_scores(&mut self, error: &ModelError, batch_rows: &mut Vec<usize>) {
        self.counters.note_run(true);
        let rows = self.batch.rows();
        let (lost, reason) = match error.fault() {
            Fault::OutOfMemory => {
                let turn = |index: &usize| self.scheduler.running_mut(rows[batch_rows[*index]].slot_index).turn();
                let newest = (0..batch_rows.len()).max_by_key(turn).expect("there is a row");
                (vec![batch_rows.remove(newest)], FinishReason::OutOfMemory)
            }
            Fault::DeviceLost => {
                batch_rows.clear();
                return self.lose_device(error);
            }
            Fault::Other => {
                self.is_in_doubt = true;
                (std::mem::take(batch_rows), FinishReason::Error)
            }
        };
        tracing::error!(%error, lost = lost.len(), left = batch_rows.len(), "scores could not be fetched");
        for row in lost {
            self.scheduler.running_mut(rows[row].slot_index).fail(reason);
        }
    }

    /// The newest sequence makes room for those that were there before it. Some of a batch may have been computed before
    /// memory ran out, and nobody knows what: so that goes on only what can go back to where it was.
    fn give_up_newest(&mut self, error: &ModelError) {
        let rewindable_tokens = self.model.limits().rewindable_tokens;
        let turn = |slot_index: &usize| self.scheduler.running_mut(*slot_index).turn();
        let newest = self.batch.rows().iter().map(|row| row.slot_index).max_by_key(turn);
        let mut num_lost = 0;
        for row in self.batch.rows() {
            let can_go_back = row.start == 0 || row.end() <= rewindable_tokens;
            if Some(row.slot_index) == newest || !can_go_back {
                self.scheduler.running_mut(row.slot_index).fail(FinishReason::OutOfMemory);
                num_lost += 1;
            }
        }
        tracing::error!(
            %error,
            rows = self.batch.rows().len(),
            lost = num_lost,
            "memory ran out and the newest request was given up; lower `engine.max_batch_size`, \
             `engine.max_step_tokens` or `engine.max_context_tokens`"
        );
    }

    /// Clears the places of sequences that have failed. Nobody knows what they hold, and what is no number would spoil whoever
    /// comes after.
    pub(super) fn wipe_failed(&mut self) {
        for place in self.scheduler.failed_places() {
            let blocks = self.kv_cache.forget(place);
            // A lost device is left as it is.
            let wiped = if self.is_lost { Ok(()) } else { self.model.wipe(place.slot_index(), &blocks) };
            if let Err(error) = wiped {
                tracing::error!(%error, "a place could not be cleared");
            }
        }
    }

    /// From now on nobody takes the engine for one that runs, and its thread ends.
    fn lose_device(&mut self, error: &dyn Display) {
        tracing::error!(%error, "the device was lost: it computes nothing, or nothing right, any more");
        self.is_lost = true;
        self.stopping.store(true, Ordering::Release);
    }

    /// The next command, however long it takes. None once nobody can send one.
    pub(super) fn wait_for_command(&mut self) -> Option<Command> {
        let Some((canary, interval)) = self.canary else { return self.commands.blocking_recv() };
        receive_within(&mut self.commands, interval).unwrap_or_else(|| {
            if self.look_again(canary) {
                self.counters.note_run(false);
            }
            Some(Command::Wake)
        })
    }

    /// Looks at once where a run has failed and nobody knows why: with requests that come and fail, the engine may never be
    /// idle for long enough.
    pub(super) fn settle_doubt(&mut self) {
        let is_in_doubt = std::mem::take(&mut self.is_in_doubt) && !self.is_lost;
        if let Some((canary, _)) = self.canary.filter(|_| is_in_doubt) {
            let is_right = self.look_again(canary);
            self.counters.note_run(!is_right);
        }
    }

    /// Sees whether the device still computes what it did, while nothing runs or a place has just become free. What is held
    /// there by the slot that is missed least is forgotten. True where it does.
    fn look_again(&mut self, canary: Canary) -> bool {
        let prompt = Prefix { tokens: &[TokenId(0)], salt: 0 };
        let allocated = self.kv_cache.allocate(prompt, 0, iter::empty(), &mut self.model);
        let (mut place, _) = allocated.expect("a slot and a block are free");
        assert!(self.kv_cache.reserve(&mut place, 0..1), "a block is free");
        // Whoever was there last may have left what is no number, and ended before anybody saw it.
        if let Err(error) = self.model.wipe(place.slot_index(), place.blocks()) {
            tracing::error!(%error, "a place could not be cleared");
        }
        let checked = canary.check(&mut self.model, place.slot_index(), place.blocks());
        self.kv_cache.release(place, Vec::new(), 0);
        match &checked {
            Ok(()) => {}
            // Others may have it on the same device, and give it back.
            Err(CanaryError::Run(error)) if error.fault() == Fault::OutOfMemory => {
                tracing::warn!(%error, "there is no memory to see whether the device still computes right");
            }
            Err(error) => self.lose_device(error),
        }
        checked.is_ok()
    }
}

/// What comes within that time, if anything does.
fn receive_within<T>(receiver: &mut mpsc::Receiver<T>, wait: Duration) -> Option<Option<T>> {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let began = Instant::now();
    loop {
        // Whatever comes after this look unparks the thread, also before it is parked.
        if let Poll::Ready(received) = receiver.poll_recv(&mut context) {
            return Some(received);
        }
        match wait.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            Some(left) => thread::park_timeout(left),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_first_ends_the_wait() {
        const EVER: Duration = Duration::from_secs(3600);
        let (sender, mut receiver) = mpsc::channel(2);
        let (wait, began) = (Duration::from_millis(5), Instant::now());
        assert_eq!((receive_within(&mut receiver, wait), wait <= began.elapsed()), (None, true));
        sender.try_send(1).unwrap();
        assert_eq!(receive_within(&mut receiver, Duration::ZERO), Some(Some(1)));
        let waiting = thread::spawn(move || {
            let received = [(); 2].map(|()| receive_within(&mut receiver, EVER));
            (received, receive_within(&mut receiver, EVER))
        });
        sender.try_send(2).unwrap();
        sender.blocking_send(3).unwrap();
        drop(sender);
        assert_eq!(waiting.join().unwrap(), ([Some(Some(2)), Some(Some(3))], Some(None)));
    }
}
