//! `[runtime]`

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

/// Where ONNX Runtime is, and what it needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Its library; empty when it is to be looked for.
    pub library: PathBuf,
    /// Folders with CUDA's libraries, which are searched before those where they usually are.
    #[serde(deserialize_with = "one_or_several")]
    pub cuda_libraries: Vec<PathBuf>,
    /// Where TensorRT's engines are kept; empty when that is to be looked for.
    pub tensorrt_cache: PathBuf,
}

impl RuntimeConfig {
    /// Where TensorRT's engines are kept. None where neither the configuration nor the environment names a place: they are
    /// then built for each load. `variable` looks up an environment variable.
    pub fn tensorrt_cache(&self, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if !self.tensorrt_cache.as_os_str().is_empty() {
            return Some(self.tensorrt_cache.clone());
        }
        let of_user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        // As systemd sets it for a unit with `CacheDirectory=`.
        let own = set("CACHE_DIRECTORY").or_else(|| Some(of_user()?.join("ortolan")))?;
        Some(own.join("tensorrt"))
    }
}

/// A folder, or a list of folders.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    struct Folders;

    impl<'de> Visitor<'de> for Folders {
        type Value = Vec<PathBuf>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a folder or a list of folders")
        }

        fn visit_str<E: de::Error>(self, folder: &str) -> Result<Self::Value, E> {
            let folder = Some(Path::new(folder)).filter(|folder| !folder.as_os_str().is_empty());
            Ok(folder.map(Path::to_path_buf).into_iter().collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, folders: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(folders))
        }
    }

    deserializer.deserialize_any(Folders)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};
    use super::*;

    fn load(setting: &str) -> Result<RuntimeConfig, String> {
        let overrides = Overrides { settings: vec![setting.to_owned()], ..Overrides::default() };
        Config::load(&overrides).map(|(config, _)| config.runtime).map_err(|error| error.to_string())
    }

    #[test]
    fn cuda_libraries_are_in_a_folder_or_in_several() {
        let folders =
            |value: &str| load(&format!("runtime.cuda_libraries={value}")).map(|config| config.cuda_libraries);
        assert_eq!(folders("/opt/cuda/lib64").unwrap(), [Path::new("/opt/cuda/lib64")]);
        assert_eq!(folders("[\"/a\", \"/b\"]").unwrap(), [Path::new("/a"), Path::new("/b")]);
        assert!(folders("\"\"").unwrap().is_empty());
        insta::assert_snapshot!(folders("5").unwrap_err(), @"invalid type: integer `5`, expected a folder or a list of folders for key `runtime.cuda_libraries` (set by --set)");
    }

    #[test]
    fn engines_are_kept_where_caches_are() {
        let cache = |value: &str, variables: &[(&str, &str)]| {
            let config = load(&format!("runtime.tensorrt_cache={value}")).unwrap();
            config.tensorrt_cache(|name| Some(variables.iter().find(|(known, _)| *known == name)?.1.into()))
        };
        let all = [("CACHE_DIRECTORY", "/var/cache/ortolan"), ("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/ann")];
        assert_eq!(cache("/engines", &all).as_deref(), Some(Path::new("/engines")));
        assert_eq!(cache("", &all).as_deref(), Some(Path::new("/var/cache/ortolan/tensorrt")));
        assert_eq!(cache("", &all[1..]).as_deref(), Some(Path::new("/cache/ortolan/tensorrt")));
        assert_eq!(cache("", &all[2..]).as_deref(), Some(Path::new("/home/ann/.cache/ortolan/tensorrt")));
        assert_eq!(cache("", &[("HOME", "")]), None);
    }
}
