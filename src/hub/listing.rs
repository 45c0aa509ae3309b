//! What a repository holds at a commit.

use super::{
    cache::Hash,
    http::{Failure, Http},
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
    /// Asks the hub. An error names what was asked for.
    pub(super) fn fetch(http: &Http, endpoint: &Url, id: &str, revision: &str) -> Result<Self, (Url, Failure)> {
        let api = |kind: &str, revision: &str| {
            let parts = ["api", "models"].into_iter().chain(id.split('/'));
            address(endpoint, parts.chain([kind, revision]))
        };
        let url = api("revision", revision);
        let (info, _) = http.json::<Info>(&url).map_err(|failure| (url.clone(), failure))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err((url, unusable(format!("{commit:?} is no commit"))));
        }
        let mut page = api("tree", &commit);
        page.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (entries, next) = http.json::<Vec<Entry>>(&page).map_err(|failure| (page.clone(), failure))?;
            for entry in entries.into_iter().filter(|entry| entry.r#type == "file") {
                files.push(RemoteFile::try_from(entry).map_err(|failure| (page.clone(), failure))?);
            }
            match next {
                None if files.len() <= MAX_FILES => return Ok(Self { commit, files }),
                Some(next) if files.len() <= MAX_FILES => page = next,
                None | Some(_) => break,
            }
        }
        Err((page, unusable(format!("it lists more than {MAX_FILES} files or {MAX_PAGES} pages of them"))))
    }

    /// The paths below a folder, and the sizes.
    pub(super) fn below(&self, folder: &str) -> Vec<ListedFile> {
        let files = self.files.iter().map(|file| (file.path.clone(), file.bytes));
        below(files, folder)
    }
}

/// The part of a listing that lies in a folder, relative to it.
pub(super) fn below(files: impl IntoIterator<Item = ListedFile>, folder: &str) -> Vec<ListedFile> {
    let relative = |(path, bytes): ListedFile| match path.strip_prefix(folder)? {
        rest if folder.is_empty() => Some((rest.to_owned(), bytes)),
        rest => Some((rest.strip_prefix('/')?.to_owned(), bytes)),
    };
    files.into_iter().filter_map(relative).collect()
}

impl TryFrom<Entry> for RemoteFile {
    type Error = Failure;

    fn try_from(entry: Entry) -> Result<Self, Failure> {
        let Entry { path, oid, size, lfs, .. } = entry;
        if !is_safe_path(&path) {
            return Err(unusable(format!("the path {path:?} would lead out of its folder")));
        }
        let (bytes, hash) = match lfs {
            Some(lfs) => (lfs.size, Hash::sha256(lfs.oid)),
            None => (size, Hash::git_blob(oid)),
        };
        let hash = hash.ok_or_else(|| unusable(format!("it gives no hash of {path}")))?;
        Ok(Self { path, bytes, hash })
    }
}

/// An address below the hub's, each part escaped.
pub(super) fn address<'p>(endpoint: &Url, parts: impl IntoIterator<Item = &'p str>) -> Url {
    let mut url = endpoint.clone();
    url.path_segments_mut().expect("the endpoint has a host").pop_if_empty().extend(parts);
    url
}

/// Whether this is a whole commit hash, which never means anything else.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

fn unusable(message: String) -> Failure {
    Failure::Unusable { message }
}
