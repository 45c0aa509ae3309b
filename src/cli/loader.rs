//! One of `[[models]]`: its folder is checked at start, its engine started and, after it was unloaded, started again.

use super::machine;
use crate::{
    chat::{Chat, ChatModel, ChatTemplate, LoadFailure, LoadTime, Loader, ModelEntry, ReplyFormat},
    config::ModelConfig,
    engine::{self, Engine, Runtime},
    model_dir::{ModelDir, Target},
    text::Tokenizer,
};
use anyhow::{Context, bail};
use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Semaphore, watch};

/// Loads one model each time it is asked to.
#[derive(Debug)]
pub(super) struct ModelLoader {
    config: ModelConfig,
    runtime: Runtime,
    alarm: watch::Sender<bool>,
    /// As it was checked, for a load that comes at once.
    checked: Mutex<Option<Folder>>,
    engine: Arc<EngineThread>,
}

/// The thread of the last load's engine.
pub(super) type EngineThread = Mutex<Option<JoinHandle<()>>>;

/// What is read before the graph is opened.
#[derive(Debug)]
struct Folder {
    dir: ModelDir,
    chat: ChatModel,
}

/// Checks the folder of a model and tells how to serve it. `alarm` becomes true when an engine panics.
pub(super) fn entry(
    config: ModelConfig,
    runtime: &Runtime,
    alarm: &watch::Sender<bool>,
) -> anyhow::Result<(ModelEntry, Arc<EngineThread>)> {
    let folder = Folder::open(&config)?;
    let ModelConfig { load, idle_unload, .. } = config;
    let (name, limits) = (config.name.clone(), &config.engine);
    let context_tokens = folder.dir.spec.context_tokens.min(limits.max_context_tokens.get() as usize);
    let max_waiting = limits.max_batch_size.get() as usize + limits.max_waiting.get() as usize;
    let engine = Arc::<EngineThread>::default();
    let loader = ModelLoader {
        config,
        runtime: runtime.clone(),
        alarm: alarm.clone(),
        checked: Mutex::new(Some(folder).filter(|_| load == LoadTime::Start)),
        engine: Arc::clone(&engine),
    };
    let entry = ModelEntry {
        name,
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        context_tokens,
        load,
        idle_unload: Some(Duration::from_secs(idle_unload)).filter(|idle_unload| !idle_unload.is_zero()),
        max_waiting,
        loader: Arc::new(loader),
    };
    Ok((entry, engine))
}

/// Waits for an engine that has been shut down, and for its memory.
pub(super) fn join(engine: &EngineThread) {
    let thread = engine.lock().expect("nothing panics while it holds this").take();
    // That it panicked is the alarm's to tell.
    let _ = thread.map(JoinHandle::join);
}

impl Loader for ModelLoader {
    fn load(&self) -> Result<Chat, LoadFailure> {
        // `{:#}` joins the causes into one sentence.
        self.load().map_err(|error| LoadFailure::new(format!("{error:#}")))
    }
}

impl ModelLoader {
    fn load(&self) -> anyhow::Result<Chat> {
        join(&self.engine);
        let began = Instant::now();
        let checked = self.checked.lock().expect("nothing panics while it holds this").take();
        let Folder { dir, chat } = checked.map_or_else(|| Folder::open(&self.config), Ok)?;
        let (ModelConfig { name, engine: config, .. }, spec) = (&self.config, dir.spec);
        tracing::info!(
            model = name,
            variant = dir.variant.name,
            family = spec.family.name(),
            layers = spec.kv.len() / 2,
            context_tokens = spec.context_tokens,
            kv_bytes_per_token = spec.kv_bytes_per_token(),
            "loading model"
        );
        let (engine, handle) = Engine::new(config, engine::load(&self.runtime, spec, config)?);
        let alarm = Alarm(self.alarm.clone());
        let run = move || {
            let _alarm = alarm;
            engine.run();
        };
        let thread = thread::Builder::new().name(format!("engine {name}")).spawn(run);
        let thread = thread.context("the engine thread cannot be started")?;
        *self.engine.lock().expect("nothing panics while it holds this") = Some(thread);
        let seconds = began.elapsed().as_secs_f32();
        tracing::info!(model = name, context_tokens = handle.limits().context_tokens, seconds, "model is ready");
        Ok(Chat::new(chat, handle))
    }
}

/// In the config, leaves a choice to ortolan.
const AUTO: &str = "auto";

/// Goes off when the thread that holds it panics.
struct Alarm(watch::Sender<bool>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("an engine has failed; the server stops");
            self.0.send_replace(true);
        }
    }
}

impl Folder {
    fn open(config: &ModelConfig) -> anyhow::Result<Self> {
        let device = machine::device(&config.engine.providers);
        let variant = Some(config.variant.as_str()).filter(|variant| *variant != AUTO);
        let target = Target { variant, device, memory_bytes: machine::free_memory(device) };
        let dir = ModelDir::open(&config.path, &target)?;
        let chat = chat_model(&dir)?;
        Ok(Self { dir, chat })
    }
}

fn chat_model(dir: &ModelDir) -> anyhow::Result<ChatModel> {
    let tokenizer = Tokenizer::load(&dir.tokenizer)?;
    if dir.spec.vocab_size < tokenizer.vocab_size() {
        bail!(
            "{} has {} tokens and the graph scores only {}; take tokenizer and graph from one export",
            dir.tokenizer.display(),
            tokenizer.vocab_size(),
            dir.spec.vocab_size
        );
    }
    let Some(source) = dir.chat_template() else {
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
        tokenizer: Arc::new(tokenizer),
        template,
        reply_format: ReplyFormat::of_template(source),
        stop_tokens: stop_tokens.into(),
        default_sampling: dir.generation.sampling(),
        prompt_permits: Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_goes_off_when_its_thread_panics_and_not_when_it_ends() {
        let (alarm, alarms) = watch::channel(false);
        for panics in [false, true] {
            let alarm = Alarm(alarm.clone());
            let thread = thread::spawn(move || {
                let _alarm = alarm;
                assert!(!panics, "injected");
            });
            assert_eq!((thread.join().is_err(), *alarms.borrow()), (panics, panics));
        }
    }
}
