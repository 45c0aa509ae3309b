//! An edit: the graph itself finds each row's best scores, where they are, and how much probability there is in all.
//!
//! A vocabulary has 150,000 scores and more, of which a sampler mostly needs a few. On a device these few are all that
//! has to cross the bus.

use super::{
    FloatType,
    edit::{AttributeProto, INT_ATTRIBUTE, NodeProto, field},
    graph::{signed, text},
    proto::ValueInfoProto,
    splice::{encode, push_bytes},
};
use prost::Message;
use std::{borrow::Cow, ffi::CStr};

/// How many of the best scores are found, where there are so many.
pub const NUM_TOP_SCORES: usize = 64;

/// `[rows, 1]`, what scores are multiplied by before they are exponents.
pub(super) const INVERSE_TEMPERATURES: &CStr = c"ortolan/inverse_temperatures";
/// `[rows, NUM_TOP_SCORES]`, best first.
pub(super) const VALUES: &CStr = c"ortolan/top_values";
/// `[rows, NUM_TOP_SCORES]`, 32 bits each.
pub(super) const TOKENS: &CStr = c"ortolan/top_tokens";
/// `[rows, 1]`, the sum over the vocabulary of `exp((score - best) * inverse temperature)`.
pub(super) const TOTALS: &CStr = c"ortolan/totals";

const FLOAT: i32 = 1;
const INT32: i32 = 6;
const INT64: i32 = 7;

/// Scores that are compared by one group of threads: the best of each such stretch are found first, all stretches at once,
/// and then the best among those. One group alone would read a whole row with a hundredth of the device.
const STRETCH: usize = 512;
/// Candidates that are few enough for one group.
const MAX_CANDIDATES: usize = 4096;

#[derive(Clone, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

/// Nodes and constants in the order in which they compute.
#[derive(Default)]
struct Builder {
    fields: Vec<u8>,
    num_values: usize,
}

/// Appends the nodes to a graph whose output `logits`, whatever its other dimensions, has rows of `vocab_size`.
pub(super) fn append(pieces: &mut Vec<Cow<'_, [u8]>>, vocab_size: usize, logits_type: FloatType) {
    let mut graph = Builder::default();
    let num_top = NUM_TOP_SCORES.min(vocab_size);
    let rows = graph.reshape("logits", &[vocab_size]);
    let rows = match logits_type {
        FloatType::F32 => rows,
        FloatType::F16 | FloatType::BF16 => graph.node("Cast", &[&rows], &[("to", FLOAT.into())]),
    };
    let (values, tokens) = graph.best(&rows, vocab_size, num_top);
    graph.named("Identity", &[&values], text(VALUES), &[]);
    graph.named("Cast", &[&tokens], text(TOKENS), &[("to", INT32.into())]);

    let first = graph.integers(&[0]);
    let best = graph.node("Gather", &[&values, &first], &[("axis", 1)]);
    let shifted = graph.node("Sub", &[&rows, &best], &[]);
    let scaled = graph.node("Mul", &[&shifted, text(INVERSE_TEMPERATURES)], &[]);
    let weights = graph.node("Exp", &[&scaled], &[]);
    let axes = graph.integers(&[1]);
    graph.named("ReduceSum", &[&weights, &axes], text(TOTALS), &[("keepdims", 1)]);

    pieces.push(Cow::Owned(graph.fields));
    let value = |number, name: &CStr, elem_type, shape| {
        Cow::Owned(encode(number, &ValueInfoProto::of(text(name), elem_type, shape)))
    };
    pieces.push(value(field::GRAPH_INPUT, INVERSE_TEMPERATURES, FLOAT, vec!["num_rows", "1"]));
    let width = num_top.to_string();
    pieces.push(value(field::GRAPH_OUTPUT, VALUES, FLOAT, vec!["num_rows", &width]));
    pieces.push(value(field::GRAPH_OUTPUT, TOKENS, INT32, vec!["num_rows", &width]));
    pieces.push(value(field::GRAPH_OUTPUT, TOTALS, FLOAT, vec!["num_rows", "1"]));
}

impl Builder {
    /// The `num_top` best of `[rows, width]`, and their places.
    fn best(&mut self, rows: &str, width: usize, num_top: usize) -> (String, String) {
        if width <= MAX_CANDIDATES {
            return self.top_k(rows, num_top);
        }
        // As many stretches as make whole stretches of what is left of them.
        let stretches_per_stretch = STRETCH / num_top;
        let num_stretches = width.div_ceil(STRETCH).next_multiple_of(stretches_per_stretch);
        let padding = num_stretches * STRETCH - width;
        let padded = if padding == 0 {
            rows.to_owned()
        } else {
            let pads = self.integers(&[0, 0, 0, padding]);
            let least = self.constant(FLOAT, &[], f32::NEG_INFINITY.to_le_bytes().to_vec());
            self.node("Pad", &[rows, &pads, &least], &[])
        };
        let stretches = self.reshape(&padded, &[num_stretches, STRETCH]);
        let (mut values, places) = self.top_k(&stretches, num_top);
        let begins: Vec<usize> = (0..num_stretches).map(|stretch| stretch * STRETCH).collect();
        let begins = self.shaped_integers(&[num_stretches, 1], &begins);
        let mut tokens = self.node("Add", &[&places, &begins], &[]);
        let mut num_left = num_stretches * num_top;
        if MAX_CANDIDATES < num_left {
            let shape = [num_left / STRETCH, STRETCH];
            (values, tokens) = (self.reshape(&values, &shape), self.reshape(&tokens, &shape));
            (values, tokens) = self.best_of(&values, &tokens, num_top);
            num_left = num_left / STRETCH * num_top;
        }
        (values, tokens) = (self.reshape(&values, &[num_left]), self.reshape(&tokens, &[num_left]));
        self.best_of(&values, &tokens, num_top)
    }

    /// The best along the last axis, and which tokens they belong to.
    fn best_of(&mut self, values: &str, tokens: &str, num_top: usize) -> (String, String) {
        let (values, places) = self.top_k(values, num_top);
        let tokens = self.node("GatherElements", &[tokens, &places], &[("axis", -1)]);
        (values, tokens)
    }

    fn top_k(&mut self, values: &str, num_top: usize) -> (String, String) {
        let num_top = self.integers(&[num_top]);
        let (best, places) = (self.name(), self.name());
        self.push("TopK", &[values, &num_top], &[&best, &places], &[("axis", -1)]);
        (best, places)
    }

    /// To these dimensions behind one of as many rows as there are.
    fn reshape(&mut self, value: &str, sizes: &[usize]) -> String {
        let shape = [-1].into_iter().chain(sizes.iter().map(|size| signed(*size)));
        let shape = self.constant(INT64, &[1 + sizes.len()], shape.flat_map(i64::to_le_bytes).collect());
        self.node("Reshape", &[value, &shape], &[])
    }

    fn integers(&mut self, values: &[usize]) -> String {
        self.shaped_integers(&[values.len()], values)
    }

    fn shaped_integers(&mut self, shape: &[usize], values: &[usize]) -> String {
        let bytes = values.iter().flat_map(|value| signed(*value).to_le_bytes());
        self.constant(INT64, shape, bytes.collect())
    }

    fn constant(&mut self, data_type: i32, shape: &[usize], raw_data: Vec<u8>) -> String {
        let dims = shape.iter().map(|size| signed(*size)).collect();
        let name = self.name();
        let tensor = TensorProto { dims, data_type, name: name.clone(), raw_data };
        self.fields.extend_from_slice(&encode(field::GRAPH_INITIALIZER, &tensor));
        name
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], attributes: &[(&str, i64)]) -> String {
        let output = self.name();
        self.push(op_type, inputs, &[&output], attributes);
        output
    }

    fn named(&mut self, op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) {
        self.push(op_type, inputs, &[output], attributes);
    }

    fn push(&mut self, op_type: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, i64)]) {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let attribute =
            |(name, i): &(&str, i64)| AttributeProto { name: (*name).to_owned(), i: *i, r#type: INT_ATTRIBUTE };
        let node = NodeProto {
            input: owned(inputs),
            output: owned(outputs),
            name: format!("{}/{op_type}", outputs[0]),
            op_type: op_type.to_owned(),
            attribute: attributes.iter().map(attribute).collect(),
        };
        push_bytes(&mut self.fields, field::GRAPH_NODE, &node.encode_to_vec());
    }

    fn name(&mut self) -> String {
        self.num_values += 1;
        format!("ortolan/top_scores/{}", self.num_values)
    }
}
