//! The way from a listing to a snapshot: what is missing is fetched, and linked once it is whole.

use super::{
    HubError, Progress, Repo,
    blob::{self, BlobError, Steps},
    cache::RepoCache,
    http::{Failure, Http},
    join,
    listing::{Listing, RemoteFile},
    needed,
};
use crate::model_dir::{
    data_files,
    variant::{ListedFile, Variant},
};
use std::io;

/// One pull of a model.
pub(super) struct Pull<'p> {
    pub(super) http: &'p Http,
    pub(super) repo: &'p Repo,
    pub(super) listing: &'p Listing,
    pub(super) cache: &'p RepoCache,
    pub(super) progress: &'p dyn Progress,
}

impl Pull<'_> {
    /// Fetches a variant. `files` are those below the repository's folder.
    pub(super) fn run(&self, files: &[ListedFile], variant: &Variant) -> Result<(), HubError> {
        let no_tokenizer = || HubError::NoTokenizer { repo: self.repo.to_string() };
        let needed = self.remote(&needed::paths(files, variant).ok_or_else(no_tokenizer)?);
        self.fetch_all(&needed)?;
        // Nearly always data files are called after their graph, but it may name others.
        let dir = variant.graph.rsplit_once('/').map_or("", |(dir, _)| dir);
        let graph = self.remote(&[&variant.graph]).first().map(|file| self.cache.blob(&file.hash));
        // What is no graph names none; what opens it tells why.
        let named = graph.and_then(|graph| data_files(&graph).ok()).unwrap_or_default();
        let named: Vec<String> = named.keys().map(|name| join(dir, name.trim_start_matches("./"))).collect();
        let mut others = self.remote(&named.iter().map(String::as_str).collect::<Vec<_>>());
        others.retain(|file| needed.iter().all(|known| known.path != file.path));
        if !others.is_empty() {
            self.fetch_all(&others)?;
        }
        // The graph comes last, so that where it is, everything is.
        for file in others.into_iter().chain(needed) {
            let linked = self.cache.link(&self.listing.commit, &file.path, &file.hash);
            linked.map_err(|cause| self.unwritable(cause))?;
        }
        let remembered = self.cache.set_commit(&self.repo.revision, &self.listing.commit);
        remembered.map_err(|cause| self.unwritable(cause))?;
        self.progress.ends();
        Ok(())
    }

    /// Those of the paths that the repository has.
    fn remote(&self, paths: &[&str]) -> Vec<&RemoteFile> {
        let find = |path: &&str| {
            let path = join(&self.repo.folder, path);
            self.listing.files.iter().find(|file| file.path == path)
        };
        paths.iter().filter_map(find).collect()
    }

    fn fetch_all(&self, files: &[&RemoteFile]) -> Result<(), HubError> {
        let here = |file: &RemoteFile| self.cache.bytes_of(&file.hash).min(file.bytes);
        let total = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let present = files.iter().map(|file| here(file)).fold(0, u64::saturating_add);
        self.check_space(total - present)?;
        self.progress.begins(total, present);
        let mut before = 0;
        for file in files {
            if here(file) < file.bytes {
                self.progress.file(&file.path, file.bytes);
            }
            self.fetch(file, before)?;
            before += file.bytes;
            self.progress.at(before);
        }
        Ok(())
    }

    /// `before` is how many bytes the files before this one have.
    fn fetch(&self, file: &RemoteFile, before: u64) -> Result<(), HubError> {
        let url = self
            .http
            .address(self.repo.id.split('/').chain(["resolve", &self.listing.commit]).chain(file.path.split('/')));
        let steps = Steps { progress: self.progress, before };
        let (repo, path) = (self.repo.to_string(), file.path.clone());
        blob::fetch(self.http, &url, file, self.cache, steps).map_err(|error| match error {
            BlobError::Http(Failure::Lost { cause, .. }) => HubError::Interrupted { repo, path, cause },
            BlobError::Http(failure) => self.http.error(failure, &url, self.repo),
            BlobError::WrongHash => HubError::WrongHash { repo, path },
            BlobError::Disk { path, cause } => HubError::Unwritable { path, cause },
        })
    }

    /// Gigabytes that do not fit should not be begun.
    fn check_space(&self, needed: u64) -> Result<(), HubError> {
        let free = self.cache.free_bytes().map_err(|cause| self.unwritable(cause))?;
        if free < needed {
            let cache = self.cache.root().to_path_buf();
            return Err(HubError::NoSpace { repo: self.repo.to_string(), needed, free, cache });
        }
        Ok(())
    }

    fn unwritable(&self, cause: io::Error) -> HubError {
        HubError::Unwritable { path: self.cache.root().to_path_buf(), cause }
    }
}
