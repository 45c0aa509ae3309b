//! Runs that fail: what memory does not suffice for is given up, a device that is lost ends its engine, and who is not
//! concerned does not notice.

use crate::{
    engine::{config, drain, is_on_gpu, request},
    fake_loader::{models, script},
    fake_model::{FakeModel, VOCAB_SIZE},
    http::{Running, exchange, read_until},
    stream_validator::events,
    tiny_model::{copy, exact_models, open, runtime},
};
use ortolan::{
    engine::{
        Batch, Canary, End, Engine, EngineConfig, EngineError, EngineHandle, FinishReason, LoadError, Logits, Model,
        ModelError, ModelLimits, NUM_TOP_SCORES, Request, SamplingParams, Scores, TokenEvent, TokenId, TokenStream,
        Wanted, load,
    },
    model_dir::{ModelDir, Target},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) const MEMORY: &str = "Non-zero status code returned while running MatMul node. Status Message: Failed to allocate memory for \
                      requested buffer of size 1073741824";
const LOST: &str = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=box ; \
                    expr=cudaStreamSynchronize(stream_)";

pub(crate) fn prompts() -> Vec<Vec<u32>> {
    [3, 9, 1, 14, 6].iter().zip(1..).map(|(len, first)| (first * 10..first * 10 + len).collect()).collect()
}

/// What each request hears that has come before the engine began.
pub(crate) fn replies(model: impl Model, config: &EngineConfig, prompts: &[Vec<u32>]) -> (Vec<Vec<TokenEvent>>, End) {
    let (engine, handle) = Engine::new(config, model);
    let streams: Vec<TokenStream> = prompts.iter().map(|prompt| handle.submit(request(prompt, 9)).unwrap()).collect();
    drop(handle);
    let end = engine.run(); // It asserts that no slot leaked.
    (streams.into_iter().map(drain).collect(), end)
}

/// How it ended; it did so once.
pub(crate) fn reason(reply: &[TokenEvent]) -> FinishReason {
    let mut reasons = reply.iter().filter_map(|event| match event {
        TokenEvent::Finished { reason, .. } => Some(*reason),
        TokenEvent::Queued | TokenEvent::Started | TokenEvent::Token(_) | TokenEvent::Logprobs(_) => None,
    });
    let reason = reasons.next().unwrap();
    assert!(reasons.next().is_none() && matches!(reply.last(), Some(TokenEvent::Finished { .. })), "{reply:?}");
    reason
}

/// Those that memory did not suffice for; all others say what they would have said.
fn lost(model: FakeModel, config: &EngineConfig, undisturbed: &[Vec<TokenEvent>]) -> Vec<usize> {
    let prompts = &prompts()[..undisturbed.len()];
    let (replies, end) = replies(model, config, prompts);
    assert_eq!(end, End::Shutdown);
    let is_lost = |index: &usize| reason(&replies[*index]) == FinishReason::OutOfMemory;
    let lost: Vec<usize> = (0..replies.len()).filter(is_lost).collect();
    for index in (0..replies.len()).filter(|index| !lost.contains(index)) {
        assert_eq!(replies[index], undisturbed[index], "request {index}, where {lost:?} were lost");
    }
    lost
}

#[test]
fn out_of_memory_loses_the_newest_and_nobody_else() {
    let config = config(3, 100);
    let (undisturbed, _) = replies(FakeModel::default(), &config, &prompts()[..3]);
    // All three are in every run, of which there are nine.
    for run in 1..10 {
        for num_rows in 0..=3 {
            let model = FakeModel::default().with_fault(MEMORY, run..run + 1, num_rows);
            assert_eq!(lost(model, &config, &undisturbed), [2], "run {run} after {num_rows} rows");
        }
    }
    // Until what is left fits.
    let model = FakeModel::default().with_fault(MEMORY, 4..6, 1);
    assert_eq!(lost(model, &config, &undisturbed), [1, 2]);
}

#[test]
fn wherever_memory_runs_out_at_most_one_is_lost() {
    for max_draft_tokens in [0, 3] {
        let config = EngineConfig { max_draft_tokens, ..config(2, 7) };
        let model = || FakeModel::default().saying_few(2);
        let (undisturbed, _) = replies(model(), &config, &prompts());
        let lost: Vec<usize> = (1..60)
            .flat_map(|run| (0..3).map(move |num_rows| (run, num_rows)))
            .map(|(run, num_rows)| {
                lost(model().with_fault(MEMORY, run..run + 1, num_rows), &config, &undisturbed).len()
            })
            .collect();
        assert!(lost.iter().all(|num_lost| *num_lost <= 1) && 30 < lost.iter().sum::<usize>(), "{lost:?}");
    }
}

/// What cannot be taken back, may have been computed and is not computed twice.
#[test]
fn out_of_memory_ends_all_in_the_run_that_cannot_go_back() {
    let config = config(3, 100);
    let (undisturbed, _) = replies(FakeModel::rigid(), &config, &prompts()[..3]);
    let lost_at = |run: usize, num_rows| {
        lost(FakeModel::rigid().with_fault(MEMORY, run..run + 1, num_rows), &config, &undisturbed)
    };
    // Whoever has just begun can begin again.
    assert_eq!([lost_at(1, 0), lost_at(1, 3)], [[2], [2]]);
    assert_eq!([lost_at(2, 0), lost_at(5, 2)], [[0, 1, 2], [0, 1, 2]]);
    let (undisturbed, _) = replies(FakeModel::rigid(), &crate::engine::config(2, 5), &prompts());
    for run in 1..40 {
        for num_rows in 0..3 {
            let model = FakeModel::rigid().with_fault(MEMORY, run..run + 1, num_rows);
            assert!(lost(model, &crate::engine::config(2, 5), &undisturbed).len() <= 2);
        }
    }
}

#[test]
fn a_request_that_does_not_fit_alone_fails_alone() {
    let (engine, handle) = Engine::new(&config(2, 100), FakeModel::default().with_fault(MEMORY, 3..4, 0));
    let engine = thread::spawn(|| engine.run());
    let ask = || drain(handle.submit(request(&[1, 2], 9)).unwrap());
    let failed = ask();
    assert_eq!((failed.len(), reason(&failed)), (3, FinishReason::OutOfMemory), "two tokens came before it");
    let whole = ask();
    assert_eq!((whole.len(), reason(&whole)), (10, FinishReason::Length));
    assert_eq!(failed[..2], whole[..2]);
    assert!(handle.is_running());
    drop(handle);
    assert_eq!(engine.join().unwrap(), End::Shutdown);
}

#[test]
fn a_lost_device_ends_every_request_once() {
    for run in 1..12 {
        let (replies, end) = replies(FakeModel::default().with_fault(LOST, run..100, 0), &config(2, 7), &prompts());
        assert_eq!(end, End::DeviceLost);
        let reasons: Vec<FinishReason> = replies.iter().map(|reply| reason(reply)).collect();
        let is_expected = |reason: &FinishReason| matches!(reason, FinishReason::DeviceLost | FinishReason::Length);
        assert!(reasons.iter().all(is_expected) && reasons.contains(&FinishReason::DeviceLost), "{reasons:?}");
    }
}

#[test]
fn nothing_goes_to_a_lost_device() {
    let (model, permits, _) = FakeModel::default().with_fault(LOST, 2..100, 0).gated();
    let (engine, handle) = Engine::new(&config(1, 64), model);
    let engine = thread::spawn(|| engine.run());
    let submit = || handle.submit(request(&[1], 9));
    let (running, waiting) = (submit().unwrap(), submit().unwrap());
    let (waiting_handle, mut hearing) = (handle.clone(), submit().unwrap());
    // So many that their ends take a while.
    let others: Vec<TokenStream> = (0..200).map(|_| submit().unwrap()).collect();
    let hearing = thread::spawn(move || {
        while !matches!(hearing.blocking_recv(), Some(TokenEvent::Finished { .. })) {}
        waiting_handle.is_running()
    });
    permits.send(()).unwrap();
    permits.send(()).unwrap();
    assert_eq!(engine.join().unwrap(), End::DeviceLost);
    assert!(!handle.is_running());
    assert!(matches!(submit(), Err(EngineError::Stopped)));
    let [running, waiting] = [running, waiting].map(drain);
    assert_eq!([reason(&running), reason(&waiting)], [FinishReason::DeviceLost; 2]);
    assert_eq!([running.len(), waiting.len()], [2, 1]);
    assert!(!hearing.join().unwrap(), "whoever hears the end of a reply sees that the engine is not ready");
    assert!(others.into_iter().all(|other| reason(&drain(other)) == FinishReason::DeviceLost));
    assert_eq!(handle.load().running, 0);
}

#[test]
fn a_lost_device_turns_ready_off_and_fails_what_runs_and_waits() {
    let (model, permits, _) = FakeModel::saying(script("one two three four five")).with_fault(LOST, 3..100, 0).gated();
    let server = Running::start(models(model, &config(1, 64)), &[]);
    let mut replies = [(); 2].map(|()| server.send(&json!({ "input": "hi", "stream": true })));
    let begun = replies.each_mut().map(|reply| read_until(reply, "event: response.created\n"));
    drop(permits);
    for (reply, begun) in replies.iter_mut().zip(begun) {
        let events = events(&(begun + &read_until(reply, "[DONE]\n")));
        let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let is_terminal = |name: &&&str| ["response.failed", "response.completed"].contains(name);
        assert_eq!(types.iter().filter(is_terminal).collect::<Vec<_>>(), [types.last().unwrap()], "{types:?}");
        let error = &events.last().unwrap()["response"]["error"];
        assert_eq!(error["code"], "server_error");
        assert!(error["message"].as_str().unwrap().starts_with("the engine was lost"), "{error}");
    }
    let get = |path: &str| exchange(&server, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    let (head, body) = get("/ready");
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("\"failed\""), "{head}{body}");
    server.signal();
    server.thread.join().unwrap();
}

/// Whatever comes first.
#[test]
fn a_failure_leaves_others_the_time_that_a_signal_leaves_them() {
    type Step = fn(&Running);
    let orders: [&[Step]; 3] = [&[Running::signal, Running::fail], &[Running::fail, Running::signal], &[Running::fail]];
    for order in orders {
        let (other, permits, _) = FakeModel::saying(script(&"word ".repeat(60))).gated();
        let server = Running::start(models(other, &config(1, 64)), &["server.drain_timeout=600"]);
        let mut reply = server.send(&json!({ "input": "hi", "stream": true }));
        permits.send(()).unwrap();
        let mut told = read_until(&mut reply, "response.output_text.delta");
        order.iter().for_each(|step| step(&server));
        for _ in 0..50 {
            permits.send(()).unwrap();
            told += &read_until(&mut reply, "response.output_text.delta");
        }
        drop(permits);
        let events = events(&(told + &read_until(&mut reply, "[DONE]\n")));
        assert_eq!(events.last().unwrap()["type"], "response.completed");
        server.thread.join().unwrap();
    }
}

#[test]
fn a_reply_that_memory_did_not_suffice_for_says_what_can_be_lowered() {
    let model = FakeModel::saying(script("one two three four five")).with_fault(MEMORY, 3..4, 0);
    let server = Running::start(models(model, &config(1, 64)), &[]);
    let last = || {
        let stream = read_until(&mut server.send(&json!({ "input": "hi", "stream": true })), "[DONE]\n");
        events(&stream).pop().unwrap()
    };
    let failed = last();
    assert_eq!(failed["type"], "response.failed");
    let message = failed["response"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("memory") && message.contains("`engine.max_batch_size`"), "{message}");
    assert_eq!(last()["type"], "response.completed");
    assert!(exchange(&server, "GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n").0.starts_with("HTTP/1.1 200 "));
    server.signal();
    server.thread.join().unwrap();
}

/// Looks after a millisecond.
fn impatient() -> EngineConfig {
    EngineConfig { canary_interval: Duration::from_millis(1), ..config(2, 64) }
}

/// That many looks from now on, unless the engine ends.
fn wait_for_looks(handle: &EngineHandle, runs: &AtomicUsize, num_looks: usize) {
    let (began, looks) = (Instant::now(), runs.load(Ordering::SeqCst) + num_looks);
    while handle.is_running() && runs.load(Ordering::SeqCst) < looks {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing is looked at");
        thread::yield_now();
    }
}

#[test]
fn an_idle_engine_looks_whether_its_device_computes_and_forgets_nothing_that_is_missed() {
    let model = FakeModel::default().watched();
    let runs = model.runs();
    let (engine, handle) = Engine::new(&impatient(), model);
    let engine = thread::spawn(|| engine.run());
    let prompt: Vec<u32> = (0..60).collect();
    let mut cached = Vec::new();
    for _ in 0..3 {
        let reply = drain(handle.submit(request(&prompt, 2)).unwrap());
        let Some(TokenEvent::Finished { num_cached_tokens, reason: FinishReason::Length }) = reply.last() else {
            panic!("{reply:?}")
        };
        cached.push(*num_cached_tokens);
        wait_for_looks(&handle, &runs, 3);
    }
    assert_eq!(cached, [0, 59, 59]);
    assert!(handle.is_running());
    drop(handle);
    assert_eq!(engine.join().unwrap(), End::Shutdown);
}

#[test]
fn an_idle_engine_whose_device_computes_something_else_is_lost() {
    for model in
        [FakeModel::default().watched().spoiled_from(3), FakeModel::default().watched().with_fault(LOST, 3..4, 0)]
    {
        let runs = model.runs();
        let (engine, handle) = Engine::new(&impatient(), model);
        let engine = thread::spawn(|| engine.run());
        wait_for_looks(&handle, &runs, 10);
        handle.shut_down();
        assert_eq!((engine.join().unwrap(), runs.load(Ordering::SeqCst)), (End::DeviceLost, 3));
    }
}

#[test]
fn memory_that_others_have_taken_is_no_lost_device() {
    let model = FakeModel::default().watched().with_fault(MEMORY, 1..3, 0);
    let runs = model.runs();
    let (engine, handle) = Engine::new(&impatient(), model);
    let engine = thread::spawn(|| engine.run());
    wait_for_looks(&handle, &runs, 4);
    drop(handle);
    assert_eq!(engine.join().unwrap(), End::Shutdown);
}

#[test]
fn without_an_interval_nothing_is_looked_at() {
    let model = FakeModel::default().watched();
    let runs = model.runs();
    let (engine, handle) = Engine::new(&config(2, 64), model);
    let engine = thread::spawn(|| engine.run());
    for asked in 1..4 {
        let reply = drain(handle.submit(request(&[1], 5)).unwrap());
        assert_eq!((reason(&reply), runs.load(Ordering::SeqCst)), (FinishReason::Length, 5 * asked));
    }
    drop(handle);
    engine.join().unwrap();
}

/// What a device may say that is lost, and what may as well concern a single run.
pub(crate) const UNCLEAR: &str = "TensorRT EP execution context enqueue failed.";

/// Never idle for long enough.
pub(crate) fn patient() -> EngineConfig {
    EngineConfig { canary_interval: Duration::from_secs(3600), ..config(2, 7) }
}

#[test]
fn after_a_failure_that_nobody_knows_the_device_is_looked_at_at_once() {
    let in_blocks = || FakeModel::in_blocks(128, 4);
    for run in 1..12 {
        for model in [FakeModel::default(), FakeModel::rigid(), in_blocks()] {
            let (replies, end) = replies(model.watched().with_fault(UNCLEAR, run..1000, 0), &patient(), &prompts());
            assert_eq!(end, End::DeviceLost);
            let is_expected =
                |reason| matches!(reason, FinishReason::Error | FinishReason::DeviceLost | FinishReason::Length);
            let reasons: Vec<FinishReason> = replies.iter().map(|reply| reason(reply)).collect();
            assert!(reasons.iter().copied().all(is_expected), "{reasons:?}");
            // Those of one batch, and no more.
            let num_failed = reasons.iter().filter(|reason| **reason == FinishReason::Error).count();
            assert!((1..=2).contains(&num_failed), "{reasons:?}");
        }
    }
}

#[test]
fn a_failure_that_only_concerns_its_run_costs_nobody_else() {
    // The blocks do not suffice for two.
    let makes = [FakeModel::default, FakeModel::rigid, || FakeModel::in_blocks(8, 4), || FakeModel::in_blocks(32, 1)];
    for make in makes {
        let (undisturbed, _) = replies(make(), &patient(), &prompts());
        for run in 1..20 {
            let model = make().watched().with_fault(UNCLEAR, run..run + 1, 1);
            let (replies, end) = replies(model, &patient(), &prompts());
            assert_eq!(end, End::Shutdown);
            let failed = |reply: &&Vec<TokenEvent>| reason(reply) == FinishReason::Error;
            let num_failed = replies.iter().filter(failed).count();
            assert!((1..=2).contains(&num_failed), "run {run}");
            for (reply, undisturbed) in replies.iter().zip(&undisturbed).filter(|(reply, _)| !failed(reply)) {
                assert_eq!(tokens(reply), tokens(undisturbed), "run {run}");
            }
        }
    }
}

/// What was said, whatever the prefix cache held.
pub(crate) fn tokens(reply: &[TokenEvent]) -> Vec<TokenId> {
    let said = reply.iter().filter_map(|event| match event {
        TokenEvent::Token(token) => Some(*token),
        TokenEvent::Queued | TokenEvent::Started | TokenEvent::Logprobs(_) | TokenEvent::Finished { .. } => None,
    });
    said.collect()
}

/// Gives the best scores, and the others when it is asked; some of those questions fail.
pub(crate) struct Terse {
    model: FakeModel,
    all: BTreeMap<usize, Vec<f32>>,
    num_asked: usize,
    failing: Range<usize>,
    message: &'static str,
}

impl Terse {
    fn new(failing: Range<usize>, message: &'static str) -> Self {
        Self::of(FakeModel::default(), failing, message)
    }

    pub(crate) fn of(model: FakeModel, failing: Range<usize>, message: &'static str) -> Self {
        Self { model, all: BTreeMap::new(), num_asked: 0, failing, message }
    }
}

impl Model for Terse {
    fn limits(&self) -> ModelLimits {
        self.model.limits()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), ModelError> {
        let mut all = Logits::new(VOCAB_SIZE);
        self.model.forward(batch, &mut all)?;
        self.all.clear();
        for (row, scores) in all.by_batch_row_mut() {
            let Scores::All(scores) = scores else { panic!("all were computed") };
            if batch.rows()[row].wanted == Wanted::All {
                logits.extend(&vec![row; scores.len() / VOCAB_SIZE]).copy_from_slice(scores);
                continue;
            }
            self.all.insert(row, scores.to_vec());
            for scores in scores.chunks_exact(VOCAB_SIZE) {
                let mut ranked: Vec<(f32, TokenId)> = scores.iter().copied().zip((0..).map(TokenId)).collect();
                ranked.sort_by(|one, other| other.0.total_cmp(&one.0));
                let total = scores.iter().map(|score| (score - ranked[0].0).exp()).sum();
                logits.push_top(row, ranked.into_iter().take(NUM_TOP_SCORES), total);
            }
        }
        Ok(())
    }

    fn complete(&mut self, batch_rows: &[usize], logits: &mut Logits) -> Result<(), ModelError> {
        self.num_asked += 1;
        if self.failing.contains(&self.num_asked) {
            return Err(ModelError::new(self.message));
        }
        for row in batch_rows {
            let all = &self.all[row];
            logits.extend(&vec![*row; all.len() / VOCAB_SIZE]).copy_from_slice(all);
        }
        Ok(())
    }

    fn time_in_runs(&self) -> Duration {
        self.model.time_in_runs()
    }

    fn canary(&self) -> Option<Canary> {
        self.model.canary()
    }

    fn wipe(&mut self, slot_index: usize, blocks: &[u32]) -> Result<(), ModelError> {
        self.model.wipe(slot_index, blocks)
    }

    fn copy_slot(&mut self, from: usize, to: usize, num_tokens: usize) -> Result<(), ModelError> {
        self.model.copy_slot(from, to, num_tokens)
    }

    fn swap_slots(&mut self, one: usize, other: usize, num_tokens: usize) {
        self.model.swap_slots(one, other, num_tokens);
    }
}

#[test]
fn scores_that_memory_does_not_suffice_for_cost_the_newest_alone() {
    // Hardly a draw falls on the best.
    let drawn = |seed| Request {
        sampling: SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() },
        ..request(&[u32::try_from(seed).unwrap(), 3], 9)
    };
    let run = |model: Terse| {
        let (engine, handle) = Engine::new(&config(3, 64), model);
        let streams: Vec<TokenStream> = (0..3).map(|seed| handle.submit(drawn(seed)).unwrap()).collect();
        drop(handle);
        let end = engine.run();
        (streams.into_iter().map(drain).collect::<Vec<_>>(), end)
    };
    let (undisturbed, _) = run(Terse::new(0..0, MEMORY));
    let reasons = |replies: &[Vec<TokenEvent>]| replies.iter().map(|reply| reason(reply)).collect::<Vec<_>>();
    let (length, memory) = (FinishReason::Length, FinishReason::OutOfMemory);
    assert_eq!(reasons(&undisturbed), [length; 3]);
    for question in 1..8 {
        let (replies, end) = run(Terse::new(question..question + 1, MEMORY));
        assert_eq!((reasons(&replies), end), (vec![length, length, memory], End::Shutdown), "question {question}");
        assert_eq!(replies[..2], undisturbed[..2], "question {question}");
        let (replies, end) = run(Terse::new(question..100, LOST));
        assert_eq!((reasons(&replies), end), (vec![FinishReason::DeviceLost; 3], End::DeviceLost));
    }
    // Until what is left fits.
    let (replies, _) = run(Terse::new(1..3, MEMORY));
    assert_eq!(reasons(&replies), [length, memory, memory]);
}

/// For two slots, where each row starts and what it computes.
type Rows = [(usize, Vec<TokenId>); 2];

fn forward(model: &mut dyn Model, rows: &Rows) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut batch = Batch::default();
    for (slot_index, (start, tokens)) in rows.iter().enumerate() {
        batch.push(slot_index, *start, tokens, Some(&[]));
        if model.limits().blocks.is_some() {
            batch.set_blocks(&[u32::try_from(slot_index).unwrap()]);
        }
    }
    let mut logits = Logits::new(model.limits().vocab_size);
    model.forward(&batch, &mut logits)?;
    let all = |scores: Scores<'_>| match scores {
        Scores::All(scores) => scores.to_vec(),
        Scores::Top { .. } => panic!("all are wanted"),
    };
    Ok(logits.by_batch_row_mut().map(|(_, scores)| all(scores)).collect())
}

/// True graphs: a run in which one row cannot be computed leaves the others so that they can be computed again. The row has a
/// token that is not there, which a GPU does not refuse: it takes zeros for it, or what lies in that place, whose ever it is.
#[test]
fn a_failed_run_can_be_computed_again_where_the_model_says_so() {
    if is_on_gpu() {
        return;
    }
    let rows = |starts: [usize; 2], tokens: [Range<u32>; 2]| {
        let [one, other] = tokens.map(|tokens| tokens.map(TokenId).collect());
        [(starts[0], one), (starts[1], other)]
    };
    let (begun, next): (Rows, Rows) = (rows([0, 0], [1..20, 40..47]), rows([19, 7], [3..4, 5..6]));
    let with_bad_token = |rows: &Rows, row: usize| {
        let mut rows = rows.clone();
        rows[row].1[0] = TokenId(1_000_000);
        rows
    };
    let (mut num_failed, mut num_rewound) = (0, 0);
    for name in exact_models() {
        let load = || load(runtime(), open(&name).spec, &config(2, 64)).unwrap();
        let mut undisturbed = load();
        let expected = [&begun, &next].map(|rows| forward(&mut *undisturbed, rows).unwrap());
        for bad_row in 0..2 {
            let mut model = load();
            num_failed += usize::from(forward(&mut *model, &with_bad_token(&begun, bad_row)).is_err());
            assert_eq!(forward(&mut *model, &begun).unwrap(), expected[0], "{name}");
            if 20 <= model.limits().rewindable_tokens {
                num_rewound += usize::from(forward(&mut *model, &with_bad_token(&next, bad_row)).is_err());
            }
            assert_eq!(forward(&mut *model, &next).unwrap(), expected[1], "{name}");
        }
    }
    // Some graphs have a row for every number.
    assert!(16 <= num_failed && 8 <= num_rewound, "{num_failed} runs have failed, {num_rewound} of them in the middle");
}

#[test]
fn a_graph_that_computes_no_numbers_is_known_when_it_is_loaded() {
    let dir = copy("tiny-gqa");
    let onnx = dir.path().join("onnx/model.onnx");
    let mut bytes = fs::read(&onnx).unwrap();
    // What the last norm multiplies with, behind its name, a tag and a length of two bytes. All ones are no number.
    let name = b"final_norm_layernorm.weight\x4a";
    let place = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 2;
    bytes[place..place + 64].fill(0xff);
    fs::write(onnx, bytes).unwrap();
    let spec = ModelDir::open(dir.path(), &Target::CPU).unwrap().spec;
    let error = load(runtime(), spec, &config(1, 16)).err().unwrap();
    assert!(matches!(&error, LoadError::Run { message, .. } if message.contains("NaN")), "{error}");
}
