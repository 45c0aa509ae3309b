//! Thousands of requests that come, wait, share prefixes, guess, and leave, over a fake model: whatever happens between
//! them, each says what it would say alone.

use crate::{
    engine::{config, next, request},
    fake_model::{FakeModel, says},
};
use ortolan::engine::{
    Engine, EngineConfig, EngineError, EngineHandle, FinishReason, Request, ServiceClass, Stats, TokenEvent, TokenId,
    TokenStream,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{collections::VecDeque, num::NonZeroU32, thread};

const NUM_REQUESTS: usize = 10_000;
const NUM_SAID: usize = 3;

/// A request, what it is expected to say, and how much of that its client reads before it leaves.
struct Case {
    request: Request,
    expected: Vec<TokenId>,
    num_read: usize,
}

/// Conversations that grow turn by turn, as chats do, between others that nobody has seen before.
struct Conversations {
    random: ChaCha8Rng,
    known: VecDeque<(u64, Vec<u32>)>,
}

impl Conversations {
    fn next(&mut self) -> Case {
        let random = &mut self.random;
        let (cache_salt, mut prompt) = match self.known.pop_front() {
            Some(known) if random.random_bool(0.6) => known,
            _ => (random.random_range(0..2), Vec::new()),
        };
        let num_new = random.random_range(1..40);
        prompt.extend((0..num_new).map(|_| random.next_u32() % 8));
        if 120 < prompt.len() {
            prompt.truncate(random.random_range(1..120)); // An edit in the middle of a long conversation.
        }
        let is_long = random.random_bool(0.3);
        let max_output_tokens = random.random_range(1..if is_long { 100 } else { 20 });
        let expected = says(&prompt, NUM_SAID, max_output_tokens as usize);
        let num_read = if random.random_bool(0.1) { random.random_range(0..4) } else { usize::MAX };
        let request = Request {
            stop_tokens: [].into(),
            cache_salt,
            service_class: [ServiceClass::Priority, ServiceClass::Default, ServiceClass::Flex]
                [random.random_range(0..3)],
            max_draft_tokens: NonZeroU32::new(random.random_range(0..4)).map(NonZeroU32::get),
            ..request(&prompt, max_output_tokens)
        };
        prompt.extend(expected.iter().map(|token| token.0));
        if random.random_bool(0.8) {
            self.known.push_back((cache_salt, prompt));
        }
        Case { request, expected, num_read }
    }
}

/// Reads a reply to its end, or until its client has had enough. Returns the number of cached tokens.
fn check(mut stream: TokenStream, case: &Case) -> usize {
    let (mut said, mut has_begun) = (Vec::new(), false);
    while said.len() < case.num_read {
        match stream.blocking_recv().expect("a stream ends with `Finished`") {
            TokenEvent::Token(token) => said.push(token),
            TokenEvent::Started => assert!(!std::mem::replace(&mut has_begun, true), "it begins once"),
            TokenEvent::Queued => assert!(!has_begun, "it waits before it begins"),
            TokenEvent::Logprobs(_) => panic!("nobody asked for them"),
            TokenEvent::Finished { reason, num_cached_tokens } => {
                assert_eq!((said, reason), (case.expected.clone(), FinishReason::Length));
                assert!(stream.blocking_recv().is_none(), "`Finished` is the last event");
                assert!(num_cached_tokens < case.request.prompt.len());
                return num_cached_tokens;
            }
        }
    }
    assert_eq!(said[..], case.expected[..said.len()]);
    0
}

fn submit(handle: &EngineHandle, case: &Case) -> Result<TokenStream, EngineError> {
    handle.submit(case.request.clone())
}

/// Keeps about `num_open` requests open; returns how many prompt tokens were cached, and what the engine has counted.
fn simulate(
    model: FakeModel,
    config: &EngineConfig,
    seed: u64,
    num_requests: usize,
    num_open: usize,
) -> (usize, Stats) {
    let (engine, handle) = Engine::new(config, model.saying_few(NUM_SAID));
    let engine = thread::spawn(|| engine.run());
    let mut conversations = Conversations { random: ChaCha8Rng::seed_from_u64(seed), known: VecDeque::new() };
    let mut open: VecDeque<(TokenStream, Case)> = VecDeque::new();
    let mut num_cached = 0;
    for _ in 0..num_requests {
        let case = conversations.next();
        let stream = loop {
            match submit(&handle, &case) {
                Ok(stream) => break stream,
                Err(EngineError::QueueFull { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let (stream, case) = open.pop_front().expect("a full queue holds requests");
            num_cached += check(stream, &case);
        };
        open.push_back((stream, case));
        while num_open < open.len() {
            let first = conversations.random.random_range(0..open.len());
            let (stream, case) = open.remove(first).expect("one of them");
            num_cached += check(stream, &case);
        }
    }
    num_cached += open.into_iter().map(|(stream, case)| check(stream, &case)).sum::<usize>();
    let stats = handle.stats();
    assert!(stats.accepted_tokens <= stats.guessed_tokens && stats.cached_tokens <= stats.prompt_tokens);
    drop(handle);
    engine.join().unwrap(); // `run` asserts that no KV slot leaked.
    (num_cached, stats)
}

#[test]
fn ten_thousand_requests_say_what_each_would_say_alone() {
    let config = EngineConfig { max_waiting: NonZeroU32::new(20).unwrap(), ..config(6, 24) };
    let (num_cached, _) = simulate(FakeModel::default(), &config, 1, NUM_REQUESTS, 24);
    assert!(10 * NUM_REQUESTS < num_cached, "conversations go on from what was computed: {num_cached}");
}

#[test]
fn ten_thousand_requests_say_the_same_where_blocks_run_out() {
    let config = EngineConfig { max_waiting: NonZeroU32::new(20).unwrap(), ..config(6, 24) };
    let (num_cached, stats) = simulate(FakeModel::in_blocks(120, 2), &config, 1, NUM_REQUESTS, 24);
    assert!(NUM_REQUESTS < num_cached, "conversations go on from what was computed: {num_cached}");
    assert!(NUM_REQUESTS as u64 / 10 < stats.preemptions, "blocks run out often: {stats:?}");
}

#[test]
fn nothing_changes_with_blocks_of_any_size() {
    for (seed, max_batch_size, max_step_tokens) in [(2, 1, 1), (3, 2, 7), (4, 9, 300), (6, 12, 0)] {
        for (num_blocks, block_tokens) in [(240, 1), (57, 4), (15, 16), (1, 256), (4, 128)] {
            let model = FakeModel::in_blocks(num_blocks, block_tokens);
            simulate(model, &config(max_batch_size, max_step_tokens), seed, 200, 12);
        }
    }
}

#[test]
fn nothing_changes_with_few_slots_tiny_steps_or_a_model_that_only_appends() {
    for (seed, max_batch_size, max_step_tokens) in [(2, 1, 1), (3, 2, 7), (4, 9, 300), (6, 3, 0)] {
        for model in [FakeModel::default(), FakeModel::rigid()] {
            simulate(model, &config(max_batch_size, max_step_tokens), seed, 400, 12);
        }
    }
}

#[test]
fn without_a_prefix_cache_nothing_is_reused() {
    let config = EngineConfig { prefix_cache: false, ..config(4, 24) };
    assert_eq!(simulate(FakeModel::default(), &config, 5, 500, 12).0, 0);
    assert_eq!(simulate(FakeModel::in_blocks(60, 4), &config, 5, 500, 12).0, 0);
}

#[test]
fn nobody_goes_on_from_another_tenants_prompt() {
    // All but the last token, whose scores are needed.
    assert_eq!(cached_by_tenants(FakeModel::default()), [0, 59, 0, 59, 59]);
    // Of these, the full blocks.
    assert_eq!(cached_by_tenants(FakeModel::in_blocks(128, 4)), [0, 56, 0, 56, 56]);
}

fn cached_by_tenants(model: FakeModel) -> [usize; 5] {
    let (engine, handle) = Engine::new(&config(4, 64), model);
    let engine = thread::spawn(|| engine.run());
    let prompt: Vec<u32> = (0..60).collect();
    let cached = |cache_salt| {
        let case = request(&prompt, 2);
        let mut stream = handle.submit(Request { cache_salt, ..case }).unwrap();
        loop {
            if let TokenEvent::Finished { num_cached_tokens, .. } = stream.blocking_recv().unwrap() {
                return num_cached_tokens;
            }
        }
    };
    let cached = [1, 1, 2, 1, 2].map(cached);
    drop(handle);
    engine.join().unwrap();
    cached
}

#[test]
fn guesses_that_prove_right_save_steps() {
    let steps = |max_draft_tokens| {
        // Says the same few tokens for ever.
        let (engine, handle) = Engine::new(&config(1, 64), FakeModel::saying(vec![7]));
        let engine = thread::spawn(|| engine.run());
        let case = request(&[1, 2], 100);
        let mut stream = handle.submit(Request { max_draft_tokens: Some(max_draft_tokens), ..case }).unwrap();
        let mut num_said = 0;
        while let Some(TokenEvent::Token(token)) = next(&mut stream) {
            assert_eq!(token, TokenId(7));
            num_said += 1;
        }
        drop(stream);
        let handle_for_stats = handle.clone();
        drop(handle);
        handle_for_stats.shut_down();
        engine.join().unwrap();
        (num_said, handle_for_stats.stats().steps)
    };
    assert_eq!(steps(0), (100, 100));
    let (num_said, num_steps) = steps(4);
    assert_eq!(num_said, 100);
    assert!(num_steps < 30, "{num_steps}");
}
