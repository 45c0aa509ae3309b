//! What is done when a run fails, and how an idle engine finds out that the next one would.

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
            }
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
            self.look_again(canary);
            Some(Command::Wake)
        })
    }

    /// Sees whether the device still computes what it did, while no sequence needs its slot. What is held there by the slot
    /// that is missed least is forgotten.
    fn look_again(&mut self, canary: Canary) {
        let prompt = Prefix { tokens: &[TokenId(0)], salt: 0 };
        let allocated = self.kv_cache.allocate(prompt, 0, iter::empty(), &mut self.model);
        let (mut place, _) = allocated.expect("all slots and blocks are free where nothing runs");
        assert!(self.kv_cache.reserve(&mut place, 0..1), "all blocks are free where nothing runs");
        let checked = canary.check(&mut self.model, place.slot_index(), place.blocks());
        self.kv_cache.release(place, Vec::new(), 0);
        match checked {
            Ok(()) => {}
            // Others may have it on the same device, and give it back.
            Err(CanaryError::Run(error)) if error.fault() == Fault::OutOfMemory => {
                tracing::warn!(%error, "there is no memory to see whether the device still computes right");
            }
            Err(error) => self.lose_device(&error),
        }
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
