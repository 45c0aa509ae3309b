//! Models of the Hugging Face hub: fetched into the cache that its own libraries use, or found there.

mod blob;
mod cache;
mod config;
mod error;
mod http;
mod listing;
mod needed;
mod pull;
mod repo;

pub use config::HubConfig;
pub use error::HubError;
pub use repo::Repo;

use crate::model_dir::{
    Target, data_files,
    variant::{self, Variant},
};
use cache::RepoCache;
use config::Settings;
use http::Http;
use listing::{Listing, below};
use pull::Pull;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Fetches and finds models.
pub struct Hub {
    settings: Settings,
    http: Http,
}

/// Which model is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    /// Where it is.
    pub repo: &'w Repo,
    /// Which of its graphs, or for what it is chosen.
    pub target: Target<'w>,
}

/// A model that is in the cache.
#[derive(Debug)]
pub struct Pulled {
    /// The folder with its `config.json`.
    pub dir: PathBuf,
    /// The variant's name in that folder.
    pub variant: String,
    /// The folder of the repository that it is, and its revision.
    pub repo: Repo,
}

/// Who is told how far a pull is.
pub trait Progress {
    /// How many bytes the model has, and how many of them are here.
    fn begins(&self, bytes: u64, here: u64);
    /// A file is fetched now.
    fn file(&self, path: &str, bytes: u64);
    /// So many bytes of the model are here.
    fn at(&self, bytes: u64);
    /// Something that a person should know.
    fn notice(&self, text: &str);
    /// Everything is here.
    fn ends(&self);
}

impl Hub {
    /// `variable` looks up an environment variable.
    ///
    /// # Errors
    /// A setting that is wrong, or the place of the cache where nothing says it.
    pub fn new(config: &HubConfig, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let settings = Settings::new(config, variable)?;
        Ok(Self { http: Http::new(&settings), settings })
    }

    /// Finds a model that was fetched before, without asking anybody.
    pub fn find(&self, wanted: Wanted<'_>) -> Option<Pulled> {
        let cache = RepoCache::new(&self.settings.cache, &wanted.repo.id);
        let commit = cache.commit(&wanted.repo.revision)?;
        let files = below(cache.files(&commit), &wanted.repo.folder);
        let variant = variant::choose(&files, &wanted.target).ok()?;
        // A pull makes the graph last, but another tool may have been stopped between a graph and what it needs.
        let graph = cache.snapshot(&commit).join(join(&wanted.repo.folder, &variant.graph));
        let data_files = data_files(&graph).unwrap_or_default();
        let is_whole = needed::paths(&files, &variant).is_some()
            && data_files.keys().all(|name| graph.with_file_name(name).is_file());
        is_whole.then(|| pulled(&cache, &commit, wanted.repo, &variant))
    }

    /// Fetches what the cache lacks of a model. Without a network, what was fetched before is good enough.
    ///
    /// # Errors
    /// See [`HubError`]; each is one sentence for the operator.
    pub fn pull(&self, wanted: Wanted<'_>, progress: &dyn Progress) -> Result<Pulled, HubError> {
        let Wanted { repo, .. } = wanted;
        if self.settings.is_offline {
            let offline = || HubError::Offline { repo: repo.to_string(), cache: self.settings.cache.clone() };
            return self.find(wanted).ok_or_else(offline);
        }
        let listing = match Listing::fetch(&self.http, repo, progress) {
            Ok(listing) => listing,
            Err(error @ HubError::Unreachable { .. }) => {
                let Some(found) = self.find(wanted) else { return Err(error) };
                progress.notice(&format!("{error}; what was fetched before is taken"));
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        let files = listing.below(&repo.folder);
        let chosen = variant::choose(&files, &wanted.target);
        let variant = chosen.map_err(|cause| HubError::Variant { repo: repo.to_string(), cause })?;
        let cache = RepoCache::new(&self.settings.cache, &repo.id);
        Pull { http: &self.http, repo, listing: &listing, cache: &cache, progress }.run(&files, &variant)?;
        Ok(pulled(&cache, &listing.commit, repo, &variant))
    }
}

fn pulled(cache: &RepoCache, commit: &str, repo: &Repo, variant: &Variant) -> Pulled {
    let folder = join(&repo.folder, &variant.dir);
    Pulled {
        dir: cache.snapshot(commit).components().chain(Path::new(&folder).components()).collect(),
        variant: variant.name_in_dir().to_owned(),
        repo: Repo { folder, ..repo.clone() },
    }
}

/// A path below a folder, either of which may be nothing.
fn join(folder: &str, path: &str) -> String {
    if folder.is_empty() || path.is_empty() { format!("{folder}{path}") } else { format!("{folder}/{path}") }
}

/// The rest of a path that lies below a folder, which may be nothing.
fn relative<'p>(path: &'p str, folder: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(folder)?;
    if folder.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}
