//! Execution providers: which device runs the graph.

use super::{LoadError, error::words, ffi::Stream};
use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::SessionBuilder},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt, sync::Arc};

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
    pub(super) fn register(
        &self,
        builder: &mut SessionBuilder,
        stream: Option<&Stream>,
        captures: bool,
    ) -> Result<(), LoadError> {
        let mut options = self.options.clone();
        if let Some(stream) = stream {
            options.insert("has_user_compute_stream".to_owned(), "1".to_owned());
            options.insert("user_compute_stream".to_owned(), stream.address().to_string());
        }
        if self.can_capture() {
            options.insert(CAPTURE.to_owned(), u8::from(captures).to_string());
        }
        let (available, dispatch) = match self.name {
            ProviderName::Cpu => (Ok(true), ep::CPU::default().build()),
            ProviderName::Cuda => (ep::CUDA::is_available(), configure(ep::CUDA::default(), &options)),
            ProviderName::TensorRt => (ep::TensorRT::is_available(), configure(ep::TensorRT::default(), &options)),
        };
        let error = |message: String| self.error(message);
        match available {
            Ok(true) => dispatch.register(builder).map_err(|cause| error(words(&cause))),
            Ok(false) => Err(error("this build of ONNX Runtime does not have it".to_owned())),
            Err(cause) => Err(error(words(&cause))),
        }
    }

    fn error(&self, message: String) -> LoadError {
        LoadError::Provider { name: self.name, message, advice: self.name.advice() }
    }

    /// What the work on this provider's device will be ordered by, so that copies need not wait for runs, nor runs for
    /// copies. None where that is the processor itself.
    pub(super) fn open_stream(&self) -> Result<Option<Arc<Stream>>, LoadError> {
        match self.name {
            ProviderName::Cpu => Ok(None),
            ProviderName::Cuda | ProviderName::TensorRt => {
                Stream::open(self.device_id()).map(Some).map_err(|error| self.error(words(&error)))
            }
        }
    }

    /// Whether runs can be captured on it, unless its own options say not to.
    pub(super) fn can_capture(&self) -> bool {
        self.name == ProviderName::Cuda && self.options.get(CAPTURE).is_none_or(|value| value != "0")
    }

    /// Number of the device, where there are several.
    fn device_id(&self) -> i32 {
        self.options.get("device_id").and_then(|id| id.parse().ok()).unwrap_or(0)
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

fn configure<E>(provider: E, options: &BTreeMap<String, String>) -> ExecutionProviderDispatch
where
    E: ArbitrarilyConfigurableExecutionProvider + Into<ExecutionProviderDispatch>,
{
    options.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value)).into()
}

impl ProviderName {
    fn advice(self) -> &'static str {
        match self {
            Self::Cpu => "use another library",
            Self::Cuda => "run scripts/serve --gpu for the CUDA build and install the CUDA 13 runtime libraries",
            Self::TensorRt => {
                "run scripts/serve --gpu for the CUDA build and install the CUDA 13 and TensorRT libraries"
            }
        }
    }
}
