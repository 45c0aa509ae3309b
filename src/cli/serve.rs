//! `ortolan serve`

use super::{
    SUCCESS,
    loader::{self, EngineFailure},
    pull, report,
};
use crate::{
    chat::Models,
    config::Config,
    hub::Repo,
    responses::Dialect,
    server::{self, AppState},
    store::Store,
    telemetry,
};
use anyhow::{Context, anyhow, bail};
use futures::future;
use serde_json::json;
use std::{cell::OnceCell, env, path::Path, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Longer than a write to a store takes that works.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Longer than most runs take, and than it takes to give back what an engine has.
const LAST_RUNS: Duration = Duration::from_secs(10);
/// `EX_SOFTWARE` of sysexits.h: the engine failed, and a supervisor should start the process again.
const ENGINE_FAILED: u8 = 70;
/// `EX_OSERR` of sysexits.h: a device was lost. A supervisor should start the process again and, where that ends so too, look
/// at the device.
const DEVICE_LOST: u8 = 71;

/// The setting that serves these models instead of the configured ones.
pub(super) fn setting(models: &[String]) -> anyhow::Result<Option<String>> {
    let entries = models.iter().map(entry).collect::<anyhow::Result<Vec<String>>>()?;
    Ok((!entries.is_empty()).then(|| format!("models=[{}]", entries.join(", "))))
}

/// A folder under its name, or a repository under its own.
fn entry(model: &String) -> anyhow::Result<String> {
    let (name, key) = if Path::new(model).is_dir() {
        let real = Path::new(model).canonicalize()?;
        (real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned(), "path")
    } else {
        let Ok(repo) = model.parse::<Repo>() else {
            bail!("`{model}` is neither a model folder nor a repository on the hub (ORG/NAME)");
        };
        (repo.name().to_owned(), "repo")
    };
    // A string in JSON is one in TOML.
    Ok(format!("{{ name = {}, {key} = {} }}", json!(name), json!(model)))
}

pub(super) fn run(mut config: Config) -> anyhow::Result<u8> {
    if let Err(error) = telemetry::start(&config.log) {
        bail!("`log.filter` is not a filter: {error}; write a level such as \"info\"");
    }
    // Before gigabytes are fetched that nothing could run.
    let runtime = super::runtime(&config.runtime)?;
    // Before signals are waited for: while gigabytes are fetched they end the process, and the next start goes on from there.
    pull::find_or_fetch(&mut config)?;
    // So that a signal ends the process well whatever it is at.
    let system = actix_rt::System::new();
    let signals = system.block_on(async { server::signals() })?;
    // So that a port in use is known before anything is read.
    let listener = server::bind(&config.server)?;

    let (alarm, mut alarms) = watch::channel(None);
    let entry = |model| loader::entry(model, &runtime, &alarm);
    let entries = config.models.into_iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
    let (entries, engines): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
    let models = Models::new(entries);
    let store = system.block_on(Store::open(&config.store, |name| env::var_os(name)))?;
    if let Some(store) = &store {
        system.block_on(config.responses.complete(store))?;
    }
    let dialect = Dialect::new(&config.responses)?;
    let state = AppState::new(config.server, dialect, models.clone(), store.clone());
    let responder = state.responder().clone();

    let load_failure = OnceCell::new();
    let served = system.block_on(async {
        // A model that is not there, or an engine that fails, is a reason to stop, too: replies get their last events before
        // the process ends.
        let failure = async {
            let missing = async {
                match models.load_at_start().await {
                    Ok(()) => future::pending().await,
                    Err(failure) => failure,
                }
            };
            tokio::select! {
                _ = alarms.wait_for(Option::is_some) => {}
                failure = missing => load_failure.set(failure).expect("nothing else sets it"),
            }
        };
        let unloading = models.clone();
        actix_rt::spawn(async move { unloading.unload_idle().await });
        if let Some(store) = store {
            actix_rt::spawn(async move { store.sweep_forever().await });
        }
        let work = actix_rt::spawn(responder.clone().work());
        let served = server::serve(listener, state, failure, signals).await;
        // What is written in the background is kept, or left for the next start.
        responder.stop();
        models.shut_down();
        let _late = timeout(LAST_WRITES, work).await;
        served
    });
    let is_loading = models.is_loading();
    // Others may have something on the device that is lost, and to give it back may take for ever.
    let is_lost = || *alarm.borrow() == Some(EngineFailure::DeviceLost);
    let have_ended = !is_lost() && loader::join_within(engines, LAST_RUNS);
    if !is_lost() && !have_ended {
        tracing::error!(seconds = LAST_RUNS.as_secs(), "an engine has not ended in time; the process ends without it");
    }

    let engine_failure = *alarm.borrow();
    let result = match (engine_failure, served, load_failure.into_inner()) {
        (Some(failure), ..) => Ok(status(failure)),
        (None, Err(error), _) => Err(error).context("the server has failed"),
        (None, Ok(()), Some(failure)) => Err(anyhow!(failure)),
        (None, Ok(()), None) => Ok(SUCCESS),
    };
    if is_loading || is_lost() || !have_ended {
        // The usual way out destroys what is global in ONNX Runtime while a load or an engine still uses it, and crashes.
        signal_hook::low_level::exit(report(result).into());
    }
    result
}

/// What the process ends with.
fn status(failure: EngineFailure) -> u8 {
    match failure {
        EngineFailure::Panicked => ENGINE_FAILED,
        EngineFailure::DeviceLost => DEVICE_LOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_can_tell_why_the_process_has_ended() {
        assert_eq!([EngineFailure::Panicked, EngineFailure::DeviceLost].map(status), [70, 71]);
    }

    #[test]
    fn models_are_named_by_folder_or_by_repository() {
        let models = ["models/starter", "org/name@v1", "org/name/cpu"].map(str::to_owned);
        insta::assert_snapshot!(setting(&models).unwrap().unwrap(), @r#"models=[{ name = "starter", path = "models/starter" }, { name = "name", repo = "org/name@v1" }, { name = "name", repo = "org/name/cpu" }]"#);
        insta::assert_snapshot!(setting(&["nowhere".to_owned()]).unwrap_err(), @"`nowhere` is neither a model folder nor a repository on the hub (ORG/NAME)");
        assert_eq!(setting(&[]).unwrap(), None);
    }
}
