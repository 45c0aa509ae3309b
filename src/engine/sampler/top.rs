//! The next token from a row's best scores alone, where these are enough to tell.

use super::{Candidate, MIN_LOGPROB, Picked, Sampler, Scale, by_weight, uniform};
use crate::engine::{NUM_TOP_SCORES, TokenId, TopScores, Wanted};

impl Sampler {
    /// How much of a row of scores is to be seen. Whatever changes single scores has to see them all; and what is reported
    /// is told at temperature 1.
    pub fn wanted(&self, top_logprobs: Option<u32>) -> Wanted {
        let temperature = if self.is_greedy() { 1.0 } else { self.params.temperature };
        let changes_scores = self.counts.is_some() || !self.params.logit_bias.is_empty() || self.constraint.is_some();
        let too_many = NUM_TOP_SCORES < (self.params.top_k.max(top_logprobs.unwrap_or(0))) as usize;
        if changes_scores || too_many || (top_logprobs.is_some() && temperature != 1.0) {
            return Wanted::All;
        }
        Wanted::Top { temperature }
    }

    /// As [`sample`](Self::sample) from all scores, where the best ones tell: the same token, for the same draw, but where no
    /// limit is set and the draw falls beyond them. `None` where all scores have to be seen: also where it matters which of
    /// those are there that are as good as the last one, since a device finds any of them.
    pub fn sample_top(&mut self, top: TopScores<'_>, top_logprobs: Option<u32>) -> Option<Picked> {
        let candidates =
            top.tokens.iter().zip(top.scores).map(|(token, score)| Candidate { token: *token, weight: *score });
        self.candidates.clear();
        // What is impossible is padding, or like it.
        self.candidates.extend(candidates.filter(|candidate| candidate.weight != f32::NEG_INFINITY));
        self.candidates.sort_unstable_by(by_weight);
        let best = self.candidates.first()?.weight;
        if !best.is_finite() || !top.total.is_finite() {
            return None;
        }
        let Some(num_top) = top_logprobs else {
            let token = self.pick_top(best, f64::from(top.total))?;
            return Some(Picked { token, logprobs: None });
        };
        let (num_top, all) = (num_top as usize, self.candidates.clone());
        if num_top.checked_sub(1).is_some_and(|last| all.get(last).map(|last| last.weight) == self.least()) {
            return None;
        }
        let token = self.pick_top(best, f64::from(top.total))?;
        let logprob = |candidate: &Candidate| (candidate.weight - best - top.total.ln()).clamp(MIN_LOGPROB, 0.0);
        let own = all.iter().find(|candidate| candidate.token == token).map_or(MIN_LOGPROB, logprob);
        let told = all.iter().take(num_top).map(|candidate| (candidate.token, logprob(candidate)));
        Some(Picked { token, logprobs: Some(std::iter::once((token, own)).chain(told).collect()) })
    }

    /// The weight of the last candidate, where there may be others like it: there are fewer only where the vocabulary has no
    /// more.
    fn least(&self) -> Option<f32> {
        self.candidates.get(NUM_TOP_SCORES - 1).map(|last| last.weight)
    }

    /// From the candidates, best first, which weigh `total` together with all that are not among them.
    fn pick_top(&mut self, best: f32, total: f64) -> Option<TokenId> {
        if self.is_greedy() {
            return Some(self.candidates[0].token).filter(|_| self.least() != Some(best));
        }
        let (top_k, top_p, min_p) = (self.params.top_k as usize, self.params.top_p, self.params.min_p.min(1.0));
        let scale = Scale { best, temperature: self.params.temperature };
        for candidate in &mut self.candidates {
            candidate.weight = scale.weight(candidate.weight);
        }
        let least = self.least();
        let are_all = least.is_none();
        let sum =
            |candidates: &[Candidate]| candidates.iter().map(|candidate| f64::from(candidate.weight)).sum::<f64>();
        let limits = 0 < top_k && top_k <= self.candidates.len() && !(are_all && top_k == self.candidates.len());
        if limits {
            self.candidates.truncate(top_k);
            self.keep_nucleus(top_p, sum(&self.candidates));
        } else if top_p < 1.0 {
            self.candidates.sort_unstable_by(by_weight); // Different scores may weigh the same.
            if !are_all && sum(&self.candidates) < f64::from(top_p) * total {
                return None;
            }
            self.keep_nucleus(top_p, total);
        } else if 0.0 < min_p {
            self.candidates.sort_unstable_by(by_weight);
            if least.is_some_and(|least| min_p <= least) {
                return None;
            }
        } else {
            return self.draw_or_defer(total);
        }
        self.candidates.retain(|candidate| min_p <= candidate.weight);
        let before = self.random.clone();
        let drawn = self.draw();
        if Some(drawn.weight) == least {
            self.random = before;
            return None;
        }
        Some(drawn.token)
    }

    /// From the whole distribution, the best first. A draw that falls beyond them goes on from there when all scores are
    /// seen.
    fn draw_or_defer(&mut self, total: f64) -> Option<TokenId> {
        let mut left = uniform(&mut self.random) * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        self.deferred = Some(left);
        None
    }

    /// Ends a draw that was deferred: from all tokens but the candidates, so much weight behind them.
    pub(super) fn draw_beyond(&mut self, scores: &[f32], scale: Scale, mut left: f64) -> TokenId {
        let mut seen: Vec<TokenId> = self.candidates.iter().map(|candidate| candidate.token).collect();
        seen.sort_unstable();
        let mut last = self.candidates[0].token;
        for (score, index) in scores.iter().zip(0..) {
            let weight = f64::from(scale.weight(*score));
            if 0.0 < weight && seen.binary_search(&TokenId(index)).is_err() {
                last = TokenId(index);
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SamplingParams;
    use proptest::prelude::*;

    /// What a device would tell of these scores: of those that are alike, it finds the last ones first.
    fn top_of(scores: &[f32], temperature: f32) -> (Vec<f32>, Vec<TokenId>, f32) {
        let mut order: Vec<u32> = (0..u32::try_from(scores.len()).unwrap()).rev().collect();
        order.sort_by(|one, other| scores[*other as usize].partial_cmp(&scores[*one as usize]).unwrap());
        order.truncate(NUM_TOP_SCORES);
        let best = scores[order[0] as usize];
        let total = scores.iter().map(|score| f64::from((score - best) / temperature).exp()).sum::<f64>();
        #[expect(clippy::cast_possible_truncation, reason = "as a device computes it")]
        let total = total as f32;
        (order.iter().map(|token| scores[*token as usize]).collect(), order.into_iter().map(TokenId).collect(), total)
    }

    /// From the best scores, if they tell; from all where they do not; and from all without a look at the best.
    fn pick(params: &SamplingParams, scores: &[f32], top_logprobs: Option<u32>) -> [Option<Picked>; 3] {
        let mut sampler = Sampler::new(params.clone(), None, &[TokenId(0)]);
        let from_all = sampler.sample(&mut scores.to_vec(), top_logprobs).unwrap();
        let mut sampler = Sampler::new(params.clone(), None, &[TokenId(0)]);
        let Wanted::Top { temperature } = sampler.wanted(top_logprobs) else { panic!("nothing is changed") };
        let (best, tokens, total) = top_of(scores, temperature);
        let top = TopScores { scores: &best, tokens: &tokens, total };
        let from_top = sampler.sample_top(top, top_logprobs);
        let at_last = from_top.clone().or_else(|| sampler.sample(&mut scores.to_vec(), top_logprobs).ok());
        [from_top, at_last, Some(from_all)]
    }

    /// Of which many are alike.
    fn coarse_scores() -> impl Strategy<Value = Vec<f32>> {
        let score =
            prop_oneof![Just(-0.0), Just(f32::NEG_INFINITY), (-9_i8..9).prop_map(|score| f32::from(score) / 4.0)];
        prop::collection::vec(score, 1..400)
            .prop_filter("one is possible", |scores| scores.iter().any(|score| score.is_finite()))
    }

    proptest! {
        #[test]
        fn the_best_scores_tell_what_all_scores_tell(
            (scores, is_coarse) in prop_oneof![
                prop::collection::vec(-20.0_f32..20.0, 1..400).prop_map(|scores| (scores, false)),
                coarse_scores().prop_map(|scores| (scores, true)),
            ],
            temperature in prop_oneof![Just(0.0_f32), 0.05..2.0_f32],
            top_k in prop_oneof![Just(0_u32), 1..65_u32],
            top_p in prop_oneof![Just(1.0_f32), 0.01..1.0_f32],
            min_p in prop_oneof![Just(0.0_f32), 0.001..1.0_f32],
            seed in any::<u64>(),
        ) {
            // Without any limit, the order of the draw is another; see below.
            let limits = 0 < top_k && (top_k as usize) < scores.len();
            prop_assume!(temperature == 0.0 || limits || top_p < 1.0 || 0.0 < min_p);
            let params = SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..Default::default() };
            let [from_top, at_last, from_all] = pick(&params, &scores, None);
            prop_assert_eq!(at_last, from_all);
            // The last one that is there may be like the first one that is not.
            let may_not_tell = is_coarse || top_k as usize == NUM_TOP_SCORES || (top_k == 0 && temperature != 0.0);
            prop_assert!(from_top.is_some() || (NUM_TOP_SCORES <= scores.len() && may_not_tell));
        }

        #[test]
        fn probabilities_are_those_of_all_scores(
            scores in prop_oneof![prop::collection::vec(-20.0_f32..20.0, 1..400), coarse_scores()],
            num_top in 0_u32..20,
            greedy in any::<bool>(),
        ) {
            let temperature = if greedy { 0.0 } else { 1.0 };
            let params = SamplingParams { temperature, top_k: 1, seed: Some(1), ..Default::default() };
            let [_, from_top, from_all] = pick(&params, &scores, Some(num_top));
            let (from_top, from_all) = (from_top.unwrap().logprobs.unwrap(), from_all.unwrap().logprobs.unwrap());
            prop_assert_eq!(from_top.len(), from_all.len());
            for ((token, logprob), (expected_token, expected)) in from_top.into_iter().zip(from_all) {
                prop_assert_eq!(token, expected_token);
                prop_assert!((logprob - expected).abs() < 1e-4, "{} {}", logprob, expected);
            }
        }
    }

    #[test]
    fn a_draw_beyond_the_best_goes_on_over_all_scores() {
        // Two hundred tokens, equally probable: two thirds of the draws are beyond the best.
        let scores = vec![0.5; 200];
        let (best, tokens, total) = top_of(&scores, 1.0);
        let mut sampler = Sampler::new(SamplingParams { seed: Some(3), ..Default::default() }, None, &[TokenId(0)]);
        let mut counts = vec![0; 200];
        let mut num_beyond = 0;
        for _ in 0..20_000 {
            let top = TopScores { scores: &best, tokens: &tokens, total };
            let picked = sampler.sample_top(top, None).unwrap_or_else(|| {
                num_beyond += 1;
                sampler.sample(&mut scores.clone(), None).unwrap()
            });
            counts[picked.token.index()] += 1;
        }
        assert!((13_000..14_200).contains(&num_beyond), "{num_beyond}");
        assert!(counts.iter().all(|count| (50..160).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_limits_keep_beyond_the_best_is_looked_for_among_all() {
        let scores: Vec<f32> = (0_u16..200).map(|token| 0.5 + f32::from(token) * 1e-5).collect();
        let base = SamplingParams { seed: Some(3), ..Default::default() };
        for (params, is_enough) in [
            (SamplingParams { top_p: 0.9, ..base.clone() }, false),
            (SamplingParams { top_p: 0.3, ..base.clone() }, true),
            (SamplingParams { min_p: 0.5, ..base.clone() }, false),
            (SamplingParams { min_p: 0.5, top_p: 0.3, ..base.clone() }, true),
            (SamplingParams { top_k: 64, min_p: 0.5, ..base.clone() }, true),
        ] {
            assert_eq!(pick(&params, &scores, None)[0].is_some(), is_enough, "{params:?}");
        }
        // Where all are alike, a device tells of any.
        for params in [SamplingParams { top_k: 64, ..base.clone() }, SamplingParams { temperature: 0.0, ..base }] {
            let [from_top, at_last, from_all] = pick(&params, &[0.5; 200], None);
            assert_eq!((from_top, at_last), (None, from_all), "{params:?}");
        }
    }

    #[test]
    fn whatever_looks_at_single_scores_wants_all() {
        let wanted = |params: SamplingParams, top_logprobs| {
            Sampler::new(params, None, &[TokenId(0)]).wanted(top_logprobs) == Wanted::All
        };
        let plain = SamplingParams::default;
        assert!(!wanted(plain(), None) && !wanted(plain(), Some(20)));
        assert!(wanted(plain(), Some(65)) && wanted(SamplingParams { top_k: 65, ..plain() }, None));
        assert!(wanted(SamplingParams { temperature: 0.5, ..plain() }, Some(1)));
        assert!(!wanted(SamplingParams { temperature: 0.0, ..plain() }, Some(1)));
        assert!(wanted(SamplingParams { presence_penalty: 0.1, ..plain() }, None));
        assert!(wanted(SamplingParams { logit_bias: vec![(TokenId(1), 1.0)], ..plain() }, None));
    }
}
