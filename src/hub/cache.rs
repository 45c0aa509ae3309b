//! The folder that Hugging Face's own libraries keep repositories in, and that is shared with them: the contents of files
//! under their hashes in `blobs`, links to them in `snapshots/COMMIT`, and the commit of a branch in `refs`.

use super::repo::is_safe_path;
use crate::model_dir::variant::ListedFile;
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process,
};

/// Of a snapshot on disk; what is beyond is not looked at.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;

/// What the contents of a file are known by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Hash {
    /// Of the contents.
    Sha256(String),
    /// SHA-1 of git's header and the contents.
    GitBlob(String),
}

impl Hash {
    pub(super) fn sha256(hex: String) -> Option<Self> {
        is_hex(&hex, 64).then_some(Self::Sha256(hex))
    }

    pub(super) fn git_blob(hex: String) -> Option<Self> {
        is_hex(&hex, 40).then_some(Self::GitBlob(hex))
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// The part of the cache that belongs to one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// What holds all of it.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What the disk has room for.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        fs::create_dir_all(&self.root)?;
        let disk = rustix::fs::statvfs(&self.root)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The commit that a revision meant when it was last fetched.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers it, for when there is no network.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let written = self.temporary(&path);
        create_parent(&path)?;
        fs::write(&written, commit)?;
        fs::rename(written, path)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.root.join("blobs").join(hash.hex())
    }

    /// Bytes of a file that are here, in the blob or in what has come of it.
    pub(super) fn bytes_of(&self, hash: &Hash) -> u64 {
        let blob = self.blob(hash);
        let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
        length(&blob).or_else(|_| length(&incomplete(&blob))).unwrap_or(0)
    }

    /// Keeps other processes from the same blob. `wait` is called where one has it.
    pub(super) fn lock(&self, hash: &Hash, wait: impl FnOnce()) -> io::Result<File> {
        let path = self.locks.join(format!("{}.lock", hash.hex()));
        create_parent(&path)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => {
                wait();
                lock.lock().map(|()| lock)
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Puts a blob where a snapshot has the file.
    pub(super) fn link(&self, commit: &str, path: &str, hash: &Hash) -> io::Result<()> {
        let link = self.snapshot(commit).join(path);
        let depth = path.matches('/').count() + 2;
        let target = Path::new(&"../".repeat(depth)).join("blobs").join(hash.hex());
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        create_parent(&link)?;
        // In two steps, so that there is no moment without the file.
        let made = self.temporary(&link);
        let _ = fs::remove_file(&made);
        symlink(target, &made)?;
        fs::rename(&made, link).inspect_err(|_| {
            let _ = fs::remove_file(&made);
        })
    }

    /// A name that no other process takes, where nobody looks for files.
    fn temporary(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.root.join(format!(".{name}.{}.tmp", process::id()))
    }

    /// The files that a snapshot has.
    pub(super) fn files(&self, commit: &str) -> Vec<ListedFile> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        let mut folders = vec![(root.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(&root).ok().and_then(Path::to_str).filter(|path| is_safe_path(path));
                // Of what a link leads to.
                let (Some(relative), Ok(metadata)) = (relative, fs::metadata(&path)) else { continue };
                if metadata.is_file() && files.len() < MAX_FILES {
                    files.push((relative.to_owned(), metadata.len()));
                } else if metadata.is_dir() && depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            }
        }
        files.sort();
        files
    }
}

/// What has come of a blob.
pub(super) fn incomplete(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Whether this is a whole commit hash, which never means anything else.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}
