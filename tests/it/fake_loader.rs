//! Served models without folders: each load makes a fake model, and a test decides when and whether it succeeds.

use crate::{engine::config, fake_model::FakeModel, tiny_model::fixture};
use futures::executor::block_on;
use ortolan::{
    chat::{Chat, ChatModel, ChatTemplate, LoadFailure, LoadTime, Loader, ModelEntry, Models, ResponseFormat},
    engine::{End, Engine, EngineConfig, SamplingParams, TokenId},
    text::{Piece, Tokenizer},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt, fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};
use tokio::{sync::Semaphore, task::unconstrained};

const STOP: TokenId = TokenId(507);

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&fixture("tiny-gqa").join("tokenizer.json")).unwrap())
}

/// The tokens of a reply, and the one that ends it.
pub(crate) fn script(reply: &str) -> Vec<u32> {
    script_in(&tokenizer(), reply)
}

fn script_in(tokenizer: &Tokenizer, reply: &str) -> Vec<u32> {
    let tokens = tokenizer.encode(&[Piece::Template(reply)]).unwrap();
    tokens.into_iter().chain([STOP]).map(|token| token.0).collect()
}

/// A tokenizer whose added tokens have other texts and are special.
fn tokenizer_with(special: &[(&str, &str)]) -> Arc<Tokenizer> {
    let mut description: Value =
        serde_json::from_slice(&fs::read(fixture("tiny-gqa").join("tokenizer.json")).unwrap()).unwrap();
    for token in description["added_tokens"].as_array_mut().unwrap() {
        if let Some((_, text)) = special.iter().find(|(text, _)| token["content"] == *text) {
            (token["content"], token["special"]) = (json!(text), json!(true));
        }
    }
    Arc::new(Tokenizer::parse(&serde_json::to_vec(&description).unwrap()).unwrap())
}

fn chat_model(tokenizer: Arc<Tokenizer>, response_format: &str) -> ChatModel {
    let template = fs::read_to_string(fixture("tiny-gqa").join("chat_template.jinja")).unwrap();
    ChatModel {
        template: ChatTemplate::new(template.as_str(), BTreeMap::new(), tokenizer.added_tokens()).unwrap(),
        tokenizer,
        response_format: ResponseFormat::named(response_format).unwrap(),
        stop_tokens: [STOP].into(),
        default_sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        prompt_permits: Arc::new(Semaphore::new(2)),
    }
}

/// What a load makes, by its number, which starts at 1.
type Make = dyn Fn(usize) -> Result<FakeModel, LoadFailure> + Send + Sync;

/// The test's side of a gate before each load.
pub(crate) struct Gate {
    /// One load each; dropping it opens the gate.
    pub(crate) permits: mpsc::SyncSender<()>,
    /// One for each load that has come to the gate.
    pub(crate) arrivals: mpsc::Receiver<()>,
}

struct LoaderGate {
    permits: mpsc::Receiver<()>,
    arrivals: mpsc::SyncSender<()>,
}

pub(crate) struct FakeLoader {
    make: Box<Make>,
    tokenizer: Arc<Tokenizer>,
    response_format: &'static str,
    config: EngineConfig,
    gate: Option<Mutex<LoaderGate>>,
    num_loads: AtomicUsize,
    engine: Mutex<Option<JoinHandle<End>>>,
}

impl FakeLoader {
    pub(crate) fn new(make: impl Fn(usize) -> Result<FakeModel, LoadFailure> + Send + Sync + 'static) -> Self {
        Self {
            make: Box::new(make),
            tokenizer: tokenizer(),
            response_format: "hermes",
            config: config(2, 64),
            gate: None,
            num_loads: AtomicUsize::new(0),
            engine: Mutex::default(),
        }
    }

    /// A model of another response format that says this. The added tokens of these texts have others, and are special.
    pub(crate) fn saying_in(response_format: &'static str, special: &[(&str, &str)], reply: &str) -> Self {
        let tokenizer = tokenizer_with(special);
        let model = FakeModel::saying(script_in(&tokenizer, reply));
        Self { tokenizer, response_format, ..Self::once(model, &config(2, 64)) }
    }

    /// Every load makes a model that says this.
    pub(crate) fn saying(reply: &str) -> Self {
        let script = script(reply);
        Self::new(move |_| Ok(FakeModel::saying(script.clone())))
    }

    /// The first load makes this model; there is no second.
    pub(crate) fn once(model: FakeModel, config: &EngineConfig) -> Self {
        let model = Mutex::new(Some(model));
        let make = move |_| Ok(model.lock().unwrap().take().unwrap());
        Self { config: config.clone(), ..Self::new(make) }
    }

    /// Waits for a permit before each load.
    pub(crate) fn gated(self) -> (Self, Gate) {
        let (permits, received_permits) = mpsc::sync_channel(1);
        let (arrived, arrivals) = mpsc::sync_channel(64);
        let gate = LoaderGate { permits: received_permits, arrivals: arrived };
        (Self { gate: Some(Mutex::new(gate)), ..self }, Gate { permits, arrivals })
    }

    pub(crate) fn num_loads(&self) -> usize {
        self.num_loads.load(Ordering::SeqCst)
    }

    /// Waits for the engine, which must have been told to end; it asserts that it leaks no slot.
    pub(crate) fn join(&self) {
        let engine = self.engine.lock().unwrap().take();
        if let Some(engine) = engine {
            engine.join().unwrap();
        }
    }
}

impl Loader for FakeLoader {
    fn load(&self) -> Result<Chat, LoadFailure> {
        self.join();
        if let Some(gate) = &self.gate {
            let gate = gate.lock().unwrap();
            let _ = gate.arrivals.send(()); // Not every test looks.
            let _: Result<(), mpsc::RecvError> = gate.permits.recv(); // A closed gate is an open one.
        }
        let number = self.num_loads.fetch_add(1, Ordering::SeqCst) + 1;
        let (engine, handle) = Engine::new(&self.config, (self.make)(number)?);
        *self.engine.lock().unwrap() = Some(thread::spawn(|| engine.run()));
        Ok(Chat::new(chat_model(Arc::clone(&self.tokenizer), self.response_format), handle))
    }
}

impl fmt::Debug for FakeLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeLoader")
    }
}

/// Never unloaded.
pub(crate) fn entry(name: &str, load: LoadTime, loader: &Arc<FakeLoader>) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        created: 1,
        context_tokens: 9,
        load,
        idle_unload: None,
        max_waiting: 64,
        loader: Arc::clone(loader) as Arc<dyn Loader>,
    }
}

/// One model called `fake`, loaded.
pub(crate) fn models(model: FakeModel, config: &EngineConfig) -> Models {
    models_of(FakeLoader::once(model, config))
}

/// One model called `fake`, loaded.
pub(crate) fn models_of(loader: FakeLoader) -> Models {
    let loader = Arc::new(loader);
    let models = Models::new(vec![entry("fake", LoadTime::Start, &loader)]);
    // Inside a runtime's task whose budget is spent, what blocks would wait for that runtime to go on.
    block_on(unconstrained(models.load_at_start())).unwrap();
    models
}
