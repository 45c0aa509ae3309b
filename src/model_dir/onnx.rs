//! The parts of an ONNX file that say what a graph takes and gives; weights are skipped.
//!
//! Field numbers are those of `onnx.proto3` of the ONNX project.

use super::ModelDirError;
use crate::engine::proto::{DimensionProto, ValueInfoProto};
use prost::Message;
use std::{collections::BTreeMap, fs, path::Path};

#[derive(Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Message)]
struct NodeProto {
    #[prost(string, tag = "4")]
    op_type: String,
}

/// What a graph says of itself.
#[derive(Debug)]
pub struct OnnxSummary {
    /// Who exported it.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Size of the file; external data comes on top.
    pub num_bytes: u64,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
}

/// A graph's surface.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) summary: OnnxSummary,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) outputs: Vec<TensorInfo>,
}

/// A named tensor; dimensions that vary are none.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) element_type: ElementCode,
    pub(super) shape: Vec<Option<usize>>,
}

/// `TensorProto.DataType`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ElementCode(pub(super) i32);

impl ElementCode {
    pub(super) const FLOAT: Self = Self(1);
    pub(super) const INT64: Self = Self(7);
    pub(super) const FLOAT16: Self = Self(10);
}

/// Reads the surface of a graph.
pub(super) fn read(path: &Path) -> Result<Graph, ModelDirError> {
    let bytes = fs::read(path).map_err(|source| ModelDirError::Unreadable { path: path.to_path_buf(), source })?;
    let invalid = |message: String| ModelDirError::Invalid { path: path.to_path_buf(), message };
    let model = ModelProto::decode(bytes.as_slice())
        .map_err(|error| invalid(format!("it is cut short or no ONNX file ({error})")))?;
    let graph = model.graph.ok_or_else(|| invalid("it holds no graph".to_owned()))?;
    let mut operators = BTreeMap::new();
    for node in graph.node {
        *operators.entry(node.op_type).or_default() += 1;
    }
    let summary = OnnxSummary {
        producer: model.producer_name,
        ir_version: model.ir_version,
        num_bytes: bytes.len() as u64,
        operators,
    };
    let infos = |values: Vec<ValueInfoProto>| values.into_iter().map(TensorInfo::from).collect();
    Ok(Graph { summary, inputs: infos(graph.input), outputs: infos(graph.output) })
}

impl From<ValueInfoProto> for TensorInfo {
    fn from(value: ValueInfoProto) -> Self {
        let tensor = value.r#type.and_then(|r#type| r#type.tensor_type).unwrap_or_default();
        let dimension = |dimension: DimensionProto| dimension.dim_value.and_then(|size| usize::try_from(size).ok());
        Self {
            name: value.name,
            element_type: ElementCode(tensor.elem_type),
            shape: tensor.shape.unwrap_or_default().dim.into_iter().map(dimension).collect(),
        }
    }
}
