//! Scores to token.

mod top;

use super::{Constraint, ConstraintError, TokenId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// How to pick the next token from the model's scores.
///
/// The order in which the settings act is that of `transformers`' logits processors and warpers: penalties and bias on
/// the raw scores, then temperature, top-k, top-p, min-p, then one draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the scores; 0 takes the best token. At most 2 over HTTP.
    pub temperature: f32,
    /// Keeps only the `k` best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probabilities sum to at least this (Holtzman et al., 2020); 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less probable than this times the most probable one; 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative scores of every token seen in prompt or output (CTRL, Keskar et al.,
    /// 2019); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the score of each token that the output holds; 0 changes nothing.
    pub presence_penalty: f32,
    /// Subtracted from a token's score for each time that the output holds it; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the scores of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Makes the draws repeatable; without one each request draws its own.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// Plain sampling from the model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Picks the tokens of one sequence.
///
/// A vocabulary has 150,000 scores and more, so it is only read in passes that compile to vector instructions, and never
/// copied or sorted as a whole.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: ChaCha8Rng,
    /// How often the output holds each token of prompt and output; none without penalties.
    counts: Option<HashMap<TokenId, u32>>,
    constraint: Option<Box<dyn Constraint>>,
    /// The scores as the model gave them, where probabilities are reported.
    raw: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Sums of weights, one for each block of scores.
    block_sums: Vec<f64>,
    /// Of a draw that fell beyond the best scores, which are the candidates: the weight behind them where it fell.
    deferred: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: TokenId,
    /// A score, then a probability that is not normalized.
    weight: f32,
}

/// A token, and what was asked about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// What follows.
    pub token: TokenId,
    /// Its own, then those of the most probable ones, best first.
    pub logprobs: Option<Vec<(TokenId, f32)>>,
}

/// No token can be picked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model is broken.
    #[error("the model's scores are not numbers")]
    NotNumbers,
    /// The rules and the vocabulary do not go together.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// Stands for an impossible token, as OpenAI's service reports it.
const MIN_LOGPROB: f32 = -9999.0;
/// The first guess of how many tokens hold `top_p` of the probability.
const FIRST_NUCLEUS: usize = 64;
/// The first guess of the least weight among them, and how much smaller the next guess is.
const FIRST_WEIGHT: f32 = 1.0 / 1024.0;
const NEXT_WEIGHT: f32 = 1.0 / 64.0;
/// Scores that are summed before their sum is kept in double precision.
const BLOCK: usize = 1024;
/// Numbers in flight at once: enough for the widest vectors, whatever their width.
const LANES: usize = 16;

impl Sampler {
    /// Before the first token behind `prompt`.
    pub fn new(params: SamplingParams, constraint: Option<Box<dyn Constraint>>, prompt: &[TokenId]) -> Self {
        let seed = params.seed.unwrap_or_else(rand::random);
        let counts = params.has_penalties().then(|| prompt.iter().map(|token| (*token, 0)).collect());
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self {
            params,
            random,
            counts,
            constraint,
            raw: Vec::new(),
            candidates: Vec::new(),
            block_sums: Vec::new(),
            deferred: None,
        }
    }

    /// Notes a token of the output.
    ///
    /// # Errors
    /// When the constraint does not allow it.
    pub fn push(&mut self, token: TokenId) -> Result<(), SampleError> {
        if let Some(counts) = &mut self.counts {
            *counts.entry(token).or_default() += 1;
        }
        self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.push(token)).map_err(SampleError::from)
    }

    /// Whether it takes the best token and never draws.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0
    }

    /// Picks the token that follows, given the score of every token; penalties, biases and the constraint are applied to
    /// `scores`. Reports how probable it was, and so many of the most probable ones, before all that, where it is asked to.
    ///
    /// # Errors
    /// When no score is a number, or the constraint cannot be followed.
    pub fn sample(&mut self, scores: &mut [f32], top_logprobs: Option<u32>) -> Result<Picked, SampleError> {
        if top_logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(scores);
        }
        self.adjust(scores);
        if let Some(constraint) = &mut self.constraint {
            constraint.restrict(scores)?;
        }
        let token = self.pick(scores).ok_or(SampleError::NotNumbers)?;
        let logprobs = top_logprobs.map(|num_top| self.logprobs(token, num_top as usize));
        Ok(Picked { token, logprobs })
    }

    /// Natural logarithms of the probabilities that the model itself gave to `token` and to the `num_top` best.
    fn logprobs(&mut self, token: TokenId, num_top: usize) -> Vec<(TokenId, f32)> {
        let raw = std::mem::take(&mut self.raw);
        let best = best_score(&raw).unwrap_or(0.0).min(f32::MAX);
        let scale = Scale { best, temperature: 1.0 };
        self.sum_blocks(&raw, scale);
        #[expect(clippy::cast_possible_truncation, reason = "a logarithm of a sum of 32-bit numbers fits")]
        let log_total = self.block_sums.iter().sum::<f64>().ln() as f32;
        // What is not a number, or infinite, must not reach JSON.
        let logprob = |score: f32| (score - best - log_total).clamp(MIN_LOGPROB, 0.0);
        self.candidates.clear();
        if 0 < num_top {
            self.collect_best(&raw, num_top);
            self.candidates.sort_unstable_by(by_weight);
        }
        let top = self.candidates.iter().map(|candidate| (candidate.token, logprob(candidate.weight)));
        let logprobs = std::iter::once((token, logprob(raw[token.index()]))).chain(top).collect();
        self.raw = raw;
        logprobs
    }

    /// None when no score is a number.
    fn pick(&mut self, scores: &[f32]) -> Option<TokenId> {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let best = best_score(scores)?;
        if self.is_greedy() {
            return scores.iter().zip(0..).find(|(score, _)| **score == best).map(|(_, index)| TokenId(index));
        }
        let scale = Scale { best: best.min(f32::MAX), temperature };
        if let Some(left) = self.deferred.take() {
            return Some(self.draw_beyond(scores, scale, left));
        }
        let top_k = top_k as usize;
        if 0 < top_k && top_k < scores.len() {
            self.collect_best(scores, top_k);
            self.candidates.sort_unstable_by(by_weight);
            for candidate in &mut self.candidates {
                candidate.weight = scale.weight(candidate.weight);
            }
            let total = self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
            self.keep_nucleus(top_p, total);
        } else if top_p < 1.0 {
            self.sum_blocks(scores, scale);
            let total = self.block_sums.iter().sum();
            self.collect_nucleus(scores, scale, top_p, total);
            self.keep_nucleus(top_p, total);
        } else if 0.0 < min_p {
            self.collect_weights(scores, scale, min_p.min(1.0));
            self.candidates.sort_unstable_by(by_weight);
        } else {
            self.sum_blocks(scores, scale);
            return Some(self.draw_from_all(scores, scale));
        }
        let min_weight = min_p.min(1.0); // The best one's weight is 1.
        self.candidates.retain(|candidate| min_weight <= candidate.weight);
        Some(self.draw().token)
    }

    fn adjust(&self, scores: &mut [f32]) {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        if let Some(counts) = &self.counts {
            for (token, count) in counts {
                let score = &mut scores[token.index()];
                *score = if *score < 0.0 { *score * repetition_penalty } else { *score / repetition_penalty };
                if 0 < *count {
                    *score -= presence_penalty + frequency_penalty * *count as f32;
                }
            }
        }
        for (token, bias) in &self.params.logit_bias {
            scores[token.index()] += bias;
        }
    }

    /// The `top_k` best tokens with their scores, in no order. Scores that cannot be among them any more are passed over.
    fn collect_best(&mut self, scores: &[f32], top_k: usize) {
        let Self { candidates, .. } = self;
        candidates.clear();
        let mut least = f32::NEG_INFINITY;
        for_each_above(scores, &mut least, |token, weight, least| {
            candidates.push(Candidate { token, weight });
            if candidates.len() == 2 * top_k + LANES {
                candidates.select_nth_unstable_by(top_k - 1, by_weight);
                candidates.truncate(top_k);
                *least = candidates[top_k - 1].weight;
            }
        });
        if top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_weight);
            candidates.truncate(top_k);
        }
    }

    /// The tokens that weigh at least `min_weight`.
    fn collect_weights(&mut self, scores: &[f32], scale: Scale, min_weight: f32) {
        let Self { candidates, .. } = self;
        candidates.clear();
        // A little lower, since the logarithm is rounded; the weight decides.
        let mut least = (min_weight.ln() * 1.001 - 0.001).mul_add(scale.temperature, scale.best).min(scale.best);
        least = if least.is_finite() { least.next_down() } else { f32::NEG_INFINITY };
        for_each_above(scores, &mut least, |token, score, _| {
            let weight = scale.weight(score);
            if min_weight <= weight && 0.0 < weight {
                candidates.push(Candidate { token, weight });
            }
        });
    }

    /// The heaviest tokens, enough of them to hold `top_p` of the total weight.
    fn collect_nucleus(&mut self, scores: &[f32], scale: Scale, top_p: f32, total: f64) {
        let mut min_weight = FIRST_WEIGHT;
        loop {
            self.collect_weights(scores, scale, min_weight);
            let sum: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
            if f64::from(top_p) * total <= sum || min_weight == 0.0 {
                return;
            }
            min_weight = if min_weight < f32::MIN_POSITIVE { 0.0 } else { min_weight * NEXT_WEIGHT };
        }
    }

    /// Keeps the smallest set whose probabilities reach `top_p`, best first. The set is usually small, so it is looked
    /// for among ever more of the best instead of sorting all.
    fn keep_nucleus(&mut self, top_p: f32, total: f64) {
        if 1.0 <= top_p {
            return;
        }
        let wanted = f64::from(top_p) * total;
        let num_candidates = self.candidates.len();
        let mut num_sorted = FIRST_NUCLEUS.min(num_candidates);
        loop {
            if num_sorted < num_candidates {
                self.candidates.select_nth_unstable_by(num_sorted, by_weight);
            }
            self.candidates[..num_sorted].sort_unstable_by(by_weight);
            let mut sum = 0.0;
            let reached = self.candidates[..num_sorted].iter().position(|candidate| {
                sum += f64::from(candidate.weight);
                wanted <= sum
            });
            if let Some(last) = reached {
                return self.candidates.truncate(last + 1);
            }
            if num_sorted == num_candidates {
                return; // Rounding kept the sum just below.
            }
            num_sorted = (num_sorted * 8).min(num_candidates);
        }
    }

    fn draw(&mut self) -> Candidate {
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let mut left = uniform(&mut self.random) * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return *candidate;
            }
        }
        *self.candidates.last().expect("the best candidate is always kept")
    }

    fn sum_blocks(&mut self, scores: &[f32], scale: Scale) {
        self.block_sums.clear();
        self.block_sums.extend(scores.chunks(BLOCK).map(|block| f64::from(scale.total(block))));
    }

    /// From the whole distribution, by the sums of its blocks.
    fn draw_from_all(&mut self, scores: &[f32], scale: Scale) -> TokenId {
        let mut left = uniform(&mut self.random) * self.block_sums.iter().sum::<f64>();
        let mut last = TokenId(0);
        let blocks = scores.chunks(BLOCK).zip((0..).step_by(BLOCK));
        for ((block, first), sum) in blocks.zip(&self.block_sums) {
            if *sum <= left {
                left -= sum;
                continue;
            }
            for (score, index) in block.iter().zip(first..) {
                let weight = f64::from(scale.weight(*score));
                if 0.0 < weight {
                    last = TokenId(index);
                    left -= weight;
                }
                if left < 0.0 {
                    return last;
                }
            }
        }
        last // Rounding left a little over: the last token that can be drawn.
    }
}

/// 53 random bits make a uniform number in [0, 1).
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Heavier first; equal weights by token, so that the order does not depend on the selection. Zeros are equal, whatever their
/// sign.
fn by_weight(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    let weight = |candidate: &Candidate| candidate.weight + 0.0;
    weight(right).total_cmp(&weight(left)).then(left.token.cmp(&right.token))
}

/// Calls `visit` for each score above `least`, which `visit` may raise. Whole stretches below it are passed over at once;
/// what is not a number is below everything.
fn for_each_above(scores: &[f32], least: &mut f32, mut visit: impl FnMut(TokenId, f32, &mut f32)) {
    for (chunk, first) in scores.chunks(LANES).zip((0..).step_by(LANES)) {
        if !chunk.iter().fold(false, |any, score| any | (*least < *score)) {
            continue;
        }
        for (score, index) in chunk.iter().zip(first..) {
            if *least < *score {
                visit(TokenId(index), *score, least);
            }
        }
    }
}

/// The best of the scores that are numbers.
fn best_score(scores: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks(LANES) {
        for (best, score) in lanes.iter_mut().zip(chunk) {
            *best = if *best < *score { *score } else { *best };
        }
    }
    let best = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    Some(best).filter(|best| f32::NEG_INFINITY < *best)
}

/// How scores become weights: relative to the best one's, which weighs 1.
#[derive(Clone, Copy, Debug)]
struct Scale {
    best: f32,
    temperature: f32,
}

impl Scale {
    /// 0 for what is not a number. A score may be infinite (a penalty can make it so), and the difference of two
    /// infinities is not a number.
    fn weight(self, score: f32) -> f32 {
        // `min` would turn what is not a number into the best score.
        let score = if f32::MAX < score { f32::MAX } else { score };
        exp((score - self.best) / self.temperature)
    }

    fn total(self, scores: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        for chunk in scores.chunks(LANES) {
            for (sum, score) in lanes.iter_mut().zip(chunk) {
                *sum += self.weight(*score);
            }
        }
        lanes.into_iter().sum()
    }
}

/// `e` to the power of a number that is not positive, to 2e-7 of it; 0 below -87 and for what is not a number. Written so
/// that it compiles to vector instructions, which the library's is not.
///
/// The power of two nearest below is put into the exponent's bits; a polynomial (of the Cephes library, Moshier, 1992)
/// does the rest.
fn exp(x: f32) -> f32 {
    const MIN: f32 = -87.0;
    /// Adding it rounds to an integer, whose bits are then the lowest ones; 127 is the exponent's bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.max(MIN) * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x.max(MIN) - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = sum * rest + coefficient;
    }
    let power_of_two = f32::from_bits(shifted.to_bits() << 23);
    let power = (sum * rest * rest + rest + 1.0) * power_of_two;
    if MIN <= x { power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCORES: [f32; 6] = [0.5, 3.0, -1.0, 2.0, 1.0, f32::NEG_INFINITY];

    /// How often each token is drawn.
    fn frequencies(params: &SamplingParams) -> Vec<f64> {
        let draws = 20_000;
        let mut counts = vec![0_u32; SCORES.len()];
        let mut sampler = Sampler::new(params.clone(), None, &[]);
        for _ in 0..draws {
            counts[sampler.sample(&mut SCORES.clone(), None).unwrap().token.index()] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / f64::from(draws)).collect()
    }

    /// Softmax of the scores at a temperature, with only `kept` left.
    fn expected(temperature: f64, kept: &[usize]) -> Vec<f64> {
        let weight =
            |index: usize| if kept.contains(&index) { (f64::from(SCORES[index]) / temperature).exp() } else { 0.0 };
        let total: f64 = (0..SCORES.len()).map(weight).sum();
        (0..SCORES.len()).map(|index| weight(index) / total).collect()
    }

    #[test]
    fn draws_follow_the_distribution_that_the_settings_leave() {
        let base = SamplingParams { seed: Some(7), ..SamplingParams::default() };
        let cases = [
            (base.clone(), 1.0, vec![0, 1, 2, 3, 4]),
            (SamplingParams { temperature: 0.5, ..base.clone() }, 0.5, vec![0, 1, 2, 3, 4]),
            (SamplingParams { top_k: 2, ..base.clone() }, 1.0, vec![1, 3]),
            // Probabilities are .62 .23 .08 .05 .01: the third is needed to reach .9.
            (SamplingParams { top_p: 0.9, ..base.clone() }, 1.0, vec![1, 3, 4]),
            (SamplingParams { top_p: 0.01, ..base.clone() }, 1.0, vec![1]),
            (SamplingParams { min_p: 0.3, ..base.clone() }, 1.0, vec![1, 3]),
            (SamplingParams { top_k: 3, top_p: 0.9, min_p: 0.2, ..base }, 1.0, vec![1, 3]),
        ];
        for (params, temperature, kept) in cases {
            let expected = expected(temperature, &kept);
            for (seen, wanted) in frequencies(&params).iter().zip(&expected) {
                assert!((seen - wanted).abs() < 0.015, "{params:?}: {seen} instead of {wanted}");
            }
        }
    }

    #[test]
    fn the_exponential_is_right_to_seven_digits() {
        for thousandth in 0..87_000 {
            let x = -(thousandth as f32) / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 2e-7 * exact, "{x}: {} instead of {exact}", exp(x));
        }
        assert_eq!([exp(-87.1), exp(f32::NEG_INFINITY), exp(f32::NAN), exp(0.0)], [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn penalties_and_bias_change_the_scores_they_name() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(TokenId(4), 10.0)],
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, None, &[TokenId(1), TokenId(2)]);
        sampler.push(TokenId(3)).unwrap();
        sampler.push(TokenId(3)).unwrap();
        let mut scores = SCORES;
        assert_eq!(sampler.sample(&mut scores, None).unwrap().token, TokenId(4));
        assert_eq!(scores, [0.5, 1.5, -2.0, 0.0, 11.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn logprobs_are_those_of_the_model_itself() {
        let params =
            SamplingParams { temperature: 0.0, logit_bias: vec![(TokenId(2), 50.0)], ..SamplingParams::default() };
        let picked = Sampler::new(params, None, &[]).sample(&mut SCORES.clone(), Some(2)).unwrap();
        let (logprobs, expected) = (picked.logprobs.unwrap(), expected(1.0, &[0, 1, 2, 3, 4]));
        assert_eq!(logprobs.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [2, 1, 3]);
        for (token, logprob) in logprobs {
            assert!((f64::from(logprob) - expected[token.index()].ln()).abs() < 1e-5, "{token:?}");
        }
    }

    #[test]
    fn a_tie_goes_to_the_lower_token_and_what_is_not_a_number_never_wins() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let pick = |scores: Vec<f32>| Sampler::new(greedy.clone(), None, &[]).pick(&scores);
        assert_eq!(pick(vec![1.0, 2.0, 2.0]), Some(TokenId(1)));
        assert_eq!(pick(vec![f32::NAN, -5.0]), Some(TokenId(1)));
        assert_eq!(pick(vec![f32::NAN, f32::NEG_INFINITY]), None);
        for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)] {
            let params = SamplingParams { top_k, top_p, min_p, ..SamplingParams::default() };
            let scores = [f32::NAN, -5.0, f32::NEG_INFINITY];
            let token = Sampler::new(params, None, &[]).pick(&scores);
            assert_eq!(token, Some(TokenId(1)));
        }
    }

    proptest! {
        #[test]
        fn no_setting_and_no_score_can_make_it_panic(
            scores in prop::collection::vec(prop::sample::select(vec![
                f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, -1.0, 0.0, 1e-40, 3.0,
            ]), 1..90),
            temperature in prop::sample::select(vec![1e-40_f32, 0.5, 2.0, 1e30]),
            repetition_penalty in prop::sample::select(vec![0.0_f32, 1e-40, 1.0, 10.0]),
            (top_k, top_p, min_p) in (0_u32..4, 0.0_f32..=1.0, 0.0_f32..2.0),
        ) {
            let params = SamplingParams {
                temperature, repetition_penalty, top_k, top_p, min_p, seed: Some(1), ..SamplingParams::default()
            };
            let token = Sampler::new(params, None, &[TokenId(0)]).sample(&mut scores.clone(), Some(2));
            if let Ok(Picked { token, logprobs }) = token {
                prop_assert!(token.index() < scores.len());
                prop_assert!(logprobs.unwrap().iter().all(|(_, logprob)| logprob.is_finite() && *logprob <= 0.0));
            }
        }

        #[test]
        fn whatever_the_settings_the_token_is_one_that_they_allow(
            scores in prop::collection::vec(-20.0_f32..20.0, 1..400),
            temperature in 0.05_f32..2.0,
            top_k in 0_u32..100,
            top_p in 0.01_f32..=1.0,
            min_p in 0.0_f32..=1.0,
            seed in any::<u64>(),
        ) {
            let params = SamplingParams {
                temperature, top_k, top_p, min_p, seed: Some(seed), ..SamplingParams::default()
            };
            let draw = || Sampler::new(params.clone(), None, &[]).pick(&scores).unwrap();
            let token = draw();
            prop_assert_eq!(token, draw(), "a seed repeats");
            let score = scores[token.index()];
            let better = scores.iter().filter(|other| score < **other);
            if top_k != 0 {
                prop_assert!(better.clone().count() < top_k as usize);
            }
            let weight = |score: f32| (f64::from(score) / f64::from(temperature)).exp();
            let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!(f64::from(min_p) * weight(best) <= weight(score) * 1.001);
            if top_k == 0 {
                let total: f64 = scores.iter().map(|score| weight(*score)).sum();
                prop_assert!(better.map(|score| weight(*score)).sum::<f64>() <= (f64::from(top_p) + 1e-4) * total);
            }
        }
    }
}
