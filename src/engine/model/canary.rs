//! One token that is computed when a model is loaded, and again later: does it still compute what it did?

use super::capture::not_capturing;
use super::{Batch, Copied, Logits, Model, ModelError, ModelLimits, Scores, TokenId};
use std::time::Duration;

/// What the model scored best, by how much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Canary {
    best: TokenId,
    score: f32,
    /// Scores that differ by no more are the same: what else a device does may change the order of its sums.
    tolerance: f32,
}

/// The token that is computed. Every model has it.
const TOKEN: TokenId = TokenId(0);
/// As a share of the distance between the best and the worst score.
const TOLERANCE: f32 = 0.05;

/// Why a model is not trusted to compute.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// It does not run.
    #[error(transparent)]
    Run(#[from] ModelError),
    /// Its sums are spoiled.
    #[error("one of the scores is {score}, which is no finite number")]
    NotFinite {
        /// Such as NaN.
        score: f32,
    },
    /// Nothing was computed.
    #[error("all scores are alike")]
    AllAlike,
    /// It computes something else than before.
    #[error(
        "the best score was {score}, of the token {token}, when the model was loaded; now that one has {score_now}, and \
         the best is {best_now}"
    )]
    Changed {
        /// That was the best.
        token: u32,
        /// What it had.
        score: f32,
        /// What it has.
        score_now: f32,
        /// What the best one has.
        best_now: f32,
    },
}

impl Canary {
    /// Computes it in a slot, which holds nothing of use afterwards.
    ///
    /// # Errors
    /// `Run`, `NotFinite` or `AllAlike`.
    pub fn compute(model: &mut impl Model, slot_index: usize, blocks: &[u32]) -> Result<Self, CanaryError> {
        with_scores(model, slot_index, blocks, Self::read)
    }

    /// Computes it again, in a slot which holds nothing of use afterwards.
    ///
    /// # Errors
    /// Any, where the model does not compute what it did.
    pub fn check(&self, model: &mut impl Model, slot_index: usize, blocks: &[u32]) -> Result<(), CanaryError> {
        with_scores(model, slot_index, blocks, |scores| {
            let (now, score_now) = (Self::read(scores)?, scores[self.best.index()]);
            let differs = |one: f32, other: f32| self.tolerance < (one - other).abs();
            if differs(self.score, score_now) || differs(now.score, score_now) {
                let Self { best: TokenId(token), score, .. } = *self;
                return Err(CanaryError::Changed { token, score, score_now, best_now: now.score });
            }
            Ok(())
        })
    }

    fn read(scores: &[f32]) -> Result<Self, CanaryError> {
        if let Some(score) = scores.iter().copied().find(|score| !score.is_finite()) {
            return Err(CanaryError::NotFinite { score });
        }
        let tokens = || (0..).map(TokenId).zip(scores.iter().copied());
        let (best, score) = tokens().max_by(|one, other| one.1.total_cmp(&other.1)).expect("a model has tokens");
        let worst = scores.iter().copied().fold(score, f32::min);
        if worst == score {
            return Err(CanaryError::AllAlike);
        }
        Ok(Self { best, score, tolerance: TOLERANCE * (score - worst) })
    }
}

fn with_scores<T>(
    model: &mut impl Model,
    slot_index: usize,
    blocks: &[u32],
    look: impl FnOnce(&[f32]) -> Result<T, CanaryError>,
) -> Result<T, CanaryError> {
    let mut batch = Batch::default();
    batch.push(slot_index, 0, &[TOKEN], Some(&[]));
    batch.set_blocks(blocks);
    let mut logits = Logits::new(model.limits().vocab_size);
    model.forward(&batch, &mut logits)?;
    match logits.by_batch_row_mut().next() {
        Some((_, Scores::All(scores))) => look(scores),
        Some((_, Scores::Top { .. })) | None => unreachable!("the row wants all scores"),
    }
}

/// A model on a device, which is to be looked at again.
pub(super) struct Watched {
    /// There until it is dropped.
    model: Option<Box<dyn Model>>,
    canary: Canary,
}

impl Watched {
    pub(super) fn new(model: Box<dyn Model>, canary: Canary) -> Self {
        Self { model: Some(model), canary }
    }

    fn model(&self) -> &dyn Model {
        &**self.model.as_ref().expect("it is not dropped yet")
    }

    fn model_mut(&mut self) -> &mut dyn Model {
        &mut **self.model.as_mut().expect("it is not dropped yet")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _asking = not_capturing();
        self.model = None;
    }
}

impl Model for Watched {
    fn limits(&self) -> ModelLimits {
        self.model().limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        self.model_mut().forward(batch, logits)
    }

    fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        self.model_mut().complete(batch_rows, logits)
    }

    fn time_in_runs(&self) -> Duration {
        self.model().time_in_runs()
    }

    fn copied(&self) -> Copied {
        self.model().copied()
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        self.model_mut().copy_slot(from, to, num_tokens)
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        self.model_mut().swap_slots(one, other, num_tokens);
    }

    fn wipe(&mut self, slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        self.model_mut().wipe(slot_index, blocks)
    }

    fn canary(&self) -> Option<Canary> {
        Some(self.canary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has these scores, whatever it is asked.
    struct Fixed(Vec<f32>);

    impl Model for Fixed {
        fn limits(&self) -> ModelLimits {
            ModelLimits {
                vocab_size: self.0.len(),
                context_tokens: 8,
                chunk_tokens: 8,
                rewindable_tokens: 8,
                can_verify_drafts: false,
                can_move_slots: false,
                blocks: None,
            }
        }

        fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
            let row = &batch.rows()[0];
            assert_eq!((row.slot_index, row.start, row.num_tokens(), row.num_logits), (3, 0, 1, 1));
            logits.extend(&[0]).copy_from_slice(&self.0);
            Ok(())
        }

        fn time_in_runs(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn compute(scores: &[f32]) -> Result<Canary, String> {
        Canary::compute(&mut Fixed(scores.to_vec()), 3, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn scores_are_numbers_and_differ() {
        insta::assert_compact_debug_snapshot!(compute(&[-5.0, 15.0, 5.0]), @"Ok(Canary { best: TokenId(1), score: 15.0, tolerance: 1.0 })");
        insta::assert_compact_debug_snapshot!(compute(&[1.0, f32::NAN, 2.0]), @r#"Err("one of the scores is NaN, which is no finite number")"#);
        insta::assert_compact_debug_snapshot!(compute(&[1.0, f32::NEG_INFINITY]), @r#"Err("one of the scores is -inf, which is no finite number")"#);
        insta::assert_compact_debug_snapshot!(compute(&[0.0; 4]), @r#"Err("all scores are alike")"#);
    }

    #[test]
    fn what_is_nearly_the_same_is_the_same() {
        let canary = compute(&[-5.0, 15.0, 5.0]).unwrap();
        let check =
            |scores: &[f32]| canary.check(&mut Fixed(scores.to_vec()), 3, &[]).map_err(|error| error.to_string());
        for same in [[-5.0, 15.0, 5.0], [-90.0, 14.1, 14.9], [0.0, 15.9, 1.0]] {
            assert_eq!(check(&same), Ok(()), "{same:?}");
        }
        insta::assert_compact_debug_snapshot!(check(&[-5.0, 14.5, 15.9]), @r#"Err("the best score was 15, of the token 1, when the model was loaded; now that one has 14.5, and the best is 15.9")"#);
        insta::assert_compact_debug_snapshot!(check(&[-5.0, 16.5, 5.0]), @r#"Err("the best score was 15, of the token 1, when the model was loaded; now that one has 16.5, and the best is 16.5")"#);
        insta::assert_compact_debug_snapshot!(check(&[-5.0, f32::INFINITY, 5.0]), @r#"Err("one of the scores is inf, which is no finite number")"#);
        insta::assert_compact_debug_snapshot!(check(&[0.0; 3]), @r#"Err("all scores are alike")"#);
    }
}
