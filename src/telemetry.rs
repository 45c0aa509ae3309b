//! Logs, on standard error.

use serde::Deserialize;
use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or directives as [`EnvFilter`] takes them.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Coloured on a terminal.
    Human,
    /// One object per line.
    Json,
}

/// Starts logging for the whole process.
///
/// # Errors
/// When `log.filter` is not a filter.
pub fn start(config: &LogConfig) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(&config.filter)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A second start, as tests do, keeps the first subscriber.
    let _ = match config.format {
        LogFormat::Human => subscriber.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(())
}
