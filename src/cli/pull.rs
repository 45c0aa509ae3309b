//! `ortolan pull REPO`, and the models of a config that are named by their repository.

use super::{
    SUCCESS, print_line,
    progress::{self, Lines},
};
use crate::{
    config::{Config, ModelConfig},
    engine::{EngineConfig, ProviderName},
    hub::{Hub, HubError, Pulled, Repo, Wanted},
    model_dir::variant::Device,
};
use clap::Args;
use std::env;

#[derive(Args, Debug)]
pub(super) struct PullArgs {
    /// ORG/NAME, with @REVISION for a branch, tag or commit, and /FOLDER for a model below the repository's top.
    repo: Repo,
    /// Which graph of the repository, such as q4f16; without it that of `loading.variant`, or the best one for the first of `engine.providers`.
    #[arg(long)]
    variant: Option<String>,
}

pub(super) fn run(args: &PullArgs, config: &Config) -> anyhow::Result<u8> {
    let hub = hub(config)?;
    let variant = args.variant.as_deref().or_else(|| named(&config.loading.variant));
    let wanted = Wanted { repo: &args.repo, variant, device: device(&config.engine) };
    let Pulled { dir, variant, repo } = hub.pull(wanted, &*progress::on_stderr())?;
    let name = repo.id.rsplit('/').next().unwrap_or_default().to_lowercase();
    print_line(format_args!("{}\n\n[[models]]\nname = \"{name}\"\nrepo = \"{repo}\"", dir.display()))?;
    if args.variant.is_some() && args.repo == repo {
        print_line(format_args!("variant = \"{variant}\""))?;
    }
    Ok(SUCCESS)
}

/// Gives each model that is named by its repository a folder: the cache's if it is there, else it is fetched first.
pub(super) fn find_or_fetch(config: &mut Config) -> anyhow::Result<()> {
    if config.models.iter().all(|model| model.repo.is_none()) {
        return Ok(());
    }
    let hub = hub(config)?;
    for model in &mut config.models {
        let ModelConfig { name, repo: Some(repo), variant, engine, .. } = &*model else { continue };
        let wanted = Wanted { repo, variant: named(variant), device: device(engine) };
        let pulled = match hub.find(wanted) {
            Some(found) => found,
            None if config.hub.download => {
                tracing::info!(model = name, %repo, "fetching model");
                hub.pull(wanted, &Lines::new(|text| tracing::info!("{text}")))?
            }
            None => return Err(HubError::NotFetched { repo: repo.to_string() }.into()),
        };
        model.path = pulled.dir;
        model.variant = pulled.variant;
    }
    Ok(())
}

fn hub(config: &Config) -> Result<Hub, HubError> {
    Hub::new(&config.hub, |name| env::var_os(name))
}

/// A model's setting, unless it leaves the variant open.
fn named(variant: &str) -> Option<&str> {
    Some(variant).filter(|variant| *variant != "auto")
}

fn device(engine: &EngineConfig) -> Device {
    match engine.providers.first().map(|provider| provider.name) {
        Some(ProviderName::Cuda | ProviderName::TensorRt) => Device::Gpu,
        Some(ProviderName::Cpu) | None => Device::Cpu,
    }
}
