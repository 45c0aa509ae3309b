//! Models of the Hugging Face hub: fetched into the cache that its own libraries use, or found there.

mod blob;
mod cache;
mod config;
mod error;
mod http;
mod listing;
mod needed;
mod repo;

pub use config::HubConfig;
pub use error::HubError;
pub use repo::Repo;

use crate::model_dir::variant::{self, Device, ListedFile, Variant, VariantError};
use blob::{BlobError, Watcher};
use cache::RepoCache;
use config::Settings;
use http::{Failure, Http};
use listing::{Listing, RemoteFile, below};
use std::{
    ffi::OsString,
    fs,
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
    /// Which of its graphs; none takes the best for the device.
    pub variant: Option<&'w str>,
    /// What it is to run on.
    pub device: Device,
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
        // A graph comes last of all the files that it needs.
        let files = below(cache.files(&commit), &wanted.repo.folder);
        let variant = wanted.choose(&files).ok()?;
        Some(pulled(&cache, &commit, wanted.repo, &variant))
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
        let listing = Listing::fetch(&self.http, &self.settings.endpoint, &repo.id, &repo.revision)
            .map_err(|(url, failure)| failure.about(&self.settings, &url, &repo.id, &repo.revision));
        match (listing, self.find(wanted)) {
            (Ok(listing), _) => self.fetch(wanted, &listing, progress),
            (Err(error @ HubError::Unreachable { .. }), Some(found)) => {
                progress.notice(&format!("{error}; what was fetched before is taken"));
                Ok(found)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn fetch(&self, wanted: Wanted<'_>, listing: &Listing, progress: &dyn Progress) -> Result<Pulled, HubError> {
        let Wanted { repo, .. } = wanted;
        let files = listing.below(&repo.folder);
        let chosen = wanted.choose(&files);
        let variant = chosen.map_err(|cause| HubError::Variant { repo: repo.to_string(), cause })?;
        let paths = needed::paths(&files, &variant).into_iter().map(|path| join(&repo.folder, path));
        let find = |path: String| listing.files.iter().find(|file| file.path == path);
        let needed: Vec<&RemoteFile> = paths.filter_map(find).collect();
        let cache = RepoCache::new(&self.settings.cache, &repo.id);
        let here = |file: &RemoteFile| cache.bytes_of(&file.hash).min(file.bytes);
        let sum = |bytes: u64, more: u64| bytes.saturating_add(more);
        let total = needed.iter().map(|file| file.bytes).fold(0, sum);
        let present = needed.iter().map(|file| here(file)).fold(0, sum);
        self.check_space(repo, total - present)?;
        progress.begins(total, present);
        let mut before = 0;
        for file in needed {
            if here(file) < file.bytes {
                progress.file(&file.path, file.bytes);
            }
            let mut steps = Steps { progress, path: &file.path, before };
            self.fetch_file(repo, &listing.commit, file, &cache, &mut steps)?;
            before += file.bytes;
            progress.at(before);
        }
        let remembered = cache.set_commit(&repo.revision, &listing.commit);
        remembered.map_err(|cause| HubError::Unwritable { path: self.settings.cache.clone(), cause })?;
        progress.ends();
        Ok(pulled(&cache, &listing.commit, repo, &variant))
    }

    fn fetch_file(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        cache: &RepoCache,
        watcher: &mut dyn Watcher,
    ) -> Result<(), HubError> {
        let parts = repo.id.split('/').chain(["resolve", commit]).chain(file.path.split('/'));
        let url = listing::address(&self.settings.endpoint, parts);
        let of_repo = || (repo.to_string(), file.path.clone());
        blob::fetch(&self.http, &url, file, cache, watcher).map_err(|error| match error {
            BlobError::Http(Failure::Lost { cause, .. }) => {
                let (repo, path) = of_repo();
                HubError::Interrupted { repo, path, cause }
            }
            BlobError::Http(failure) => failure.about(&self.settings, &url, &repo.id, &repo.revision),
            BlobError::WrongHash => {
                let (repo, path) = of_repo();
                HubError::WrongHash { repo, path }
            }
            BlobError::Disk { path, cause } => HubError::Unwritable { path, cause },
        })?;
        let linked = cache.link(commit, &file.path, &file.hash);
        linked.map_err(|cause| HubError::Unwritable { path: cache.snapshot(commit).join(&file.path), cause })
    }

    /// Gigabytes that do not fit should not be begun.
    fn check_space(&self, repo: &Repo, needed: u64) -> Result<(), HubError> {
        let cache = &self.settings.cache;
        let unwritable = |cause| HubError::Unwritable { path: cache.clone(), cause };
        fs::create_dir_all(cache).map_err(unwritable)?;
        let disk = rustix::fs::statvfs(cache).map_err(|error| unwritable(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            return Err(HubError::NoSpace { repo: repo.to_string(), needed, free, cache: cache.clone() });
        }
        Ok(())
    }
}

impl Wanted<'_> {
    fn choose(&self, files: &[ListedFile]) -> Result<Variant, VariantError> {
        variant::choose(files, self.variant, self.device, None)
    }
}

/// Adds up how far the files of a pull are.
struct Steps<'s> {
    progress: &'s dyn Progress,
    path: &'s str,
    /// Bytes of the files before this one.
    before: u64,
}

impl Watcher for Steps<'_> {
    fn at(&mut self, bytes: u64) {
        self.progress.at(self.before + bytes);
    }

    fn waits(&mut self) {
        self.progress.notice(&format!("another process fetches {}; waiting for it", self.path));
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

fn join(folder: &str, path: &str) -> String {
    if folder.is_empty() || path.is_empty() { format!("{folder}{path}") } else { format!("{folder}/{path}") }
}
