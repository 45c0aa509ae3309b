//! Scores that are no numbers: what leaves some behind harms nobody else.

use crate::{
    engine::request,
    fake_model::FakeModel,
    faults::{MEMORY, Terse, UNCLEAR, patient, prompts, reason, replies, tokens},
};
use ortolan::engine::{End, Engine, EngineConfig, FinishReason};
use std::{sync::atomic::Ordering, thread, time::Duration};

/// Of this, no number comes.
const BAD: u32 = 500;

#[test]
fn scores_that_are_no_numbers_lose_the_device_unless_the_prompt_is_to_blame() {
    let model = FakeModel::default().watched().numberless_from(3);
    let (replies, end) = replies(model, &patient(), &prompts());
    assert_eq!(end, End::DeviceLost);
    let reasons: Vec<FinishReason> = replies.iter().map(|reply| reason(reply)).collect();
    assert!(reasons.contains(&FinishReason::Error) && reasons.contains(&FinishReason::DeviceLost), "{reasons:?}");
}

/// What such a prompt leaves in its place is wiped before anybody else gets that, the canary first of all.
#[test]
fn a_prompt_of_which_no_number_comes_spoils_nobody_else() {
    let makes = [FakeModel::default, FakeModel::rigid, || FakeModel::in_blocks(128, 4), || FakeModel::in_blocks(8, 4)];
    for make in makes {
        let mut prompts = prompts();
        prompts[1][6] = BAD;
        // The bad one comes a second time, begins alike, and gets what was kept of itself.
        prompts.push(prompts[1].clone());
        prompts.push(prompts[1][..5].to_vec());
        let (undisturbed, _) = replies(make(), &patient(), &prompts);
        let model = || make().watched().with_numberless_token(BAD);
        for (replies, end) in
            [replies(model(), &patient(), &prompts), replies(Terse::of(model(), 0..0, MEMORY), &patient(), &prompts)]
        {
            assert_eq!(end, End::Shutdown);
            for (index, reply) in replies.iter().enumerate() {
                if prompts[index].contains(&BAD) {
                    assert_eq!((reason(reply), tokens(reply)), (FinishReason::Error, Vec::new()));
                } else {
                    assert_eq!(tokens(reply), tokens(&undisturbed[index]), "{index}");
                }
            }
        }
    }
}

/// Also where its run fails, or its client leaves, before anybody sees its scores.
#[test]
fn what_was_never_scored_spoils_nobody_either() {
    for make in [FakeModel::default, FakeModel::rigid, || FakeModel::in_blocks(128, 4)] {
        let model = || make().watched().with_numberless_token(BAD);
        let (replies, end) = replies(model().with_fault(UNCLEAR, 1..2, 1), &patient(), &[vec![BAD; 7], vec![3; 5]]);
        assert_eq!((reason(&replies[0]), reason(&replies[1])), (FinishReason::Error, FinishReason::Length));
        assert_eq!(end, End::Shutdown);

        let (model, permits, runs) = model().gated();
        let config = EngineConfig { canary_interval: Duration::from_millis(1), ..patient() };
        let (engine, handle) = Engine::new(&config, model);
        let left = handle.submit(request(&[BAD; 70], 9)).unwrap();
        let thread = thread::spawn(move || engine.run());
        permits.send(()).unwrap();
        while runs.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        drop((left, permits));
        // One of its pieces more, and a look at the device.
        while handle.is_running() && runs.load(Ordering::SeqCst) < 4 {
            thread::yield_now();
        }
        handle.shut_down();
        assert_eq!(thread.join().unwrap(), End::Shutdown);
    }
}
