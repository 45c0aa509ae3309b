//! `[store]`

use super::StoreError;
use serde::Deserialize;
use std::{ffi::OsString, path::PathBuf};

/// What outlives a request, and where. Every default is in `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Folder of the embedded database; empty leaves it to the environment.
    pub path: PathBuf,
    /// Address of a PostgreSQL database that several processes share; empty takes the embedded one.
    pub url: String,
    /// Seconds without use after which a response or a conversation is deleted; 0 keeps it.
    pub max_age: u64,
    /// Bytes of all that is kept; 0 sets no limit.
    pub max_bytes: u64,
    /// With less free space than this beside the embedded database nothing more is taken on.
    pub min_free_bytes: u64,
}

impl StoreConfig {
    /// The folder of the embedded database. `variable` looks up an environment variable.
    ///
    /// # Errors
    /// `NoPath` when neither the configuration nor the environment names one.
    pub fn folder(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, StoreError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let configured = Some(self.path.clone()).filter(|path| !path.as_os_str().is_empty());
        let of_user = || set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
        configured
            // As systemd sets it for a unit with `StateDirectory=`.
            .or_else(|| set("STATE_DIRECTORY"))
            .or_else(|| Some(of_user()?.join("ortolan")))
            .ok_or(StoreError::NoPath)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn folder(path: &str, variables: &[(&str, &str)]) -> Option<PathBuf> {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let config = StoreConfig {
            enabled: true,
            path: path.into(),
            url: String::new(),
            max_age: 0,
            max_bytes: 0,
            min_free_bytes: 0,
        };
        config.folder(variable).ok()
    }

    #[test]
    fn the_folder_is_configured_or_that_of_the_unit_or_of_the_user() {
        let all = [("STATE_DIRECTORY", "/var/lib/ortolan"), ("XDG_STATE_HOME", "/state"), ("HOME", "/home/ann")];
        assert_eq!(folder("/data", &all).as_deref(), Some(Path::new("/data")));
        assert_eq!(folder("", &all).as_deref(), Some(Path::new("/var/lib/ortolan")));
        assert_eq!(folder("", &all[1..]).as_deref(), Some(Path::new("/state/ortolan")));
        assert_eq!(folder("", &all[2..]).as_deref(), Some(Path::new("/home/ann/.local/state/ortolan")));
        assert_eq!(folder("", &[("HOME", "")]), None);
    }
}
