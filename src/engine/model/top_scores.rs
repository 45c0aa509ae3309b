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
use half::f16;
use prost::Message;
use std::{borrow::Cow, ffi::CStr};

/// How many of the best scores are found, where there are so many.
pub const NUM_TOP_SCORES: usize = 64;

/// `[rows, 1]`, what scores are multiplied by before they are exponents.
pub(super) const INVERSE_TEMPERATURES: &CStr = c"ortolan/inverse_temperatures";
/// `[rows, NUM_TOP_SCORES]`, best first.
pub(super) const VALUES: &CStr = c"ortolan/top_values";
/// `[rows, NUM_TOP_SCORES]`, 64 bits each.
pub(super) const TOKENS: &CStr = c"ortolan/top_tokens";
/// `[rows, 1]`, the sum over the vocabulary of `exp((score - best) * inverse temperature)`.
pub(super) const TOTALS: &CStr = c"ortolan/totals";

const FLOAT: i32 = 1;
const INT64: i32 = 7;
const FLOAT16: i32 = 10;

/// Scores that are few enough to be compared by one group of threads, as a device compares those of a row.
const MAX_COMPARED: usize = 4096;
/// Values of which the greatest is taken at once, twice.
const FOLD: usize = 8;
/// Scores of which only the greatest is looked at first. As many sets as there are best scores wanted hold all of these:
/// each of the best is in a set whose greatest is one of the best.
const SET: usize = FOLD * FOLD;

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
    // Not every operator below takes the other halves.
    let (rows, logits_type) = match logits_type {
        FloatType::BF16 => (graph.wide(&rows, logits_type), FloatType::F32),
        FloatType::F32 | FloatType::F16 => (rows, logits_type),
    };
    graph.best(&rows, logits_type, vocab_size, num_top);

    let first = graph.integers(&[0]);
    let best = graph.node("Gather", &[text(VALUES), &first], &[("axis", 1)]);
    let rows = graph.wide(&rows, logits_type);
    let shifted = graph.node("Sub", &[&rows, &best], &[]);
    let scaled = graph.node("Mul", &[&shifted, text(INVERSE_TEMPERATURES)], &[]);
    let weights = graph.node("Exp", &[&scaled], &[]);
    let axes = graph.integers(&[1]);
    graph.push("ReduceSum", &[&weights, &axes], &[text(TOTALS)], &[("keepdims", 1)]);

    pieces.push(Cow::Owned(graph.fields));
    let value = |number, name: &CStr, elem_type, shape| {
        Cow::Owned(encode(number, &ValueInfoProto::of(text(name), elem_type, shape)))
    };
    pieces.push(value(field::GRAPH_INPUT, INVERSE_TEMPERATURES, FLOAT, vec!["num_rows", "1"]));
    let width = num_top.to_string();
    pieces.push(value(field::GRAPH_OUTPUT, VALUES, FLOAT, vec!["num_rows", &width]));
    pieces.push(value(field::GRAPH_OUTPUT, TOKENS, INT64, vec!["num_rows", &width]));
    pieces.push(value(field::GRAPH_OUTPUT, TOTALS, FLOAT, vec!["num_rows", "1"]));
}

impl Builder {
    /// The `num_top` best of `[rows, width]`, and their places.
    fn best(&mut self, rows: &str, element_type: FloatType, width: usize, num_top: usize) {
        if width <= MAX_COMPARED {
            let rows = self.wide(rows, element_type);
            return self.top_k(&rows, num_top, text(VALUES), text(TOKENS));
        }
        let num_sets = width.div_ceil(SET);
        let padded = if num_sets * SET == width { rows.to_owned() } else { self.pad(rows, element_type, width) };
        // The sets lie across the row: one holds every `num_sets`-th score.
        let greatest = self.fold(&padded, num_sets * FOLD);
        let greatest = self.fold(&greatest, num_sets);
        let greatest = self.wide(&greatest, element_type);
        let (values, sets) = (self.name(), self.name());
        self.top_k(&greatest, num_top, &values, &sets);
        let sets = self.reshape(&sets, &[num_top, 1]);
        let steps: Vec<usize> = (0..SET).map(|member| member * num_sets).collect();
        let steps = self.integers(&steps);
        let members = self.node("Add", &[&sets, &steps], &[]);
        let members = self.reshape(&members, &[num_top * SET]);
        let scores = self.node("GatherElements", &[&padded, &members], &[("axis", 1)]);
        let scores = self.wide(&scores, element_type);
        let places = self.name();
        self.top_k(&scores, num_top, text(VALUES), &places);
        self.push("GatherElements", &[&members, &places], &[text(TOKENS)], &[("axis", 1)]);
    }

    /// The greatest of each [`FOLD`] values that are `width` apart.
    fn fold(&mut self, values: &str, width: usize) -> String {
        let lengths = self.integers(&[width; FOLD]);
        let parts: [String; FOLD] = std::array::from_fn(|_| self.name());
        let parts = parts.each_ref().map(String::as_str);
        self.push("Split", &[values, &lengths], &parts, &[("axis", 1)]);
        self.node("Max", &parts, &[])
    }

    /// To whole sets, with what is never among the best.
    fn pad(&mut self, rows: &str, element_type: FloatType, width: usize) -> String {
        let pads = self.integers(&[0, 0, 0, width.next_multiple_of(SET) - width]);
        let least = match element_type {
            FloatType::F16 => self.constant(FLOAT16, &[], f16::NEG_INFINITY.to_le_bytes().to_vec()),
            FloatType::F32 | FloatType::BF16 => self.constant(FLOAT, &[], f32::NEG_INFINITY.to_le_bytes().to_vec()),
        };
        self.node("Pad", &[rows, &pads, &least], &[])
    }

    /// As 32-bit floats.
    fn wide(&mut self, values: &str, element_type: FloatType) -> String {
        match element_type {
            FloatType::F32 => values.to_owned(),
            FloatType::F16 | FloatType::BF16 => self.node("Cast", &[values], &[("to", FLOAT.into())]),
        }
    }

    fn top_k(&mut self, values: &str, num_top: usize, best: &str, places: &str) {
        let num_top = self.integers(&[num_top]);
        self.push("TopK", &[values, &num_top], &[best, places], &[("axis", -1)]);
    }

    /// To these dimensions behind one of as many rows as there are.
    fn reshape(&mut self, value: &str, sizes: &[usize]) -> String {
        let shape = [-1].into_iter().chain(sizes.iter().map(|size| signed(*size)));
        let shape = self.constant(INT64, &[1 + sizes.len()], shape.flat_map(i64::to_le_bytes).collect());
        self.node("Reshape", &[value, &shape], &[])
    }

    fn integers(&mut self, values: &[usize]) -> String {
        let bytes = values.iter().flat_map(|value| signed(*value).to_le_bytes());
        self.constant(INT64, &[values.len()], bytes.collect())
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

#[cfg(test)]
mod tests {
    use super::super::{
        Runtime,
        edit::field::{MODEL_GRAPH, MODEL_OPSET},
        runtime,
    };
    use super::*;
    use ort::{session::Session, value::Tensor};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A model that passes scores through and finds the best of them.
    fn session(runtime: &Runtime, vocab_size: usize, logits_type: FloatType) -> Session {
        let element = match logits_type {
            FloatType::F32 => FLOAT,
            FloatType::F16 => FLOAT16,
            FloatType::BF16 => 16,
        };
        let width = vocab_size.to_string();
        let scores = ValueInfoProto::of("scores", FLOAT, vec!["1", "num_rows", &width]);
        let mut graph = Builder::default();
        graph.push("Cast", &["scores"], &["logits"], &[("to", element.into())]);
        let mut pieces = vec![Cow::Owned(encode(field::GRAPH_INPUT, &scores)), Cow::Owned(graph.fields)];
        append(&mut pieces, vocab_size, logits_type);
        let mut model = vec![0x08, 10]; // ir_version
        push_bytes(&mut model, MODEL_OPSET, &[0x10, 18]); // version
        let mut graph = pieces.concat();
        push_bytes(&mut graph, 2, b"graph"); // name
        push_bytes(&mut model, MODEL_GRAPH, &graph);
        Session::builder(&runtime.environment).unwrap().commit_from_memory(&model).unwrap()
    }

    #[test]
    fn the_best_scores_of_each_row_are_found_whatever_the_vocabulary() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for vocab_size in [7, 64, 500, MAX_COMPARED, MAX_COMPARED + 1, 9999, 152_064] {
            for logits_type in [FloatType::F32, FloatType::F16, FloatType::BF16] {
                let mut session = session(runtime::for_tests(), vocab_size, logits_type);
                let num_rows = 3;
                // Few different values, so that many are equal; the last row has its best all in one place.
                let mut scores: Vec<f32> =
                    (0..num_rows * vocab_size).map(|_| f32::from(random.random_range(-60_i16..60)) / 4.0).collect();
                for score in &mut scores[2 * vocab_size..][..vocab_size.min(70)] {
                    *score += 30.0;
                }
                let inverse = [1.0_f32, 0.5, 4.0];
                let outputs = session
                    .run(ort::inputs![
                        "scores" => Tensor::from_array(([1, num_rows, vocab_size], scores.clone())).unwrap(),
                        text(INVERSE_TEMPERATURES) => Tensor::from_array(([num_rows, 1], inverse.to_vec())).unwrap(),
                    ])
                    .unwrap();
                let (_, values) = outputs[text(VALUES)].try_extract_tensor::<f32>().unwrap();
                let (_, tokens) = outputs[text(TOKENS)].try_extract_tensor::<i64>().unwrap();
                let (_, totals) = outputs[text(TOTALS)].try_extract_tensor::<f32>().unwrap();
                let width = NUM_TOP_SCORES.min(vocab_size);
                for (row, scores) in scores.chunks(vocab_size).enumerate() {
                    let mut best = scores.to_vec();
                    best.sort_by(|one, other| other.total_cmp(one));
                    let (values, tokens) = (&values[row * width..][..width], &tokens[row * width..][..width]);
                    assert_eq!(values, &best[..width], "{vocab_size} {logits_type:?}");
                    let mut seen = tokens.to_vec();
                    seen.sort_unstable();
                    seen.dedup();
                    assert_eq!(seen.len(), width, "no token twice");
                    for (value, token) in values.iter().zip(tokens) {
                        assert_eq!(scores[usize::try_from(*token).unwrap()], *value);
                    }
                    let weight = |score: &f32| (f64::from(score - best[0]) * f64::from(inverse[row])).exp();
                    let total: f64 = scores.iter().map(weight).sum();
                    assert!((f64::from(totals[row]) - total).abs() < 1e-4 * total, "{} {total}", totals[row]);
                }
            }
        }
    }
}
