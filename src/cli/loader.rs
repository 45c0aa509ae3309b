//! One of `[[models]]`: its folder is checked at start, its engine started and, after it was unloaded, started again.

use super::checked_model::CheckedModel;
use crate::{
    chat::{Chat, LoadFailure, LoadTime, Loader, ModelEntry},
    config::ModelConfig,
    engine::{self, Engine, Runtime},
};
use anyhow::Context;
use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

/// Loads one model each time it is asked to.
#[derive(Debug)]
pub(super) struct ModelLoader {
    config: ModelConfig,
    runtime: Runtime,
    alarm: watch::Sender<bool>,
    /// As it was checked, for a load that comes at once.
    checked: Mutex<Option<CheckedModel>>,
    engine: Arc<EngineThread>,
}

/// The thread of the last load's engine.
pub(super) type EngineThread = Mutex<Option<JoinHandle<()>>>;

/// Checks the folder of a model and tells how to serve it. `alarm` becomes true when an engine panics.
pub(super) fn entry(
    config: ModelConfig,
    runtime: &Runtime,
    alarm: &watch::Sender<bool>,
) -> anyhow::Result<(ModelEntry, Arc<EngineThread>)> {
    let model = CheckedModel::open(&config)?;
    let ModelConfig { load, idle_unload, .. } = config;
    let (name, limits) = (config.name.clone(), &config.engine);
    let context_tokens = model.dir.spec.context_tokens.min(limits.max_context_tokens.get() as usize);
    let max_waiting = limits.max_batch_size.get() as usize + limits.max_waiting.get() as usize;
    let engine = Arc::<EngineThread>::default();
    let loader = ModelLoader {
        config,
        runtime: runtime.clone(),
        alarm: alarm.clone(),
        checked: Mutex::new(Some(model).filter(|_| load == LoadTime::Start)),
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
        let CheckedModel { dir, chat } = checked.map_or_else(|| CheckedModel::open(&self.config), Ok)?;
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
