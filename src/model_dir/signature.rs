//! From a graph's inputs and outputs to the engine's view of it, checked against `config.json`.
//!
//! Everything is taken from the graph's own names, types and shapes. The config fills in sizes that the graph leaves
//! open, and must not contradict it.

use super::{
    ModelDirError,
    hf::HfConfig,
    onnx::{ElementCode, Graph, Node, TensorInfo},
};
use crate::engine::{
    CacheKind, CacheTensor, ElementType, FloatType, GraphFamily, IntType, MAX_CACHE_RANK, ModelSpec, NumLogits,
    PositionIds,
};
use std::{collections::BTreeSet, path::Path};

/// What the engine must know, or what about the graph is not understood.
pub(super) fn spec(
    path: &Path,
    graph: &Graph,
    config: &HfConfig,
    context_tokens: usize,
) -> Result<ModelSpec, ModelDirError> {
    let reader = Reader { path, graph, config };
    reader.refuse_other_kinds()?;
    let ids = reader.input("input_ids").ok_or_else(|| reader.unsupported("it has no input `input_ids`".to_owned()))?;
    if ids.shape != [None, None] {
        let shape = shape(ids);
        return Err(reader
            .unsupported(format!("`input_ids` has the shape {shape}; export it with a batch and a length that vary")));
    }
    let others = graph.inputs.iter().filter(|input| !KNOWN_INPUTS.contains(&input.name.as_str()));
    let cache = others.map(|input| reader.cache_tensor(input)).collect::<Result<Vec<_>, _>>()?;
    if cache.is_empty() {
        return Err(reader.unsupported("it has no inputs `past_key_values.*`; export it with a KV cache".to_owned()));
    }
    let num_layers = reader.check_sizes(&cache)?;
    let mask = reader.input("attention_mask");
    if mask.is_none() && cache.iter().any(|tensor| matches!(tensor.kind, CacheKind::Columns { .. })) {
        return Err(reader.unsupported("it has no input `attention_mask`".to_owned()));
    }
    let logits = reader.output("logits")?;
    if logits.shape.len() != 3 {
        return Err(reader.unsupported(format!("`logits` has {} dimensions instead of 3", logits.shape.len())));
    }
    Ok(ModelSpec {
        path: path.to_path_buf(),
        family: if reader.has_shared_buffers() { GraphFamily::Gqa } else { GraphFamily::Concat },
        cache,
        num_layers,
        ids_type: reader.int_type(ids)?,
        mask_type: mask.map(|mask| reader.int_type(mask)).transpose()?,
        position_ids: reader.input("position_ids").map(|input| reader.position_ids(input)).transpose()?,
        num_logits: reader.num_logits()?,
        has_cache_branch: reader.has_cache_branch()?,
        logits_type: reader.float_type(logits)?,
        has_last_logits_only: logits.shape[1] == Some(1),
        vocab_size: reader.size(logits, 2, "vocab_size", config.vocab_size, config.vocab_size)?,
        context_tokens,
    })
}

/// What a step tells the graph; every other input has to be a part of the cache.
const KNOWN_INPUTS: [&str; 6] =
    ["input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "logits_to_keep", "use_cache_branch"];

/// Inputs that only graphs of another kind have, what these are, and what to take instead.
const OTHER_KINDS: [(&str, &str); 8] = [
    ("block_table", PAGED),
    (
        "inputs_embeds",
        "it takes embeddings instead of tokens, as the language part of a model for pictures or sound does; take an export of the text model with `input_ids`",
    ),
    ("pixel_values", ENCODER),
    ("input_features", ENCODER),
    ("input_values", ENCODER),
    ("encoder_hidden_states", SEQ2SEQ),
    ("encoder_attention_mask", SEQ2SEQ),
    ("decoder_input_ids", SEQ2SEQ),
];
const PAGED: &str = "it keeps keys and values in pages; take an export without paged attention";
const ENCODER: &str = "it encodes pictures or sound; take the graph of a language model";
const SEQ2SEQ: &str = "it is a part of an encoder-decoder model; take a decoder-only model";

/// Operators that keep a state and write it where they read it, if past and present are bound to one place.
const IN_PLACE_OPERATORS: [&str; 2] = ["CausalConvWithState", "LinearAttention"];
/// Operators with graphs of their own, which may read anything of the graph around them.
const OPERATORS_WITH_GRAPHS: [&str; 3] = ["If", "Loop", "Scan"];
/// Places of keys and values among the inputs and outputs of `GroupQueryAttention`.
const ATTENTION_CACHE: [(usize, usize); 2] = [(3, 1), (4, 2)];
/// A model has a position or three for each token.
const MAX_POSITION_AXES: usize = 8;

struct Reader<'a> {
    path: &'a Path,
    graph: &'a Graph,
    config: &'a HfConfig,
}

impl Reader<'_> {
    fn refuse_other_kinds(&self) -> Result<(), ModelDirError> {
        if self.graph.summary.operators.contains_key("PagedAttention") {
            return Err(self.unsupported(PAGED.to_owned()));
        }
        match OTHER_KINDS.iter().find(|(name, _)| self.input(name).is_some()) {
            Some((name, what)) => Err(self.unsupported(format!("its input `{name}` says that {what}"))),
            None => Ok(()),
        }
    }

    /// A tensor that a step leaves for the next one.
    fn cache_tensor(&self, past: &TensorInfo) -> Result<CacheTensor, ModelDirError> {
        let Some(present) = self.present(&past.name) else {
            let message = format!("ortolan does not know what to feed its input `{}`", past.name);
            return Err(self.unsupported(message));
        };
        if present.element_type != past.element_type {
            return Err(self.unsupported(format!("`{}` and `{}` differ in type", past.name, present.name)));
        }
        let sizes: Option<Vec<usize>> = past.shape.iter().skip(1).copied().collect();
        let kind = match (past.shape.as_slice(), sizes) {
            ([None, _, None, _], _) => self.columns(past, present)?,
            ([None, _, ..], Some(sizes)) if sizes.len() < MAX_CACHE_RANK && agree(past, present) => {
                CacheKind::State { sizes, is_in_place: self.is_in_place(past, present) }
            }
            _ => {
                return Err(self.unsupported(format!(
                    "`{}` and `{}` have the shapes {} and {}; known are [batch, heads, past, head size] and states of one \
                     size, [batch, sizes…]",
                    past.name,
                    present.name,
                    shape(past),
                    shape(present)
                )));
            }
        };
        let (past, element_type) = (past.name.clone(), self.element_type(past)?);
        Ok(CacheTensor { past, present: present.name.clone(), element_type, kind })
    }

    /// The output that goes with an input, in the spellings of all exporters: `past_key_values.0.key` and `present.0.key`,
    /// `past_conv.0` and `present_conv.0`, `past_key_0_in` and `past_key_0_out`.
    fn present(&self, past: &str) -> Option<&TensorInfo> {
        let renamed = [("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present")];
        let mut names: Vec<String> = renamed.map(|(from, to)| past.replacen(from, to, 1)).into();
        if let Some(stem) = past.strip_suffix("_in") {
            names.push(format!("{stem}_out"));
            names.push(format!("{}_out", stem.replacen("past", "present", 1)));
        }
        names.retain(|name| name != past && past.contains("past"));
        names.iter().find_map(|name| self.graph.outputs.iter().find(|output| output.name == *name))
    }

    /// `[batch, heads, past, head size]`
    fn columns(&self, past: &TensorInfo, present: &TensorInfo) -> Result<CacheKind, ModelDirError> {
        let node = self.attention(past, present);
        if node.is_none() && self.has_shared_buffers() {
            let message = format!("`{}` does not go straight into one of its `GroupQueryAttention`", past.name);
            return Err(self.unsupported(message));
        }
        let integer = |name: &str| node.and_then(|node| node.integers.get(name)).copied();
        let window = match integer("sliding_window_cache") {
            Some(1) => {
                let width = integer("local_window_size").and_then(|width| usize::try_from(width).ok());
                let missing = || self.unsupported(format!("`{}` is a window of no known width", past.name));
                Some(width.filter(|width| 0 < *width).ok_or_else(missing)?)
            }
            Some(_) | None => None,
        };
        // Two numbers of 4 bits share a byte.
        let numbers_per_element = if integer("kv_cache_bit_width") == Some(4) { 2 } else { 1 };
        let config = self.config;
        let heads = config.num_kv_heads();
        let head_size = config.head_size().map(|size| size / numbers_per_element);
        Ok(CacheKind::Columns {
            num_heads: self.size(past, 1, "num_key_value_heads", heads, None)?,
            head_size: self.size(past, 3, "head_dim", head_size, None)?,
            window,
        })
    }

    /// The operator that reads these keys or values and writes them again.
    fn attention(&self, past: &TensorInfo, present: &TensorInfo) -> Option<&Node> {
        self.graph.nodes.iter().find(|node| {
            let reads_and_writes = |(input, output): &(usize, usize)| {
                node.inputs.get(*input) == Some(&past.name) && node.outputs.get(*output) == Some(&present.name)
            };
            node.op_type == SHARED_BUFFERS && ATTENTION_CACHE.iter().any(reads_and_writes)
        })
    }

    fn has_shared_buffers(&self) -> bool {
        self.graph.summary.operators.contains_key(SHARED_BUFFERS)
    }

    /// Whether one operator, which is known to do so in one place, reads and writes a state, and nothing else reads it.
    fn is_in_place(&self, past: &TensorInfo, present: &TensorInfo) -> bool {
        let has = |operator: &&str| self.graph.summary.operators.contains_key(*operator);
        let mut readers = self.graph.nodes.iter().filter(|node| node.inputs.contains(&past.name));
        let is_in_place = readers.next().is_some_and(|node| {
            IN_PLACE_OPERATORS.contains(&node.op_type.as_str()) && node.outputs.contains(&present.name)
        });
        is_in_place && readers.next().is_none() && !OPERATORS_WITH_GRAPHS.iter().any(|operator| has(operator))
    }

    /// What all layers share has to be as the config says. Returns how many layers keep something, which may be fewer than
    /// the model has: some keep nothing, others share.
    fn check_sizes(&self, cache: &[CacheTensor]) -> Result<usize, ModelDirError> {
        let (mut heads, mut head_sizes) = (BTreeSet::new(), BTreeSet::new());
        for tensor in cache {
            if let (CacheKind::Columns { num_heads, head_size, .. }, ElementType::Float(_)) =
                (&tensor.kind, tensor.element_type)
            {
                heads.insert(*num_heads);
                head_sizes.insert(*head_size);
            }
        }
        if let (1, Some(num_heads)) = (heads.len(), heads.first()) {
            self.agree("num_key_value_heads", *num_heads, self.config.num_key_value_heads)?;
        }
        if let (1, Some(head_size)) = (head_sizes.len(), head_sizes.first()) {
            self.agree("head_dim", *head_size, self.config.head_dim)?;
        }
        let layers: BTreeSet<usize> = cache.iter().filter_map(|tensor| layer(&tensor.past)).collect();
        let num_layers = layers.last().map_or(0, |last| last + 1);
        if self.config.num_hidden_layers.is_some_and(|config| config < num_layers) {
            self.agree("num_hidden_layers", num_layers, self.config.num_hidden_layers)?;
        }
        Ok(layers.len())
    }

    fn position_ids(&self, input: &TensorInfo) -> Result<PositionIds, ModelDirError> {
        let num_axes = match input.shape.as_slice() {
            [None, None] => None,
            [Some(axes @ 1..=MAX_POSITION_AXES), None, None] => Some(*axes),
            _ => {
                let shape = shape(input);
                return Err(self.unsupported(format!(
                    "`position_ids` has the shape {shape}; known are [batch, sequence] and [3, batch, sequence]"
                )));
            }
        };
        Ok(PositionIds { int_type: self.int_type(input)?, num_axes })
    }

    fn num_logits(&self) -> Result<Option<NumLogits>, ModelDirError> {
        let input = self.input("num_logits_to_keep").or_else(|| self.input("logits_to_keep"));
        let Some(input) = input else { return Ok(None) };
        if !matches!(input.shape.as_slice(), [] | [Some(1)]) {
            return Err(self.unsupported(format!("`{}` is not one number but {}", input.name, shape(input))));
        }
        let (name, is_vector) = (input.name.clone(), !input.shape.is_empty());
        Ok(Some(NumLogits { name, int_type: self.int_type(input)?, is_vector }))
    }

    fn has_cache_branch(&self) -> Result<bool, ModelDirError> {
        match self.input("use_cache_branch") {
            None => Ok(false),
            Some(input) if input.element_type == ElementCode::BOOL && input.shape == [Some(1)] => Ok(true),
            Some(input) => {
                let ElementCode(code) = input.element_type;
                let message = format!("`{}` is no boolean (9) but has element type {code}", input.name);
                Err(self.unsupported(message))
            }
        }
    }

    fn input(&self, name: &str) -> Option<&TensorInfo> {
        self.graph.inputs.iter().find(|input| input.name == name)
    }

    fn output(&self, name: &str) -> Result<&TensorInfo, ModelDirError> {
        let found = self.graph.outputs.iter().find(|output| output.name == name);
        found.ok_or_else(|| self.unsupported(format!("it has no output `{name}`")))
    }

    /// A dimension's size: the graph's, which must agree with what the config `states`, or else `filled` in.
    fn size(
        &self,
        tensor: &TensorInfo,
        dimension: usize,
        name: &'static str,
        filled: Option<usize>,
        stated: Option<usize>,
    ) -> Result<usize, ModelDirError> {
        match tensor.shape.get(dimension).copied().flatten() {
            Some(0) => Err(self.unsupported(format!("`{}` has a dimension of 0", tensor.name))),
            Some(size) => self.agree(name, size, stated).map(|()| size),
            None => filled.filter(|size| 0 < *size).ok_or_else(|| {
                self.unsupported(format!("neither `{}` nor config.json says what `{name}` is", tensor.name))
            }),
        }
    }

    fn agree(&self, name: &'static str, graph: usize, config: Option<usize>) -> Result<(), ModelDirError> {
        match config {
            Some(config) if config != graph => {
                Err(ModelDirError::Mismatch { path: self.path.to_path_buf(), name, graph, config })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn float_type(&self, tensor: &TensorInfo) -> Result<FloatType, ModelDirError> {
        match self.element_type(tensor)? {
            ElementType::Float(float) => Ok(float),
            other @ (ElementType::Int8 | ElementType::Uint8 | ElementType::Float8) => {
                Err(self.unsupported(format!("`{}` is {} instead of a float", tensor.name, other.name())))
            }
        }
    }

    fn element_type(&self, tensor: &TensorInfo) -> Result<ElementType, ModelDirError> {
        match tensor.element_type {
            ElementCode::FLOAT => Ok(ElementType::Float(FloatType::F32)),
            ElementCode::FLOAT16 => Ok(ElementType::Float(FloatType::F16)),
            ElementCode::BFLOAT16 => Ok(ElementType::Float(FloatType::BF16)),
            ElementCode::INT8 => Ok(ElementType::Int8),
            ElementCode::UINT8 => Ok(ElementType::Uint8),
            ElementCode::FLOAT8 => Ok(ElementType::Float8),
            ElementCode(code) => Err(self.unsupported(format!(
                "`{}` has element type {code}; float32 (1), uint8 (2), int8 (3), float16 (10), bfloat16 (16) and float8 \
                 (17) are known",
                tensor.name
            ))),
        }
    }

    fn int_type(&self, input: &TensorInfo) -> Result<IntType, ModelDirError> {
        match input.element_type {
            ElementCode::INT64 => Ok(IntType::I64),
            ElementCode::INT32 => Ok(IntType::I32),
            ElementCode(code) => Err(self
                .unsupported(format!("`{}` has element type {code}; int32 (6) and int64 (7) are known", input.name))),
        }
    }

    fn unsupported(&self, message: String) -> ModelDirError {
        ModelDirError::Unsupported { path: self.path.to_path_buf(), message }
    }
}

/// The operator that takes past and present in one place.
const SHARED_BUFFERS: &str = "GroupQueryAttention";

/// The number in a name, such as 12 in `past_key_values.12.key`.
fn layer(name: &str) -> Option<usize> {
    name.split(['.', '_']).rev().find_map(|part| part.parse().ok())
}

/// Whether two shapes can be the same.
fn agree(one: &TensorInfo, other: &TensorInfo) -> bool {
    let mut pairs = one.shape.iter().zip(&other.shape);
    one.shape.len() == other.shape.len() && pairs.all(|(one, other)| one.is_none() || other.is_none() || one == other)
}

/// `[?, 4, ?, 64]`
fn shape(tensor: &TensorInfo) -> String {
    let sizes: Vec<String> =
        tensor.shape.iter().map(|size| size.map_or_else(|| "?".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}
