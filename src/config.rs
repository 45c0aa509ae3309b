//! Layers of TOML, the environment and the command line, typed; and where each value came from.

mod api_keys;
mod models;
mod runtime;

pub use models::{LoadingConfig, ModelConfig};
pub use runtime::RuntimeConfig;

use crate::{
    engine::EngineConfig, hub::HubConfig, responses::ResponsesConfig, server::ServerConfig, store::StoreConfig,
    telemetry::LogConfig,
};
use ::config::{
    ConfigBuilder, ConfigError as Cause, File, FileFormat, FileSourceString, Map, Source, Value, ValueKind,
    builder::DefaultState,
};
use serde::Deserialize;
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

/// Every key with its default and its documentation. The only place where defaults live.
const DEFAULT: &str = include_str!("../config/default.toml");
/// Read when it exists.
const SYSTEM_FILE: &str = "/etc/ortolan/ortolan.toml";
/// `ORTOLAN__SERVER__PORT=9000` is `server.port = 9000`.
const ENVIRONMENT_PREFIX: &str = "ORTOLAN__";
/// Not shown among the effective values.
const SECRETS: &[&str] = &["responses.encryption_key", "store.url"];
/// What is shown in its place.
const HIDDEN: &str = "\"(hidden)\"";

/// The whole configuration. A component is given its own section, never this.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[responses]`
    pub responses: ResponsesConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[engine]`: what an entry of `models` leaves open. An engine is given its own model's, never this.
    pub engine: EngineConfig,
    /// `[loading]`: what an entry of `models` leaves open.
    pub loading: LoadingConfig,
    /// `[runtime]`
    pub runtime: RuntimeConfig,
    /// `[hub]`
    pub hub: HubConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[[models]]`, each complete.
    pub models: Vec<ModelConfig>,
}

/// What is wrong with the configuration, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or not TOML.
    #[error("{origin} cannot be read: {message}")]
    Unreadable {
        /// Which layer.
        origin: Origin,
        /// Where and why.
        message: String,
    },
    /// A key that ortolan does not have.
    #[error("{origin} sets `{key}`, which is not a setting; did you mean `{nearest}`?")]
    UnknownKey {
        /// Which layer.
        origin: Origin,
        /// As it is spelled there.
        key: String,
        /// The most similar one that exists.
        nearest: String,
    },
    /// A value that the setting cannot have.
    #[error("{message}{}", origin.as_ref().map(|origin| format!(" (set by {origin})")).unwrap_or_default())]
    Invalid {
        /// Names the key.
        message: String,
        /// Which layer, where that is known.
        origin: Option<Origin>,
    },
    /// `--set` without a value.
    #[error("`--set {argument}` has no `=`; write --set server.port=9000")]
    NoValue {
        /// As given.
        argument: String,
    },
}

/// Which layer a value came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// `config/default.toml`, compiled in.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// `--set`
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::CommandLine => f.write_str("--set"),
        }
    }
}

/// The layers above the defaults.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`, in order.
    pub files: Vec<PathBuf>,
    /// The process's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `--set key=value`, in order.
    pub settings: Vec<String>,
}

/// Effective values, each with the layer that set it, by dotted key.
pub type Origins = BTreeMap<String, (String, Origin)>;

impl Config {
    /// Later wins: built-in defaults, `/etc/ortolan/ortolan.toml`, files, environment, command line.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong type; the message names key and layer.
    pub fn load(overrides: &Overrides) -> Result<(Self, Origins), ConfigError> {
        let mut origins = Origins::new();
        let mut builder = ::config::Config::builder();
        for layer in layers(overrides)? {
            let table = layer.table()?;
            for (key, value) in leaves(&table) {
                if layer.origin != Origin::Default && !origins.contains_key(&key) {
                    let nearest = nearest(&key, origins.keys());
                    return Err(ConfigError::UnknownKey { origin: layer.origin, key, nearest });
                }
                let value = if SECRETS.contains(&key.as_str()) && value != "\"\"" { HIDDEN.to_owned() } else { value };
                origins.insert(key, (value, layer.origin.clone()));
            }
            api_keys::check_layer(&table, &layer.origin)?;
            if let Some((key, nearest)) = models::unknown_key(&table, &origins) {
                return Err(ConfigError::UnknownKey { origin: layer.origin, key, nearest });
            }
            builder = builder.add_source(layer.file);
        }
        let mut config = Self::merge(builder).map_err(|cause| invalid(&cause, &origins))?;
        api_keys::complete(&mut config.server)?;
        if let Some(message) = config.contradiction() {
            let origin = named(&message, &origins).or_else(|| Some(origins.get("models")?.1.clone()));
            return Err(ConfigError::Invalid { message, origin });
        }
        Ok((config, origins))
    }

    fn merge(layers: ConfigBuilder<DefaultState>) -> Result<Self, Cause> {
        // The sections first: once every model has a copy, an error would name the copy.
        let sections = layers.clone().set_override("models", Vec::<Value>::new())?;
        sections.build()?.try_deserialize::<Self>()?;
        let mut merged = layers.build()?;
        models::complete(&mut merged.cache);
        merged.try_deserialize()
    }

    /// What no single value shows.
    fn contradiction(&self) -> Option<String> {
        if self.models.is_empty() {
            return Some("`models` is empty; name at least one model".to_owned());
        }
        let mut names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        if let Some(name) = twice {
            return Some(format!("`models` names `{name}` twice; give each model its own name"));
        }
        let has_one_place = |model: &&ModelConfig| model.repo.is_some() == model.path.as_os_str().is_empty();
        if let Some(model) = self.models.iter().find(|model| !has_one_place(model)) {
            return Some(format!("the model `{}` needs either `path` or `repo`; set one of them", model.name));
        }
        let of_models = self.models.iter().enumerate();
        self.engine.contradiction("engine").or_else(|| {
            of_models
                .map(|(index, model)| (format!("models[{index}].engine"), &model.engine))
                .find_map(|(section, engine)| engine.contradiction(&section))
        })
    }
}

/// One source of settings.
struct Layer {
    origin: Origin,
    file: File<FileSourceString, FileFormat>,
}

impl Layer {
    fn new(origin: Origin, toml: &str) -> Self {
        Self { origin, file: File::from_str(toml, FileFormat::Toml) }
    }

    /// `key = value`, where the value is TOML or else a plain string.
    fn setting(origin: Origin, key: &str, value: &str) -> Self {
        let as_toml = Self::new(origin.clone(), &format!("{key} = {value}"));
        let is_toml = !value.contains('\n') && as_toml.file.collect().is_ok();
        // TOML knows all of JSON's escapes.
        if is_toml { as_toml } else { Self::new(origin, &format!("{key} = {}", Json::from(value))) }
    }

    fn table(&self) -> Result<Map<String, Value>, ConfigError> {
        self.file.collect().map_err(|cause| {
            let message = cause.to_string().trim_end().to_owned();
            ConfigError::Unreadable { origin: self.origin.clone(), message }
        })
    }
}

/// All sources, the weakest first.
fn layers(overrides: &Overrides) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = vec![Layer::new(Origin::Default, DEFAULT)];
    let system_file = Path::new(SYSTEM_FILE);
    let files = overrides.files.iter().map(PathBuf::as_path);
    for path in system_file.exists().then_some(system_file).into_iter().chain(files) {
        let origin = Origin::File(path.to_path_buf());
        match fs::read_to_string(path) {
            Ok(toml) => layers.push(Layer::new(origin, &toml)),
            Err(cause) => return Err(ConfigError::Unreadable { origin, message: cause.to_string() }),
        }
    }
    for (name, value) in &overrides.environment {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX) {
            let key = key.to_lowercase().replace("__", ".");
            layers.push(Layer::setting(Origin::Environment(name.clone().into_owned()), &key, &value));
        }
    }
    for argument in &overrides.settings {
        let (key, value) =
            argument.split_once('=').ok_or_else(|| ConfigError::NoValue { argument: argument.clone() })?;
        layers.push(Layer::setting(Origin::CommandLine, key.trim(), value.trim()));
    }
    Ok(layers)
}

/// Dotted keys and values as TOML spells them; a list is one value.
fn leaves(table: &Map<String, Value>) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    flatten("", table, &mut leaves);
    leaves
}

fn flatten(prefix: &str, table: &Map<String, Value>, leaves: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let ValueKind::Table(table) = &value.kind {
            flatten(&key, table, leaves);
        } else {
            leaves.push((key, print(value)));
        }
    }
}

/// As TOML spells it.
fn print(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => Json::from(text.as_str()).to_string(),
        ValueKind::Array(values) => format!("[{}]", values.iter().map(print).collect::<Vec<_>>().join(", ")),
        ValueKind::Table(table) => {
            let mut fields: Vec<String> =
                table.iter().map(|(name, value)| format!("{name} = {}", print(value))).collect();
            fields.sort();
            format!("{{ {} }}", fields.join(", "))
        }
        ValueKind::Nil
        | ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_) => value.to_string(),
    }
}

fn nearest<'k>(key: &str, known: impl IntoIterator<Item = &'k String>) -> String {
    let similarity = |known: &&String| strsim::normalized_damerau_levenshtein(key, known);
    let best = known.into_iter().max_by(|left, right| similarity(left).total_cmp(&similarity(right)));
    best.cloned().unwrap_or_default()
}

/// The cause in its own words, and the layer of the key that they name.
fn invalid(cause: &Cause, origins: &Origins) -> ConfigError {
    let message = without_types(with_dots(&cause.to_string()));
    let origin = named(&message, origins);
    ConfigError::Invalid { message, origin }
}

/// The layer of the key that a message names.
fn named(message: &str, origins: &Origins) -> Option<Origin> {
    let named = origins.iter().filter(|(key, _)| message.contains(&format!("`{key}")));
    // `server.port` is named by itself, an element of a list as `models[0].name`.
    named.max_by_key(|(key, _)| key.len()).map(|(_, (_, origin))| origin.clone())
}

/// The config crate names the Rust type where a word is not one of those that a key takes.
fn without_types(message: String) -> String {
    let Some((_type, rest)) = message.strip_prefix("enum ").and_then(|rest| rest.split_once(' ')) else {
        return message;
    };
    match rest.strip_prefix("does not have variant constructor ") {
        Some(rest) => format!("none of the words that config/default.toml lists is {rest}"),
        None => message,
    }
}

/// The config crate spells `models[0].name` as `models[0]name`.
fn with_dots(message: &str) -> String {
    let mut parts = message.split(']');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| {
        let dot = if part.starts_with(|next: char| next.is_ascii_lowercase()) { "." } else { "" };
        format!("{whole}]{dot}{part}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::LoadTime;
    use std::io::Write;

    fn load(settings: &[&str]) -> Result<(Config, Origins), ConfigError> {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Config::load(&Overrides { settings, ..Overrides::default() })
    }

    fn error(settings: &[&str]) -> String {
        load(settings).unwrap_err().to_string()
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "[server]\nport = 1\nhost = \"::1\"\n[engine]\nmax_waiting = 3").unwrap();
        let overrides = Overrides {
            files: vec![file.path().to_path_buf()],
            environment: vec![("ORTOLAN__SERVER__PORT".into(), "2".into()), ("PATH".into(), "/bin".into())],
            settings: vec!["engine.max_waiting = 5".to_owned()],
        };
        let (config, origins) = Config::load(&overrides).unwrap();
        assert_eq!(config.engine.max_waiting.get(), 5);
        let origin = |key: &str| origins[key].clone();
        assert_eq!(origin("server.port"), ("2".to_owned(), Origin::Environment("ORTOLAN__SERVER__PORT".to_owned())));
        assert_eq!(origin("server.host"), ("\"::1\"".to_owned(), Origin::File(file.path().to_path_buf())));
        assert_eq!(origin("engine.max_waiting").1, Origin::CommandLine);
        assert_eq!(origin("engine.max_batch_size").1, Origin::Default);
    }

    #[test]
    fn a_key_is_not_listed() {
        let listed = |settings: &[&str]| load(settings).unwrap().1["responses.encryption_key"].0.clone();
        assert_eq!(listed(&["responses.encryption_key=/etc/ortolan/key"]), "\"(hidden)\"");
        assert_eq!(listed(&[]), "\"\"");
    }

    #[test]
    fn a_value_is_toml_or_else_a_string() {
        let (config, _) = load(&[
            "engine.providers=[{ name = \"cuda\", options = { device_id = 1, use_tf32 = false } }, \"cpu\"]",
            "runtime.library=/opt/lib/libonnxruntime.so",
        ])
        .unwrap();
        assert_eq!(config.runtime.library, Path::new("/opt/lib/libonnxruntime.so"));
        insta::assert_compact_debug_snapshot!(config.engine.providers, @r#"[ProviderConfig { name: Cuda, options: {"device_id": "1", "use_tf32": "0"} }, ProviderConfig { name: Cpu, options: {} }]"#);
    }

    #[test]
    fn errors_name_the_key_and_the_layer() {
        insta::assert_snapshot!(error(&["server.prot=1"]), @"--set sets `server.prot`, which is not a setting; did you mean `server.port`?");
        insta::assert_snapshot!(error(&["server.port=many"]), @r#"invalid type: string "many", expected an integer for key `server.port` (set by --set)"#);
        insta::assert_snapshot!(error(&["engine.max_batch_size=0"]), @"invalid value: integer `0`, expected a nonzero u32 for key `engine.max_batch_size` (set by --set)");
        insta::assert_snapshot!(error(&["responses.reasoning_events=raw"]), @"none of the words that config/default.toml lists is raw for key `responses.reasoning_events` (set by --set)");
        insta::assert_snapshot!(error(&["engine.providers=[\"gpu\"]"]), @"unknown variant `gpu`, expected one of `cpu`, `cuda`, `tensorrt` for key `engine.providers[0]` (set by --set)");
        insta::assert_snapshot!(error(&["engine.providers=[{ name = \"cuda\", options = { gpu_mem_limt = 1 } }]"]), @"`gpu_mem_limt` is not an option of `cuda`; did you mean `gpu_mem_limit`, which is the most memory that it takes for weights, KV cache and runs? for key `engine.providers[0]` (set by --set)");
        insta::assert_snapshot!(error(&["models=[{ name = \"a\", paht = \"b\" }]"]), @"--set sets `models[0].paht`, which is not a setting; did you mean `models[0].path`?");
        insta::assert_snapshot!(error(&["models=[]"]), @"`models` is empty; name at least one model (set by --set)");
        insta::assert_snapshot!(error(&["models=[{ name = \"a\", path = \"b\" }, { name = \"a\", path = \"c\" }]"]), @"`models` names `a` twice; give each model its own name (set by --set)");
        insta::assert_snapshot!(error(&["models=[{ name = \"a\" }]"]), @"the model `a` needs either `path` or `repo`; set one of them (set by --set)");
        insta::assert_snapshot!(error(&["models=[{ name = \"a\", path = \"b\", repo = \"c/d\" }]"]), @"the model `a` needs either `path` or `repo`; set one of them (set by --set)");
        insta::assert_snapshot!(error(&["models=[{ name = \"a\", repo = \"../d\" }]"]), @"`../d` names no repository; write ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FOLDER for key `models[0].repo` (set by --set)");
        insta::assert_snapshot!(error(&["server.port"]), @"`--set server.port` has no `=`; write --set server.port=9000");
    }

    #[test]
    fn a_model_has_what_it_sets_and_the_rest_from_the_sections() {
        let (config, _) = load(&[
            "engine.max_waiting=7",
            "loading.idle_unload=60",
            "models=[{ name = \"a\", path = \"a\" }, { name = \"b\", path = \"b\", load = \"first_use\", idle_unload = 5, \
             engine = { max_batch_size = 3, providers = [{ name = \"cuda\", options = { device_id = 1 } }] } }]",
        ])
        .unwrap();
        let [a, b] = &config.models[..] else { panic!("there are two") };
        assert_eq!((a.load, a.idle_unload, b.load, b.idle_unload), (LoadTime::Start, 60, LoadTime::FirstUse, 5));
        assert_eq!((a.engine.max_batch_size.get(), b.engine.max_batch_size.get()), (8, 3));
        assert_eq!((a.engine.max_waiting.get(), b.engine.max_waiting.get()), (7, 7));
        insta::assert_compact_debug_snapshot!((&a.engine.providers, &b.engine.providers), @r#"([ProviderConfig { name: Cpu, options: {} }], [ProviderConfig { name: Cuda, options: {"device_id": "1"} }])"#);
    }

    #[test]
    fn devices_make_engines_and_are_told_once() {
        let providers = "engine.providers=[{ name = \"cuda\", options = { use_tf32 = 1 } }, \"cpu\"]";
        let (config, _) = load(&["engine.devices=[1, 0, 1]", providers]).unwrap();
        let replicas = config.models[0].engine.replicas();
        assert_eq!(
            replicas.iter().map(EngineConfig::device).collect::<Vec<_>>(),
            ["cuda device 1", "cuda device 0", "cuda device 1"]
        );
        insta::assert_compact_debug_snapshot!(replicas[0].providers, @r#"[ProviderConfig { name: Cuda, options: {"device_id": "1", "use_tf32": "1"} }, ProviderConfig { name: Cpu, options: {} }]"#);
        assert_eq!(load(&[providers]).unwrap().0.engine.replicas().len(), 1);
        assert_eq!(load(&["engine.devices=[0, 0]"]).unwrap().0.engine.replicas()[1].device(), "cpu");

        let on_one = "engine.providers=[{ name = \"cuda\", options = { device_id = 1 } }]";
        let of_model = |settings: &str| format!("models=[{{ name = \"a\", path = \"b\", engine = {{ {settings} }} }}]");
        insta::assert_snapshot!(error(&["engine.devices=[-1]"]), @"invalid type: 64-bit integer `-1`, expected an unsigned 64 bit or less integer for key `engine.devices[0]` (set by --set)");
        insta::assert_snapshot!(error(&[&format!("engine.devices={:?}", [0; 65])]), @"`engine.devices` lists 65 devices; list at most 64 (set by --set)");
        insta::assert_snapshot!(error(&["engine.memory_share=80"]), @"`engine.memory_share` is 80; set a share above 0 and up to 1 (set by --set)");
        insta::assert_snapshot!(error(&["engine.devices=[0]", on_one]), @"`engine.devices` and the option `device_id` of a provider both say where to run; leave out `device_id`, or set `devices = []` (set by --set)");
        insta::assert_snapshot!(error(&[&of_model("devices = [0]"), on_one]), @"`models[0].engine.devices` and the option `device_id` of a provider both say where to run; leave out `device_id`, or set `devices = []` (set by --set)");
        let providers = |providers: &str| error(&[&format!("engine.providers=[{providers}]")]);
        insta::assert_snapshot!(providers(r#""cuda", { name = "cuda", options = { device_id = 1 } }"#), @"`engine.providers` lists `cuda` twice; leave one out, or list several GPUs in `engine.devices` (set by --set)");
        insta::assert_snapshot!(providers(r#""cpu", "cuda""#), @"`engine.providers` lists `cuda` behind `cpu`, which leaves nothing to it; put `cpu` last, or leave it out (set by --set)");
        insta::assert_snapshot!(providers(r#"{ name = "tensorrt", options = { device_id = 1 } }, "cuda""#), @"`engine.providers` puts `tensorrt` on device 1 and `cuda` on device 0; give them the same `device_id`, or list several GPUs in `engine.devices` (set by --set)");
        load(&["engine.providers=[{ name = \"tensorrt\", options = { device_id = 0 } }, \"cuda\", \"cpu\"]"]).unwrap();
        load(&[
            "engine.devices=[0, 1]",
            &of_model("devices = [], providers = [{ name = \"cuda\", options = { device_id = 1 } }]"),
        ])
        .unwrap();
    }

    #[test]
    fn errors_name_a_models_own_key() {
        let error = |settings: &str| error(&[&format!("models=[{{ name = \"a\", path = \"b\", {settings} }}]")]);
        insta::assert_snapshot!(error("idle_unlaod = 5"), @"--set sets `models[0].idle_unlaod`, which is not a setting; did you mean `models[0].idle_unload`?");
        insta::assert_snapshot!(error("engine = { max_bach_size = 1 }"), @"--set sets `models[0].engine.max_bach_size`, which is not a setting; did you mean `models[0].engine.max_batch_size`?");
        insta::assert_snapshot!(error("engine = { max_batch_size = 0 }"), @"invalid value: integer `0`, expected a nonzero u32 for key `models[0].engine.max_batch_size` (set by --set)");
        insta::assert_snapshot!(error("engine = 5"), @"--set sets `models[0].engine`, which is not a setting; did you mean `models[0].engine.spin`?");
        insta::assert_snapshot!(error("load = \"later\""), @"`later` is no time to load a model; write `start` or `first_use` for key `models[0].load` (set by --set)");
    }

    #[test]
    fn a_broken_file_is_named() {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        writeln!(file, "[server\nport = 1").unwrap();
        let overrides = Overrides { files: vec![file.path().to_path_buf()], ..Overrides::default() };
        let message = Config::load(&overrides).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{} cannot be read: ", file.path().display())), "{message}");
        let missing = Overrides { files: vec!["/nowhere/at/all.toml".into()], ..Overrides::default() };
        insta::assert_snapshot!(Config::load(&missing).unwrap_err(), @"/nowhere/at/all.toml cannot be read: No such file or directory (os error 2)");
    }
}
