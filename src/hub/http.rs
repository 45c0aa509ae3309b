//! Requests to the hub: redirects, the token, what is tried again and how often.

use super::{HubError, Progress, Repo, config::Settings};
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};
use ureq::{
    Agent, Body, Error,
    http::{Response, header},
    tls::{Certificate, RootCerts, TlsConfig},
};
use url::Url;

const MAX_REDIRECTS: usize = 5;
const MAX_JSON_BYTES: u64 = 16 << 20;
/// The first failure after some progress is likely to be an accident; waits begin with the second.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Whatever the server asks for.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Asks the hub, and those that it sends us to.
pub(super) struct Http {
    agent: Agent,
    token: Option<String>,
    endpoint: Url,
    has_certificates: bool,
    timeout: Duration,
    retries: u32,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server says no, and would say it again.
    Refused { status: u16, code: String },
    /// Another time it may go well.
    Lost { cause: String, wait: Option<Duration> },
    /// It leads to where we do not go, or is no answer.
    Unusable { message: String },
    /// It may be anybody who says so.
    Untrusted { cause: String },
}

impl Http {
    pub(super) fn new(settings: &Settings) -> Self {
        // The machine's own, since a company's proxy may have one that nobody else knows.
        let certificates = rustls_native_certs::load_native_certs().certs;
        let roots = RootCerts::from(certificates.iter().map(|der| Certificate::from_der(der).to_owned()));
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("ortolan/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed below, where it is known who may see the token.
            .max_redirects(0)
            .timeout_connect(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .build();
        Self {
            agent: config.new_agent(),
            token: settings.token.clone(),
            endpoint: settings.endpoint.clone(),
            has_certificates: !certificates.is_empty(),
            timeout: settings.timeout,
            retries: settings.retries,
        }
    }

    /// One try for a file, from a byte on.
    pub(super) fn get(&self, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            if url.scheme() == "https" && !self.has_certificates {
                return Err(Failure::Untrusted {
                    cause: "this machine has no certificates to check it with".to_owned(),
                });
            }
            let mut request = self.agent.get(url.as_str()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if 0 < from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let answer = request.call().map_err(|error| self.failure(&error))?;
            match answer.status().as_u16() {
                200 | 206 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => url = redirected(&url, &answer)?,
                status => return Err(refusal(status, &answer)),
            }
        }
        Err(Failure::Unusable { message: format!("it redirects more than {MAX_REDIRECTS} times") })
    }

    /// An answer, tried again where that may help; and the address of its next page.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        url: &Url,
        progress: &dyn Progress,
    ) -> Result<(T, Option<Url>), Failure> {
        let mut patience = self.patience(progress);
        loop {
            match self.try_json(url) {
                Ok(answer) => return Ok(answer),
                Err(failure) => patience.bear(failure)?,
            }
        }
    }

    fn try_json<T: DeserializeOwned>(&self, url: &Url) -> Result<(T, Option<Url>), Failure> {
        let unusable = |message: String| Failure::Unusable { message };
        let mut answer = self.get(url, 0)?;
        let next = next_page(url, &answer);
        if next.as_ref().is_some_and(|next| !self.is_hub(next)) {
            return Err(unusable("its next page is on another host".to_owned()));
        }
        let body = answer.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_vec();
        let body = body.map_err(|error| self.failure(&error))?;
        Ok((serde_json::from_slice(&body).map_err(|error| unusable(error.to_string()))?, next))
    }

    /// For something that is to be tried until it goes well.
    pub(super) fn patience<'p>(&self, progress: &'p dyn Progress) -> Patience<'p> {
        Patience { progress, left: self.retries, wait: Duration::ZERO }
    }

    /// Why nothing more comes.
    pub(super) fn failure(&self, error: &Error) -> Failure {
        if let Some(cause @ rustls::Error::InvalidCertificate(_)) = tls_error(error) {
            return Failure::Untrusted { cause: cause.to_string() };
        }
        let would_come_again = matches!(
            error,
            Error::BadUri(_)
                | Error::BodyExceedsLimit(_)
                | Error::Http(_)
                | Error::InvalidProxyUrl
                | Error::Pem(_)
                | Error::Rustls(_)
                | Error::Tls(_)
        );
        if would_come_again {
            return Failure::Unusable { message: error.to_string() };
        }
        let cause = if matches!(error, Error::Timeout(_)) {
            format!("nothing came for {} seconds", self.timeout.as_secs())
        } else {
            error.to_string()
        };
        Failure::Lost { cause, wait: None }
    }

    /// An address below the hub's, each part escaped.
    pub(super) fn address<'p>(&self, parts: impl IntoIterator<Item = &'p str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("the endpoint has a host").pop_if_empty().extend(parts);
        url
    }

    /// What a failure means to whoever asked for something of a repository.
    pub(super) fn error(&self, failure: Failure, url: &Url, repo: &Repo) -> HubError {
        let (endpoint, id) = (self.endpoint.as_str().trim_end_matches('/').to_owned(), repo.id.clone());
        match failure {
            Failure::Refused { status, code } => match (status, code.as_str()) {
                (_, "RevisionNotFound") => HubError::NoRevision { id, revision: repo.revision.clone() },
                (403, _) | (_, "GatedRepo") => HubError::Forbidden { page: format!("{endpoint}/{id}"), id, status },
                (401, _) if self.token.is_some() => HubError::Token { endpoint },
                // The hub does not tell strangers what there is.
                (401, _) | (404, "" | "RepoNotFound") => HubError::NoRepo { endpoint, id },
                _ => HubError::Refused { url: url.to_string(), status },
            },
            Failure::Lost { cause, .. } => HubError::Unreachable { endpoint, cause },
            Failure::Unusable { message } => HubError::Unusable { url: url.to_string(), message },
            Failure::Untrusted { cause } => HubError::Untrusted { url: url.to_string(), cause },
        }
    }

    fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }
}

/// How often and when to try again.
pub(super) struct Patience<'p> {
    progress: &'p dyn Progress,
    left: u32,
    wait: Duration,
}

impl Patience<'_> {
    /// Waits before the next try, or gives up.
    pub(super) fn bear(&mut self, failure: Failure) -> Result<(), Failure> {
        let Failure::Lost { wait, cause } = failure else { return Err(failure) };
        let Some(left) = self.left.checked_sub(1) else { return Err(Failure::Lost { cause, wait }) };
        let wait = wait.unwrap_or(self.wait).min(MAX_WAIT);
        if !wait.is_zero() {
            self.progress.notice(&format!("{cause}; trying again in {} s", wait.as_secs()));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "there is nothing that this could wait on, and nothing else to do"
        )]
        std::thread::sleep(wait);
        *self = Self { left, wait: (self.wait * 2).clamp(FIRST_WAIT, MAX_WAIT), ..*self };
        Ok(())
    }
}

/// What the handshake says, which is part of reading and writing.
fn tls_error(error: &Error) -> Option<&rustls::Error> {
    let Error::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

fn redirected(from: &Url, answer: &Response<Body>) -> Result<Url, Failure> {
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let to = location.and_then(|location| from.join(location).ok()).filter(|to| match to.scheme() {
        "https" => true,
        "http" => from.scheme() == "http",
        _ => false,
    });
    to.ok_or_else(|| Failure::Unusable { message: "it redirects to no address that can be trusted".to_owned() })
}

/// `<https://…>; rel="next"`
fn next_page(url: &Url, answer: &Response<Body>) -> Option<Url> {
    let links = answer.headers().get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let address = next.trim().strip_prefix('<')?.split_once('>')?.0;
    url.join(address).ok()
}

fn refusal(status: u16, answer: &Response<Body>) -> Failure {
    let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    if status == 408 || status == 429 || 500 <= status {
        // Seconds, or `"api";r=0;t=55` where a limit of requests is reached.
        let of_limit =
            || text("ratelimit").filter(|_| status == 429)?.split(';').find_map(|part| part.trim().strip_prefix("t="));
        let seconds = text("retry-after").or_else(of_limit).and_then(|value| value.trim().parse().ok());
        let cause = format!("it answers with status {status}");
        return Failure::Lost { cause, wait: seconds.map(Duration::from_secs) };
    }
    Failure::Refused { status, code: text("x-error-code").unwrap_or_default().to_owned() }
}
