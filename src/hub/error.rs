//! Why a model cannot be had.

use crate::model_dir::variant::{self, VariantError};
use std::{io, path::PathBuf};

/// Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Wrong spelling.
    #[error("`{text}` names no repository; write ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FOLDER")]
    Repo {
        /// As given.
        text: String,
    },
    /// Wrong spelling.
    #[error(
        "`{endpoint}` is no address of a hub; set `hub.endpoint` or HF_ENDPOINT to one such as https://huggingface.co"
    )]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// Neither the configuration nor the environment say.
    #[error("it is not known where models are kept; set `hub.cache` or HF_HUB_CACHE to a folder")]
    NoCache,
    /// It may be anybody.
    #[error(
        "{url} does not prove whose it is: {cause}; install the package ca-certificates, or set SSL_CERT_FILE to the certificates of your proxy"
    )]
    Untrusted {
        /// What was asked for.
        url: String,
        /// Why.
        cause: String,
    },
    /// Either it is not there, or nobody may know that it is.
    #[error(
        "{endpoint} has no model {id}; check its name, and if it is private set HF_TOKEN to a token that may read it"
    )]
    NoRepo {
        /// The hub.
        endpoint: String,
        /// The repository.
        id: String,
    },
    /// It would refuse what everybody may read, too.
    #[error(
        "{endpoint} does not take the token that it was sent; set HF_TOKEN to a valid one, or run `hf auth logout`"
    )]
    Token {
        /// The hub.
        endpoint: String,
    },
    /// No such branch, tag or commit.
    #[error("{id} has no revision `{revision}`; take a branch, tag or commit that its page lists")]
    NoRevision {
        /// The repository.
        id: String,
        /// As given.
        revision: String,
    },
    /// Its authors want to be asked.
    #[error("{id} may not be read ({status}); accept its terms at {page}, and set HF_TOKEN to a token of that account")]
    Forbidden {
        /// The repository.
        id: String,
        /// HTTP's.
        status: u16,
        /// Where to accept.
        page: String,
    },
    /// Any other refusal.
    #[error("{url} was refused with status {status}; try again later, or look at the repository's page")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP's.
        status: u16,
    },
    /// There was no usable answer to a question.
    #[error("{endpoint} cannot be reached: {cause}; mend the network, or set HF_ENDPOINT to a mirror")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// Why.
        cause: String,
    },
    /// The network is to be left alone.
    #[error("HF_HUB_OFFLINE is set and {repo} is not in {}; unset it for `ortolan pull {repo}`", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The configuration does not allow to fetch it.
    #[error("{repo} has not been fetched and `hub.download` is false; run `ortolan pull {repo}`")]
    NotFetched {
        /// The repository.
        repo: String,
    },
    /// No hub answers so.
    #[error("the answer of {url} cannot be used: {message}; check HF_ENDPOINT")]
    Unusable {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing can be taken from this repository.
    #[error("{repo} cannot be used: {cause}")]
    Variant {
        /// The repository.
        repo: String,
        /// Why.
        cause: VariantError,
    },
    /// Known before the first byte.
    #[error("{repo} has no tokenizer.json beside its graph, and no model is served without; take another export")]
    NoTokenizer {
        /// The repository.
        repo: String,
    },
    /// Known before the first byte.
    #[error(
        "{repo} needs {} and the disk of {} has {} left; free some, or set `hub.cache` to a folder of another disk",
        variant::size(*needed), cache.display(), variant::size(*free)
    )]
    NoSpace {
        /// The repository.
        repo: String,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that there are.
        free: u64,
        /// Where.
        cache: PathBuf,
    },
    /// Twice.
    #[error(
        "{path} of {repo} came with wrong contents twice and was deleted; try again later, or from another network"
    )]
    WrongHash {
        /// The repository.
        repo: String,
        /// Which file of it.
        path: String,
    },
    /// What has come is kept.
    #[error("{path} of {repo} was not fetched to its end: {cause}; run the same command again to go on from there")]
    Interrupted {
        /// The repository.
        repo: String,
        /// Which file of it.
        path: String,
        /// Why.
        cause: String,
    },
    /// The disk or its permissions.
    #[error("{} cannot be written: {cause}; make room and see that this user may write there", path.display())]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}
