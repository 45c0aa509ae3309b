//! What a repository holds at a commit.

use super::{
    HubError, Progress, Repo,
    cache::{Hash, is_commit},
    http::Http,
    relative,
    repo::is_safe_path,
};
use crate::model_dir::variant::ListedFile;
use serde::Deserialize;
use url::Url;

const MAX_FILES: usize = 10_000;
const MAX_PAGES: usize = 100;

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) hash: Hash,
}

/// The files of a repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    r#type: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Listing {
    /// Asks the hub.
    pub(super) fn fetch(http: &Http, repo: &Repo, progress: &dyn Progress) -> Result<Self, HubError> {
        let api = |kind: &str, revision: &str| {
            let parts = ["api", "models"].into_iter().chain(repo.id.split('/'));
            http.address(parts.chain([kind, revision]))
        };
        let url = api("revision", &repo.revision);
        let (info, _) = http.json::<Info>(&url, progress).map_err(|failure| http.error(failure, &url, repo))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(unusable(&url, format!("{commit:?} is no commit")));
        }
        let mut page = api("tree", &commit);
        page.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (entries, next) =
                http.json::<Vec<Entry>>(&page, progress).map_err(|failure| http.error(failure, &page, repo))?;
            for entry in entries.into_iter().filter(|entry| entry.r#type == "file") {
                files.push(RemoteFile::try_from(entry).map_err(|message| unusable(&page, message))?);
            }
            match next {
                None if files.len() <= MAX_FILES => return Ok(Self { commit, files }),
                Some(next) if files.len() <= MAX_FILES => page = next,
                None | Some(_) => break,
            }
        }
        Err(unusable(&page, format!("it lists more than {MAX_FILES} files or {MAX_PAGES} pages of them")))
    }

    /// The paths below a folder, and the sizes.
    pub(super) fn below(&self, folder: &str) -> Vec<ListedFile> {
        let files = self.files.iter().map(|file| (file.path.clone(), file.bytes));
        below(files, folder)
    }
}

/// The part of a listing that lies in a folder, relative to it.
pub(super) fn below(files: impl IntoIterator<Item = ListedFile>, folder: &str) -> Vec<ListedFile> {
    files.into_iter().filter_map(|(path, bytes)| Some((relative(&path, folder)?.to_owned(), bytes))).collect()
}

impl TryFrom<Entry> for RemoteFile {
    /// For [`HubError::Unusable`].
    type Error = String;

    fn try_from(entry: Entry) -> Result<Self, String> {
        let Entry { path, oid, size, lfs, .. } = entry;
        if !is_safe_path(&path) {
            return Err(format!("the path {path:?} would lead out of its folder"));
        }
        let (bytes, hash) = match lfs {
            Some(lfs) => (lfs.size, Hash::sha256(lfs.oid)),
            None => (size, Hash::git_blob(oid)),
        };
        let hash = hash.ok_or_else(|| format!("it gives no hash of {path}"))?;
        Ok(Self { path, bytes, hash })
    }
}

fn unusable(url: &Url, message: String) -> HubError {
    HubError::Unusable { url: url.to_string(), message }
}
