//! `server.api_keys` and the file that `server.api_keys_file` names. No refusal repeats a value: it may be a key.

use super::{ConfigError, Origin, nearest, with_dots};
use crate::server::{KeyConfig, ServerConfig};
use ::config::{File, FileFormat, Map, Source, Value, ValueKind};
use serde::Deserialize;
use std::{fs, path::Path};

/// Keys of an entry.
const ENTRY_KEYS: [&str; 6] = ["name", "sha256", "tenant", "requests_per_minute", "tokens_per_minute", "max_streams"];

/// What a file of keys holds.
#[derive(Deserialize)]
struct KeysFile {
    api_keys: Vec<KeyConfig>,
}

/// Refuses what a layer writes in the place of entries.
pub(super) fn check_layer(layer: &Map<String, Value>, origin: &Origin) -> Result<(), ConfigError> {
    let server = layer.get("server").map(|server| &server.kind);
    match server {
        Some(ValueKind::Table(server)) => {
            server.get("api_keys").map_or(Ok(()), |keys| check_entries("server.api_keys", keys, origin))
        }
        // Its type refuses it.
        Some(_) | None => Ok(()),
    }
}

fn check_entries(place: &str, entries: &Value, origin: &Origin) -> Result<(), ConfigError> {
    let is_no_list = || ConfigError::Invalid {
        message: format!("`{place}` must be a list of tables with `name` and `sha256`; `ortolan key NAME` makes one"),
        origin: Some(origin.clone()),
    };
    let ValueKind::Array(entries) = &entries.kind else { return Err(is_no_list()) };
    for (index, entry) in entries.iter().enumerate() {
        let ValueKind::Table(entry) = &entry.kind else { return Err(is_no_list()) };
        if let Some(unknown) = entry.keys().find(|key| !ENTRY_KEYS.contains(&key.as_str())) {
            let in_place = |key: &str| format!("{place}[{index}].{key}");
            let nearest = nearest(unknown, &ENTRY_KEYS.map(str::to_owned));
            let (key, nearest) = (in_place(unknown), in_place(&nearest));
            return Err(ConfigError::UnknownKey { origin: origin.clone(), key, nearest });
        }
    }
    Ok(())
}

/// Adds the entries of the file, and refuses any that contradict each other.
pub(super) fn complete(server: &mut ServerConfig) -> Result<(), ConfigError> {
    if !server.api_keys_file.as_os_str().is_empty() {
        server.api_keys.extend(read(&server.api_keys_file)?);
    }
    match contradiction(&server.api_keys) {
        Some(message) => Err(ConfigError::Invalid { message, origin: None }),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<KeyConfig>, ConfigError> {
    let origin = Origin::File(path.to_path_buf());
    let unreadable = |message| ConfigError::Unreadable { origin: origin.clone(), message };
    let toml = fs::read_to_string(path).map_err(|cause| unreadable(cause.to_string()))?;
    let file = File::from_str(&toml, FileFormat::Toml);
    // The cause would show the line.
    let table = file.collect().map_err(|_| unreadable("it is not TOML".to_owned()))?;
    if let Some(key) = table.keys().find(|key| *key != "api_keys") {
        let (key, nearest) = (key.clone(), "api_keys".to_owned());
        return Err(ConfigError::UnknownKey { origin, key, nearest });
    }
    table.get("api_keys").map_or(Ok(()), |keys| check_entries("api_keys", keys, &origin))?;
    let entries = ::config::Config::builder().add_source(file).set_default("api_keys", Vec::<Value>::new());
    let entries = entries.and_then(|builder| builder.build()?.try_deserialize::<KeysFile>());
    let invalid = |message| ConfigError::Invalid { message, origin: Some(origin.clone()) };
    let KeysFile { api_keys: entries } = entries.map_err(|cause| invalid(with_dots(&cause.to_string())))?;
    if entries.is_empty() {
        // A secret that is not there yet must not let everybody in.
        return Err(invalid(
            "`server.api_keys_file` must hold at least one of [[api_keys]]; `ortolan key NAME` makes one".to_owned(),
        ));
    }
    Ok(entries)
}

/// What no single entry shows.
fn contradiction(keys: &[KeyConfig]) -> Option<String> {
    for (index, key) in keys.iter().enumerate() {
        let (name, earlier) = (&key.name, &keys[..index]);
        if name.is_empty() || key.tenant.as_ref().is_some_and(String::is_empty) {
            return Some("an API key has an empty `name` or `tenant`; write one, or leave `tenant` out".to_owned());
        }
        if earlier.iter().any(|other| other.name == *name) {
            return Some(format!("two API keys are called `{name}`; give each its own name"));
        }
        if let Some(other) = earlier.iter().find(|other| other.sha256 == key.sha256) {
            let other = &other.name;
            return Some(format!("the API keys `{other}` and `{name}` have the same `sha256`; remove one of them"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Origins, Overrides};
    use std::io::Write;

    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn load(settings: &[&str]) -> Result<(Config, Origins), ConfigError> {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Config::load(&Overrides { settings, ..Overrides::default() })
    }

    fn error(keys: &str) -> String {
        load(&[&format!("server.api_keys={}", keys.replace("HASH", HASH))]).unwrap_err().to_string()
    }

    fn file(toml: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.replace("HASH", HASH).as_bytes()).unwrap();
        file
    }

    fn error_of_file(toml: &str) -> String {
        let file = file(toml);
        let path = file.path().display().to_string();
        load(&[&format!("server.api_keys_file={path}")]).unwrap_err().to_string().replace(&path, "FILE")
    }

    #[test]
    fn keys_come_from_the_configuration_and_from_a_file() {
        let other = HASH.replace('0', "f");
        let file = file("[[api_keys]]\nname = \"ci\"\nsha256 = \"HASH\"\ntenant = \"team\"\nmax_streams = 2\n");
        let keys = format!("server.api_keys=[{{ name = \"own\", sha256 = \"{other}\", tokens_per_minute = 9 }}]");
        let path = format!("server.api_keys_file={}", file.path().display());
        let (config, origins) = load(&[&keys, &path]).unwrap();
        let [own, ci] = &config.server.api_keys[..] else { panic!("there are two") };
        assert_eq!((own.name.as_str(), own.sha256.to_string(), own.tenant.as_deref()), ("own", other.clone(), None));
        assert_eq!((own.tokens_per_minute.unwrap().get(), own.max_streams), (9, None));
        assert_eq!((ci.name.as_str(), ci.sha256.to_string(), ci.tenant.as_deref()), ("ci", HASH.into(), Some("team")));
        assert_eq!((ci.max_streams.unwrap().get(), ci.requests_per_minute), (2, None));
        let listed = &origins["server.api_keys"].0;
        assert_eq!(*listed, format!("[{{ name = \"own\", sha256 = \"{other}\", tokens_per_minute = 9 }}]"));
    }

    #[test]
    fn entries_are_refused_in_one_sentence() {
        insta::assert_snapshot!(error("[{ name = \"a\", sha265 = \"HASH\" }]"), @"--set sets `server.api_keys[0].sha265`, which is not a setting; did you mean `server.api_keys[0].sha256`?");
        insta::assert_snapshot!(error("[{ name = \"a\" }]"), @r#"missing configuration field "server.api_keys[0].sha256""#);
        insta::assert_snapshot!(error("[{ name = \"a\", sha256 = \"HASH\", max_streams = 0 }]"), @"invalid value: integer `0`, expected a nonzero usize for key `server.api_keys[0].max_streams` (set by --set)");
        insta::assert_snapshot!(error("[{ name = \"\", sha256 = \"HASH\" }]"), @"an API key has an empty `name` or `tenant`; write one, or leave `tenant` out");
        insta::assert_snapshot!(error("[{ name = \"a\", sha256 = \"HASH\" }, { name = \"a\", sha256 = \"HASH\" }]"), @"two API keys are called `a`; give each its own name");
        insta::assert_snapshot!(error("[{ name = \"a\", sha256 = \"HASH\" }, { name = \"b\", sha256 = \"HASH\" }]"), @"the API keys `a` and `b` have the same `sha256`; remove one of them");
    }

    #[test]
    fn a_key_in_the_wrong_place_is_not_repeated() {
        insta::assert_snapshot!(error("ork_secret"), @"`server.api_keys` must be a list of tables with `name` and `sha256`; `ortolan key NAME` makes one (set by --set)");
        insta::assert_snapshot!(error("[\"ork_secret\"]"), @"`server.api_keys` must be a list of tables with `name` and `sha256`; `ortolan key NAME` makes one (set by --set)");
        insta::assert_snapshot!(error("[{ name = \"a\", sha256 = \"ork_secret\" }]"), @"the value is not the 64 hexadecimal digits of a SHA-256 that `ortolan key NAME` prints for key `server.api_keys[0].sha256` (set by --set)");
        insta::assert_snapshot!(error_of_file("ork_secret"), @"FILE cannot be read: it is not TOML");
        insta::assert_snapshot!(error_of_file("api_keys = [\"ork_secret\"]"), @"`api_keys` must be a list of tables with `name` and `sha256`; `ortolan key NAME` makes one (set by FILE)");
    }

    #[test]
    fn a_file_is_refused_in_one_sentence() {
        insta::assert_snapshot!(error_of_file(""), @"`server.api_keys_file` must hold at least one of [[api_keys]]; `ortolan key NAME` makes one (set by FILE)");
        insta::assert_snapshot!(error_of_file("[[server.api_keys]]\nname = \"a\"\nsha256 = \"HASH\""), @"FILE sets `server`, which is not a setting; did you mean `api_keys`?");
        insta::assert_snapshot!(error_of_file("[[api_keys]]\nname = \"a\"\nsha256 = \"HASH\"\nkey = 1"), @"FILE sets `api_keys[0].key`, which is not a setting; did you mean `api_keys[0].tenant`?");
        insta::assert_snapshot!(error_of_file("[[api_keys]]\nname = \"a\"\nsha256 = \"0\""), @"the value is not the 64 hexadecimal digits of a SHA-256 that `ortolan key NAME` prints for key `api_keys[0].sha256` (set by FILE)");
        let missing = load(&["server.api_keys_file=/nowhere/keys.toml"]).unwrap_err();
        insta::assert_snapshot!(missing, @"/nowhere/keys.toml cannot be read: No such file or directory (os error 2)");
    }
}
