//! The contents of one file: fetched from where an earlier try stopped, checked, and only then given their name.

use super::{
    Progress,
    cache::{self, Hash, RepoCache},
    http::{Failure, Http},
    listing::RemoteFile,
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};
use ureq::{Body, http::Response};
use url::Url;

const BUFFER_BYTES: usize = 1 << 18;

/// Why a blob is not there.
pub(super) enum BlobError {
    /// No answer, or not to its end.
    Http(Failure),
    /// The contents are not those that the repository has.
    WrongHash,
    /// The disk.
    Disk { path: PathBuf, cause: io::Error },
}

/// Tells how far a file is as a part of its model.
#[derive(Clone, Copy)]
pub(super) struct Steps<'s> {
    pub(super) progress: &'s dyn Progress,
    /// Bytes of the files before this one.
    pub(super) before: u64,
}

/// Fetches a file that the cache lacks.
pub(super) fn fetch(
    http: &Http,
    url: &Url,
    file: &RemoteFile,
    repo: &RepoCache,
    steps: Steps<'_>,
) -> Result<(), BlobError> {
    let path = repo.blob(&file.hash);
    let disk = |cause| BlobError::Disk { path: path.clone(), cause };
    if is_whole(&path, file) {
        return Ok(());
    }
    let wait = || steps.progress.notice(&format!("another process fetches {}; waiting for it", file.path));
    let _lock = repo.lock(&file.hash, wait).map_err(disk)?;
    // Perhaps by the process that had the lock.
    if is_whole(&path, file) {
        return Ok(());
    }
    let mut partial = Partial::open(cache::incomplete(&path), file).map_err(disk)?;
    for _ in 0..2 {
        partial.complete(http, url, steps)?;
        if partial.hash() == file.hash.hex() {
            return partial.keep_as(&path).map_err(disk);
        }
        partial.clear().map_err(disk)?;
    }
    partial.delete().map_err(disk)?;
    Err(BlobError::WrongHash)
}

fn is_whole(blob: &Path, file: &RemoteFile) -> bool {
    fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.bytes)
}

/// The beginning of a file, on disk.
struct Partial<'f> {
    expected: &'f RemoteFile,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl<'f> Partial<'f> {
    fn open(path: PathBuf, expected: &'f RemoteFile) -> io::Result<Self> {
        cache::create_parent(&path)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut partial = Self { expected, path, file, hasher: Hasher::new(expected), bytes: 0 };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match partial.file.read(&mut buffer)? {
                0 => return Ok(partial),
                read => partial.count(&buffer[..read]),
            }
        }
    }

    /// Fetches what is missing, in as many tries as make progress.
    fn complete(&mut self, http: &Http, url: &Url, steps: Steps<'_>) -> Result<(), BlobError> {
        let mut patience = http.patience(steps.progress);
        let mut furthest = self.bytes;
        while self.bytes < self.expected.bytes {
            let Err(error) = self.append(http, url, steps) else { continue };
            let BlobError::Http(failure) = error else { return Err(error) };
            // A server that does not know ranges begins anew each time; that is no progress.
            if furthest < self.bytes {
                furthest = self.bytes;
                patience = http.patience(steps.progress);
            }
            patience.bear(failure).map_err(BlobError::Http)?;
        }
        Ok(())
    }

    /// One try.
    fn append(&mut self, http: &Http, url: &Url, steps: Steps<'_>) -> Result<(), BlobError> {
        let answer = http.get(url, self.bytes).map_err(BlobError::Http)?;
        match first_byte(&answer) {
            Some(first) if first == self.bytes => {}
            Some(0) => self.clear().map_err(|cause| self.disk(cause))?,
            Some(_) | None => return Err(lost("the server sends another part than it was asked for")),
        }
        steps.progress.at(steps.before + self.bytes);
        let mut body = answer.into_body().into_reader().take(self.expected.bytes - self.bytes);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Err(BlobError::Http(http.failure(&ureq::Error::from(error)))),
            };
            self.file.write_all(&buffer[..read]).map_err(|cause| self.disk(cause))?;
            self.count(&buffer[..read]);
            steps.progress.at(steps.before + self.bytes);
        }
        if self.bytes < self.expected.bytes { Err(lost("the connection ended before the file did")) } else { Ok(()) }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn hash(&self) -> String {
        self.hasher.clone().hex()
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher = Hasher::new(self.expected);
        self.bytes = 0;
        Ok(())
    }

    /// Whole on disk first, so that a power failure leaves no other file under this name.
    fn keep_as(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(self.path, path)
    }

    fn delete(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }

    fn disk(&self, cause: io::Error) -> BlobError {
        BlobError::Disk { path: self.path.clone(), cause }
    }
}

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    fn new(file: &RemoteFile) -> Self {
        match file.hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::GitBlob(_) => Self::Sha1(Sha1::new_with_prefix(format!("blob {}\0", file.bytes))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
        }
    }

    fn hex(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Sha1(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// Which byte of the file an answer begins with.
fn first_byte(answer: &Response<Body>) -> Option<u64> {
    if answer.status() != 206 {
        return Some(0);
    }
    let range = answer.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

fn lost(cause: &str) -> BlobError {
    BlobError::Http(Failure::Lost { cause: cause.to_owned(), wait: None })
}
