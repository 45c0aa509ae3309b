//! Changes to a graph between its file and the runtime, so that a step computes no more than it must.
//!
//! A graph is spliced, not decoded and encoded again: bytes that no edit names, weights above all, go through as they
//! are. Field numbers are those of `onnx.proto3` of the ONNX project.

use super::{
    FloatType,
    proto::{DimensionProto, StringStringEntryProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto},
    sequence_lengths,
    splice::{Field, encode, fields, push_bytes, push_key},
    top_scores,
};
use prost::{DecodeError, Message};
use serde::Deserialize;
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

/// Name of the input that tells how many of a row's tokens are not padding.
pub(super) const QUERY_SEQLENS: &str = "query_seqlens";
/// Name of the input that tells which positions are to be scored.
pub(super) const LOGITS_INDICES: &str = "logits_indices";

/// Names of an input that tells how many of the last positions are to be scored, as some exporters have it.
const NUM_LOGITS: [&str; 2] = ["num_logits_to_keep", "logits_to_keep"];

/// `[engine.graph_edits]`: which edits are wanted, and of an edited graph, which were made. None by default here.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each edit is made or not, whatever the others are")]
pub struct GraphEdits {
    /// Feeds input 16 of every `GroupQueryAttention`, so that rows of different lengths share one run. Needs ONNX
    /// Runtime 1.32.
    pub query_seqlens: bool,
    /// Gathers the positions that are to be sampled before the language-model head, the widest product of all.
    pub logits_indices: bool,
    /// Lets `MatMulNBits` multiply in 8-bit integers (`accuracy_level` 4) where the export leaves it open. CPU only.
    pub accuracy_level: bool,
    /// Tells `GroupQueryAttention` how long rows are, instead of a mask that is counted anew in each step.
    pub sequence_lengths: bool,
    /// Finds the best scores of each row in the graph; `engine.top_scores` says when.
    #[serde(skip)]
    pub top_scores: bool,
}

/// What the graph's output `logits` holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    /// In a row.
    pub(super) vocab_size: usize,
    pub(super) element_type: FloatType,
    /// Whether it has a row for every position that is computed, as long as no edit picks some.
    pub(super) of_all: bool,
    /// Whether positions have no rows of a batch around them: all tokens lie one behind the other.
    pub(super) is_packed: bool,
}

/// A graph on its way to the runtime.
#[derive(Debug)]
pub(super) struct Edited {
    /// The whole file.
    pub(super) model: Vec<u8>,
    /// What was done to it: what was wanted and found a place.
    pub(super) made: GraphEdits,
}

pub(super) mod field {
    pub(in crate::engine::model) const MODEL_GRAPH: usize = 7;
    pub(in crate::engine::model) const MODEL_OPSET: usize = 8;
    pub(in crate::engine::model) const GRAPH_NODE: usize = 1;
    pub(in crate::engine::model) const GRAPH_INITIALIZER: usize = 5;
    pub(in crate::engine::model) const GRAPH_INPUT: usize = 11;
    pub(in crate::engine::model) const GRAPH_OUTPUT: usize = 12;
    pub(in crate::engine::model) const GRAPH_VALUE_INFO: usize = 13;
    pub(in crate::engine::model) const NODE_INPUT: usize = 1;
    pub(in crate::engine::model) const NODE_ATTRIBUTE: usize = 5;
    pub(in crate::engine::model) const TENSOR_NAME: usize = 8;
    pub(in crate::engine::model) const TENSOR_RAW_DATA: usize = 9;
    pub(in crate::engine::model) const TENSOR_EXTERNAL_DATA: usize = 13;
}

/// As much of a node as edits look at.
#[derive(Clone, Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<AttributeProto>,
}

/// An integer, as far as edits look at it.
#[derive(Clone, Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int64, tag = "3")]
    pub(super) i: i64,
    /// `AttributeType`; 2 is an integer.
    #[prost(int32, tag = "20")]
    pub(super) r#type: i32,
}

#[derive(Clone, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

/// The first version of ONNX's own operators in which `ReduceSum` takes its axes as the best scores' nodes give them.
const MIN_OPSET: i64 = 13;

pub(super) const INT_ATTRIBUTE: i32 = 2;
const INT32: i32 = 6;
const INT64: i32 = 7;
/// Index of `query_seqlens` among the inputs of `GroupQueryAttention`.
const QUERY_SEQLENS_INPUT: usize = 16;
/// `accuracy_level`: 8-bit integer products.
const INT8_PRODUCTS: i64 = 4;

/// Applies the wanted edits. Names of external data files go through `place`, which tells where they are relative to
/// the folder that the runtime will be given.
pub(super) fn edit(
    model: &[u8],
    wanted: GraphEdits,
    scores: Scores,
    place: impl Fn(&str) -> String,
) -> Result<Edited, DecodeError> {
    let top = fields(model)?;
    let opsets = top.iter().filter(|field| field.number == field::MODEL_OPSET);
    let opsets = opsets.map(|field| OperatorSetIdProto::decode(field.payload)).collect::<Result<Vec<_>, _>>()?;
    let is_young = opsets.iter().any(|set| set.domain.is_empty() && MIN_OPSET <= set.version);
    let mut made = GraphEdits::default();
    let mut edited = Vec::with_capacity(model.len() + 64 * 1024);
    for field in &top {
        if field.number != field::MODEL_GRAPH {
            edited.extend_from_slice(field.whole);
            continue;
        }
        let mut pieces = edit_graph(&fields(field.payload)?, (wanted, scores.is_packed), &place, &mut made)?;
        made.sequence_lengths = wanted.sequence_lengths && sequence_lengths::feed(&mut pieces)?;
        if wanted.top_scores && is_young && (made.logits_indices || !scores.of_all) {
            made.top_scores = true;
            top_scores::append(&mut pieces, scores.vocab_size, scores.element_type);
        }
        push_key(&mut edited, field.number, pieces.iter().map(|piece| piece.len()).sum());
        pieces.iter().for_each(|piece| edited.extend_from_slice(piece));
    }
    Ok(Edited { model: edited, made })
}

/// The files beside the graph that hold its weights.
pub(super) fn external_files(model: &[u8]) -> Result<BTreeSet<String>, DecodeError> {
    let mut files = BTreeSet::new();
    for graph in fields(model)?.iter().filter(|field| field.number == field::MODEL_GRAPH) {
        for tensor in fields(graph.payload)?.iter().filter(|field| field.number == field::GRAPH_INITIALIZER) {
            for entry in fields(tensor.payload)?.iter().filter(|field| field.number == field::TENSOR_EXTERNAL_DATA) {
                let entry = StringStringEntryProto::decode(entry.payload)?;
                if entry.key == LOCATION {
                    files.insert(entry.value);
                }
            }
        }
    }
    Ok(files)
}

/// The graph's fields after the edits.
fn edit_graph<'m>(
    graph: &[Field<'m>],
    (wanted, is_packed): (GraphEdits, bool),
    place: &impl Fn(&str) -> String,
    made: &mut GraphEdits,
) -> Result<Vec<Cow<'m, [u8]>>, DecodeError> {
    let surface = Surface::read(graph)?;
    let head = if wanted.logits_indices { surface.head() } else { None };
    let mut pieces = Vec::with_capacity(graph.len() + 4);
    let mut nodes = surface.nodes.iter().enumerate();
    for field in graph {
        match field.number {
            field::GRAPH_NODE => {
                let (index, node) = nodes.next().expect("one was read for each field");
                let mut changes = NodeChanges::default();
                if wanted.query_seqlens && node.op_type == "GroupQueryAttention" {
                    made.query_seqlens = true;
                    changes.num_skipped_inputs = QUERY_SEQLENS_INPUT.saturating_sub(node.input.len());
                    changes.last_input = Some(QUERY_SEQLENS);
                }
                if wanted.accuracy_level && node.leaves_accuracy_open() {
                    made.accuracy_level = true;
                    changes.accuracy_level = true;
                }
                if head.as_ref().is_some_and(|head| head.node == index) {
                    made.logits_indices = true;
                    let gather = gather_nodes(&node.input[0], is_packed);
                    pieces.extend(gather.iter().map(|node| Cow::Owned(encode(field::GRAPH_NODE, node))));
                    changes.first_input = Some(GATHERED);
                }
                pieces.push(changes.apply(field)?);
            }
            field::GRAPH_INITIALIZER => pieces.push(place_external_data(field, place)?),
            // These shapes no longer hold.
            field::GRAPH_VALUE_INFO if head.as_ref().is_some_and(|head| head.scores.contains(field.name())) => {}
            field::GRAPH_OUTPUT if head.is_some() && field.name() == "logits" => {
                let mut logits = ValueInfoProto::decode(field.payload)?;
                logits.set_first_dimensions(is_packed);
                pieces.push(Cow::Owned(encode(field::GRAPH_OUTPUT, &logits)));
            }
            _ => pieces.push(Cow::Borrowed(field.whole)),
        }
    }
    let mut push_input = |input: ValueInfoProto| pieces.push(Cow::Owned(encode(field::GRAPH_INPUT, &input)));
    if made.logits_indices {
        push_input(match is_packed {
            true => ValueInfoProto::of(LOGITS_INDICES, INT32, vec!["num_logits"]),
            false => ValueInfoProto::of(LOGITS_INDICES, INT64, vec!["1", "num_logits"]),
        });
    }
    if made.query_seqlens {
        push_input(ValueInfoProto::of(QUERY_SEQLENS, INT32, vec!["batch_size"]));
    }
    Ok(pieces)
}

/// What the edits look at.
struct Surface<'m> {
    nodes: Vec<NodeProto>,
    initializers: BTreeSet<&'m str>,
    inputs: BTreeSet<&'m str>,
}

/// Where positions become scores.
struct Head {
    /// Index of the product with the vocabulary's matrix.
    node: usize,
    /// Names of its output and of what follows it, up to `logits`.
    scores: BTreeSet<String>,
}

impl<'m> Surface<'m> {
    fn read(graph: &[Field<'m>]) -> Result<Self, DecodeError> {
        let of = |number: usize| graph.iter().filter(move |field| field.number == number);
        Ok(Self {
            nodes: of(field::GRAPH_NODE).map(|field| NodeProto::decode(field.payload)).collect::<Result<_, _>>()?,
            initializers: of(field::GRAPH_INITIALIZER).map(|field| field.string(field::TENSOR_NAME)).collect(),
            inputs: of(field::GRAPH_INPUT).map(Field::name).collect(),
        })
    }

    /// Walks up from `logits` through what is done to each score by itself. None where the graph ends in another way, or
    /// gathers positions already.
    fn head(&self) -> Option<Head> {
        let mut producers = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            producers.extend(node.output.iter().map(|output| (output.as_str(), index)));
        }
        let is_constant = |name: &str| {
            let made_here = producers.get(name).is_some_and(|index| self.nodes[*index].op_type == "Constant");
            made_here || self.initializers.contains(name)
        };
        let mut scores = BTreeSet::new();
        let mut name = "logits";
        loop {
            let index = *producers.get(name)?;
            let node = &self.nodes[index];
            scores.insert(name.to_owned());
            match node.op_type.as_str() {
                "MatMul" | "MatMulNBits" | "FusedMatMul" => {
                    let gathered = producers.get(node.input.first()?.as_str());
                    let is_pruned = gathered.is_some_and(|index| is_selection(&self.nodes[*index].op_type));
                    // A graph that is told how many positions to keep is told to keep all of them.
                    let keeps_all = NUM_LOGITS.iter().any(|name| self.inputs.contains(name));
                    let is_free = (!is_pruned || keeps_all) && !self.inputs.contains(LOGITS_INDICES);
                    return is_free.then_some(Head { node: index, scores });
                }
                "Cast" | "Tanh" | "Mul" | "Div" | "Add" | "Clip" => {
                    let mut varying = node.input.iter().filter(|input| !input.is_empty() && !is_constant(input));
                    name = varying.next()?;
                    if varying.next().is_some() {
                        return None;
                    }
                }
                _ => return None,
            }
        }
    }
}

/// Whether an operator picks some of its input, as exports do that score only the last position.
fn is_selection(op_type: &str) -> bool {
    matches!(op_type, "Gather" | "GatherND" | "Slice" | "Squeeze" | "Unsqueeze")
}

/// Output of the nodes below, `[1, num_logits, hidden]`, or `[num_logits, hidden]` of packed tokens.
const GATHERED: &str = "logits_indices/rows";

/// `[batch, sequence, hidden]` to the wanted positions, counted over all rows of the batch; or `[tokens, hidden]` to them.
fn gather_nodes(hidden: &str, is_packed: bool) -> Vec<NodeProto> {
    let node = |op_type: &str, inputs: [&str; 2], output: &str, axis: i64| NodeProto {
        input: inputs.iter().filter(|input| !input.is_empty()).map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        name: format!("logits_indices/{op_type}"),
        op_type: op_type.to_owned(),
        attribute: vec![AttributeProto { name: "axis".to_owned(), i: axis, r#type: INT_ATTRIBUTE }],
    };
    if is_packed {
        return vec![node("Gather", [hidden, LOGITS_INDICES], GATHERED, 0)];
    }
    let flat = "logits_indices/positions";
    vec![node("Flatten", [hidden, ""], flat, 2), node("Gather", [flat, LOGITS_INDICES], GATHERED, 0)]
}

impl NodeProto {
    fn leaves_accuracy_open(&self) -> bool {
        let is_set = |attribute: &AttributeProto| attribute.name == ACCURACY_LEVEL && attribute.i != 0;
        self.op_type == "MatMulNBits" && !self.attribute.iter().any(is_set)
    }
}

const ACCURACY_LEVEL: &str = "accuracy_level";
/// Key of the file name among a tensor's external data.
const LOCATION: &str = "location";

/// What becomes different in one node.
#[derive(Default)]
struct NodeChanges<'c> {
    first_input: Option<&'c str>,
    /// Optional inputs between the node's last one and the new one.
    num_skipped_inputs: usize,
    last_input: Option<&'c str>,
    accuracy_level: bool,
}

impl NodeChanges<'_> {
    fn apply<'m>(&self, node: &Field<'m>) -> Result<Cow<'m, [u8]>, DecodeError> {
        if self.first_input.is_none() && self.last_input.is_none() && !self.accuracy_level {
            return Ok(Cow::Borrowed(node.whole));
        }
        let mut payload = Vec::with_capacity(node.payload.len() + 64);
        let mut first_input = self.first_input;
        for field in fields(node.payload)? {
            match (field.number, first_input) {
                (field::NODE_INPUT, Some(name)) => {
                    push_bytes(&mut payload, field::NODE_INPUT, name.as_bytes());
                    first_input = None;
                }
                (field::NODE_ATTRIBUTE, _) if self.accuracy_level && field.name() == ACCURACY_LEVEL => {}
                _ => payload.extend_from_slice(field.whole),
            }
        }
        // Elements of a repeated field may stand anywhere; their order is what counts.
        if let Some(name) = self.last_input {
            (0..self.num_skipped_inputs).for_each(|_| push_bytes(&mut payload, field::NODE_INPUT, b""));
            push_bytes(&mut payload, field::NODE_INPUT, name.as_bytes());
        }
        if self.accuracy_level {
            let level = AttributeProto { name: ACCURACY_LEVEL.to_owned(), i: INT8_PRODUCTS, r#type: INT_ATTRIBUTE };
            payload.extend_from_slice(&encode(field::NODE_ATTRIBUTE, &level));
        }
        let mut whole = Vec::with_capacity(payload.len() + 16);
        push_bytes(&mut whole, node.number, &payload);
        Ok(Cow::Owned(whole))
    }
}

/// An initializer whose data lies in a file, with the file's new place; anything else as it is.
fn place_external_data<'m>(field: &Field<'m>, place: &impl Fn(&str) -> String) -> Result<Cow<'m, [u8]>, DecodeError> {
    let mut payload = Vec::new();
    let mut is_moved = false;
    for part in fields(field.payload)? {
        if part.number == field::TENSOR_EXTERNAL_DATA {
            let entry = StringStringEntryProto::decode(part.payload)?;
            if entry.key == LOCATION {
                let value = place(&entry.value);
                is_moved |= value != entry.value;
                payload.extend_from_slice(&encode(part.number, &StringStringEntryProto { value, ..entry }));
                continue;
            }
        } else if part.number == field::TENSOR_RAW_DATA {
            break; // The weights are here.
        }
        payload.extend_from_slice(part.whole);
    }
    if !is_moved {
        return Ok(Cow::Borrowed(field.whole));
    }
    let mut whole = Vec::with_capacity(payload.len() + 16);
    push_bytes(&mut whole, field.number, &payload);
    Ok(Cow::Owned(whole))
}

impl ValueInfoProto {
    /// A dimension is a number or a name.
    pub(super) fn of(name: &str, elem_type: i32, shape: Vec<&str>) -> Self {
        let dim = |size: &str| size.parse().map_or_else(|_| open(size), fixed);
        let shape = Some(TensorShapeProto { dim: shape.into_iter().map(dim).collect() });
        let tensor_type = Some(TensorTypeProto { elem_type, shape });
        Self { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
    }

    /// `[batch, sequence, vocabulary]` becomes `[1, num_logits, vocabulary]`, and `[tokens, vocabulary]` `[num_logits,
    /// vocabulary]`.
    fn set_first_dimensions(&mut self, is_packed: bool) {
        let tensor_type = self.r#type.as_mut().and_then(|r#type| r#type.tensor_type.as_mut());
        let shape = tensor_type.and_then(|tensor_type| tensor_type.shape.as_mut());
        match shape.map(|shape| shape.dim.as_mut_slice()) {
            Some([tokens, ..]) if is_packed => *tokens = open("num_logits"),
            Some([batch, sequence, ..]) => (*batch, *sequence) = (fixed(1), open("num_logits")),
            _ => {}
        }
    }
}

fn fixed(size: i64) -> DimensionProto {
    DimensionProto { dim_value: Some(size), dim_param: None }
}

fn open(name: &str) -> DimensionProto {
    DimensionProto { dim_value: None, dim_param: Some(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    const ALL: GraphEdits = GraphEdits {
        query_seqlens: true,
        logits_indices: true,
        accuracy_level: true,
        sequence_lengths: false,
        top_scores: false,
    };
    const SCORES: Scores = Scores { vocab_size: 300, element_type: FloatType::F32, of_all: true, is_packed: false };

    fn fixture(name: &str) -> Vec<u8> {
        fs::read(Path::new("tests/fixtures").join(name).join("onnx/model.onnx")).unwrap()
    }

    /// The graph's nodes, and the names of its inputs.
    fn surface(model: &[u8]) -> (Vec<NodeProto>, Vec<String>) {
        let top = fields(model).unwrap();
        let graph = top.iter().find(|field| field.number == field::MODEL_GRAPH).unwrap();
        let graph = fields(graph.payload).unwrap();
        let inputs = graph.iter().filter(|field| field.number == field::GRAPH_INPUT);
        (Surface::read(&graph).unwrap().nodes, inputs.map(|input| input.name().to_owned()).collect())
    }

    fn model(nodes: &[NodeProto]) -> Vec<u8> {
        let graph: Vec<u8> = nodes.iter().flat_map(|node| encode(field::GRAPH_NODE, node)).collect();
        let mut model = vec![0x08, 10]; // ir_version
        push_bytes(&mut model, field::MODEL_GRAPH, &graph);
        model
    }

    fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            op_type: op_type.to_owned(),
            ..NodeProto::default()
        }
    }

    #[test]
    fn a_graph_that_nothing_is_wanted_of_stays_as_it_is() {
        for name in ["tiny-gqa", "tiny-concat-fp16"] {
            let model = fixture(name);
            let edited = edit(&model, GraphEdits::default(), SCORES, str::to_owned).unwrap();
            assert_eq!((edited.model == model, edited.made), (true, GraphEdits::default()), "{name}");
        }
    }

    #[test]
    fn each_edit_finds_its_place_in_both_families() {
        for (name, has_query_seqlens) in [("tiny-gqa", true), ("tiny-gqa-fp16", true), ("tiny-concat", false)] {
            let Edited { model, made } = edit(&fixture(name), ALL, SCORES, str::to_owned).unwrap();
            assert_eq!(
                (made.query_seqlens, made.logits_indices, made.accuracy_level),
                (has_query_seqlens, true, false)
            );
            let (nodes, inputs) = surface(&model);
            assert!(inputs.contains(&LOGITS_INDICES.to_owned()));
            assert_eq!(inputs.contains(&QUERY_SEQLENS.to_owned()), has_query_seqlens);
            for node in nodes.iter().filter(|node| node.op_type == "GroupQueryAttention") {
                assert_eq!(node.input.iter().position(|input| input == QUERY_SEQLENS), Some(QUERY_SEQLENS_INPUT));
            }
            assert!(nodes.iter().any(|node| node.input.first().is_some_and(|input| input == GATHERED)), "{name}");
            // Doing it again finds nothing to do.
            let again = edit(&model, GraphEdits { query_seqlens: false, ..ALL }, SCORES, str::to_owned).unwrap();
            assert_eq!(again.made, GraphEdits::default(), "{name}");
        }
    }

    #[test]
    fn the_head_is_found_behind_what_is_done_to_each_score() {
        let constant = node("Constant", &[], "cap");
        let nodes = [
            constant,
            node("MatMulNBits", &["hidden", "weights"], "raw"),
            node("Div", &["raw", "cap"], "scaled"),
            node("Tanh", &["scaled"], "bent"),
            node("Cast", &["bent"], "logits"),
        ];
        let Edited { model: edited, made } = edit(&model(&nodes), ALL, SCORES, str::to_owned).unwrap();
        assert_eq!(made, GraphEdits { query_seqlens: false, ..ALL });
        let (nodes, _) = surface(&edited);
        let head = nodes.iter().find(|node| node.op_type == "MatMulNBits").unwrap();
        assert_eq!(head.input, [GATHERED, "weights"]);
        assert_eq!((head.attribute[0].name.as_str(), head.attribute[0].i), (ACCURACY_LEVEL, INT8_PRODUCTS));
        // A head that is gathered already, and one that mixes scores.
        let pruned = [node("Gather", &["all"], "hidden"), node("MatMul", &["hidden", "weights"], "logits")];
        let mixed = [node("MatMul", &["hidden", "weights"], "raw"), node("Softmax", &["raw"], "logits")];
        for nodes in [pruned, mixed] {
            assert_eq!(edit(&model(&nodes), ALL, SCORES, str::to_owned).unwrap().made, GraphEdits::default());
        }
    }

    #[test]
    fn packed_tokens_are_gathered_as_they_lie() {
        let model = fs::read("tests/fixtures/variant-paged-int8-kv/model.onnx").unwrap();
        let packed = Scores { vocab_size: 512, is_packed: true, ..SCORES };
        let wanted = GraphEdits { logits_indices: true, top_scores: true, ..GraphEdits::default() };
        let Edited { model, made } = edit(&model, wanted, packed, str::to_owned).unwrap();
        assert_eq!(made, wanted);
        let (nodes, _) = surface(&model);
        let gather = nodes.iter().find(|node| node.output == [GATHERED]).unwrap();
        let hidden = &gather.input[0];
        assert_eq!((gather.op_type.as_str(), gather.input[1].as_str()), ("Gather", LOGITS_INDICES));
        assert!(nodes.iter().any(|node| node.op_type != "Flatten" && node.output.contains(hidden)));
        // One that is told already keeps its own.
        let told = fs::read("tests/fixtures/variant-paged/model.onnx").unwrap();
        let edited = edit(&told, wanted, Scores { of_all: false, ..packed }, str::to_owned).unwrap();
        assert_eq!(edited.made, GraphEdits { top_scores: true, ..GraphEdits::default() });
    }

    #[test]
    fn an_accuracy_that_the_export_chose_is_kept() {
        let with_level = |level| NodeProto {
            attribute: vec![AttributeProto { name: ACCURACY_LEVEL.to_owned(), i: level, r#type: INT_ATTRIBUTE }],
            ..node("MatMulNBits", &["x", "w"], "y")
        };
        for (level, expected) in [(0, INT8_PRODUCTS), (1, 1), (4, 4)] {
            let edited = edit(&model(&[with_level(level)]), ALL, SCORES, str::to_owned).unwrap();
            let (nodes, _) = surface(&edited.model);
            assert_eq!(nodes[0].attribute.iter().map(|attribute| attribute.i).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn data_files_are_listed_and_renamed() {
        let mut tensor = encode(
            field::TENSOR_EXTERNAL_DATA,
            &StringStringEntryProto { key: LOCATION.to_owned(), value: "model.onnx_data".to_owned() },
        );
        push_bytes(&mut tensor, field::TENSOR_NAME, b"weights");
        let (mut graph, mut model) = (Vec::new(), Vec::new());
        push_bytes(&mut graph, field::GRAPH_INITIALIZER, &tensor);
        push_bytes(&mut model, field::MODEL_GRAPH, &graph);
        assert_eq!(external_files(&model).unwrap(), BTreeSet::from(["model.onnx_data".to_owned()]));
        let moved = edit(&model, GraphEdits::default(), SCORES, |_| "5f0a".to_owned()).unwrap();
        assert_eq!(external_files(&moved.model).unwrap(), BTreeSet::from(["5f0a".to_owned()]));
    }

    #[test]
    fn a_file_that_is_cut_short_is_an_error_wherever_it_is_cut() {
        let model = fixture("tiny-gqa");
        for len in (1..model.len()).step_by(model.len() / 50) {
            // A cut between two fields of the model leaves a shorter model, which is for the runtime to refuse.
            let edited = edit(&model[..len], ALL, SCORES, str::to_owned);
            assert!(edited.is_err() || fields(&model[..len]).is_ok(), "{len}");
        }
    }
}
