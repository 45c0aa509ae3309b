//! Scores to token.

use super::TokenId;
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

/// What the draws of one sequence depend on: its random numbers and, for penalties, what was said before.
#[derive(Debug)]
pub struct History {
    random: ChaCha8Rng,
    /// How often the output holds each token of prompt and output; none without penalties.
    counts: Option<HashMap<TokenId, u32>>,
}

impl History {
    /// Before the first draw.
    pub fn new(params: &SamplingParams, prompt: &[TokenId]) -> Self {
        let seed = params.seed.unwrap_or_else(rand::random);
        let counts = params.has_penalties().then(|| prompt.iter().map(|token| (*token, 0)).collect());
        Self { random: ChaCha8Rng::seed_from_u64(seed), counts }
    }

    /// Notes a token of the output.
    pub fn push(&mut self, token: TokenId) {
        if let Some(counts) = &mut self.counts {
            *counts.entry(token).or_default() += 1;
        }
    }
}

impl SamplingParams {
    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Picks the next token. Holds only scratch memory, so one serves every sequence.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: TokenId,
    /// A score, then a probability that is not normalized.
    weight: f32,
}

/// The first guess of how many tokens hold `top_p` of the probability.
const FIRST_NUCLEUS: usize = 64;

impl Sampler {
    /// Picks the token that follows, given the score of every token; penalties and biases are applied to `scores`.
    /// None when no score is a number.
    pub fn sample(&mut self, scores: &mut [f32], params: &SamplingParams, history: &mut History) -> Option<TokenId> {
        adjust(scores, params, history);
        let best = argmax(scores)?;
        if params.temperature == 0.0 {
            return Some(best);
        }
        self.collect(scores, scores[best.index()], params);
        self.keep_nucleus(params.top_p);
        let threshold = params.min_p.min(1.0) * self.candidates.first()?.weight;
        self.candidates.retain(|candidate| threshold <= candidate.weight);
        Some(self.draw(&mut history.random))
    }

    /// Candidates with weights relative to the best one's, `top_k` of them, the best first.
    fn collect(&mut self, scores: &[f32], best: f32, params: &SamplingParams) {
        self.candidates.clear();
        let scored = scores.iter().zip(0..).filter(|(score, _)| f32::NEG_INFINITY < **score);
        self.candidates.extend(scored.map(|(score, index)| Candidate { token: TokenId(index), weight: *score }));
        let top_k = params.top_k as usize;
        if 0 < top_k && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, by_weight);
            self.candidates.truncate(top_k);
        }
        // A score may be infinite (a penalty can make it so); the difference of two infinities is not a number.
        let best = best.min(f32::MAX);
        for candidate in &mut self.candidates {
            candidate.weight = ((candidate.weight.min(f32::MAX) - best) / params.temperature).exp();
        }
    }

    /// Keeps the smallest set whose probabilities reach `top_p`, best first. The set is usually small, so it is looked
    /// for among ever more of the best instead of sorting a whole vocabulary.
    fn keep_nucleus(&mut self, top_p: f32) {
        let wanted =
            f64::from(top_p) * self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum::<f64>();
        let num_candidates = self.candidates.len();
        let mut num_sorted = FIRST_NUCLEUS.min(num_candidates);
        loop {
            if num_sorted < num_candidates {
                self.candidates.select_nth_unstable_by(num_sorted, by_weight);
            }
            self.candidates[..num_sorted].sort_unstable_by(by_weight);
            if 1.0 <= top_p {
                return; // Only the best one's place matters, to `min_p`.
            }
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

    fn draw(&self, random: &mut ChaCha8Rng) -> TokenId {
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
        // 53 random bits make a uniform number in [0, 1).
        let uniform = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = uniform * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return candidate.token;
            }
        }
        self.candidates.last().expect("the best candidate is always kept").token
    }
}

/// Heavier first; equal weights by token, so that the order does not depend on the selection.
fn by_weight(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.weight.total_cmp(&left.weight).then(left.token.cmp(&right.token))
}

/// The first of the best scores that are numbers.
fn argmax(scores: &[f32]) -> Option<TokenId> {
    let mut best = None;
    let mut best_score = f32::NEG_INFINITY;
    for (score, index) in scores.iter().zip(0..) {
        if best_score < *score {
            (best, best_score) = (Some(TokenId(index)), *score);
        }
    }
    best
}

fn adjust(scores: &mut [f32], params: &SamplingParams, history: &History) {
    if let Some(counts) = &history.counts {
        for (token, count) in counts {
            let score = &mut scores[token.index()];
            *score = if *score < 0.0 { *score * params.repetition_penalty } else { *score / params.repetition_penalty };
            if 0 < *count {
                *score -= params.presence_penalty + params.frequency_penalty * *count as f32;
            }
        }
    }
    for (token, bias) in &params.logit_bias {
        scores[token.index()] += bias;
    }
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
        let (mut sampler, mut history) = (Sampler::default(), History::new(params, &[]));
        for _ in 0..draws {
            counts[sampler.sample(&mut SCORES.clone(), params, &mut history).unwrap().index()] += 1;
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
    fn penalties_and_bias_change_the_scores_they_name() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(TokenId(4), 10.0)],
            ..SamplingParams::default()
        };
        let mut history = History::new(&params, &[TokenId(1), TokenId(2)]);
        history.push(TokenId(3));
        history.push(TokenId(3));
        let mut scores = SCORES;
        let token = Sampler::default().sample(&mut scores, &params, &mut history);
        assert_eq!(token, Some(TokenId(4)));
        assert_eq!(scores, [0.5, 1.5, -2.0, 0.0, 11.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_tie_goes_to_the_lower_token_and_what_is_not_a_number_never_wins() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let pick =
            |mut scores: Vec<f32>| Sampler::default().sample(&mut scores, &greedy, &mut History::new(&greedy, &[]));
        assert_eq!(pick(vec![1.0, 2.0, 2.0]), Some(TokenId(1)));
        assert_eq!(pick(vec![f32::NAN, -5.0]), Some(TokenId(1)));
        assert_eq!(pick(vec![f32::NAN, f32::NEG_INFINITY]), None);
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
            let mut history = History::new(&params, &[TokenId(0)]);
            let token = Sampler::default().sample(&mut scores.clone(), &params, &mut history);
            prop_assert!(token.is_none_or(|token| token.index() < scores.len()));
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
            let draw = || {
                let mut history = History::new(&params, &[]);
                Sampler::default().sample(&mut scores.clone(), &params, &mut history).unwrap()
            };
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
