//! Sequences that have to follow something, and what is reported about their tokens.

use crate::{
    engine::{config, drain, request},
    fake_model::FakeModel,
    tiny_model::token_ids,
};
use ortolan::engine::{
    Constraint, ConstraintError, Engine, FinishReason, Request, SamplingParams, TokenEvent, TokenId,
};

/// Counts up from a number, but for multiples of 8, where it cannot go on.
#[derive(Clone, Debug)]
struct Counting(u32);

impl Constraint for Counting {
    fn restrict(&mut self, scores: &mut [f32]) -> Result<(), ConstraintError> {
        if self.0.is_multiple_of(8) {
            return Err(ConstraintError("it is a multiple of eight".to_owned()));
        }
        for (token, score) in (0..).zip(scores) {
            *score = if token == self.0 { *score } else { f32::NEG_INFINITY };
        }
        Ok(())
    }

    fn push(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_eq!(token.0, self.0, "it is told of each token once");
        self.0 += 1;
        Ok(())
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

pub(crate) fn counting_from(first: u32, max_output_tokens: u32) -> Request {
    Request { constraint: Some(Box::new(Counting(first))), ..request(&[1, 2, 1, 2], max_output_tokens) }
}

fn run(requests: Vec<Request>) -> Vec<Vec<TokenEvent>> {
    let (engine, handle) = Engine::new(&config(3, 64), FakeModel::default());
    let streams: Vec<_> = requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
    drop(handle);
    engine.run();
    streams.into_iter().map(drain).collect()
}

#[test]
fn each_sequence_follows_its_own_constraint() {
    let sampling = SamplingParams { temperature: 2.0, seed: Some(1), ..SamplingParams::default() };
    let guessing = Request { max_draft_tokens: Some(4), ..counting_from(20, 3) };
    let replies =
        run(vec![counting_from(9, 5), request(&[5], 4), Request { sampling, ..counting_from(33, 7) }, guessing]);
    assert_eq!(token_ids(&replies[0]), [9, 10, 11, 12, 13]);
    assert_eq!(token_ids(&replies[1]), token_ids(&run(vec![request(&[5], 4)])[0]), "others are free");
    assert_eq!(token_ids(&replies[2]), [33, 34, 35, 36, 37, 38, 39]);
    assert_eq!(token_ids(&replies[3]), [20, 21, 22]);
}

#[test]
fn a_constraint_that_cannot_be_followed_ends_its_sequence_alone() {
    let replies = run(vec![counting_from(13, 9), counting_from(9, 3)]);
    assert_eq!(token_ids(&replies[0]), [13, 14, 15]);
    assert!(matches!(replies[0].last(), Some(TokenEvent::Finished { reason: FinishReason::Error, .. })));
    assert_eq!(token_ids(&replies[1]), [9, 10, 11]);
}

#[test]
fn a_stop_token_ends_a_sequence_that_has_to_follow_something() {
    let replies = run(vec![counting_from(2, 9)]);
    assert_eq!(token_ids(&replies[0]), [2], "3 is the stop token");
    assert!(matches!(replies[0].last(), Some(TokenEvent::Finished { reason: FinishReason::Stop, .. })));
}

#[test]
fn each_token_comes_behind_its_probability() {
    let asked = Request { top_logprobs: Some(2), ..counting_from(9, 3) };
    let events = run(vec![asked]).remove(0);
    assert_eq!(events.len(), 7, "two events for each of three tokens, and `Finished`");
    for (pair, expected) in events[..6].chunks(2).zip(9..) {
        let [TokenEvent::Logprobs(logprobs), TokenEvent::Token(token)] = pair else { panic!("{pair:?}") };
        assert_eq!((token.0, logprobs[0].0, logprobs.len()), (expected, *token, 3));
        // Of 512 scores, one is 1 and all others are 0.
        let total: f32 = 1.0_f32.exp() + 511.0;
        assert!((logprobs[1].1 - (1.0 - total.ln())).abs() < 1e-4 && logprobs[2].1 < logprobs[1].1);
    }
}
