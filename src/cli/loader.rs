//! One of `[[models]]`: its folder is checked at start, its engines started and, after it was unloaded, started again.

use super::checked_model::CheckedModel;
use crate::{
    chat::{Chat, LoadFailure, LoadTime, Loader, ModelEntry},
    config::ModelConfig,
    engine::{self, End, Engine, EngineConfig, EngineHandle, Fault, Model, ModelSpec, Replicas, Runtime},
};
use anyhow::Context;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

/// Loads one model each time it is asked to.
#[derive(Debug)]
pub(super) struct ModelLoader {
    config: ModelConfig,
    runtime: Runtime,
    alarm: watch::Sender<Option<EngineFailure>>,
    /// As it was checked, for a load that comes at once.
    checked: Mutex<Option<CheckedModel>>,
    engines: Arc<EngineThreads>,
}

/// The threads of the last load's engines.
pub(super) type EngineThreads = Mutex<Vec<JoinHandle<()>>>;

/// An engine before it has a thread.
type NewEngine = (Engine<Box<dyn Model>>, EngineHandle);

/// Why an engine has ended that nobody had told to. Of several, the last one of these counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum EngineFailure {
    /// It panicked.
    Panicked,
    /// Its device was lost, and with it all that the process has there.
    DeviceLost,
}

/// Checks the folder of a model and tells how to serve it. `alarm` gets the worst failure of an engine.
pub(super) fn entry(
    config: ModelConfig,
    runtime: &Runtime,
    alarm: &watch::Sender<Option<EngineFailure>>,
) -> anyhow::Result<(ModelEntry, Arc<EngineThreads>)> {
    let model = CheckedModel::open(&config)?;
    let ModelConfig { load, idle_unload, .. } = config;
    let (name, limits) = (config.name.clone(), &config.engine);
    let context_tokens = model.dir.spec.context_tokens.min(limits.max_context_tokens.get() as usize);
    let max_requests = limits.max_batch_size.get() as usize + limits.max_waiting.get() as usize;
    let max_waiting = max_requests * limits.replicas().len();
    let engines = Arc::<EngineThreads>::default();
    let loader = ModelLoader {
        config,
        runtime: runtime.clone(),
        alarm: alarm.clone(),
        checked: Mutex::new(Some(model).filter(|_| load == LoadTime::Start)),
        engines: Arc::clone(&engines),
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
    Ok((entry, engines))
}

/// Waits for engines that have been shut down, and for their memory.
pub(super) fn join(engines: &EngineThreads) {
    let threads = std::mem::take(&mut *engines.lock().expect("nothing panics while it holds this"));
    for thread in threads {
        // That it panicked is the alarm's to tell.
        let _ = thread.join();
    }
}

/// The same of all, but not for ever: a run may never end. False where one had not ended in that time.
pub(super) fn join_within(engines: Vec<Arc<EngineThreads>>, wait: Duration) -> bool {
    let (waiting, end) = mpsc::sync_channel::<()>(0);
    let joined = thread::Builder::new().spawn(move || {
        let _dropped_at_the_end = waiting;
        engines.iter().for_each(|engines| join(engines));
    });
    joined.is_ok() && end.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
}

impl Loader for ModelLoader {
    fn load(&self) -> Result<Chat, LoadFailure> {
        self.load().map_err(|error| {
            // `{:#}` joins the causes into one sentence.
            let message = format!("{error:#}");
            if Fault::of(&message) == Fault::DeviceLost {
                // No later load goes well, either.
                Alarm(self.alarm.clone()).raise(EngineFailure::DeviceLost);
            }
            LoadFailure::new(message)
        })
    }
}

impl ModelLoader {
    fn load(&self) -> anyhow::Result<Chat> {
        join(&self.engines);
        let began = Instant::now();
        let checked = self.checked.lock().expect("nothing panics while it holds this").take();
        let CheckedModel { dir, chat } = checked.map_or_else(|| CheckedModel::open(&self.config), Ok)?;
        let (ModelConfig { name, engine: config, .. }, spec) = (&self.config, dir.spec);
        tracing::info!(
            model = name,
            variant = dir.variant.name,
            family = spec.family.name(),
            layers = spec.num_layers,
            context_tokens = spec.context_tokens,
            cache_bytes_per_token = spec.cache_bytes_per_token(),
            "loading model"
        );
        let replicas = config.replicas();
        let mut engines = Vec::new();
        for (index, config) in replicas.iter().enumerate() {
            let engine = self.engine(&spec, &with_exporters_options(config, &dir.provider_options));
            if replicas.len() == 1 {
                engines.push(engine?);
                continue;
            }
            let failed = || format!("the engine for {} cannot be loaded", place(index, &replicas));
            engines.push(engine.with_context(failed)?);
            tracing::info!(model = name, engine = index, device = config.device(), "loaded one of its engines");
        }
        // None runs before all are there, so that one that cannot be loaded takes the others with it.
        let handles = engines.into_iter().map(|engine| self.start(engine)).collect::<anyhow::Result<Vec<_>>>()?;
        let replicas = Replicas::new(handles);
        let seconds = began.elapsed().as_secs_f32();
        tracing::info!(model = name, context_tokens = replicas.limits().context_tokens, seconds, "model is ready");
        Ok(Chat::new(chat, replicas))
    }

    fn engine(&self, spec: &ModelSpec, config: &EngineConfig) -> anyhow::Result<NewEngine> {
        Ok(Engine::new(config, engine::load(&self.runtime, spec.clone(), config)?))
    }

    /// Gives it its thread, which ends with the handle at the latest.
    fn start(&self, (engine, handle): NewEngine) -> anyhow::Result<EngineHandle> {
        let alarm = Alarm(self.alarm.clone());
        let thread = thread::Builder::new().name(format!("engine {}", self.config.name));
        let thread = thread.spawn(move || run(engine, &alarm));
        let thread = thread.context("the engine thread cannot be started")?;
        self.engines.lock().expect("nothing panics while it holds this").push(thread);
        Ok(handle)
    }
}

/// Until the engine ends. The alarm goes off unless it was told to.
fn run(engine: Engine<impl Model>, alarm: &Alarm) {
    match engine.run() {
        End::Shutdown => {}
        End::DeviceLost => alarm.raise(EngineFailure::DeviceLost),
    }
}

/// Which of a model's engines it is, for people.
fn place(index: usize, replicas: &[EngineConfig]) -> String {
    format!("{}, number {} of {},", replicas[index].device(), index + 1, replicas.len())
}

/// The config, with what the export asks of its providers and the config does not set. Graphs are not captured: that takes
/// more than the option. Which device is this machine's, whatever that of the exporter had.
fn with_exporters_options(config: &EngineConfig, wanted: &BTreeMap<String, BTreeMap<String, String>>) -> EngineConfig {
    const NOT_THEIRS: [&str; 2] = ["enable_cuda_graph", "device_id"];
    let mut config = config.clone();
    for provider in &mut config.providers {
        let options = wanted.get(&provider.name.to_string()).into_iter().flatten();
        for (key, value) in options.filter(|(key, _)| !NOT_THEIRS.contains(&key.as_str())) {
            match provider.name.check_option(key, value) {
                Ok(value) => drop(provider.options.entry(key.clone()).or_insert(value)),
                Err(reason) => tracing::warn!(reason, "an option that genai_config.json asks for is left out"),
            }
        }
    }
    config
}

/// Goes off when it is raised, and when the thread that holds it panics.
struct Alarm(watch::Sender<Option<EngineFailure>>);

impl Alarm {
    fn raise(&self, failure: EngineFailure) {
        tracing::error!(?failure, "an engine has failed; the server stops");
        self.0.send_modify(|worst| *worst = (*worst).max(Some(failure)));
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.raise(EngineFailure::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Overrides},
        engine::{Batch, Logits, ModelError, ModelLimits, Request, SamplingParams, ServiceClass, TokenId},
    };

    #[test]
    fn the_exports_options_are_taken_where_the_config_sets_none() {
        let settings =
            vec!["engine.providers=[{ name = \"cuda\", options = { sdpa_kernel = 1 } }, \"cpu\"]".to_owned()];
        let (config, _) = Config::load(&Overrides { settings, ..Overrides::default() }).unwrap();
        let options = [("sdpa_kernel", "2"), ("use_tf32", "3"), ("prefer_nhwc", "true")].into_iter();
        let options = options.chain([("enable_cuda_graph", "1"), ("device_id", "3")]);
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let wanted = BTreeMap::from([("cuda".to_owned(), options.collect())]);
        let config = with_exporters_options(&config.engine, &wanted);
        insta::assert_compact_debug_snapshot!(config.providers, @r#"[ProviderConfig { name: Cuda, options: {"prefer_nhwc": "1", "sdpa_kernel": "1"} }, ProviderConfig { name: Cpu, options: {} }]"#);
    }

    #[test]
    fn the_alarm_goes_off_when_its_thread_panics_and_not_when_it_ends() {
        let (alarm, alarms) = watch::channel(None);
        for (panics, expected) in [(false, None), (true, Some(EngineFailure::Panicked))] {
            let alarm = Alarm(alarm.clone());
            let thread = thread::spawn(move || {
                let _alarm = alarm;
                assert!(!panics, "injected");
            });
            assert_eq!((thread.join().is_err(), *alarms.borrow()), (panics, expected));
        }
    }

    /// Its device is lost from the beginning.
    struct Lost;

    impl Model for Lost {
        fn limits(&self) -> ModelLimits {
            ModelLimits {
                vocab_size: 8,
                context_tokens: 8,
                chunk_tokens: 8,
                rewindable_tokens: 8,
                can_verify_drafts: false,
                can_move_slots: false,
                blocks: None,
            }
        }

        fn forward(&mut self, _batch: &Batch, _logits: &mut Logits) -> Result<(), ModelError> {
            Err(ModelError::new("CUDA failure 719: unspecified launch failure"))
        }

        fn time_in_runs(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn a_lost_device_is_alarming_and_an_end_that_was_asked_for_is_not() {
        let (config, _) = Config::load(&Overrides::default()).unwrap();
        let (sender, alarms) = watch::channel(None);
        let (engine, handle) = Engine::new(&config.engine, Lost);
        handle.shut_down();
        run(engine, &Alarm(sender.clone()));
        assert_eq!(*alarms.borrow(), None);
        let (engine, handle) = Engine::new(&config.engine, Lost);
        let _stream = handle.submit(Request {
            prompt: vec![TokenId(1)],
            sampling: SamplingParams::default(),
            constraint: None,
            top_logprobs: None,
            stop_tokens: [].into(),
            max_output_tokens: None,
            service_class: ServiceClass::Default,
            cache_salt: 0,
            max_draft_tokens: None,
        });
        run(engine, &Alarm(sender));
        assert_eq!(*alarms.borrow(), Some(EngineFailure::DeviceLost));
    }

    #[test]
    fn a_lost_device_counts_whatever_else_fails() {
        let (panicked, lost) = (EngineFailure::Panicked, EngineFailure::DeviceLost);
        for failures in [[lost, panicked], [panicked, lost]] {
            let (alarm, alarms) = watch::channel(None);
            let alarm = Alarm(alarm);
            failures.into_iter().for_each(|failure| alarm.raise(failure));
            assert_eq!(*alarms.borrow(), Some(lost));
        }
    }

    #[test]
    fn an_engine_that_never_ends_is_left_behind() {
        let (ended, end) = mpsc::sync_channel::<()>(0);
        let thread = thread::spawn(move || end.recv().unwrap_or_default());
        let engines = vec![Arc::new(EngineThreads::new(vec![thread]))];
        assert!(!join_within(engines, Duration::from_millis(1)));
        drop(ended);
        let engines = vec![Arc::new(EngineThreads::new(vec![thread::spawn(|| ())])), Arc::default()];
        assert!(join_within(engines, Duration::from_secs(60)));
    }
}
