//! `ortolan pull REPO`, and the models of a config that are named by their repository.

use super::{
    SUCCESS, VariantArgs, checked_model, print_line,
    progress::{self, Lines},
};
use crate::{
    config::{Config, ModelConfig},
    hub::{Hub, HubError, Pulled, Repo, Wanted},
};
use clap::Args;
use serde_json::json;
use std::env;

#[derive(Args, Debug)]
pub(super) struct PullArgs {
    /// ORG/NAME, with @REVISION for a branch, tag or commit, and /FOLDER for a model below the repository's top.
    repo: Repo,
    #[command(flatten)]
    variant: VariantArgs,
}

pub(super) fn run(args: &PullArgs, config: &Config) -> anyhow::Result<u8> {
    let hub = hub(config)?;
    let target = checked_model::target(args.variant.or_configured(config), &config.engine);
    let wanted = Wanted { repo: &args.repo, target };
    let Pulled { dir, variant, repo } = hub.pull(wanted, &*progress::on_stderr())?;
    // A string in JSON is one in TOML.
    let [name, named] = [repo.name(), &repo.to_string()].map(|text| json!(text));
    print_line(format_args!("{}\n\n[[models]]\nname = {name}\nrepo = {named}", dir.display()))?;
    if args.variant.variant.is_some() && args.repo == repo {
        print_line(format_args!("variant = {}", json!(variant)))?;
    }
    Ok(SUCCESS)
}

/// Gives each model that is named by its repository a folder: the cache's if it is there, else it is fetched first.
pub(super) fn find_or_fetch(config: &mut Config) -> anyhow::Result<()> {
    let mut models = std::mem::take(&mut config.models);
    for model in &mut models {
        find(config, model, config.hub.download)?;
    }
    config.models = models;
    Ok(())
}

/// The same for one model, which may be fetched or not.
pub(super) fn find(config: &Config, model: &mut ModelConfig, may_fetch: bool) -> anyhow::Result<()> {
    let ModelConfig { name, repo: Some(repo), variant, engine, .. } = &*model else { return Ok(()) };
    let hub = hub(config)?;
    let wanted = Wanted { repo, target: checked_model::target(variant, engine) };
    let pulled = match hub.find(wanted) {
        Some(found) => found,
        None if may_fetch => {
            tracing::info!(model = name, %repo, "fetching model");
            hub.pull(wanted, &Lines::new(|text| tracing::info!("{text}")))?
        }
        None => return Err(HubError::NotFetched { repo: repo.to_string() }.into()),
    };
    model.path = pulled.dir;
    model.variant = pulled.variant;
    Ok(())
}

fn hub(config: &Config) -> Result<Hub, HubError> {
    Hub::new(&config.hub, |name| env::var_os(name))
}
