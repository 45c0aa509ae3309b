//! The engine loop over a fake model: batching, chunks, cancellation, failure, shutdown.

use crate::{
    fake_model::{CONTEXT_TOKENS, FakeModel, VOCAB_SIZE},
    tiny_model::token_ids,
};
use ortolan::engine::{
    Engine, EngineConfig, EngineError, EngineHandle, FinishReason, GraphEdits, ProviderConfig, ProviderName, Request,
    SamplingParams, ServiceClass, TokenEvent, TokenId, TokenStream, TopScoresIn,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, env, iter, num::NonZeroU32, slice, sync::atomic::Ordering, thread, time::Duration};

fn nonzero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

pub(crate) fn config(max_batch_size: u32, max_step_tokens: u32) -> EngineConfig {
    EngineConfig {
        max_batch_size: nonzero(max_batch_size),
        max_waiting: nonzero(256),
        max_waiting_tokens: nonzero(100_000),
        max_context_tokens: nonzero(8192),
        max_step_tokens,
        run_overhead_tokens: 4,
        prefix_cache: true,
        max_draft_tokens: 0,
        graph_edits: GraphEdits {
            query_seqlens: true,
            logits_indices: true,
            accuracy_level: false,
            sequence_lengths: true,
            top_scores: false,
        },
        top_scores: TopScoresIn::Gpu,
        cuda_graphs: true,
        memory_share: 0.8,
        intra_op_threads: 1,
        intra_op_affinity: String::new(),
        spin: false,
        sampling_threads: 1,
        providers: providers(),
        devices: vec![],
        canary_interval: Duration::ZERO,
        fallback: false,
    }
}

/// Where tests of true graphs run: on the CPU, or where `ORTOLAN_TEST_PROVIDER` says.
fn providers() -> Vec<ProviderConfig> {
    let Some(name) = env::var_os("ORTOLAN_TEST_PROVIDER") else { return vec![] };
    let name = match name.to_str() {
        Some("cuda") => ProviderName::Cuda,
        Some("tensorrt") => ProviderName::TensorRt,
        other => panic!("ORTOLAN_TEST_PROVIDER is {other:?}; `cuda` and `tensorrt` are known"),
    };
    // Products of 32-bit floats are not to be rounded to 10 bits, or replies differ from those of others.
    let options = BTreeMap::from([("use_tf32".to_owned(), "0".to_owned())]);
    vec![ProviderConfig { name, options }]
}

/// Whether tests of true graphs run on a GPU.
pub(crate) fn is_on_gpu() -> bool {
    !providers().is_empty()
}

/// Greedy, at most so many tokens.
pub(crate) fn request(prompt: &[u32], max_output_tokens: u32) -> Request {
    Request {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        constraint: None,
        top_logprobs: None,
        stop_tokens: [TokenId(3)].into(),
        max_output_tokens: NonZeroU32::new(max_output_tokens),
        service_class: ServiceClass::Default,
        cache_salt: 0,
        max_draft_tokens: None,
    }
}

/// What a stream says next of its tokens.
pub(crate) fn next(stream: &mut TokenStream) -> Option<TokenEvent> {
    iter::from_fn(|| stream.blocking_recv()).find(is_of_tokens)
}

fn is_of_tokens(event: &TokenEvent) -> bool {
    !matches!(event, TokenEvent::Queued | TokenEvent::Started)
}

pub(crate) fn drain(mut stream: TokenStream) -> Vec<TokenEvent> {
    iter::from_fn(|| next(&mut stream)).collect()
}

/// The last event of a request that found nothing cached.
fn finished(reason: FinishReason) -> TokenEvent {
    TokenEvent::Finished { reason, num_cached_tokens: 0 }
}

/// The one place that drives an engine to its end; a case is data.
fn generate(model: FakeModel, config: &EngineConfig, prompts: &[Vec<u32>]) -> Vec<Vec<TokenEvent>> {
    let (engine, handle) = Engine::new(config, model);
    let streams: Vec<TokenStream> = prompts.iter().map(|prompt| handle.submit(request(prompt, 9)).unwrap()).collect();
    drop(handle);
    let engine = thread::spawn(|| engine.run());
    let outputs = streams.into_iter().map(drain).collect();
    engine.join().unwrap(); // `run` asserts that no KV slot leaked.
    outputs
}

proptest! {
    #[test]
    fn neither_batching_nor_chunks_change_what_a_sequence_says(
        prompts in prop::collection::vec(prop::collection::vec(0_u32..64, 1..40), 1..12),
        max_batch_size in 1_u32..6,
        max_step_tokens in 1_u32..24,
    ) {
        let batched = generate(FakeModel::default(), &config(max_batch_size, max_step_tokens), &prompts);
        // Room for one request and half of another.
        let in_blocks = generate(FakeModel::in_blocks(18, 4), &config(max_batch_size, max_step_tokens), &prompts);
        for ((prompt, output), in_blocks) in prompts.iter().zip(&batched).zip(&in_blocks) {
            let alone = generate(FakeModel::default(), &config(1, 1000), slice::from_ref(prompt));
            prop_assert_eq!(&alone[0], output);
            prop_assert_eq!(token_ids(in_blocks), token_ids(output));
        }
    }

    #[test]
    fn whoever_leaves_the_others_are_not_disturbed(
        prompts in prop::collection::vec((prop::collection::vec(0_u32..64, 1..20), 0_usize..12), 2..10),
        max_batch_size in 1_u32..4,
    ) {
        let (engine, handle) = Engine::new(&config(max_batch_size, 7), FakeModel::default());
        let submit = |prompt: &Vec<u32>| handle.submit(request(prompt, 9)).unwrap();
        let streams: Vec<(TokenStream, usize)> =
            prompts.iter().map(|(prompt, patience)| (submit(prompt), *patience)).collect();
        drop(handle);
        let engine = thread::spawn(|| engine.run());
        for ((mut stream, patience), (prompt, _)) in streams.into_iter().zip(&prompts) {
            let seen: Vec<TokenEvent> = iter::from_fn(|| next(&mut stream)).take(patience).collect();
            drop(stream);
            let alone = generate(FakeModel::default(), &config(1, 1000), slice::from_ref(prompt));
            prop_assert_eq!(&alone[0][..seen.len()], &seen[..]);
        }
        engine.join().unwrap();
    }
}

/// After `SQLite`'s out-of-memory tests: fail at the first run, then at the second, and so on.
#[test]
fn every_request_finishes_once_whichever_run_fails() {
    let is_finished = |event: &TokenEvent| matches!(event, TokenEvent::Finished { .. });
    for first_failing_run in 1..30 {
        let model = FakeModel::failing_from(first_failing_run);
        for output in generate(model, &config(2, 3), &[vec![1], vec![2, 5, 6, 7], vec![4], vec![9]]) {
            let position = output.iter().position(is_finished).unwrap();
            assert_eq!(position + 1, output.len(), "`Finished` is the last event");
        }
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_a_running_reply() {
    let (model, permits, _) = FakeModel::saying(vec![7]).gated();
    let (engine, handle) = Engine::new(&config(2, 4), model);
    let engine = thread::spawn(|| engine.run());
    let mut running = handle.submit(request(&[1], 100)).unwrap();
    let mut step = || {
        permits.send(()).unwrap();
        assert_eq!(next(&mut running), Some(TokenEvent::Token(TokenId(7))));
    };
    step();
    let mut long = handle.submit(request(&[5; 30], 1)).unwrap();
    // The step that is already under way, then 30 prompt tokens at 3 a step beside the running row: a token each.
    (0..11).for_each(|_| step());
    drop(permits);
    assert_eq!(next(&mut long), Some(TokenEvent::Token(TokenId(7))));
    drop((running, long, handle));
    engine.join().unwrap();
}

#[test]
fn dropping_the_stream_ends_the_sequence_within_one_step() {
    let (model, permits, runs) = FakeModel::saying(vec![7]).gated();
    let (engine, handle) = Engine::new(&config(1, 100), model);
    drop(handle.submit(request(&[1], 400)).unwrap()); // Cancelled while it waits.
    let mut stream = handle.submit(request(&[2], 400)).unwrap();
    drop(handle);
    let engine = thread::spawn(|| engine.run());
    permits.send(()).unwrap();
    assert!(matches!(next(&mut stream), Some(TokenEvent::Token(_))));
    drop(stream); // Cancelled while it runs.
    drop(permits);
    engine.join().unwrap(); // `run` asserts that no KV slot leaked.
    assert!(runs.load(Ordering::SeqCst) <= 2);
}

/// In the order in which one slot serves them, while one request runs already.
fn served(classes: &[ServiceClass]) -> Vec<usize> {
    let (model, permits, _) = FakeModel::default().gated();
    let (engine, handle) = Engine::new(&config(1, 100), model);
    let engine = thread::spawn(|| engine.run());
    let mut running = handle.submit(request(&[5], 2)).unwrap();
    permits.send(()).unwrap();
    assert!(matches!(next(&mut running), Some(TokenEvent::Token(_))), "the slot is taken");
    let submit = |service_class| handle.submit(Request { service_class, ..request(&[5], 1) }).unwrap();
    let mut waiting: Vec<(usize, TokenStream)> = classes.iter().map(|class| submit(*class)).enumerate().collect();
    permits.send(()).unwrap();
    drain(running);
    let mut order = Vec::new();
    while !waiting.is_empty() {
        permits.send(()).unwrap();
        // Each reply is one token, so each run serves one request.
        let served = loop {
            let ready =
                waiting.iter_mut().position(|(_, stream)| stream.try_recv().is_ok_and(|event| is_of_tokens(&event)));
            if let Some(position) = ready {
                break position;
            }
            thread::yield_now();
        };
        order.push(waiting.remove(served).0);
    }
    drop((permits, handle));
    engine.join().unwrap();
    order
}

#[test]
fn priority_goes_before_and_flex_behind_but_nobody_waits_for_ever() {
    use ServiceClass::{Default, Flex, Priority};
    assert_eq!(served(&[Flex, Default, Priority, Flex, Default, Priority]), [2, 5, 1, 4, 0, 3]);
    // A patience of 64: the default request that came first goes before the 64th priority request.
    let mut classes = vec![Default];
    classes.extend([Priority; 80]);
    let order = served(&classes);
    assert_eq!(order.iter().position(|index| *index == 0), Some(63));
}

#[test]
fn prompts_that_are_too_long_together_are_refused_until_one_gets_its_slot() {
    let (model, permits, _) = FakeModel::default().gated();
    let config = EngineConfig { max_waiting_tokens: nonzero(10), ..config(1, 100) };
    let (engine, handle) = Engine::new(&config, model);
    let submit = |len: usize| handle.submit(request(&vec![5; len], 2));
    // Longer than the limit, but nothing else waits.
    let mut first = submit(40).unwrap();
    assert!(matches!(submit(1).unwrap_err(), EngineError::TooManyTokensWaiting { capacity: 10 }));
    let engine = thread::spawn(|| engine.run());
    permits.send(()).unwrap();
    assert!(matches!(next(&mut first), Some(TokenEvent::Token(_))), "the first one has its slot");
    let others = [submit(4).unwrap(), submit(6).unwrap()];
    assert!(matches!(submit(1).unwrap_err(), EngineError::TooManyTokensWaiting { .. }));
    drop((permits, first, others, handle));
    engine.join().unwrap();
}

#[test]
fn a_full_queue_refuses_at_once() {
    let (model, permits, _) = FakeModel::saying(vec![7]).gated();
    let (engine, handle) = Engine::new(&EngineConfig { max_waiting: nonzero(2), ..config(1, 100) }, model);
    let engine = thread::spawn(|| engine.run());
    let submit = || handle.submit(request(&[1], 5));
    let mut running = submit().unwrap();
    let mut step = || {
        permits.send(()).unwrap();
        assert!(matches!(next(&mut running), Some(TokenEvent::Token(_))));
    };
    step(); // `running` owns the only slot.
    let _waiting = (submit().unwrap(), submit().unwrap());
    for _ in 0..3 {
        assert!(matches!(submit(), Err(EngineError::QueueFull { capacity: 2 })));
        step(); // Stepping does not take them out of the queue.
    }
    drop((permits, handle));
    engine.join().unwrap();
}

#[test]
fn shutting_down_ends_everything_with_its_own_reason() {
    let (model, permits, _) = FakeModel::saying(vec![7]).gated();
    let (engine, handle) = Engine::new(&config(1, 100), model);
    let mut running = handle.submit(request(&[1], 400)).unwrap();
    let waiting = handle.submit(request(&[2], 400)).unwrap();
    let engine = thread::spawn(|| engine.run());
    permits.send(()).unwrap();
    assert!(matches!(next(&mut running), Some(TokenEvent::Token(_))));
    handle.shut_down();
    assert!(!handle.is_running());
    assert!(matches!(handle.submit(request(&[1], 1)), Err(EngineError::Stopped)));
    drop(permits);
    engine.join().unwrap();
    assert_eq!(drain(running).last(), Some(&finished(FinishReason::Shutdown)));
    assert_eq!(drain(waiting), [finished(FinishReason::Shutdown)]);
}

#[test]
fn an_idle_engine_shuts_down_too() {
    let (engine, handle) = Engine::new(&config(1, 100), FakeModel::default());
    let engine = thread::spawn(|| engine.run());
    handle.shut_down();
    engine.join().unwrap();
}

#[test]
fn the_context_limits_the_reply_and_what_cannot_fit_is_refused() {
    let (engine, handle) = Engine::new(&config(1, 1000), FakeModel::saying(vec![7]));
    let engine = thread::spawn(|| engine.run());
    let almost_full = vec![1; CONTEXT_TOKENS - 2];
    let events = drain(handle.submit(request(&almost_full, 100)).unwrap());
    let token = TokenEvent::Token(TokenId(7));
    assert_eq!(events, [token.clone(), token, finished(FinishReason::Length)]);
    let refused = handle.submit(request(&[1; CONTEXT_TOKENS], 1));
    assert!(matches!(refused, Err(EngineError::PromptTooLong { prompt_tokens: CONTEXT_TOKENS, .. })));
    drop(handle);
    engine.join().unwrap();
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let (_engine, handle): (_, EngineHandle) = Engine::new(&config(1, 100), FakeModel::default());
    let unknown = u32::try_from(VOCAB_SIZE).unwrap();
    let mut biased = request(&[1], 1);
    biased.sampling.logit_bias = vec![(TokenId(unknown), 1.0)];
    for request in [request(&[unknown], 1), biased] {
        assert!(matches!(handle.submit(request), Err(EngineError::UnknownToken { vocab_size: VOCAB_SIZE, .. })));
    }
}

#[test]
fn what_is_drawn_does_not_depend_on_the_threads_that_draw() {
    let replies = |sampling_threads| {
        let config = EngineConfig { sampling_threads, ..config(3, 64) };
        let (engine, handle) = Engine::new(&config, FakeModel::default().with_vocab_size(1 << 20));
        let requests = (0..7_u32).map(|number| Request {
            sampling: SamplingParams { temperature: 0.1, seed: Some(number.into()), ..SamplingParams::default() },
            ..request(&[number], 4)
        });
        let streams: Vec<TokenStream> = requests.map(|request| handle.submit(request).unwrap()).collect();
        drop(handle);
        engine.run();
        streams.into_iter().map(drain).collect::<Vec<_>>()
    };
    let alone = replies(1);
    assert!(alone.iter().all(|reply| reply.len() == 5), "four tokens and `Finished`");
    assert_ne!(alone[0][..4], alone[1][..4], "draws differ");
    assert_eq!(alone, replies(3));
}

#[test]
fn a_request_is_told_that_it_waits_and_that_it_has_begun() {
    let (engine, handle) = Engine::new(&config(1, 64), FakeModel::default());
    let streams = [(); 2].map(|()| handle.submit(request(&[5], 1)).unwrap());
    drop(handle);
    engine.run();
    let [first, second] = streams.map(|mut stream| iter::from_fn(|| stream.blocking_recv()).collect::<Vec<_>>());
    assert!(matches!(first[..], [TokenEvent::Started, TokenEvent::Token(_), TokenEvent::Finished { .. }]), "{first:?}");
    let [TokenEvent::Queued, rest @ ..] = &second[..] else { panic!("{second:?}") };
    assert_eq!(rest.len(), first.len());
}
