//! `ortolan serve`

use crate::{
    chat::{Chat, ChatModel, ChatTemplate, Models},
    config::Config,
    engine::{self, Engine, EngineConfig, Runtime},
    model_dir::{ModelConfig, ModelDir},
    server, telemetry,
    text::Tokenizer,
};
use anyhow::{Context, bail};
use futures::stream;
use std::{
    process::ExitCode,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Semaphore, mpsc};

/// `EX_SOFTWARE` of sysexits.h: the engine failed, and a supervisor should start the process again.
const ENGINE_FAILED: u8 = 70;

pub(super) fn run(config: Config) -> anyhow::Result<ExitCode> {
    if let Err(error) = telemetry::start(&config.log) {
        bail!("`log.filter` is not a filter: {error}; write a level such as \"info\"");
    }
    // First, so that a port in use is known before minutes of loading.
    let listener = server::bind(&config.server)?;
    let runtime = super::runtime(&config.runtime)?;

    let (alarm, mut alarms) = mpsc::channel(config.models.len());
    let mut chats = Vec::new();
    let mut engines = Vec::new();
    for model in &config.models {
        let (chat, engine) = start(model, &config.engine, &runtime, Alarm(alarm.clone()))?;
        chats.push(chat);
        engines.push(engine);
    }
    let models = Models::new(chats);

    // An engine that fails is one more reason to stop: replies get their last events before the process ends.
    let alarms = stream::poll_fn(move |context| alarms.poll_recv(context));
    let served = actix_rt::System::new().block_on(async {
        let signals = stream::select(server::signals()?, alarms);
        server::serve(listener, config.server, models.clone(), signals).await
    });
    models.shut_down();
    for engine in engines {
        if engine.join().is_err() {
            return Ok(ExitCode::from(ENGINE_FAILED));
        }
    }
    served.context("the server has failed")?;
    Ok(ExitCode::SUCCESS)
}

/// Goes off when the thread that holds it panics.
struct Alarm(mpsc::Sender<()>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("an engine has failed; the server stops");
            // There is room for one from each engine.
            let _ = self.0.try_send(());
        }
    }
}

/// Loads a model and starts its engine thread.
fn start(
    model: &ModelConfig,
    config: &EngineConfig,
    runtime: &Runtime,
    alarm: Alarm,
) -> anyhow::Result<(Chat, thread::JoinHandle<()>)> {
    let began = SystemTime::now();
    let dir = ModelDir::open(&model.path)?;
    let chat_model = chat_model(model, &dir)?;
    let spec = dir.spec;
    tracing::info!(
        model = model.name,
        family = spec.family.name(),
        layers = spec.kv.len() / 2,
        context_tokens = spec.context_tokens,
        kv_bytes_per_token = spec.kv_bytes_per_token(),
        "loading model"
    );
    let (engine, handle) = Engine::new(config, engine::load(runtime, spec, config)?);
    let run = move || {
        let _alarm = alarm;
        engine.run();
    };
    let thread = thread::Builder::new().name(format!("engine {}", model.name)).spawn(run);
    let thread = thread.context("the engine thread cannot be started")?;
    let seconds = began.elapsed().unwrap_or_default().as_secs_f32();
    tracing::info!(model = model.name, context_tokens = handle.limits().context_tokens, seconds, "model is ready");
    Ok((Chat::new(chat_model, handle), thread))
}

fn chat_model(model: &ModelConfig, dir: &ModelDir) -> anyhow::Result<ChatModel> {
    let tokenizer = Tokenizer::load(&dir.tokenizer)?;
    if dir.spec.vocab_size < tokenizer.vocab_size() {
        bail!(
            "{} has {} tokens and the graph scores only {}; take tokenizer and graph from one export",
            dir.tokenizer.display(),
            tokenizer.vocab_size(),
            dir.spec.vocab_size
        );
    }
    let Some(source) = &dir.chat_template else {
        bail!("{} has no chat template; add chat_template.jinja", dir.path.display());
    };
    let template = ChatTemplate::new(source, dir.special_tokens.clone(), tokenizer.added_tokens())
        .with_context(|| format!("the model folder {} cannot be served", dir.path.display()))?;
    let mut stop_tokens = dir.generation.stop_tokens();
    if stop_tokens.is_empty() {
        let eos = dir.special_tokens.get("eos_token").and_then(|text| tokenizer.token(text));
        stop_tokens.extend(eos);
    }
    if stop_tokens.is_empty() {
        bail!("{} names no end-of-text token; set `eos_token_id` in generation_config.json", dir.path.display());
    }
    Ok(ChatModel {
        name: model.name.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        tokenizer: Arc::new(tokenizer),
        template,
        stop_tokens: stop_tokens.into(),
        default_sampling: dir.generation.sampling(),
        prompt_permits: Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from))),
    })
}
