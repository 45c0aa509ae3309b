//! `[hub]`, and what Hugging Face's own libraries read from the environment.

use super::HubError;
use serde::Deserialize;
use std::{ffi::OsString, fs, num::NonZeroU64, path::PathBuf, time::Duration};
use url::Url;

/// Where models come from and where they are kept. Every default is in `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// Whether a start may fetch a model.
    pub download: bool,
    /// Address of the hub; empty leaves it to the environment.
    pub endpoint: String,
    /// Folder of the cache; empty leaves it to the environment.
    pub cache: PathBuf,
    /// Seconds without a byte until a connection is given up.
    pub timeout: NonZeroU64,
    /// How often a request is tried again without any progress.
    pub retries: u32,
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What the configuration and the environment come to.
pub(super) struct Settings {
    pub(super) endpoint: Url,
    pub(super) cache: PathBuf,
    /// Sent to the endpoint and to nobody else.
    pub(super) token: Option<String>,
    /// Whether the network is to be left alone.
    pub(super) is_offline: bool,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
}

impl Settings {
    /// `variable` looks up an environment variable.
    pub(super) fn new(config: &HubConfig, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(PathBuf::from);
        let below_home = || {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
            Some(cache.join("huggingface"))
        };
        let home = path("HF_HOME").or_else(below_home);
        let cache = Some(config.cache.clone()).filter(|path| !path.as_os_str().is_empty());
        let cache = cache.or_else(|| path("HF_HUB_CACHE")).or_else(|| Some(home.as_ref()?.join("hub")));
        let endpoint = Some(config.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.or_else(|| text("HF_ENDPOINT")).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(token_file?).ok());
        Ok(Self {
            endpoint: address(endpoint)?,
            cache: cache.ok_or(HubError::NoCache)?,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            is_offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            timeout: Duration::from_secs(config.timeout.get()),
            retries: config.retries,
        })
    }
}

fn address(endpoint: String) -> Result<Url, HubError> {
    let parsed = Url::parse(&endpoint).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    parsed.ok_or(HubError::Endpoint { endpoint })
}

/// As Hugging Face's libraries read a switch.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| word.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: (&str, &str), variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        let config = HubConfig {
            download: true,
            endpoint: config.0.to_owned(),
            cache: config.1.into(),
            timeout: NonZeroU64::MIN,
            retries: 0,
        };
        Settings::new(&config, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    fn cache(config: &str, variables: &[(&str, &str)]) -> String {
        settings(("", config), variables).unwrap().cache.display().to_string()
    }

    #[test]
    fn the_cache_is_where_other_libraries_have_it() {
        let all = [("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/u")];
        let places: Vec<String> = (0..all.len()).map(|first| cache("", &all[first..])).collect();
        assert_eq!(places, ["/c", "/h/hub", "/x/huggingface/hub", "/u/.cache/huggingface/hub"]);
        assert_eq!(cache("/own", &all), "/own");
        assert!(matches!(settings(("", ""), &[]), Err(HubError::NoCache)));
    }

    #[test]
    fn the_endpoint_is_an_address() {
        let endpoint = |config: &str, variables: &[(&str, &str)]| {
            settings((config, "/c"), variables).map(|settings| settings.endpoint.to_string())
        };
        assert_eq!(endpoint("", &[]).unwrap(), "https://huggingface.co/");
        assert_eq!(endpoint("", &[("HF_ENDPOINT", "http://mirror:81/hf/")]).unwrap(), "http://mirror:81/hf/");
        assert_eq!(endpoint("https://own", &[("HF_ENDPOINT", "http://mirror")]).unwrap(), "https://own/");
        insta::assert_snapshot!(endpoint("file:///etc", &[]).unwrap_err(), @"`file:///etc` is no address of a hub; set `hub.endpoint` or HF_ENDPOINT to one such as https://huggingface.co");
    }

    #[test]
    fn the_token_is_a_variables_or_a_files() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = ("HF_HOME", home.path().to_str().unwrap());
        let token = |variables: &[(&str, &str)]| settings(("", ""), variables).unwrap().token;
        assert_eq!(token(&[home]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[home, ("HF_TOKEN", " hf_own ")]).as_deref(), Some("hf_own"));
        assert_eq!(token(&[home, ("HF_TOKEN_PATH", "/nowhere")]), None);
    }

    #[test]
    fn offline_is_a_switch() {
        let is_offline = |value| settings(("", "/c"), &[("HF_HUB_OFFLINE", value)]).unwrap().is_offline;
        assert_eq!(["1", "true", "Yes", "0", ""].map(is_offline), [true, true, true, false, false]);
    }
}
