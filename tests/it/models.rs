//! Models that come and go: loaded at start and at first use, unloaded, and what requests see of it.

use crate::{
    fake_loader::{FakeLoader, Gate, entry, script},
    fake_model::FakeModel,
    http::{Running, exchange, read_answer},
};
use futures::{FutureExt, StreamExt, executor::block_on, future::join_all};
use ortolan::{
    chat::{
        ChatError, ChatEvent, ChatRequest, Delta, Lease, LoadFailure, LoadTime, Message, ModelEntry, ModelState,
        Models, Role, ServedModel,
    },
    engine::{EngineError, SamplingParams},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use tokio::time::advance;

const REPLY: &str = "one two three";
const IDLE: Duration = Duration::from_secs(60);

/// One model called `fake` that the first request loads.
fn lazy(loader: FakeLoader) -> (Models, Arc<FakeLoader>) {
    let loader = Arc::new(loader);
    (Models::new(vec![entry("fake", LoadTime::FirstUse, &loader)]), loader)
}

fn gated() -> (Models, Arc<FakeLoader>, Gate) {
    let (loader, gate) = FakeLoader::saying(REPLY).gated();
    let (models, loader) = lazy(loader);
    (models, loader, gate)
}

fn fake(models: &Models) -> &Arc<ServedModel> {
    models.get(Some("fake")).unwrap()
}

fn state(models: &Models) -> ModelState {
    fake(models).state().0
}

fn hello() -> ChatRequest {
    ChatRequest {
        messages: vec![Message::text(Role::User, "hi")],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..ChatRequest::default()
    }
}

async fn said(lease: Lease) -> String {
    let events = lease.start(hello()).await.unwrap();
    let text = events.map(|event| match event {
        ChatEvent::Delta(Delta::Text(text)) => text,
        ChatEvent::Queued
        | ChatEvent::Started
        | ChatEvent::Delta(_)
        | ChatEvent::Logprobs(_)
        | ChatEvent::Finished(_) => String::new(),
    });
    text.collect().await
}

async fn ask(models: &Models) -> String {
    said(fake(models).lease().await.unwrap()).await
}

#[actix_web::test]
async fn first_requests_share_one_load() {
    let (models, loader, gate) = gated();
    assert_eq!(state(&models), ModelState::Unloaded);
    let mut replies = Box::pin(join_all((0..5).map(|_| ask(&models))));
    assert!(replies.as_mut().now_or_never().is_none());
    assert_eq!(state(&models), ModelState::Loading);
    gate.permits.send(()).unwrap();
    assert_eq!(replies.await, [REPLY; 5]);
    assert_eq!(ask(&models).await, REPLY);
    assert_eq!((state(&models), loader.num_loads()), (ModelState::Ready, 1));
}

#[actix_web::test]
async fn only_so_many_wait_for_a_load() {
    let (loader, gate) = FakeLoader::saying(REPLY).gated();
    let loader = Arc::new(loader);
    let entry = ModelEntry { max_waiting: 2, ..entry("fake", LoadTime::FirstUse, &loader) };
    let models = Models::new(vec![entry]);
    let (mut first, mut second) = (Box::pin(ask(&models)), Box::pin(ask(&models)));
    assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
    let refused = fake(&models).lease().now_or_never().unwrap();
    assert!(matches!(refused, Err(ChatError::LoadQueueFull { capacity: 2, .. })), "{refused:?}");
    // Who leaves makes room.
    drop(first);
    let mut third = Box::pin(ask(&models));
    assert!(third.as_mut().now_or_never().is_none());
    drop(gate);
    assert_eq!((second.await, third.await), (REPLY.to_owned(), REPLY.to_owned()));
    assert_eq!(loader.num_loads(), 1);
}

#[actix_web::test]
async fn a_load_goes_on_when_all_who_waited_have_left() {
    let (models, loader, gate) = gated();
    let mut leaving = Box::pin(ask(&models));
    assert!(leaving.as_mut().now_or_never().is_none());
    drop(leaving);
    assert_eq!(state(&models), ModelState::Loading);
    drop(gate);
    assert_eq!(ask(&models).await, REPLY);
    assert_eq!(loader.num_loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_is_told_to_all_and_tried_again_later() {
    let (loader, gate) = FakeLoader::new(|load| match load {
        1 => Err(LoadFailure::new("injected")),
        _ => Ok(FakeModel::saying(script(REPLY))),
    })
    .gated();
    let (models, loader) = lazy(loader);
    let mut waiting = Box::pin(join_all((0..3).map(|_| fake(&models).lease())));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(gate);
    for refused in waiting.await.into_iter().chain([fake(&models).lease().await]) {
        assert!(matches!(refused, Err(ChatError::LoadFailed { retry_seconds: 1..=5, .. })), "{refused:?}");
    }
    assert_eq!((state(&models), loader.num_loads()), (ModelState::Failed, 1));
    advance(Duration::from_secs(6)).await;
    assert_eq!(ask(&models).await, REPLY);
    assert_eq!((state(&models), loader.num_loads()), (ModelState::Ready, 2));
}

#[actix_web::test]
async fn a_load_that_panics_has_failed() {
    let (models, _loader) = lazy(FakeLoader::new(|_| panic!("injected")));
    let refused = fake(&models).lease().await;
    assert!(matches!(refused, Err(ChatError::LoadFailed { .. })), "{refused:?}");
    assert_eq!(state(&models), ModelState::Failed);
    assert!(!fake(&models).is_missing(), "a model that nobody has to have from the start leaves the process ready");
}

#[actix_web::test]
async fn a_model_that_cannot_be_loaded_at_start_is_told() {
    let good = Arc::new(FakeLoader::saying(REPLY));
    let bad = Arc::new(FakeLoader::new(|_| Err(LoadFailure::new("injected"))));
    let models = Models::new(vec![entry("good", LoadTime::Start, &good), entry("fake", LoadTime::Start, &bad)]);
    assert_eq!(models.load_at_start().await.unwrap_err().to_string(), "injected");
    assert!(fake(&models).is_missing());
}

/// A loaded model that is unloaded after `IDLE`, and whoever does it.
async fn idle() -> (Models, Arc<FakeLoader>) {
    let loader = Arc::new(FakeLoader::saying(REPLY));
    let entry = ModelEntry { idle_unload: Some(IDLE), ..entry("fake", LoadTime::Start, &loader) };
    let models = Models::new(vec![entry]);
    models.load_at_start().await.unwrap();
    let unloading = models.clone();
    tokio::spawn(async move { unloading.unload_idle().await });
    (models, loader)
}

/// Without that time goes on: a runtime that is busy does not advance its clock. The thread of the load may take its time
/// to wake the unloader.
async fn wait_until_unloaded(models: &Models) {
    while state(models) != ModelState::Unloaded {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_is_unloaded_and_the_next_request_loads_it() {
    let (models, loader) = idle().await;
    for loads in 1..=3 {
        assert_eq!(ask(&models).await, REPLY);
        assert_eq!(loader.num_loads(), loads);
        advance(IDLE - Duration::from_secs(1)).await;
        assert_eq!(state(&models), ModelState::Ready);
        advance(Duration::from_secs(2)).await;
        wait_until_unloaded(&models).await;
        assert!(!fake(&models).is_missing(), "it was there at start, which is what readiness waits for");
        loader.join(); // The engine has ended, or this would not.
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_in_use_stays() {
    let (models, loader) = idle().await;
    let reply = fake(&models).lease().await.unwrap().start(hello()).await.unwrap();
    let (waiting, lease) = (fake(&models).lease().await.unwrap(), fake(&models).lease().await.unwrap());
    for users in [Box::new(reply) as Box<dyn std::any::Any>, Box::new(waiting), Box::new(lease)] {
        advance(IDLE * 2).await;
        tokio::task::yield_now().await;
        assert_eq!(state(&models), ModelState::Ready);
        drop(users);
    }
    advance(IDLE * 2).await;
    wait_until_unloaded(&models).await;
    assert_eq!(loader.num_loads(), 1);
}

/// In each round, requests from several threads meet a model that is unloaded as soon as nobody uses it.
#[test]
fn no_request_is_lost_to_an_unload() {
    const ROUNDS: usize = 15;
    const THREADS: usize = 4;
    let loader = Arc::new(FakeLoader::saying(REPLY));
    let entry = ModelEntry { idle_unload: Some(Duration::ZERO), ..entry("fake", LoadTime::FirstUse, &loader) };
    let models = Models::new(vec![entry]);
    let (unloading, (stop, stopped)) = (models.clone(), futures::channel::oneshot::channel::<()>());
    let unload = async move {
        tokio::select! { () = unloading.unload_idle() => {}, _ = stopped => {} }
    };
    let unloader = thread::spawn(|| actix_rt::System::new().block_on(unload));
    let round = Arc::new(Barrier::new(THREADS));
    let askers = [0; THREADS].map(|_| {
        let (models, round) = (models.clone(), Arc::clone(&round));
        thread::spawn(move || {
            let system = actix_rt::System::new();
            for _ in 0..ROUNDS {
                for _ in 0..3 {
                    assert_eq!(system.block_on(ask(&models)), REPLY);
                }
                round.wait();
                while state(&models) != ModelState::Unloaded {
                    thread::yield_now();
                }
                round.wait();
            }
        })
    });
    askers.into_iter().for_each(|asker| asker.join().unwrap());
    stop.send(()).unwrap();
    unloader.join().unwrap();
    assert!(ROUNDS <= loader.num_loads());
}

#[actix_web::test]
async fn a_process_that_stops_refuses_who_waits_and_ends_what_it_loads() {
    let (models, loader, gate) = gated();
    let mut waiting = Box::pin(fake(&models).lease());
    assert!(waiting.as_mut().now_or_never().is_none());
    gate.arrivals.recv().unwrap();
    models.stop_loading();
    for refused in [waiting.await, fake(&models).lease().await] {
        assert!(matches!(refused, Err(ChatError::Engine(EngineError::Stopped))), "{refused:?}");
    }
    assert!(models.is_loading());
    drop(gate);
    while models.is_loading() {
        thread::yield_now();
    }
    loader.join(); // The engine was told to end, or this would not.
    assert_eq!(loader.num_loads(), 1);
}

#[actix_web::test]
async fn models_are_loaded_one_at_a_time() {
    let busy = Arc::new(AtomicBool::new(false));
    let load = |name| {
        let busy = Arc::clone(&busy);
        let loader = FakeLoader::new(move |_| {
            assert!(!busy.swap(true, Ordering::SeqCst), "a load has begun before another has ended");
            let (_never, pause) = mpsc::sync_channel::<()>(0);
            let _ = pause.recv_timeout(Duration::from_millis(20)); // Time for another to begin.
            busy.store(false, Ordering::SeqCst);
            Ok(FakeModel::default())
        });
        entry(name, LoadTime::Start, &Arc::new(loader))
    };
    let models = Models::new(["a", "b", "c"].map(load).into());
    models.load_at_start().await.unwrap();
}

fn get(server: &Running, path: &str) -> (String, Value) {
    let (head, body) = exchange(server, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    (head, serde_json::from_str(&body).unwrap())
}

/// Status and states in the order of the models.
fn ready(server: &Running) -> (bool, Vec<String>) {
    let (head, body) = get(server, "/ready");
    let models = body["models"].as_array().unwrap();
    assert!(models.iter().all(|model| model["seconds"].is_u64()), "{body}");
    let is_ready = head.starts_with("HTTP/1.1 200 ");
    assert_eq!((is_ready, is_ready), (body["status"] == "ready", body["reason"].is_null()), "{head}{body}");
    let states = models.iter().map(|model| format!("{} {}", model["id"], model["state"]).replace('"', ""));
    (is_ready, states.collect())
}

#[test]
fn the_server_listens_while_models_load() {
    let (start, gate) = FakeLoader::saying(REPLY).gated();
    let start = Arc::new(start);
    let broken = Arc::new(FakeLoader::new(|_| Err(LoadFailure::new("injected"))));
    let other = Arc::new(FakeLoader::saying("four five"));
    let models = Models::new(vec![
        entry("start", LoadTime::Start, &start),
        entry("broken", LoadTime::FirstUse, &broken),
        entry("other", LoadTime::FirstUse, &other),
    ]);
    let server = Running::start(models.clone(), &[]);
    let loading = thread::spawn(move || block_on(models.load_at_start()));
    gate.arrivals.recv().unwrap();

    assert_eq!(get(&server, "/health").1, json!({ "status": "ok" }));
    let listed = get(&server, "/v1/models").1;
    let ids: Vec<&Value> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["start", "broken", "other"]);
    let states = |states: [&str; 3]| states.map(str::to_owned).to_vec();
    assert_eq!(ready(&server), (false, states(["start loading", "broken unloaded", "other unloaded"])));
    let mut waiting = server.send(&json!({ "input": "hi" }));
    gate.permits.send(()).unwrap();
    let (head, body) = read_answer(&mut waiting);
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains(REPLY), "{head}{body}");
    loading.join().unwrap().unwrap();
    assert_eq!(ready(&server), (true, states(["start ready", "broken unloaded", "other unloaded"])));

    let (head, body) = read_answer(&mut server.send(&json!({ "input": "hi", "model": "broken" })));
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: "), "{head}");
    assert!(body.contains(r#""type":"service_unavailable","param":"model","code":"model_load_failed""#), "{body}");
    let (_, body) = read_answer(&mut server.send(&json!({ "input": "hi", "model": "other" })));
    assert!(body.contains("four five"), "{body}");
    assert_eq!(ready(&server), (true, states(["start ready", "broken failed", "other ready"])));
    server.signal();
    server.thread.join().unwrap();
}

#[test]
fn a_signal_does_not_wait_for_a_load() {
    let (models, _loader, gate) = gated();
    let server = Running::start(models, &["server.drain_timeout=600"]);
    let mut waiting = server.send(&json!({ "input": "hi" }));
    gate.arrivals.recv().unwrap();
    server.signal();
    let (head, body) = read_answer(&mut waiting);
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("\"code\":\"service_unavailable\""), "{head}{body}");
    server.thread.join().unwrap();
}

/// Whether an answer comes soon; one that waits for a load does not.
fn is_answered(connection: &mut BufReader<TcpStream>) -> bool {
    connection.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let is_answered = connection.fill_buf().is_ok();
    connection.get_ref().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    is_answered
}

#[test]
fn a_client_that_leaves_while_it_waits_makes_room() {
    let (loader, gate) = FakeLoader::saying(REPLY).gated();
    let loader = Arc::new(loader);
    let entry = ModelEntry { max_waiting: 1, ..entry("fake", LoadTime::FirstUse, &loader) };
    let server = Running::start(Models::new(vec![entry]), &[]);
    let body = json!({ "input": "hi" });
    let leaving = server.send(&body);
    gate.arrivals.recv().unwrap();
    let (head, refused) = read_answer(&mut server.send(&body));
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    let error: Value = serde_json::from_str(&refused).unwrap();
    let error = error["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
    assert_eq!(error["code"], "model_loading");
    drop(leaving);
    let mut next = server.send(&body);
    while is_answered(&mut next) {
        next = server.send(&body); // The server has not noticed yet.
    }
    drop(gate);
    let (head, body) = read_answer(&mut next);
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains(REPLY), "{head}{body}");
    server.signal();
    server.thread.join().unwrap();
}
