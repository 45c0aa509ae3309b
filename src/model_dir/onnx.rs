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
    collections::BTreeMap,
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
    /// What the exporter says of tensors on the way, by name.
    pub(super) between: BTreeMap<String, TensorInfo>,
    /// Single 64-bit integers among the weights, by name.
    pub(super) constants: BTreeMap<String, i64>,
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
    let graph = surface(path)?;
    for (name, num_bytes) in &graph.summary.data_files {
        check_data_file(path, name, *num_bytes)?;
    }
    Ok(graph)
}

/// The files that a graph names, relative to its folder, each with the bytes that it must have at least; they need not be
/// there yet.
///
/// # Errors
/// When the graph cannot be read.
pub fn data_files(path: &Path) -> Result<BTreeMap<String, u64>, ModelDirError> {
    Ok(surface(path)?.summary.data_files)
}

fn surface(path: &Path) -> Result<Graph, ModelDirError> {
    walk(path).map_err(|fault| match fault {
        _ if is_pointer(path) => invalid(path, POINTER.to_owned()),
        Fault::Io(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            ModelDirError::Unreadable { path: path.to_path_buf(), cause }
        }
        Fault::Io(_) => invalid(path, "it is cut short".to_owned()),
        Fault::Form(message) => invalid(path, message.to_owned()),
    })
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
    let found = place.metadata().map_err(|cause| ModelDirError::Unreadable { path: place.clone(), cause })?;
    if !found.is_file() {
        return Err(invalid(&place, "it is not a file".to_owned()));
    }
    if found.len() < needed {
        let beside = graph.with_file_name(name);
        let short = || format!("it has {} bytes and the graph needs {needed}", found.len());
        return Err(invalid(&beside, if is_pointer(&place) { POINTER.to_owned() } else { short() }));
    }
    Ok(())
}

/// Whether a file only says where Git LFS has what should be in it.
fn is_pointer(path: &Path) -> bool {
    let mut start = [0; POINTER_START.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| start == *POINTER_START)
}

const POINTER_START: &[u8; 26] = b"version https://git-lfs.gi";
const POINTER: &str = "it is a pointer of Git LFS instead of the file itself";

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
                (13, Value::Until(end)) if depth == 0 => {
                    let info = self.tensor_info(end)?;
                    self.graph.between.insert(info.name.clone(), info);
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

    /// Only where its data is, and its value where it is one integer.
    fn tensor(&mut self, end: u64) -> Result<(), Fault> {
        let (mut num_elements, mut element_type) = (1_u64, ElementCode(0));
        let (mut name, mut integer) = (String::new(), None);
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
                (7, Value::Number(number)) => integer = Some(number.cast_signed()),
                (7, Value::Until(end)) => {
                    while self.position < end {
                        integer = Some(self.varint(end)?.cast_signed());
                    }
                }
                (8, Value::Until(end)) => name = self.text(end)?,
                (9, Value::Until(end)) if end - self.position == 8 => {
                    integer = <[u8; 8]>::try_from(self.bytes(end)?).ok().map(i64::from_le_bytes);
                }
                (13, Value::Until(end)) => {
                    let entry: StringStringEntryProto = self.decode(end)?;
                    external.insert(entry.key, entry.value);
                }
                (_, value) => self.skip(value)?,
            }
        }
        if let (Some(integer), 1, ElementCode::INT64) = (integer, num_elements, element_type) {
            self.graph.constants.insert(name, integer);
        }
        let Some(location) = external.remove("location") else { return Ok(()) };
        let number = |key: &str| match external.get(key) {
            None => Ok(None),
            Some(text) => text
                .trim()
                .parse::<u64>()
                .map(Some)
                .map_err(|_| Fault::Form("the place of a weight in its data file is not a number")),
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
        let info = self.decode::<ValueInfoProto>(end)?;
        if info.name.contains('\0') { Err(Fault::Form("a name in it is no text")) } else { Ok(info.into()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        io::{Seek, SeekFrom, Write},
        path::PathBuf,
    };
    use tempfile::TempDir;

    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while 0x7f < number {
            bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).unwrap());
        bytes
    }

    /// A field of bytes.
    fn field(number: u64, payload: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(payload.len() as u64), payload.to_vec()].concat()
    }

    fn number(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    /// A tensor of two floats whose data is elsewhere.
    fn external(entries: &[(&str, &str)]) -> Vec<u8> {
        let entry =
            |(key, value): &(&str, &str)| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
        [number(1, 2), number(2, 1), entries.iter().flat_map(entry).collect()].concat()
    }

    fn written(model: &[u8]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        fs::write(&path, model).unwrap();
        (dir, path)
    }

    /// What is said of a file with this content, without the name of its folder.
    fn refusal(model: &[u8]) -> String {
        let (dir, path) = written(model);
        read(&path).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn a_graph_is_read_without_its_weights() {
        let graph = read(Path::new("tests/fixtures/tiny-gqa/onnx/model.onnx")).unwrap();
        assert_eq!((graph.summary.ir_version, graph.summary.producer.as_str()), (10, "onnxruntime-genai"));
        assert_eq!((graph.inputs.len(), graph.outputs.len()), (6, 5));
        assert_eq!(graph.nodes.len(), graph.summary.operators.values().sum::<usize>());
        let attention = graph.nodes.iter().find(|node| node.op_type == "GroupQueryAttention").unwrap();
        assert_eq!((attention.inputs[3].as_str(), attention.integers["kv_num_heads"]), ("past_key_values.0.key", 2));
    }

    #[test]
    fn weights_are_stepped_over_however_large_they_are() {
        // A hole of three gigabytes, which takes no room on the disk, stands for the weights.
        const WEIGHTS: u64 = 3 << 30;
        let raw = [varint(9 << 3 | 2), varint(WEIGHTS)].concat();
        let initializer = [varint(5 << 3 | 2), varint(raw.len() as u64 + WEIGHTS), raw].concat();
        let input = field(11, &field(1, b"input_ids"));
        let len = initializer.len() as u64 + WEIGHTS + input.len() as u64;
        let (_dir, path) = written(&[varint(7 << 3 | 2), varint(len), initializer].concat());
        let mut file = File::options().append(false).write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(WEIGHTS.cast_signed())).unwrap();
        file.write_all(&input).unwrap();
        drop(file);
        assert_eq!(read(&path).unwrap().inputs[0].name, "input_ids");
    }

    #[test]
    fn a_file_that_is_cut_short_is_an_error_wherever_it_is_cut() {
        let model = fs::read("tests/fixtures/tiny-gqa/onnx/model.onnx").unwrap();
        for len in (0..model.len()).step_by(model.len() / 50) {
            let (_dir, path) = written(&model[..len]);
            // Behind the graph come the versions of its operators, which may be missing.
            assert!(read(&path).is_err() || model.len() - len < 100, "{len}");
        }
    }

    #[test]
    fn what_no_model_needs_is_refused() {
        let mut nested = Vec::new();
        for _ in 0..40 {
            nested = field(1, &field(5, &field(6, &nested)));
        }
        insta::assert_snapshot!(refusal(&field(7, &nested)), @"DIR/model.onnx is not valid: its graphs are nested deeper than those of any model; download it again");
        insta::assert_snapshot!(refusal(&field(7, &field(1, &field(4, &[b'a'; 70_000])))), @"DIR/model.onnx is not valid: a name in it is longer than that of any model; download it again");
        // Many small names that together take more than any model's.
        let node = field(1, &[field(1, b"a"), field(1, b"a"), field(1, b"a"), field(1, b"a")].concat());
        insta::assert_snapshot!(refusal(&field(7, &node.repeat(1_000_000))), @"DIR/model.onnx is not valid: it holds more operators than any model; download it again");
        insta::assert_snapshot!(refusal(&field(7, &field(11, &field(1, &[0xff])))), @"DIR/model.onnx is not valid: it is cut short or no ONNX file; download it again");
        assert!(refusal(&field(7, &field(11, &field(1, b"input\0ids")))).contains("a name in it is no text"));
        insta::assert_snapshot!(refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"), @"DIR/model.onnx is not valid: it is a pointer of Git LFS instead of the file itself; download it again");
        insta::assert_snapshot!(refusal(&number(1, 10)), @"DIR/model.onnx is not valid: it holds no graph; download it again");
    }

    #[test]
    fn data_files_are_found_wherever_a_tensor_is() {
        let tensor = |name: &str| external(&[("location", name), ("offset", "4")]);
        let constant = |name: &str| field(5, &field(5, &tensor(name)));
        let branch = field(1, &field(5, &field(6, &field(5, &tensor("in-branch")))));
        let graph = [field(5, &tensor("in-graph")), field(1, &constant("in-constant")), branch].concat();
        let function = field(25, &field(7, &constant("in-function")));
        let sparse = field(7, &field(15, &field(1, &tensor("in-sparse"))));
        let (dir, path) = written(&[field(7, &graph), function].concat());
        let names = ["in-branch", "in-constant", "in-function", "in-graph"];
        // Two floats behind four bytes, which the tensors do not say themselves.
        let found: Vec<(String, u64)> = data_files(&path).unwrap().into_iter().collect();
        assert_eq!(found, names.map(|name| (name.to_owned(), 12)));
        for name in names {
            assert!(matches!(read(&path), Err(ModelDirError::Missing { path }) if path.ends_with(name)), "{name}");
            fs::write(dir.path().join(name), [0; 12]).unwrap();
        }
        assert!(read(&path).is_ok());
        fs::write(&path, sparse).unwrap();
        assert!(matches!(read(&path), Err(ModelDirError::Missing { path }) if path.ends_with("in-sparse")));
    }

    #[test]
    fn a_data_file_that_is_missing_or_short_or_elsewhere_is_named() {
        let model = |entries: &[(&str, &str)]| field(7, &field(5, &external(entries)));
        insta::assert_snapshot!(refusal(&model(&[("location", "weights")])), @"the model folder is not complete: DIR/weights is missing; download the whole folder");
        insta::assert_snapshot!(refusal(&model(&[("location", "../weights")])), @"the graph DIR/model.onnx is not understood: it names the data file ../weights, which is outside its own folder; take another export");
        insta::assert_snapshot!(refusal(&model(&[("location", "/etc/passwd")])), @"the graph DIR/model.onnx is not understood: it names the data file /etc/passwd, which is outside its own folder; take another export");
        insta::assert_snapshot!(refusal(&model(&[("location", "weights"), ("offset", "-1")])), @"DIR/model.onnx is not valid: the place of a weight in its data file is not a number; download it again");
        let (dir, path) = written(&model(&[("location", "weights"), ("offset", "100"), ("length", "50")]));
        fs::write(dir.path().join("weights"), [0; 149]).unwrap();
        let error = read(&path).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(error, @"DIR/weights is not valid: it has 149 bytes and the graph needs 150; download it again");
        fs::write(dir.path().join("weights"), [0; 150]).unwrap();
        assert!(read(&path).is_ok());
        // More than any file has, and more than a number holds.
        fs::write(&path, model(&[("location", "weights"), ("offset", &u64::MAX.to_string()), ("length", "50")]))
            .unwrap();
        assert!(matches!(read(&path), Err(ModelDirError::Invalid { .. })));
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(&path, model(&[("location", "folder")])).unwrap();
        assert!(matches!(read(&path), Err(ModelDirError::Invalid { .. })));
    }
}
