//! Engines side by side: which of them a request goes to, and that all of them answer.

use crate::{
    cli::{Server, model, ortolan, refusal, serve},
    engine::{config, drain, next, request},
    fake_model::FakeModel,
    faults::MEMORY,
    tiny_model::fixture,
};
use ortolan::engine::{
    End, Engine, EngineConfig, EngineError, EngineHandle, FinishReason, Replicas, Request, TokenEvent, TokenStream,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    num::NonZeroU32,
    thread,
};

/// Engines that have not been started: what they are given, they keep.
fn still(num_engines: usize, max_batch_size: u32, max_waiting: u32) -> (Vec<Engine<FakeModel>>, Replicas) {
    let config = EngineConfig { max_waiting: NonZeroU32::new(max_waiting).unwrap(), ..config(max_batch_size, 64) };
    let (engines, handles) = (0..num_engines).map(|_| Engine::new(&config, FakeModel::default())).unzip();
    (engines, Replicas::new(handles))
}

/// Requests that each engine has.
fn shares(replicas: &Replicas) -> Vec<usize> {
    replicas.stats().iter().map(|(_, load)| load.running + load.waiting).collect()
}

fn is_even(shares: &[usize]) -> bool {
    shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1
}

proptest! {
    /// Prompts are alike or not; whatever is remembered of them, it decides only between engines that have equally much to do.
    #[test]
    fn none_is_refused_while_there_is_room_and_shares_are_even(
        num_engines in 1_usize..6,
        (max_batch_size, max_waiting) in (1_u32..4, 1_u32..4),
        prompts in prop::collection::vec((0_u64..2, 0_u32..3, 1_u32..100), 40),
    ) {
        let (_engines, replicas) = still(num_engines, max_batch_size, max_waiting);
        let capacity = num_engines * (max_batch_size + max_waiting) as usize;
        let mut streams = Vec::new();
        for (cache_salt, first, len) in prompts {
            let prompt: Vec<u32> = (first..first + len).collect();
            let has_room = streams.len() < capacity;
            prop_assert_eq!(replicas.check_room().is_ok(), has_room);
            match replicas.submit(Request { cache_salt, ..request(&prompt, 1) }) {
                Ok(stream) => streams.push(stream),
                Err(EngineError::QueueFull { capacity }) => {
                    prop_assert!(!has_room);
                    prop_assert_eq!(capacity, num_engines * max_waiting as usize);
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
            let shares = shares(&replicas);
            prop_assert!(is_even(&shares), "{:?}", shares);
        }
    }
}

#[test]
fn requests_that_come_at_once_do_not_all_go_to_one() {
    let (_engines, replicas) = still(4, 8, 64);
    let submit = |number: u32| replicas.submit(request(&[number], 1)).unwrap();
    let submit_ten = |first: u32| (first..first + 10).map(submit).collect::<Vec<TokenStream>>();
    let streams = thread::scope(|scope| {
        let threads = [0, 10, 20, 30].map(|first| scope.spawn(move || submit_ten(first)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!((shares(&replicas), streams.map(|streams| streams.len())), (vec![10; 4], [10; 4]));
}

#[test]
fn prompts_that_wait_in_one_are_no_reason_to_refuse_while_another_has_room_for_them() {
    let config = EngineConfig { max_waiting_tokens: NonZeroU32::new(100).unwrap(), ..config(1, 64) };
    let (_engines, handles): (Vec<_>, Vec<EngineHandle>) =
        (0..2).map(|_| Engine::new(&config, FakeModel::default())).unzip();
    let replicas = Replicas::new(handles);
    let submit = |len: usize| replicas.submit(request(&vec![5; len], 1));
    let _long = (submit(90).unwrap(), submit(20).unwrap());
    // It is the turn of the first one, which has no room for it.
    let _longer = submit(70).unwrap();
    assert_eq!(shares(&replicas), [1, 2]);
    assert!(matches!(submit(80), Err(EngineError::TooManyTokensWaiting { capacity: 200 })));
}

/// Engines at work.
struct Running {
    replicas: Replicas,
    handles: Vec<EngineHandle>,
    threads: Vec<thread::JoinHandle<End>>,
}

impl Running {
    fn start(models: impl IntoIterator<Item = FakeModel>) -> Self {
        let engines = models.into_iter().map(|model| Engine::new(&config(2, 64), model));
        let (engines, handles): (Vec<_>, Vec<EngineHandle>) = engines.unzip();
        let threads = engines.into_iter().map(|engine| thread::spawn(|| engine.run())).collect();
        Self { replicas: Replicas::new(handles.clone()), handles, threads }
    }

    /// The engine that answers, and how much of the prompt it held. Returns when it is idle again.
    fn ask(&self, cache_salt: u64, prompt: &[u32]) -> (usize, usize) {
        let asked = self.shares();
        let stream = self.replicas.submit(Request { cache_salt, ..request(prompt, 2) }).unwrap();
        let events = drain(stream);
        while self.replicas.stats().iter().any(|(_, load)| 0 < load.running + load.waiting) {
            thread::yield_now();
        }
        let answered = self.shares();
        let Some(TokenEvent::Finished { num_cached_tokens, .. }) = events.last() else { panic!("{events:?}") };
        ((0..answered.len()).find(|index| asked[*index] < answered[*index]).unwrap(), *num_cached_tokens)
    }

    /// Tokens of prompts that each engine has been given.
    fn shares(&self) -> Vec<u64> {
        self.replicas.stats().iter().map(|(stats, _)| stats.prompt_tokens).collect()
    }

    fn stop(self) -> Vec<thread::Result<End>> {
        self.replicas.shut_down();
        self.threads.into_iter().map(thread::JoinHandle::join).collect()
    }
}

#[test]
fn an_idle_engine_that_holds_the_beginning_is_asked_before_one_whose_turn_it_is() {
    let running = Running::start([FakeModel::default(), FakeModel::default(), FakeModel::default()]);
    let prompt = |first: u32, len: u32| (first..first + len).collect::<Vec<u32>>();
    // They take turns, and each conversation stays where it began. A tenant's own beginning is another's not.
    for (cache_salt, first, len, expected) in [
        (0, 0, 40, (0, 0)),
        (0, 100, 40, (1, 0)),
        (0, 0, 60, (0, 40)),
        (0, 200, 20, (1, 0)),
        (0, 100, 50, (1, 40)),
        (1, 0, 40, (2, 0)),
        (0, 0, 70, (0, 60)),
        (1, 0, 50, (2, 40)),
    ] {
        assert_eq!(running.ask(cache_salt, &prompt(first, len)), expected, "{first} {len}");
    }
    assert!(running.stop().iter().all(Result::is_ok));
}

#[test]
fn what_is_short_takes_turns() {
    let running = Running::start([FakeModel::default(), FakeModel::default()]);
    assert_eq!([(); 5].map(|()| running.ask(0, &[1, 2, 3]).0), [0, 1, 0, 1, 0]);
    assert!(running.stop().iter().all(Result::is_ok));
}

#[test]
fn requests_go_to_those_that_are_left() {
    let running = Running::start([FakeModel::panicking_from(1), FakeModel::default()]);
    let lost = running.replicas.submit(request(&[1], 2)).unwrap();
    assert_eq!(drain(lost), [], "its engine is gone");
    while running.handles[0].is_running() {
        thread::yield_now();
    }
    assert!(!running.replicas.is_running(), "not all of them run");
    running.replicas.check_room().unwrap();
    for _ in 0..3 {
        let mut stream = running.replicas.submit(request(&[1], 1)).unwrap();
        assert!(matches!(next(&mut stream), Some(TokenEvent::Token(_))));
        assert!(matches!(next(&mut stream), Some(TokenEvent::Finished { reason: FinishReason::Length, .. })));
    }
    let replicas = running.replicas.clone();
    let ends = running.stop();
    assert_eq!(ends.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    assert!(matches!(replicas.submit(request(&[1], 1)), Err(EngineError::Stopped)));
    assert!(matches!(replicas.check_room(), Err(EngineError::Stopped)));
}

#[test]
fn an_engine_that_fails_what_it_is_given_is_not_given_everything() {
    let failing = FakeModel::default().with_fault(MEMORY, 1..3, 0);
    let running = Running::start([failing, FakeModel::default()]);
    assert_eq!([(); 4].map(|()| running.ask(0, &[1, 2, 3]).0), [0, 1, 1, 1]);
    // Where the other has stopped, it is asked again.
    running.handles[1].shut_down();
    assert_eq!([(); 2].map(|()| running.ask(0, &[1, 2, 3]).0), [0, 0]);
    assert!(running.stop().iter().all(Result::is_ok));
}

/// It counts as busy in all of its slots, of which there are two.
#[test]
fn an_engine_that_has_failed_is_asked_again_when_others_have_as_much_to_do() {
    let (failing, permits, _) = FakeModel::default().with_fault(MEMORY, 1..2, 0).gated();
    let (other, other_permits, _) = FakeModel::default().gated();
    let running = Running::start([failing, other]);
    let submit = || running.replicas.submit(request(&[1, 2, 3], 1)).unwrap();
    let failed = submit();
    permits.send(()).unwrap();
    drain(failed);
    while shares(&running.replicas) != [0, 0] {
        thread::yield_now();
    }
    let streams = [(); 4].map(|()| submit());
    assert_eq!(shares(&running.replicas), [1, 3]);
    drop((permits, other_permits));
    for stream in streams {
        assert!(matches!(drain(stream).last(), Some(TokenEvent::Finished { reason: FinishReason::Length, .. })));
    }
    assert!(running.stop().iter().all(Result::is_ok));
}

/// The value of a series that `/metrics` tells.
fn metric(server: &Server, name: &str) -> f64 {
    let mut connection = TcpStream::connect(&server.address).unwrap();
    write!(connection, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let lines: Vec<String> = BufReader::new(connection).lines().map(Result::unwrap).collect();
    let value = lines.iter().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not there: {lines:#?}"))
}

#[test]
fn an_engine_that_cannot_be_loaded_is_named_with_its_device() {
    let settings = [&*model(&fixture("tiny-gqa")), "engine.devices=[0, 3]", "engine.providers=[\"cuda\"]"];
    let refused = refusal(&mut serve(&settings));
    let beginning =
        "the engine for cuda device 0, number 1 of 2, cannot be loaded: the execution provider `cuda` cannot be";
    assert!(refused.contains(beginning), "{refused}");
    let mut doctor = ortolan();
    doctor.arg("doctor");
    for setting in settings {
        doctor.args(["--set", setting]);
    }
    let told = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    for part in ["provider cuda device 0 ", "provider cuda device 3 ", " for each of 2 engines"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn two_engines_on_one_device_answer_what_comes_at_once() {
    let tiny = model(&fixture("tiny-gqa"));
    let settings = [&*tiny, "engine.devices=[0, 0]", "engine.max_batch_size=2", "engine.intra_op_threads=1"];
    let mut server = Server::start(&mut serve(&settings));
    server.wait_for_line("model is ready");
    let body = json!({ "input": "Hello, who are you?", "temperature": 0, "max_output_tokens": 30 }).to_string();
    let answers: Vec<_> = (0..12).map(|_| server.post(&body)).collect();
    let mut prompt_tokens = 0;
    let texts = answers.into_iter().map(|answer| {
        let response: Value = serde_json::from_str(&answer.last().unwrap()).unwrap();
        assert_eq!(response["usage"]["output_tokens"], 30, "{response}");
        prompt_tokens = i32::try_from(response["usage"]["input_tokens"].as_i64().unwrap()).unwrap();
        response["output"][0]["content"][0]["text"].as_str().unwrap().to_owned()
    });
    let texts: Vec<String> = texts.collect();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    // Counted when a request gets its slot.
    for (name, label) in [("ortolan_prompt_tokens_total", "model"), ("vllm:prompt_tokens_total", "model_name")] {
        let tokens = [0, 1].map(|engine| metric(&server, &format!("{name}{{{label}=\"tiny\",engine=\"{engine}\"}}")));
        assert!(tokens.iter().all(|tokens| 0.0 < *tokens), "{tokens:?}");
        assert_eq!(tokens.iter().sum::<f64>(), f64::from(12 * prompt_tokens), "{tokens:?}");
    }
    server.signal();
    assert_eq!(server.end().0, Some(0));
}
