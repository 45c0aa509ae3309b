//! `[engine]`

use super::{GraphEdits, ProviderConfig, ProviderName};
use serde::{Deserialize, Deserializer};
use std::{fmt, num::NonZeroU32, time::Duration};

/// Limits and devices of one model's engine. Zero is not a value any of the limits can hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct EngineConfig {
    /// Sequences that run at once; also the number of KV slots.
    pub max_batch_size: NonZeroU32,
    /// Requests that may wait for a slot; more are refused with 429.
    pub max_waiting: NonZeroU32,
    /// Tokens of the prompts that wait, all together; more are refused with 429.
    pub max_waiting_tokens: NonZeroU32,
    /// Prompt and reply together, at most what the model itself allows.
    pub max_context_tokens: NonZeroU32,
    /// Tokens computed in one step by all sequences together; longer prompts are computed in chunks. 0 leaves it to the
    /// provider.
    pub max_step_tokens: u32,
    /// What a run of the graph costs beside its tokens, as a number of tokens: decides which rows share a run. 0 leaves it
    /// to the provider.
    pub run_overhead_tokens: u32,
    /// Whether a request goes on from what earlier ones with the same beginning have computed.
    pub prefix_cache: bool,
    /// Tokens guessed ahead in one step where the reply repeats what was said before; 0 guesses none.
    pub max_draft_tokens: u32,
    /// What is changed in the graph when it is loaded.
    pub graph_edits: GraphEdits,
    /// Where the best scores are found in the graph, so that the others stay on the device.
    pub top_scores: TopScoresIn,
    /// Whether steps that recur are captured and replayed on the device instead of being launched operator by operator.
    pub cuda_graphs: bool,
    /// Of the device's memory that is free once the weights are there, how much is taken for blocks of keys and values.
    pub memory_share: f32,
    /// Threads that ONNX Runtime computes one operator with; 0 takes one for each core that the process may use.
    pub intra_op_threads: usize,
    /// Cores of each of these threads but the first, as ONNX Runtime spells them; empty pins none.
    pub intra_op_affinity: String,
    /// Let idle threads spin between operators: faster steps, a busy core.
    pub spin: bool,
    /// Threads that draw the tokens of many sequences at once; 0 takes one for each core that the process may use, at most 8;
    /// 1 never starts any.
    pub sampling_threads: usize,
    /// Where to run, most wanted first.
    pub providers: Vec<ProviderConfig>,
    /// Devices of these providers, by number, each with an engine of its own; empty leaves one engine where the providers'
    /// options say.
    pub devices: Vec<u32>,
    /// An engine that is idle for so long computes a token, to see whether its device still does so right, and at once where that
    /// is in doubt; zero never does. In seconds.
    #[serde(deserialize_with = "seconds")]
    pub canary_interval: Duration,
    /// Run on the CPU when a provider cannot be loaded, instead of failing to load the model.
    pub fallback: bool,
}

/// Devices on which a graph finds its best scores itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum TopScoresIn {
    /// On GPUs, where scores would have to cross a bus; not in what TensorRT compiles.
    Gpu,
    /// Also on a CPU, which gains nothing by it.
    Always,
    /// All scores of all rows come to the host.
    Never,
}

/// More would be a slip.
const MAX_DEVICES: usize = 64;
/// The option of ONNX Runtime's providers that says on which device they run.
const DEVICE_ID: &str = "device_id";

impl EngineConfig {
    /// One for each engine of the model: the same but for the device.
    pub fn replicas(&self) -> Vec<Self> {
        let on = |device: &u32| {
            let mut config = Self { devices: Vec::new(), ..self.clone() };
            for provider in config.providers.iter_mut().filter(|provider| provider.name != ProviderName::Cpu) {
                provider.options.insert(DEVICE_ID.to_owned(), device.to_string());
            }
            config
        };
        if self.devices.is_empty() { vec![self.clone()] } else { self.devices.iter().map(on).collect() }
    }

    /// Tokens that a step computes at most, unless more sequences decode, where it had best compute so many of prompts.
    pub(super) fn step_tokens(&self, chunk_tokens: usize) -> usize {
        match self.max_step_tokens {
            0 => (self.max_batch_size.get() as usize).saturating_add(chunk_tokens),
            set => set as usize,
        }
    }

    /// Where it runs if its first provider can be had, for people.
    pub fn device(&self) -> String {
        self.providers.first().map_or_else(|| ProviderName::Cpu.to_string(), ToString::to_string)
    }

    /// What no single value shows; `section` is where it stands in the configuration.
    pub fn contradiction(&self, section: &str) -> Option<String> {
        let num_devices = self.devices.len();
        if MAX_DEVICES < num_devices {
            return Some(format!("`{section}.devices` lists {num_devices} devices; list at most {MAX_DEVICES}"));
        }
        if !(0.0 < self.memory_share && self.memory_share <= 1.0) {
            return Some(format!("`{section}.memory_share` is {}; set a share above 0 and up to 1", self.memory_share));
        }
        if let Some(contradiction) = self.contradiction_of_providers(section) {
            return Some(contradiction);
        }
        let is_told_twice = 0 < num_devices && self.providers.iter().any(|one| one.options.contains_key(DEVICE_ID));
        is_told_twice.then(|| {
            format!(
                "`{section}.devices` and the option `{DEVICE_ID}` of a provider both say where to run; leave out \
                 `{DEVICE_ID}`, or set `devices = []`"
            )
        })
    }

    /// Each is there once, on the device of the first, and before the processor, which takes all that it is given.
    fn contradiction_of_providers(&self, section: &str) -> Option<String> {
        let device = |provider: &ProviderConfig| provider.options.get(DEVICE_ID).map_or("0", String::as_str).to_owned();
        self.providers.iter().enumerate().find_map(|(index, provider)| {
            let (name, earlier) = (provider.name, &self.providers[..index]);
            if earlier.iter().any(|earlier| earlier.name == name) {
                return Some(format!(
                    "`{section}.providers` lists `{name}` twice; leave one out, or list several GPUs in `{section}.devices`"
                ));
            }
            if earlier.iter().any(|earlier| earlier.name == ProviderName::Cpu) {
                return Some(format!(
                    "`{section}.providers` lists `{name}` behind `cpu`, which leaves nothing to it; put `cpu` last, or leave \
                     it out"
                ));
            }
            let first = earlier.first().filter(|_| name != ProviderName::Cpu)?;
            let (one, other) = (device(first), device(provider));
            (one != other).then(|| {
                format!(
                    "`{section}.providers` puts `{}` on device {one} and `{name}` on device {other}; give them the same \
                     `{DEVICE_ID}`, or list several GPUs in `{section}.devices`",
                    first.name
                )
            })
        })
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Ok(Duration::from_secs(u64::deserialize(deserializer)?))
}

/// With its device where that is told.
impl fmt::Display for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.options.get(DEVICE_ID).filter(|_| self.name != ProviderName::Cpu) {
            Some(id) => write!(f, "{} device {id}", self.name),
            None => self.name.fmt(f),
        }
    }
}
