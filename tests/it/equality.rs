//! True ONNX Runtime: whatever requests share a run, a prefix or a guess, each says what it says alone.

use crate::{
    engine::{config, drain},
    tiny_model::{endless, exact_models, open, start, token_ids},
};
use ortolan::engine::{CacheKind, CacheTensor, EngineConfig, Request};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeSet, VecDeque};

const NUM_REQUESTS: usize = 1000;

/// Prompts of all lengths from a shortest one on, half of them continuations of earlier ones, over few enough tokens that
/// guesses find something.
fn requests(seed: u64, num_requests: usize, shortest: usize) -> Vec<(Vec<u32>, u32)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut requests: Vec<(Vec<u32>, u32)> = Vec::new();
    for _ in 0..num_requests {
        let earlier = match requests.len() {
            0 => None,
            len => random.random_bool(0.5).then(|| requests[random.random_range(0..len)].0.clone()),
        };
        let mut prompt = earlier.unwrap_or_else(|| (0..shortest).map(|_| random.next_u32() % 40).collect());
        prompt.truncate(shortest + 80);
        let num_new = if random.random_bool(0.1) { random.random_range(40..70) } else { random.random_range(1..20) };
        prompt.extend((0..num_new).map(|_| random.next_u32() % 40));
        requests.push((prompt, random.random_range(1..10)));
    }
    requests
}

/// All replies, with at most `num_open` requests under way.
fn replies(name: &str, config: &EngineConfig, requests: &[(Vec<u32>, u32)], num_open: usize) -> Vec<Vec<u32>> {
    let (handle, engine) = start(open(name).spec, config);
    let mut open = VecDeque::new();
    let mut replies = Vec::new();
    for (prompt, max_output_tokens) in requests {
        let request = Request { max_draft_tokens: None, ..endless(prompt, *max_output_tokens) };
        open.push_back(handle.submit(request).unwrap());
        if num_open <= open.len() {
            replies.push(token_ids(&drain(open.pop_front().unwrap())));
        }
    }
    replies.extend(open.into_iter().map(|stream| token_ids(&drain(stream))));
    drop(handle);
    engine.join().unwrap();
    replies
}

fn compare(name: &str, requests: &[(Vec<u32>, u32)]) {
    let alone = replies(name, &EngineConfig { prefix_cache: false, ..config(1, 1000) }, requests, 1);
    for (prefix_cache, max_draft_tokens) in [(false, 0), (true, 0), (true, 4)] {
        let shared = EngineConfig { prefix_cache, max_draft_tokens, ..config(6, 24) };
        let together = replies(name, &shared, requests, 20);
        for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
            let (prompt, _) = &requests[index];
            assert_eq!(together, alone, "{name}, request {index} {prompt:?} with {shared:?}");
        }
    }
}

#[test]
fn a_thousand_requests_over_group_query_attention_say_what_each_says_alone() {
    compare("tiny-gqa", &requests(1, NUM_REQUESTS, 0));
}

#[test]
fn a_thousand_requests_over_growing_tensors_say_what_each_says_alone() {
    compare("tiny-concat", &requests(2, NUM_REQUESTS, 0));
}

/// Blocks have 256 tokens here: a short prompt shares none of them.
#[test]
fn long_requests_over_blocks_say_what_each_says_alone() {
    compare("variant-paged", &requests(4, 150, 230));
}

#[test]
fn a_thousand_requests_over_each_other_kind_of_cache_say_what_each_says_alone() {
    let mut seen = BTreeSet::new();
    for name in exact_models() {
        let spec = open(&name).spec;
        let kind = |tensor: &CacheTensor| match &tensor.kind {
            CacheKind::Columns { window, .. } => (window.is_some(), None),
            CacheKind::Blocks { .. } => (false, None),
            CacheKind::State { sizes, is_in_place } => (false, Some((sizes.len(), *is_in_place))),
        };
        let kinds: BTreeSet<_> = spec.cache.iter().map(kind).collect();
        if (spec.has_states() || spec.has_windows()) && seen.insert((spec.family.name(), kinds)) {
            compare(&name, &requests(3, NUM_REQUESTS, 0));
        }
    }
}
