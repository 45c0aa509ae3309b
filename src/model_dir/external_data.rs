//! The files beside a graph that hold its weights, by the names that it has for them.

use prost::Message;
use std::{collections::BTreeSet, fs, path::Path};

#[derive(Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

#[derive(Message)]
struct TensorProto {
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
}

#[derive(Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Paths relative to the graph's folder. A file that is no graph names none; what opens it tells why.
pub fn names(graph: &Path) -> BTreeSet<String> {
    let model = fs::read(graph).ok().and_then(|bytes| ModelProto::decode(bytes.as_slice()).ok());
    let tensors = model.and_then(|model| model.graph).unwrap_or_default().initializer;
    let entries = tensors.into_iter().flat_map(|tensor| tensor.external_data);
    let locations = entries.filter(|entry| entry.key == "location").map(|entry| entry.value);
    locations.map(|location| location.trim_start_matches("./").to_owned()).collect()
}
