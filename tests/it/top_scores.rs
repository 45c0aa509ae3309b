//! True ONNX Runtime, with scores that are kept on the device, which is the host here: what is said is the same, and little
//! is copied.

use crate::{
    engine::{config, drain, is_on_gpu},
    tiny_model::{endless, exact_models, open, start, token_ids},
};
use ortolan::engine::{
    Copied, EngineConfig, NUM_TOP_SCORES, Request, SamplingParams, Stats, TokenEvent, TokenId, TopScoresIn,
};

fn prompts() -> Vec<Vec<u32>> {
    (1..6_u32).map(|seed| (0..seed * 5).map(|index| (seed * 31 + index * 7) % 256).collect()).collect()
}

/// All replies, and what the engine has done for them.
fn replies(name: &str, top_scores: TopScoresIn, change: impl Fn(&mut Request)) -> (Vec<Vec<TokenEvent>>, Stats) {
    let (handle, engine) = start(open(name).spec, &EngineConfig { top_scores, ..config(3, 30) });
    let streams = prompts().into_iter().map(|prompt| {
        let mut request = endless(&prompt, 16);
        change(&mut request);
        handle.submit(request).unwrap()
    });
    let replies = streams.collect::<Vec<_>>().into_iter().map(drain).collect();
    // What a step has copied is counted when it ends, a little after its tokens are out.
    handle.shut_down();
    engine.join().unwrap();
    (replies, handle.stats())
}

fn tokens(replies: &[Vec<TokenEvent>]) -> Vec<Vec<u32>> {
    replies.iter().map(|reply| token_ids(reply)).collect()
}

/// What the best scores of a row take, and what all of them do.
fn bytes_of_rows(name: &str) -> (u64, u64) {
    let vocab_size = open(name).spec.vocab_size as u64;
    let pair = size_of::<i64>() + size_of::<f32>();
    ((NUM_TOP_SCORES * pair + size_of::<f32>()) as u64, vocab_size * size_of::<f32>() as u64)
}

#[test]
fn draws_within_limits_are_the_same_from_the_best_scores_and_from_all() {
    let seeded = |params: SamplingParams| SamplingParams { seed: Some(11), ..params };
    let settings = [
        SamplingParams { top_k: 40, ..SamplingParams::default() },
        SamplingParams { temperature: 0.7, top_k: 64, top_p: 0.9, ..SamplingParams::default() },
        SamplingParams { temperature: 0.3, min_p: 0.2, ..SamplingParams::default() },
        SamplingParams { temperature: 0.1, top_p: 0.8, ..SamplingParams::default() },
        SamplingParams { top_p: 0.99, ..SamplingParams::default() },
        SamplingParams { temperature: 0.0, repetition_penalty: 1.5, ..SamplingParams::default() },
        SamplingParams { top_k: 100, logit_bias: vec![(TokenId(9), 4.0)], ..SamplingParams::default() },
    ];
    for name in ["tiny-gqa", "tiny-concat", "genai-qwen3-pruned", "hub-lfm2"] {
        for params in settings.clone().map(seeded) {
            let change = |request: &mut Request| request.sampling = params.clone();
            let (all, _) = replies(name, TopScoresIn::Never, change);
            let (best, stats) = replies(name, TopScoresIn::Always, change);
            assert_eq!(tokens(&best), tokens(&all), "{name} {params:?}");
            assert!(0 < stats.copied.to_device && 0 < stats.copied.to_host, "{name}");
        }
    }
}

#[test]
fn all_scores_of_a_row_are_copied_only_for_requests_that_need_them() {
    let name = "tiny-gqa";
    let (of_best, of_all) = bytes_of_rows(name);
    // The load computes one token, and on a GPU a prompt, and looks at all scores of each.
    let of_load = if is_on_gpu() { 2 * of_all } else { of_all };
    let rows = |replies: &[Vec<TokenEvent>]| tokens(replies).iter().map(|reply| reply.len() as u64).sum::<u64>();
    let limited = |request: &mut Request| request.sampling = SamplingParams { top_k: 20, ..SamplingParams::default() };
    for (said, Stats { copied: Copied { to_host, to_device }, steps, .. }) in
        [replies(name, TopScoresIn::Always, |_| {}), replies(name, TopScoresIn::Always, limited)]
    {
        // Runs that share a step leave a gap between theirs.
        let at_least = rows(&said) * of_best + of_load;
        assert!((at_least..at_least + 256 * steps).contains(&to_host) && 256 * steps < rows(&said) * of_all / 4);
        assert!(0 < to_device && (is_on_gpu() || to_device < rows(&said) * of_best));
    }
    let penalized = |request: &mut Request| request.sampling.presence_penalty = 0.5;
    let (said, Stats { copied, .. }) = replies(name, TopScoresIn::Always, penalized);
    assert_eq!(copied.to_host, rows(&said) * of_all + of_load);
    let copied = replies(name, TopScoresIn::Never, |_| {}).1.copied;
    assert!(if is_on_gpu() { rows(&said) * of_all <= copied.to_host } else { copied == Copied::default() });

    // Scores are so much alike that most draws without a limit fall beyond the best.
    let unlimited =
        |request: &mut Request| request.sampling = SamplingParams { temperature: 2.0, ..Default::default() };
    let (said, Stats { copied, .. }) = replies(name, TopScoresIn::Always, unlimited);
    assert!(said.iter().all(|reply| token_ids(reply).len() == 16));
    let num_all = (copied.to_host - rows(&said) * of_best) / of_all;
    assert!((rows(&said) / 4..=rows(&said)).contains(&num_all), "{num_all} of {}", rows(&said));
}

#[test]
fn probabilities_are_those_of_all_scores() {
    for name in exact_models().into_iter().filter(|name| name.starts_with("tiny")) {
        let change = |request: &mut Request| request.top_logprobs = Some(5);
        let (all, _) = replies(&name, TopScoresIn::Never, change);
        let (best, _) = replies(&name, TopScoresIn::Always, change);
        let told = |replies: Vec<Vec<TokenEvent>>| -> Vec<(TokenId, f32)> {
            let logprobs = replies.into_iter().flatten().filter_map(|event| match event {
                TokenEvent::Logprobs(logprobs) => Some(logprobs),
                TokenEvent::Queued | TokenEvent::Started | TokenEvent::Token(_) | TokenEvent::Finished { .. } => None,
            });
            logprobs.flatten().collect()
        };
        let (all, best) = (told(all), told(best));
        assert!(all.len() == best.len() && !all.is_empty());
        for ((token, logprob), (expected_token, expected)) in best.into_iter().zip(all) {
            assert!(token == expected_token && (logprob - expected).abs() < 1e-3, "{name}: {logprob} {expected}");
        }
    }
}
