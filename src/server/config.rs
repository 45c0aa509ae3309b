//! `[server]`

use super::{MetricsCompat, api_key::KeyConfig};
use crate::responses::UnknownFields;
use serde::Deserialize;
use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

/// The HTTP side. Every default is in `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address or name to listen on.
    pub host: String,
    /// Names that the server answers to, beside addresses, `localhost` and `host`.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may open WebSockets, beside those of this server itself.
    pub allowed_origins: Vec<String>,
    /// Who is let in; everybody where there are none.
    pub api_keys: Vec<KeyConfig>,
    /// A file with more of them; empty has none.
    pub api_keys_file: PathBuf,
    /// Whether an address that others can reach may be bound without keys.
    pub insecure_no_auth: bool,
    /// 0 takes any free one.
    pub port: u16,
    /// HTTP worker threads.
    pub workers: NonZeroUsize,
    /// Open connections per worker.
    pub max_connections: NonZeroUsize,
    /// Open WebSockets, of all workers.
    pub max_websockets: NonZeroUsize,
    /// Seconds that a WebSocket may be open.
    pub websocket_timeout: NonZeroU64,
    /// Largest request body.
    pub max_body_bytes: NonZeroUsize,
    /// Seconds a client may take to send a request's headers.
    pub header_timeout: NonZeroU64,
    /// Seconds a client may take to send a request's body.
    pub body_timeout: NonZeroU64,
    /// Seconds between comments on a stream that has nothing to say.
    pub keep_alive_interval: NonZeroU64,
    /// Seconds that running replies get to finish after a signal; 0 ends them at once.
    pub drain_timeout: u64,
    /// Whose names metrics have beside our own.
    pub metrics_compat: Vec<MetricsCompat>,
    /// Whether `/metrics` is told without a key.
    pub open_metrics: bool,
    /// Whether an unknown request field is refused.
    pub strict: bool,
}

impl ServerConfig {
    pub(super) fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout.get())
    }

    pub(super) fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout.get())
    }

    pub(super) fn keep_alive_interval(&self) -> Duration {
        Duration::from_secs(self.keep_alive_interval.get())
    }

    pub(super) fn websocket_timeout(&self) -> Duration {
        Duration::from_secs(self.websocket_timeout.get())
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout)
    }

    pub(super) fn unknown_fields(&self) -> UnknownFields {
        if self.strict { UnknownFields::Refuse } else { UnknownFields::Ignore }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ::config::{Config, ConfigError, File, FileFormat};

    /// The built-in defaults, and `toml` over them.
    pub(in super::super) fn parse(toml: &str) -> Result<ServerConfig, ConfigError> {
        Config::builder()
            .add_source(File::from_str(include_str!("../../config/default.toml"), FileFormat::Toml))
            .add_source(File::from_str(toml, FileFormat::Toml))
            .build()?
            .get("server")
    }

    #[test]
    fn the_defaults_are_complete() {
        assert_eq!(parse("").unwrap().host, "127.0.0.1");
    }

    #[test]
    fn a_zero_or_an_unknown_key_is_refused() {
        assert!(parse("[server]\nkeep_alive_interval = 0").is_err());
        assert!(parse("[server]\nlisten = \"127.0.0.1\"").is_err());
    }
}
