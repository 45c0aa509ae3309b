//! `ortolan doctor`: what this machine lacks to serve what the config says.

use super::{
    FAILURE, SUCCESS, checked_model::CheckedModel, gpu, inspect, machine, memory::Memory, print_line, pull, runtime,
};
use crate::{
    config::{Config, ModelConfig},
    engine::{CudaLibrary, LoadError, ProviderName, Runtime},
    model_dir::variant,
    server::{self, ServerConfig},
    store::{Store, StoreConfig},
};
use std::{env, path::Path};

/// Checks everything that can be checked without loading a model; tells each finding on a line of its own.
pub(super) fn run(config: &Config) -> anyhow::Result<u8> {
    let mut report = Report::default();
    match runtime(&config.runtime) {
        Ok(runtime) => {
            report.good("runtime", runtime.library().display())?;
            check_providers(config, &runtime, &mut report)?;
        }
        Err(error) => report.bad("runtime", error)?,
    }
    match machine::memory(variant::Device::Cpu) {
        Some(memory) => report.good(
            "memory",
            format_args!("{} of {} are free", variant::size(memory.free), variant::size(memory.total)),
        )?,
        None => report.doubtful("memory", "the system does not tell how much is free")?,
    }
    check_keys(&config.server, &mut report)?;
    check_store(&config.store, &mut report)?;
    for model in &config.models {
        check_model(config, model.clone(), &mut report)?;
    }
    report.finish()
}

/// Where it is. The embedded one is not opened: it would belong to whoever asks.
fn check_store(config: &StoreConfig, report: &mut Report) -> anyhow::Result<()> {
    let part = "store";
    if !config.enabled {
        return report.good(part, "nothing is stored (`store.enabled` is false)");
    }
    if config.url.is_empty() {
        return match config.folder(|name| env::var_os(name)) {
            Ok(folder) => report.good(part, format_args!("in {}", folder.display())),
            Err(error) => report.bad(part, error),
        };
    }
    match actix_rt::System::new().block_on(Store::open(config, |name| env::var_os(name))) {
        Ok(_) => report.good(part, "in PostgreSQL, which answers"),
        Err(error) => report.bad(part, format_args!("{:#}", anyhow::Error::from(error))),
    }
}

/// How many there are, and whether the address to listen on needs any.
fn check_keys(config: &ServerConfig, report: &mut Report) -> anyhow::Result<()> {
    let (part, host) = ("api keys", &config.host);
    let addresses = match server::resolve(config) {
        Ok(addresses) => addresses,
        Err(error) => return report.bad(part, error),
    };
    let is_loopback = addresses.iter().all(|address| address.ip().is_loopback());
    match (config.api_keys.len(), is_loopback) {
        (0, true) => report.good(part, format_args!("none, and {host} needs none: only this machine can reach it")),
        (0, false) => report.doubtful(
            part,
            format_args!("none, and others can reach {host}: `server.insecure_no_auth` lets everybody in"),
        ),
        (count, true) => report.good(part, format_args!("{count}, though only this machine can reach {host}")),
        (count, false) => report.good(part, format_args!("{count}, and others can reach {host}")),
    }
}

/// Each that any model names, once on each device, and what those for GPUs need.
fn check_providers(config: &Config, runtime: &Runtime, report: &mut Report) -> anyhow::Result<()> {
    let mut checked = Vec::new();
    let mut on_gpu = OnGpu::default();
    for config in config.models.iter().flat_map(|model| model.engine.replicas()) {
        for provider in config.providers {
            if checked.contains(&provider) {
                continue;
            }
            let part = format!("provider {provider}");
            let found = runtime.check(&provider);
            on_gpu.add(provider.name, runtime, found.is_ok());
            match found {
                Ok(()) => report.good(&part, "can be had")?,
                Err(error @ LoadError::Provider { .. }) if config.fallback => report.doubtful(&part, error)?,
                Err(error) => report.bad(&part, error)?,
            }
            checked.push(provider);
        }
    }
    on_gpu.tell(report)
}

/// What the providers for GPUs need, all together. That one of them cannot be had is told already, so that what it lacks is what to
/// look at.
#[derive(Default)]
struct OnGpu {
    libraries: Vec<CudaLibrary>,
    findings: Vec<gpu::Finding>,
    is_wanted: bool,
}

impl OnGpu {
    fn add(&mut self, provider: ProviderName, runtime: &Runtime, is_loaded: bool) {
        self.is_wanted |= provider != ProviderName::Cpu;
        let mut needed = runtime.cuda_libraries(provider).unwrap_or_default();
        needed.retain(|library| self.libraries.iter().all(|known| known.name != library.name));
        self.findings.extend(gpu::libraries(&needed, is_loaded));
        self.libraries.extend(needed);
    }

    fn tell(self, report: &mut Report) -> anyhow::Result<()> {
        let driver = self.is_wanted.then(|| gpu::driver(Path::new("/"), &self.libraries));
        for gpu::Finding { part, text, is_good } in self.findings.into_iter().chain(driver.into_iter().flatten()) {
            if is_good { report.good(&part, text)? } else { report.doubtful(&part, text)? }
        }
        Ok(())
    }
}

fn check_model(config: &Config, mut model: ModelConfig, report: &mut Report) -> anyhow::Result<()> {
    let part = format!("model {}", model.name);
    let found = pull::find(config, &mut model, false);
    let dir = match found.and_then(|()| CheckedModel::open(&model)) {
        Ok(model) => model.dir,
        Err(error) => return report.bad(&part, format_args!("{error:#}")),
    };
    let memory = Memory::of(&dir, &model.engine);
    report.good(
        &part,
        format_args!(
            "{} in {}, weights {}, {}{}",
            dir.variant.name,
            dir.path.display(),
            variant::size(memory.weights),
            memory.cache(),
            memory.for_each_engine()
        ),
    )?;
    inspect::problems(&dir, &model.engine).into_iter().try_for_each(|problem| report.doubtful(&part, problem))
}

/// Findings, as they are told.
#[derive(Debug, Default)]
struct Report {
    num_bad: usize,
}

impl Report {
    fn good(&mut self, part: &str, finding: impl std::fmt::Display) -> anyhow::Result<()> {
        print_line(format_args!("ok       {part:<18} {finding}"))
    }

    fn doubtful(&mut self, part: &str, finding: impl std::fmt::Display) -> anyhow::Result<()> {
        print_line(format_args!("look at  {part:<18} {finding}"))
    }

    fn bad(&mut self, part: &str, finding: impl std::fmt::Display) -> anyhow::Result<()> {
        self.num_bad += 1;
        print_line(format_args!("FAILED   {part:<18} {finding}"))
    }

    fn finish(self) -> anyhow::Result<u8> {
        Ok(if self.num_bad == 0 { SUCCESS } else { FAILURE })
    }
}
