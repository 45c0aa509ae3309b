//! Execution providers: which device runs the graph.

use super::{LoadError, Runtime, cuda_libraries::CudaLibraries, error::words, provider_error};
use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::SessionBuilder},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt};

/// A provider and its options, in the config either `"cuda"` or `{ name = "cuda", options = { device_id = 1 } }`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderConfig {
    /// Which one.
    pub name: ProviderName,
    /// Passed to ONNX Runtime as they are; its documentation lists them.
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
                let options = options.into_iter().map(|(key, value)| (key, value.0)).collect();
                Ok(ProviderConfig { name, options })
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
    /// Adds this provider to a session that is being made.
    pub(super) fn register(&self, builder: &mut SessionBuilder, runtime: &Runtime) -> Result<(), LoadError> {
        let (available, dispatch) = match self.name {
            ProviderName::Cpu => (Ok(true), ep::CPU::default().build()),
            ProviderName::Cuda => (ep::CUDA::is_available(), self.configure(ep::CUDA::default())),
            ProviderName::TensorRt => (ep::TensorRT::is_available(), self.configure(ep::TensorRT::default())),
        };
        let needed = match available {
            Ok(true) => runtime.cuda_libraries(self.name).unwrap_or_default(),
            Ok(false) => return Err(provider_error::not_in_this_build(self.name)),
            Err(cause) => return Err(provider_error::explain(self.name, &words(&cause), &[])),
        };
        CudaLibraries::load(&needed);
        dispatch.register(builder).map_err(|cause| provider_error::explain(self.name, &words(&cause), &needed))
    }

    fn configure<E>(&self, provider: E) -> ExecutionProviderDispatch
    where
        E: ArbitrarilyConfigurableExecutionProvider + Into<ExecutionProviderDispatch>,
    {
        self.options.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value)).into()
    }

    /// Where tensors that stay on this provider's device live.
    pub(super) fn allocator(&self, session: &Session) -> ort::Result<Allocator> {
        match self.name {
            ProviderName::Cpu => Ok(Allocator::default()),
            ProviderName::Cuda | ProviderName::TensorRt => {
                let device_id = self.options.get("device_id").and_then(|id| id.parse().ok()).unwrap_or(0);
                let memory =
                    MemoryInfo::new(AllocationDevice::CUDA, device_id, AllocatorType::Device, MemoryType::Default)?;
                Allocator::new(session, memory)
            }
        }
    }
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
