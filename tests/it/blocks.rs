//! The engine where blocks run out: whoever came first goes on, and the others notice nothing.

use crate::{
    constraint::counting_from,
    engine::{self, config, drain, next},
    fake_model::{FakeModel, says},
    faults::MEMORY,
    tiny_model::token_ids,
};
use ortolan::engine::{
    End, Engine, EngineConfig, EngineError, EngineHandle, FinishReason, Load, Request, SamplingParams, ServiceClass,
    Stats, TokenEvent, TokenStream,
};
use proptest::prelude::*;
use std::{iter, ops::Range, sync::atomic::Ordering, thread};

/// One that says as much as it may.
fn request(prompt: &[u32], max_output_tokens: u32) -> Request {
    Request { stop_tokens: [].into(), ..engine::request(prompt, max_output_tokens) }
}

/// Everything that each request is told, and what the engine has counted.
fn run(model: FakeModel, config: &EngineConfig, requests: Vec<Request>) -> (Vec<Vec<TokenEvent>>, Stats) {
    let (engine, handle) = Engine::new(config, model);
    let streams: Vec<_> = requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
    let engine = thread::spawn(|| engine.run());
    let told = streams.into_iter().map(|mut stream| iter::from_fn(|| stream.blocking_recv()).collect()).collect();
    handle.shut_down();
    engine.join().unwrap(); // `run` asserts that no block leaked.
    (told, handle.stats())
}

fn reason(events: &[TokenEvent]) -> FinishReason {
    let Some(TokenEvent::Finished { reason, .. }) = events.last() else { panic!("{events:?}") };
    *reason
}

#[test]
fn a_sequence_alone_goes_on_to_the_end_of_the_memory() {
    for block_tokens in [1, 4, 32] {
        let model = || FakeModel::in_blocks(32 / block_tokens, block_tokens);
        let prompt: Vec<u32> = (10..30).collect();
        let (told, stats) = run(model(), &config(2, 7), vec![request(&prompt, 100)]);
        assert_eq!(token_ids(&told[0]), says(&prompt, 64, 12).iter().map(|token| token.0).collect::<Vec<_>>());
        assert_eq!((reason(&told[0]), stats.preemptions), (FinishReason::Length, 0));
        let (_engine, handle) = Engine::new(&config(2, 7), model());
        let refused = handle.submit(request(&[5; 32], 1));
        assert!(matches!(refused, Err(EngineError::PromptTooLong { prompt_tokens: 32, context_tokens: 32 })));
    }
}

#[test]
fn who_came_last_gives_up_its_blocks_and_goes_on_later() {
    // Both have room to begin with, and neither to end beside the other.
    let requests = || [5, 6].map(|token| request(&[token; 10], 20)).to_vec();
    let (told, stats) = run(FakeModel::in_blocks(10, 4), &config(4, 64), requests());
    let (undisturbed, _) = run(FakeModel::in_blocks(100, 4), &config(4, 64), requests());
    for (events, undisturbed) in told.iter().zip(&undisturbed) {
        assert_eq!(token_ids(events), token_ids(undisturbed));
    }
    assert_eq!(stats.preemptions, 1, "the second one, and once");
    for events in &told {
        let num = |wanted: TokenEvent| events.iter().filter(|event| **event == wanted).count();
        assert_eq!((num(TokenEvent::Started), num(TokenEvent::Queued), reason(events)), (1, 0, FinishReason::Length));
    }
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (20, 40), "nothing is counted twice");
}

#[test]
fn who_goes_on_finds_what_it_had_computed() {
    let steps = |prefix_cache| {
        let config = EngineConfig { prefix_cache, ..config(4, 5) };
        run(FakeModel::in_blocks(16, 4), &config, [5, 6].map(|token| request(&[token; 10], 30)).to_vec()).1.steps
    };
    assert!(steps(true) < steps(false), "{} steps, and {} without", steps(true), steps(false));
}

#[test]
fn nobody_begins_only_to_be_preempted() {
    // The first one has one block when the second one comes, and is going to need four more.
    let requests = [5, 6].map(|token| request(&[token; 16], 4)).to_vec();
    let (told, stats) = run(FakeModel::in_blocks(8, 4), &config(4, 4), requests);
    assert_eq!((stats.preemptions, &told[1][0]), (0, &TokenEvent::Queued));
}

#[test]
fn who_comes_finds_what_runs() {
    let (model, permits, _) = FakeModel::in_blocks(64, 4).gated();
    let (engine, handle) = Engine::new(&config(4, 64), model);
    let engine = thread::spawn(|| engine.run());
    let mut running = handle.submit(request(&[5; 41], 20)).unwrap();
    permits.send(()).unwrap();
    assert!(matches!(next(&mut running), Some(TokenEvent::Token(_))), "its prompt is computed");
    let newcomer = handle.submit(request(&[5; 41], 2)).unwrap();
    drop(permits);
    let end = TokenEvent::Finished { reason: FinishReason::Length, num_cached_tokens: 40 };
    assert_eq!(drain(newcomer).last(), Some(&end));
    drop((running, handle));
    engine.join().unwrap();
}

#[test]
fn a_request_of_a_better_class_is_preempted_last() {
    let flex = Request { service_class: ServiceClass::Flex, ..request(&[5; 10], 20) };
    let priority = Request { service_class: ServiceClass::Priority, ..request(&[6; 10], 20) };
    let (model, permits, _) = FakeModel::in_blocks(10, 4).gated();
    let (engine, handle) = Engine::new(&config(4, 64), model);
    let engine = thread::spawn(|| engine.run());
    let mut flex = handle.submit(flex).unwrap();
    permits.send(()).unwrap();
    assert!(matches!(next(&mut flex), Some(TokenEvent::Token(_))), "it runs already");
    let priority = handle.submit(priority).unwrap();
    drop(permits);
    assert_eq!(token_ids(&drain(priority)).len(), 20);
    assert_eq!(token_ids(&drain(flex)).len(), 19, "one was read already");
    assert_eq!(handle.stats().preemptions, 1);
    drop(handle);
    engine.join().unwrap();
}

#[test]
fn neither_draws_nor_penalties_nor_probabilities_nor_constraints_notice() {
    let sampling = SamplingParams {
        temperature: 0.3,
        repetition_penalty: 1.2,
        frequency_penalty: 0.1,
        seed: Some(7),
        ..SamplingParams::default()
    };
    let drawn = |token| Request { sampling: sampling.clone(), top_logprobs: Some(2), ..request(&[token; 9], 25) };
    let requests = || vec![request(&[5; 9], 25), drawn(6), counting_from(33, 7), drawn(7)];
    let told = |num_blocks, num_preemptions_expected: bool| {
        let (told, stats) = run(FakeModel::in_blocks(num_blocks, 4), &config(4, 16), requests());
        assert_eq!(0 < stats.preemptions, num_preemptions_expected, "{stats:?}");
        told
    };
    let is_told_alike = |event: &TokenEvent| !matches!(event, TokenEvent::Queued);
    let told = [told(12, true), told(100, false)].map(|told: Vec<Vec<TokenEvent>>| {
        told.into_iter().map(|events| events.into_iter().filter(is_told_alike).collect()).collect::<Vec<Vec<_>>>()
    });
    assert_eq!(told[0], told[1]);
}

/// Runs two requests until the second one has given up its blocks, then does something, and returns all that both are told.
fn while_preempted(
    act: impl FnOnce(&EngineHandle, &mut dyn FnMut(), &mut Option<TokenStream>),
) -> [Vec<TokenEvent>; 2] {
    let (model, permits, _) = FakeModel::in_blocks(10, 4).gated();
    let (engine, handle) = Engine::new(&config(4, 64), model);
    let [mut first, second] = [5, 6].map(|token| handle.submit(request(&[token; 10], 20)).unwrap());
    let engine = thread::spawn(|| engine.run());
    let mut told = Vec::new();
    let mut step = || {
        permits.send(()).unwrap();
        told.push(next(&mut first).expect("it goes on"));
    };
    while handle.stats().preemptions == 0 {
        step();
    }
    while handle.load().waiting == 0 {}
    let Load { running, waiting, blocks_in_use, blocks, .. } = handle.load();
    assert_eq!((running, waiting, blocks), (1, 1, 10));
    assert!((1..=8).contains(&blocks_in_use), "{blocks_in_use}");
    let mut second = Some(second);
    act(&handle, &mut step, &mut second);
    drop(permits);
    told.extend(drain(first));
    let told = [told, second.map(drain).unwrap_or_default()];
    while handle.load() != (Load { blocks_in_use: 0, running: 0, waiting: 0, waiting_tokens: 0, ..handle.load() }) {}
    drop(handle);
    engine.join().unwrap(); // `run` asserts that no block leaked.
    told
}

#[test]
fn a_client_may_leave_while_its_request_is_preempted() {
    let [first, second] = while_preempted(|handle, step, second| {
        drop(second.take());
        // The step that is already under way, then the one that notices.
        step();
        step();
        assert_eq!((handle.load().running, handle.load().waiting), (1, 0));
    });
    assert_eq!((token_ids(&first).len(), reason(&first)), (20, FinishReason::Length));
    assert_eq!(second, []);
}

#[test]
fn a_server_may_stop_while_a_request_is_preempted() {
    for told in while_preempted(|handle, _, _| handle.shut_down()) {
        let is_end = |event: &&TokenEvent| matches!(event, TokenEvent::Finished { .. });
        assert_eq!((reason(&told), told.iter().filter(is_end).count()), (FinishReason::Shutdown, 1));
    }
}

#[test]
fn a_run_that_fails_leaves_no_block_behind() {
    for first_failing_run in 1..20 {
        let model = FakeModel::in_blocks(10, 4).which_fails_from(first_failing_run);
        let (told, _) = run(model, &config(4, 7), [5, 6, 7].map(|token| request(&[token; 10], 20)).to_vec());
        for events in told {
            let is_end = |event: &&TokenEvent| matches!(event, TokenEvent::Finished { .. });
            assert_eq!((reason(&events), events.iter().filter(is_end).count()), (FinishReason::Error, 1));
        }
    }
}

/// A request of the simulation: what it begins with, what it may say, and after how many tokens its client leaves.
#[derive(Clone, Debug)]
struct Case {
    request: Request,
    num_read: usize,
}

const NUM_SAID: usize = 3;

/// A few beginnings, of any length, and ends of their own; some in several choices, which are as many requests.
fn cases() -> impl Strategy<Value = Vec<Case>> {
    let prompt = (0_u32..3, 0_u32..40, prop::collection::vec(0_u32..4, 1..12));
    let others = (1_u32..30, 0_u64..2, 0_usize..3, 0_u32..4, prop::option::weighted(0.2, 0_usize..6), 1_usize..4);
    let case = (prompt, others).prop_map(|((beginning, len, end), others)| {
        let (max_output_tokens, cache_salt, class, num_guessed, num_read, num_choices) = others;
        let prompt: Vec<u32> = (0..len).map(|at| 10 * beginning + at % 7).chain(end).collect();
        let request = Request {
            cache_salt,
            service_class: [ServiceClass::Priority, ServiceClass::Default, ServiceClass::Flex][class],
            max_draft_tokens: Some(num_guessed),
            ..request(&prompt, max_output_tokens)
        };
        vec![Case { request, num_read: num_read.unwrap_or(usize::MAX) }; num_choices]
    });
    prop::collection::vec(case, 1..10).prop_map(|cases| cases.concat())
}

/// Runs that fail, after so many rows.
fn failures() -> impl Strategy<Value = Vec<(&'static str, Range<usize>, usize)>> {
    let runs = (1_usize..60, 1_usize..4).prop_map(|(first, len)| first..first + len);
    prop::collection::vec((prop_oneof![4 => Just(MEMORY), 1 => Just("something else")], runs, 0_usize..5), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whoever shares blocks, guesses, is preempted, leaves or is lost: each request ends once, says what it would say
    /// alone for as long as it goes on, and nobody waits for longer than those before it take.
    #[test]
    fn whatever_fails_each_ends_once_and_says_nothing_else(
        cases in cases(),
        failures in failures(),
        (num_blocks, block_tokens) in prop_oneof![Just((90, 1)), Just((45, 2)), Just((25, 4)), Just((6, 16)), Just((1, 128))],
        (max_batch_size, max_step_tokens, prefix_cache) in (1_u32..8, 0_u32..40, any::<bool>()),
    ) {
        let mut model = FakeModel::in_blocks(num_blocks, block_tokens).saying_few(NUM_SAID);
        for (message, runs, num_rows) in &failures {
            model = model.with_fault(message, runs.clone(), *num_rows);
        }
        let runs = model.runs();
        let config = EngineConfig { prefix_cache, ..config(max_batch_size, max_step_tokens) };
        let (engine, handle) = Engine::new(&config, model);
        let submit = |case: &Case| handle.submit(case.request.clone()).unwrap();
        let (first, later) = cases.split_at(cases.len() / 2);
        let mut streams: Vec<TokenStream> = first.iter().map(submit).collect();
        let engine = thread::spawn(|| engine.run());
        streams.extend(later.iter().map(submit));

        let (mut num_lost, mut num_failed, mut num_told, mut longest) = (0, 0, 0, 0);
        for (mut stream, Case { request, num_read }) in streams.into_iter().zip(&cases) {
            let prompt: Vec<u32> = request.prompt.iter().map(|token| token.0).collect();
            let max_output_tokens = request.max_output_tokens.unwrap().get() as usize;
            let expected = says(&prompt, NUM_SAID, max_output_tokens);
            longest += prompt.len() + max_output_tokens;
            let (mut said, mut has_begun, mut end) = (Vec::new(), false, None);
            while said.len() < *num_read && let Some(event) = stream.blocking_recv() {
                prop_assert!(end.is_none(), "`Finished` is the last event");
                match event {
                    TokenEvent::Token(token) => said.push(token),
                    TokenEvent::Started => prop_assert!(!std::mem::replace(&mut has_begun, true), "it begins once"),
                    TokenEvent::Queued => prop_assert!(!has_begun, "it waits before it begins"),
                    TokenEvent::Logprobs(_) => panic!("nobody asked for them"),
                    TokenEvent::Finished { reason, num_cached_tokens } => {
                        prop_assert!(num_cached_tokens < prompt.len());
                        end = Some(reason);
                    }
                }
            }
            prop_assert_eq!(&said[..], &expected[..said.len()]);
            num_told += said.len();
            match end {
                Some(FinishReason::Length) => prop_assert_eq!(said.len(), max_output_tokens),
                Some(FinishReason::OutOfMemory) => num_lost += 1,
                Some(FinishReason::Error) => num_failed += 1,
                None => prop_assert!(*num_read <= said.len(), "it has an end"),
                Some(other) => panic!("{other:?}"),
            }
        }
        let handle_for_stats = handle.clone();
        drop(handle);
        handle_for_stats.shut_down();
        prop_assert_eq!(engine.join().unwrap(), End::Shutdown); // `run` asserts that no block leaked.

        let ran = 1..=runs.load(Ordering::SeqCst);
        let num_runs = |kind: &str| -> usize {
            let number = |run: &usize| failures.iter().find(|(_, runs, _)| runs.contains(run));
            ran.clone().filter(|run| number(run).is_some_and(|(message, ..)| *message == kind)).count()
        };
        let (num_short, num_other) = (num_runs(MEMORY), num_runs("something else"));
        prop_assert!(num_lost <= num_short, "{num_lost} were lost in {num_short} runs");
        prop_assert!(num_failed <= num_other * max_batch_size as usize);
        let stats = handle_for_stats.stats();
        prop_assert!(stats.cached_tokens <= stats.prompt_tokens && stats.accepted_tokens <= stats.guessed_tokens);
        prop_assert!(num_told as u64 <= stats.generated_tokens);
        // The first in turn goes on with every run that does not fail.
        prop_assert!(ran.count() <= longest + num_short + num_other, "{stats:?}");
    }
}
