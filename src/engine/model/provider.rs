//! Execution providers: which device runs the graph.

use super::{
    LoadError, ModelSpec, Runtime,
    cuda_libraries::{CudaLibraries, CudaLibrary},
    error::words,
    ffi::Stream,
    provider_error,
    tensorrt::{self, RunLimits},
};
use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::SessionBuilder},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

/// A provider and its options, in the config either `"cuda"` or `{ name = "cuda", options = { device_id = 1 } }`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderConfig {
    /// Which one.
    pub name: ProviderName,
    /// ONNX Runtime's own, checked and spelled as it wants them.
    pub options: BTreeMap<String, String>,
}

/// The providers that ortolan knows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// The processor; always there.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// NVIDIA GPUs through TensorRT, which compiles the graph first.
    TensorRt,
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        })
    }
}

/// A provider that a session will run on.
pub(super) struct Registered {
    pub(super) provider: ProviderConfig,
    /// What orders the work on its device.
    pub(super) stream: Option<Arc<Stream>>,
    /// Whether it captures runs.
    pub(super) captures: bool,
}

impl<'de> Deserialize<'de> for ProviderConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;

        impl<'de> Visitor<'de> for NameOrTable {
            type Value = ProviderConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`cpu`, `cuda` or `tensorrt`, or a table with `name` and `options`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                let name = ProviderName::deserialize(de::value::StrDeserializer::new(name))?;
                Ok(ProviderConfig { name, options: BTreeMap::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Table { name, options } = Table::deserialize(MapAccessDeserializer::new(map))?;
                let checked = options.into_iter().map(|(key, value)| {
                    let value = name.check_option(&key, &value.0).map_err(de::Error::custom)?;
                    Ok((key, value))
                });
                Ok(ProviderConfig { name, options: checked.collect::<Result<_, _>>()? })
            }
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            name: ProviderName,
            #[serde(default)]
            options: BTreeMap<String, OptionValue>,
        }

        deserializer.deserialize_any(NameOrTable)
    }
}

/// A string, number or switch, spelled as ONNX Runtime wants it.
struct OptionValue(String);

impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = OptionValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an integer or a boolean")
            }

            fn visit_str<E>(self, value: &str) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_owned()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<OptionValue, E> {
                Ok(OptionValue(u8::from(value).to_string()))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

impl ProviderConfig {
    /// Adds this provider to a session that is being made, behind the `first` that it has, if any.
    pub(super) fn register(
        &self,
        builder: &mut SessionBuilder,
        runtime: &Runtime,
        model: Option<(&ModelSpec, RunLimits)>,
        (first, wants_captures): (Option<&Registered>, bool),
    ) -> Result<Registered, LoadError> {
        let available = match self.name {
            ProviderName::Cpu => Ok(true),
            ProviderName::Cuda => ep::CUDA::is_available(),
            ProviderName::TensorRt => ep::TensorRT::is_available(),
        };
        let needed = match available {
            Ok(true) => runtime.cuda_libraries(self.name).unwrap_or_default(),
            Ok(false) => return Err(provider_error::not_in_this_build(self.name)),
            Err(cause) => return Err(provider_error::explain(self.name, &words(&cause), &[])),
        };
        CudaLibraries::load(&needed);
        let explain = |cause: ort::Error| provider_error::explain(self.name, &words(&cause), &needed);
        let stream = self.stream(first, &needed).map_err(explain)?;
        // What runs on several providers is not captured.
        let captures = wants_captures && first.is_none() && self.can_capture();
        let mut options = self.options_for(model, runtime.tensorrt_cache.as_deref());
        if let Some(stream) = &stream {
            options.insert("has_user_compute_stream".to_owned(), "1".to_owned());
            options.insert("user_compute_stream".to_owned(), stream.address().to_string());
        }
        if self.name == ProviderName::Cuda {
            options.insert(CAPTURE.to_owned(), u8::from(captures).to_string());
        }
        let dispatch = match self.name {
            ProviderName::Cpu => ep::CPU::default().build(),
            ProviderName::Cuda => configure(ep::CUDA::default(), options),
            ProviderName::TensorRt => configure(ep::TensorRT::default(), options),
        };
        dispatch.register(builder).map_err(explain)?;
        Ok(Registered { provider: self.clone(), stream, captures })
    }

    /// What the work on this provider's device will be ordered by, so that copies need not wait for runs, nor runs for
    /// copies: the same for all providers of a session, of which the `first` keeps it. None where the device is the processor
    /// itself, or not that of the first.
    fn stream(&self, first: Option<&Registered>, needed: &[CudaLibrary]) -> ort::Result<Option<Arc<Stream>>> {
        let mut names = needed.iter().map(|library| library.name.as_str());
        let runtime = names.find(|name| name.starts_with("libcudart.so"));
        match (self.name, first) {
            (ProviderName::Cpu, _) => Ok(None),
            (_, Some(first)) => Ok(first.stream.clone().filter(|_| first.provider.device_id() == self.device_id())),
            (_, None) => Stream::open(self.device_id(), runtime).map(Some),
        }
    }

    /// Whether runs can be captured on it, unless its own options say not to.
    fn can_capture(&self) -> bool {
        self.name == ProviderName::Cuda && self.options.get(CAPTURE).is_none_or(|value| value != "0")
    }

    /// Number of the device, where there are several.
    fn device_id(&self) -> i32 {
        self.options.get("device_id").and_then(|id| id.parse().ok()).unwrap_or(0)
    }

    /// Its own, and for what they leave open those that suit the model. What is empty is left to the runtime.
    fn options_for(&self, model: Option<(&ModelSpec, RunLimits)>, cache: Option<&Path>) -> BTreeMap<String, String> {
        let mut defaults = BTreeMap::new();
        if self.name != ProviderName::Cpu {
            // Said even where it is the first, because the runtime then looks whether there is one.
            defaults.insert("device_id", "0".to_owned());
        }
        if self.name == ProviderName::Cuda {
            // The arena grows by large pieces, weights and cache; twice as much of them would be lost.
            defaults.insert("arena_extend_strategy", "kSameAsRequested".to_owned());
        }
        if let (ProviderName::TensorRt, Some((spec, limits))) = (self.name, model) {
            defaults.extend(tensorrt::defaults(spec, limits, cache));
        }
        let mut options: BTreeMap<_, _> = defaults.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        options.extend(self.options.clone());
        options.retain(|_, value| !value.is_empty());
        options
    }

    /// Where tensors that stay on this provider's device live.
    pub(super) fn allocator(&self, session: &Session) -> ort::Result<Allocator> {
        match self.name {
            ProviderName::Cpu => Ok(Allocator::default()),
            ProviderName::Cuda | ProviderName::TensorRt => {
                let (device, kind) = (AllocationDevice::CUDA, AllocatorType::Device);
                let memory = MemoryInfo::new(device, self.device_id(), kind, MemoryType::Default)?;
                Allocator::new(session, memory)
            }
        }
    }
}

/// The option by which CUDA's provider is told to capture runs.
const CAPTURE: &str = "enable_cuda_graph";

fn configure<E>(provider: E, options: BTreeMap<String, String>) -> ExecutionProviderDispatch
where
    E: ArbitrarilyConfigurableExecutionProvider + Into<ExecutionProviderDispatch>,
{
    options.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value)).into()
}

impl ProviderName {
    /// The library of the runtime's that has it, beside the runtime's own.
    pub(super) fn library(self) -> Option<&'static str> {
        match self {
            Self::Cpu => None,
            Self::Cuda => Some("libonnxruntime_providers_cuda.so"),
            Self::TensorRt => Some("libonnxruntime_providers_tensorrt.so"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_config_leaves_open_is_set_and_what_it_empties_is_not() {
        let options = |name, own: &[(&str, &str)]| {
            let options = own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            ProviderConfig { name, options }.options_for(None, None)
        };
        insta::assert_compact_debug_snapshot!(options(ProviderName::Cpu, &[]), @"{}");
        insta::assert_compact_debug_snapshot!(options(ProviderName::Cuda, &[]), @r#"{"arena_extend_strategy": "kSameAsRequested", "device_id": "0"}"#);
        insta::assert_compact_debug_snapshot!(options(ProviderName::Cuda, &[("device_id", "1"), ("use_tf32", "0"), ("arena_extend_strategy", "kNextPowerOfTwo")]), @r#"{"arena_extend_strategy": "kNextPowerOfTwo", "device_id": "1", "use_tf32": "0"}"#);
        insta::assert_compact_debug_snapshot!(options(ProviderName::TensorRt, &[("trt_profile_min_shapes", "")]), @r#"{"device_id": "0"}"#);
    }
}
