//! The parts of an ONNX file that say what a graph takes and gives, and where its weights are.
//!
//! The file is walked and not read: weights are stepped over wherever they are, so it may be larger than memory. Field
//! numbers are those of `onnx.proto3` of the ONNX project.

use super::ModelDirError;
use crate::engine::{
    DataFileError, locate_data_file,
    proto::{DimensionProto, StringStringEntryProto, ValueInfoProto},
};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

/// What a graph says of itself.
#[derive(Debug, Default)]
pub struct OnnxSummary {
    /// Who exported it.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Size of the file; external data comes on top.
    pub num_bytes: u64,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// The files beside it that hold its weights, each with the bytes that it must have at least.
    pub data_files: BTreeMap<String, u64>,
}

/// A graph's surface.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) summary: OnnxSummary,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) outputs: Vec<TensorInfo>,
    /// Those of the graph itself, not of a branch or loop in it.
    pub(super) nodes: Vec<Node>,
}

/// A named tensor; dimensions that vary are none.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) element_type: ElementCode,
    pub(super) shape: Vec<Option<usize>>,
}

/// An operator in its place.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) op_type: String,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    /// Attributes that are integers.
    pub(super) integers: BTreeMap<String, i64>,
}

/// `TensorProto.DataType`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ElementCode(pub(super) i32);

impl ElementCode {
    pub(super) const FLOAT: Self = Self(1);
    pub(super) const UINT8: Self = Self(2);
    pub(super) const INT8: Self = Self(3);
    pub(super) const INT32: Self = Self(6);
    pub(super) const INT64: Self = Self(7);
    pub(super) const BOOL: Self = Self(9);
    pub(super) const FLOAT16: Self = Self(10);
    pub(super) const BFLOAT16: Self = Self(16);
    pub(super) const FLOAT8: Self = Self(17);

    /// Size of one element; 0 where it is not known.
    fn num_bits(self) -> u64 {
        match self.0 {
            2 | 3 | 9 | 17..=20 | 24 => 8,
            4 | 5 | 10 | 16 => 16,
            1 | 6 | 12 => 32,
            7 | 11 | 13 | 14 => 64,
            15 => 128,
            21..=23 => 4,
            25 | 26 => 2,
            _ => 0,
        }
    }
}

/// Reads the surface of a graph and looks for its data files.
pub(super) fn read(path: &Path) -> Result<Graph, ModelDirError> {
    let graph = walk(path).map_err(|fault| match fault {
        Fault::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
            ModelDirError::Unreadable { path: path.to_path_buf(), source }
        }
        Fault::Io(_) => invalid(path, "it is cut short".to_owned()),
        Fault::Form(message) => invalid(path, message.to_owned()),
    })?;
    for (name, num_bytes) in &graph.summary.data_files {
        check_data_file(path, name, *num_bytes)?;
    }
    Ok(graph)
}

/// The files beside a graph that hold its weights, by its own names for them. A file that is no graph names none; what opens
/// it tells why.
pub fn data_files(graph: &Path) -> BTreeSet<String> {
    walk(graph).map(|graph| graph.summary.data_files.into_keys().collect()).unwrap_or_default()
}

fn invalid(path: &Path, message: String) -> ModelDirError {
    ModelDirError::Invalid { path: path.to_path_buf(), message }
}

fn check_data_file(graph: &Path, name: &str, needed: u64) -> Result<(), ModelDirError> {
    let place = locate_data_file(graph, name).map_err(|error| match error {
        DataFileError::Missing { path, .. } => ModelDirError::Missing { path },
        DataFileError::Outside { .. } => {
            ModelDirError::Unsupported { path: graph.to_path_buf(), message: error.to_string() }
        }
    })?;
    let found = place.metadata().map_err(|source| ModelDirError::Unreadable { path: place.clone(), source })?;
    if !found.is_file() {
        return Err(invalid(&place, "it is not a file".to_owned()));
    }
    if found.len() < needed {
        let (beside, found) = (graph.with_file_name(name), found.len());
        return Err(invalid(&beside, format!("it has {found} bytes and the graph reads {needed} of them")));
    }
    Ok(())
}

fn walk(path: &Path) -> Result<Graph, Fault> {
    let file = File::open(path)?;
    let num_bytes = file.metadata()?.len();
    let mut walker = Walker { file: BufReader::new(file), position: 0, kept: 0, graph: Graph::default() };
    walker.graph.summary.num_bytes = num_bytes;
    walker.model(num_bytes)?;
    Ok(walker.graph)
}

/// Why a walk ended.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Form(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

const CUT_SHORT: Fault = Fault::Form("it is cut short or no ONNX file");

/// Limits on what a file may make us keep, far above those of any model.
const MAX_DEPTH: usize = 16;
const MAX_TEXT_BYTES: u64 = 64 * 1024;
const MAX_KEPT_BYTES: u64 = 256 * 1024 * 1024;
/// What a kept text costs beside its letters.
const TEXT_OVERHEAD: u64 = 64;

/// One field of a message.
struct Field {
    number: u64,
    value: Value,
}

enum Value {
    /// Of variable length.
    Number(u64),
    /// Where a string or message ends that begins here.
    Until(u64),
    /// Stepped over already.
    Fixed,
}

/// Goes through a file once, from front to back. Each method for a message begins behind the message's length and leaves
/// off at its end.
struct Walker {
    file: BufReader<File>,
    position: u64,
    /// Memory that the kept texts take.
    kept: u64,
    graph: Graph,
}

impl Walker {
    fn model(&mut self, end: u64) -> Result<(), Fault> {
        let mut num_graphs = 0;
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1, Value::Number(version)) => self.graph.summary.ir_version = version.cast_signed(),
                (2, Value::Until(end)) => self.graph.summary.producer = self.text(end)?,
                (7, Value::Until(end)) => {
                    num_graphs += 1;
                    self.graph(end, 0)?;
                }
                // A function's body is nodes, as a graph's is.
                (25, Value::Until(end)) => self.function(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        if num_graphs == 1 { Ok(()) } else { Err(Fault::Form("it holds no graph")) }
    }

    fn graph(&mut self, end: u64, depth: usize) -> Result<(), Fault> {
        if MAX_DEPTH < depth {
            return Err(Fault::Form("its graphs are nested deeper than those of any model"));
        }
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1, Value::Until(end)) => self.node(end, depth)?,
                (5, Value::Until(end)) => self.tensor(end)?,
                (11, Value::Until(end)) if depth == 0 => {
                    let input = self.tensor_info(end)?;
                    self.graph.inputs.push(input);
                }
                (12, Value::Until(end)) if depth == 0 => {
                    let output = self.tensor_info(end)?;
                    self.graph.outputs.push(output);
                }
                (15, Value::Until(end)) => self.sparse_tensor(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        Ok(())
    }

    fn function(&mut self, end: u64) -> Result<(), Fault> {
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (7, Value::Until(end)) => self.node(end, 1)?,
                (_, value) => self.skip(value)?,
            }
        }
        Ok(())
    }

    fn node(&mut self, end: u64, depth: usize) -> Result<(), Fault> {
        let mut node = Node::default();
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1, Value::Until(end)) => node.inputs.push(self.text(end)?),
                (2, Value::Until(end)) => node.outputs.push(self.text(end)?),
                (4, Value::Until(end)) => node.op_type = self.text(end)?,
                (5, Value::Until(end)) => self.attribute(end, depth, &mut node)?,
                (_, value) => self.skip(value)?,
            }
        }
        *self.graph.summary.operators.entry(node.op_type.clone()).or_default() += 1;
        self.keep(0)?;
        if depth == 0 {
            self.graph.nodes.push(node);
        }
        Ok(())
    }

    fn attribute(&mut self, end: u64, depth: usize, node: &mut Node) -> Result<(), Fault> {
        let (mut name, mut integer) = (String::new(), None);
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1, Value::Until(end)) => name = self.text(end)?,
                (3, Value::Number(number)) => integer = Some(number.cast_signed()),
                (5 | 10, Value::Until(end)) => self.tensor(end)?,
                (6 | 11, Value::Until(end)) => self.graph(end, depth + 1)?,
                (22 | 23, Value::Until(end)) => self.sparse_tensor(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        if let Some(integer) = integer {
            node.integers.insert(name, integer);
        }
        Ok(())
    }

    fn sparse_tensor(&mut self, end: u64) -> Result<(), Fault> {
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1 | 2, Value::Until(end)) => self.tensor(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        Ok(())
    }

    /// Only where its data is.
    fn tensor(&mut self, end: u64) -> Result<(), Fault> {
        let (mut num_elements, mut element_type) = (1_u64, ElementCode(0));
        let mut external = BTreeMap::new();
        while let Some(field) = self.field(end)? {
            match (field.number, field.value) {
                (1, Value::Number(size)) => num_elements = num_elements.saturating_mul(size),
                (1, Value::Until(end)) => {
                    while self.position < end {
                        num_elements = num_elements.saturating_mul(self.varint(end)?);
                    }
                }
                (2, Value::Number(code)) => element_type = ElementCode(i32::try_from(code).unwrap_or_default()),
                (13, Value::Until(end)) => {
                    let entry: StringStringEntryProto = self.decode(end)?;
                    external.insert(entry.key, entry.value);
                }
                (_, value) => self.skip(value)?,
            }
        }
        let Some(location) = external.remove("location") else { return Ok(()) };
        let number = |key: &str| match external.get(key) {
            None => Ok(None),
            Some(text) => text.trim().parse::<u64>().map(Some).map_err(|_| Fault::Form("it says no place of its data")),
        };
        let offset = number("offset")?.unwrap_or(0);
        let computed = num_elements.saturating_mul(element_type.num_bits()).div_ceil(8);
        let needed = offset.saturating_add(number("length")?.unwrap_or(computed));
        if !self.graph.summary.data_files.contains_key(&location) {
            self.keep(location.len() as u64)?;
        }
        let file = self.graph.summary.data_files.entry(location).or_default();
        *file = needed.max(*file);
        Ok(())
    }

    fn tensor_info(&mut self, end: u64) -> Result<TensorInfo, Fault> {
        self.decode::<ValueInfoProto>(end).map(TensorInfo::from)
    }

    /// A short message of known fields.
    fn decode<M: Message + Default>(&mut self, end: u64) -> Result<M, Fault> {
        let bytes = self.bytes(end)?;
        M::decode(bytes.as_slice()).map_err(|_| CUT_SHORT)
    }

    fn text(&mut self, end: u64) -> Result<String, Fault> {
        String::from_utf8(self.bytes(end)?).map_err(|_| Fault::Form("a name in it is no text"))
    }

    fn bytes(&mut self, end: u64) -> Result<Vec<u8>, Fault> {
        let len = end - self.position;
        if MAX_TEXT_BYTES < len {
            return Err(Fault::Form("a name in it is longer than that of any model"));
        }
        self.keep(len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.file.read_exact(&mut bytes)?;
        self.position = end;
        Ok(bytes)
    }

    fn keep(&mut self, len: u64) -> Result<(), Fault> {
        self.kept += len + TEXT_OVERHEAD;
        if MAX_KEPT_BYTES < self.kept {
            return Err(Fault::Form("it holds more operators than any model"));
        }
        Ok(())
    }

    fn skip(&mut self, value: Value) -> Result<(), Fault> {
        if let Value::Until(end) = value {
            self.step_to(end)?;
        }
        Ok(())
    }

    fn step_to(&mut self, end: u64) -> Result<(), Fault> {
        let distance = i64::try_from(end - self.position).map_err(|_| CUT_SHORT)?;
        self.file.seek_relative(distance)?;
        self.position = end;
        Ok(())
    }

    /// The next field of a message that ends at `end`.
    fn field(&mut self, end: u64) -> Result<Option<Field>, Fault> {
        if self.position == end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let value = match key & 7 {
            0 => Value::Number(self.varint(end)?),
            2 => {
                let len = self.varint(end)?;
                Value::Until(self.place(len, end)?)
            }
            fixed @ (1 | 5) => {
                let next = self.place(if fixed == 1 { 8 } else { 4 }, end)?;
                self.step_to(next)?;
                Value::Fixed
            }
            _ => return Err(CUT_SHORT),
        };
        Ok(Some(Field { number: key >> 3, value }))
    }

    fn place(&self, len: u64, end: u64) -> Result<u64, Fault> {
        self.position.checked_add(len).filter(|place| *place <= end).ok_or(CUT_SHORT)
    }

    fn varint(&mut self, end: u64) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            if self.position == end {
                return Err(CUT_SHORT);
            }
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.position += 1;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
        }
        Err(CUT_SHORT)
    }
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
