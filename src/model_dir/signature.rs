//! From a graph's inputs and outputs to the engine's view of it, checked against `config.json`.
//!
//! Everything is taken from the graph's own names, types and shapes. The config fills in sizes that the graph leaves open. Its
//! vocabulary and layers must not contradict the graph, or it is another model's; its heads may, since families and exporters
//! differ in which they count: those that queries have, keys that several share, a part of a latent one.

mod packed;

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
    let rotary_choice = reader.rotary_choice();
    let own_block_tokens = if reader.is_packed() { reader.check_packed(rotary_choice)? } else { None };
    let missing = |name: &str| reader.unsupported(format!("it has no input `{name}`"));
    let ids_type = reader.integers("input_ids")?.ok_or_else(|| missing("input_ids"))?;
    let mask_type = reader.integers("attention_mask")?;
    let cache = reader.cache()?;
    if mask_type.is_none() && cache.iter().any(|tensor| matches!(tensor.kind, CacheKind::Columns { .. })) {
        return Err(missing("attention_mask"));
    }
    let num_layers = reader.num_layers(&cache)?;
    let logits = reader.logits()?;
    let vocab_size = reader.size(logits, logits.shape.len() - 1, "vocab_size", config.vocab_size)?;
    reader.agree("vocab_size", vocab_size, config.vocab_size)?;
    if MAX_VOCAB_SIZE < vocab_size {
        return Err(reader.unsupported(format!("`logits` scores {vocab_size} tokens, and no model has as many")));
    }
    Ok(ModelSpec {
        path: path.to_path_buf(),
        family: match () {
            () if reader.is_packed() => GraphFamily::Paged,
            () if reader.has_shared_buffers() => GraphFamily::Gqa,
            () => GraphFamily::Concat,
        },
        cache,
        num_layers,
        ids_type,
        mask_type,
        num_short_tokens: rotary_choice.map(|choice| choice.num_short_tokens),
        own_block_tokens,
        position_ids: reader.input("position_ids").map(|input| reader.position_ids(input)).transpose()?,
        num_logits: reader.num_logits()?,
        has_cache_branch: reader.has_cache_branch()?,
        logits_type: reader.float_type(logits)?,
        has_logits_indices: reader.input("logits_indices").is_some(),
        has_attention_metadata: reader.input("attention_metadata").is_some(),
        has_last_logits_only: match reader.is_packed() {
            true => reader.scores_last_of_packed(),
            false => logits.shape[1] == Some(1),
        },
        vocab_size,
        context_tokens,
    })
}

/// What a step tells the graph; every other input has to be a part of the cache.
const KNOWN_INPUTS: [&str; 6] =
    ["input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "logits_to_keep", "use_cache_branch"];
/// Inputs that only graphs of another kind have, what these are, and what to take instead.
const OTHER_KINDS: [(&str, &str); 8] = [
    ("block_table_windowed", WINDOWED),
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
const WINDOWED: &str = "it keeps the blocks of some layers in a ring; export it with `windowed_kv_cache=false`";
const ENCODER: &str = "it encodes pictures or sound; take the graph of a language model";
const SEQ2SEQ: &str = "it is a part of an encoder-decoder model; take a decoder-only model";

/// Operators that keep a state and write it where they read it, if past and present are bound to one place.
const IN_PLACE_OPERATORS: [&str; 2] = ["CausalConvWithState", "LinearAttention"];
/// Operators with graphs of their own, which may read anything of the graph around them.
const OPERATORS_WITH_GRAPHS: [&str; 3] = ["If", "Loop", "Scan"];
/// Places of keys and values among the inputs and outputs of `GroupQueryAttention`.
const ATTENTION_CACHE: [(usize, usize); 2] = [(3, 1), (4, 2)];
/// Place of the cosines of positions among the inputs of operators that turn them.
const COSINES: [(&str, usize); 2] = [(SHARED_BUFFERS, 7), (packed::OPERATOR, 8)];
/// No vocabulary comes near it.
const MAX_VOCAB_SIZE: usize = 1 << 24;
/// A model has a position or three for each token.
const MAX_POSITION_AXES: usize = 8;

/// How a graph finds out that a text is long.
#[derive(Clone, Copy)]
struct RotaryChoice {
    /// It is where there is room for more tokens than this in the mask, or in a row's blocks.
    num_short_tokens: usize,
    /// Where it counts blocks, the tokens that it takes each of them for.
    tokens_in_block: Option<usize>,
}

struct Reader<'a> {
    path: &'a Path,
    graph: &'a Graph,
    config: &'a HfConfig,
}

impl Reader<'_> {
    fn refuse_other_kinds(&self) -> Result<(), ModelDirError> {
        match OTHER_KINDS.iter().find(|(name, _)| self.input(name).is_some()) {
            Some((name, what)) => Err(self.unsupported(format!("its input `{name}` says that {what}"))),
            None => Ok(()),
        }
    }

    /// An input of a number for each token of each row.
    fn integers(&self, name: &str) -> Result<Option<IntType>, ModelDirError> {
        let varying: &[Option<usize>] = if self.is_packed() { &[None] } else { &[None; 2] };
        match self.input(name) {
            Some(input) if input.shape != varying => Err(self.unsupported(format!(
                "`{name}` has the shape {}; export it with a batch and a length that vary",
                shape(input)
            ))),
            input => input.map(|input| self.int_type(input)).transpose(),
        }
    }

    /// What a step leaves for the next one: whatever else the graph takes.
    fn cache(&self) -> Result<Vec<CacheTensor>, ModelDirError> {
        let is_known = |name: &str| KNOWN_INPUTS.contains(&name) || self.tells_of_packed(name);
        let others = self.graph.inputs.iter().filter(|input| !is_known(&input.name));
        let cache = others.map(|input| self.cache_tensor(input)).collect::<Result<Vec<_>, _>>()?;
        if cache.is_empty() {
            return Err(self.unsupported("it has no inputs `past_key_values.*`; export it with a KV cache".to_owned()));
        }
        let mut presents = BTreeSet::new();
        match cache.iter().find(|tensor| !presents.insert(&tensor.present)) {
            Some(twice) => Err(self.unsupported(format!("two inputs go with its output `{}`", twice.present))),
            None => Ok(cache),
        }
    }

    /// A tensor that a step leaves for the next one.
    fn cache_tensor(&self, past: &TensorInfo) -> Result<CacheTensor, ModelDirError> {
        let Some(present) = self.present(&past.name) else {
            let name = &past.name;
            return Err(self.unsupported(match name.contains("past") {
                true => format!("it has no output that goes with its input `{name}`"),
                false => format!("ortolan does not know what to feed its input `{name}`"),
            }));
        };
        if present.element_type != past.element_type {
            return Err(self.unsupported(format!(
                "`{}` and `{}` differ in type, so one cannot become the other; export it in another type",
                past.name, present.name
            )));
        }
        let sizes: Option<Vec<usize>> = past.shape.iter().skip(1).copied().collect();
        let kind = match (past.shape.as_slice(), sizes) {
            _ if self.is_packed() => self.blocks(past)?,
            ([None, _, None, _], _) => self.columns(past, present)?,
            ([None, _, ..], Some(sizes))
                if sizes.len() < MAX_CACHE_RANK && !sizes.contains(&0) && agree(past, present) =>
            {
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
        let head_size = node.and_then(|node| self.head_size(node)).or_else(|| self.config.head_size());
        let head_size = head_size.map(|size| size / numbers_per_element);
        Ok(CacheKind::Columns {
            num_heads: self.size(past, 1, "num_key_value_heads", self.config.num_kv_heads())?,
            head_size: self.size(past, 3, "head_dim", head_size)?,
            window,
        })
    }

    /// Elements of one head of an operator's keys, where the exporter says how wide these are: the cache's shape leaves it
    /// open, and the config has one size for all layers.
    fn head_size(&self, node: &Node) -> Option<usize> {
        let count = |name: &str| node.integers.get(name).and_then(|count| usize::try_from(*count).ok());
        let width = |place: usize| *self.graph.between.get(node.inputs.get(place)?)?.shape.last()?;
        let (heads, kv_heads) = (count("num_heads")?, count("kv_num_heads")?);
        // Without keys of their own, queries, keys and values come in one tensor.
        let has_keys = node.inputs.get(1).is_some_and(|keys| !keys.is_empty());
        let (width, heads) = match has_keys {
            true => (width(1)?, kv_heads),
            false => (width(0)?, heads.checked_add(kv_heads.checked_mul(2)?)?),
        };
        (0 < heads && 0 < width && width % heads == 0).then(|| width / heads)
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

    /// Where positions are turned by other factors in long texts, by what the graph knows these.
    fn rotary_choice(&self) -> Option<RotaryChoice> {
        let maker = |name: &String, op_type: &str| {
            let is_maker = |node: &&Node| node.op_type == op_type && node.outputs.contains(name);
            self.graph.nodes.iter().find(is_maker)
        };
        let constant = |name: &String| usize::try_from(*self.graph.constants.get(name)?).ok();
        let place = |node: &Node| COSINES.iter().find(|(op_type, _)| *op_type == node.op_type).map(|(_, place)| *place);
        let cosines = self.graph.nodes.iter().find_map(|node| node.inputs.get(place(node)?))?;
        let comparison = maker(maker(cosines, "If")?.inputs.first()?, "Greater")?;
        let [length, longest] = comparison.inputs.first_chunk()?;
        let (width, tokens_in_block) = match maker(length, "Mul") {
            Some(product) => (product.inputs.first()?, Some(constant(product.inputs.get(1)?)?)),
            None => (length, None),
        };
        let shape = maker(maker(width, "Gather")?.inputs.first()?, "Shape")?;
        let counted = if tokens_in_block.is_some() { "block_table" } else { "attention_mask" };
        let num_short_tokens = constant(longest)?;
        (shape.inputs == [counted]).then_some(RotaryChoice { num_short_tokens, tokens_in_block })
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
        is_in_place && readers.next().is_none() && !OPERATORS_WITH_GRAPHS.iter().any(has)
    }

    /// How many layers keep something, which may be fewer than the model has: some keep nothing, others share.
    fn num_layers(&self, cache: &[CacheTensor]) -> Result<usize, ModelDirError> {
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

    /// `[batch, sequence, vocab_size]`, of packed rows `[tokens, vocab_size]`
    fn logits(&self) -> Result<&TensorInfo, ModelDirError> {
        let rank = if self.is_packed() { 2 } else { 3 };
        match self.graph.outputs.iter().find(|output| output.name == "logits") {
            Some(logits) if logits.shape.len() == rank => Ok(logits),
            Some(logits) => {
                Err(self.unsupported(format!("`logits` has {} dimensions instead of {rank}", logits.shape.len())))
            }
            None => {
                let message = "it has no output `logits`; export it for text generation, with its language-model head";
                Err(self.unsupported(message.to_owned()))
            }
        }
    }

    /// A dimension's size: the graph's, or the config's where the graph leaves it open.
    fn size(
        &self,
        tensor: &TensorInfo,
        dimension: usize,
        name: &'static str,
        config: Option<usize>,
    ) -> Result<usize, ModelDirError> {
        match tensor.shape.get(dimension).copied().flatten() {
            Some(0) => Err(self.unsupported(format!("`{}` has a dimension of 0", tensor.name))),
            Some(size) => Ok(size),
            None => config.filter(|size| 0 < *size).ok_or_else(|| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Shape<'s> = &'s [Option<usize>];
    const KV: Shape<'_> = &[None, Some(2), None, Some(16)];
    const STATE: Shape<'_> = &[None, Some(64), Some(2)];

    fn tensor(name: &str, element_type: ElementCode, shape: Shape<'_>) -> TensorInfo {
        TensorInfo { name: name.to_owned(), element_type, shape: shape.to_vec() }
    }

    /// A graph with these tensors in its cache, each an input, an output and their shape.
    fn graph(cache: &[(&str, &str, Shape<'_>)]) -> Graph {
        let ids = |name| tensor(name, ElementCode::INT64, &[None, None]);
        let mut graph = Graph {
            inputs: vec![ids("input_ids"), ids("attention_mask")],
            outputs: vec![tensor("logits", ElementCode::FLOAT, &[None, None, Some(100)])],
            ..Graph::default()
        };
        for (past, present, shape) in cache {
            graph.inputs.push(tensor(past, ElementCode::FLOAT, shape));
            graph.outputs.push(tensor(present, ElementCode::FLOAT, shape));
        }
        graph
    }

    fn plain() -> Graph {
        graph(&[("past_key_values.0.key", "present.0.key", KV)])
    }

    fn add_node(graph: &mut Graph, op_type: &str, inputs: &[&str], outputs: &[&str]) -> usize {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let op_type = op_type.to_owned();
        *graph.summary.operators.entry(op_type.clone()).or_default() += 1;
        graph.nodes.push(Node { op_type, inputs: names(inputs), outputs: names(outputs), integers: BTreeMap::new() });
        graph.nodes.len() - 1
    }

    fn read_with(graph: &Graph, config: &HfConfig) -> Result<ModelSpec, String> {
        spec(Path::new("FILE"), graph, config, 1000).map_err(|error| error.to_string())
    }

    fn read(graph: &Graph) -> Result<ModelSpec, String> {
        read_with(graph, &HfConfig::default())
    }

    #[test]
    fn the_cache_is_found_in_every_spelling() {
        for (past, present) in [
            ("past_key_values.0.key", "present.0.key"),
            ("past_key_values.11.value", "present_key_values.11.value"),
            ("past_key_3", "present_key_3"),
            ("past_key_3_in", "past_key_3_out"),
            ("past_key_3_in", "present_key_3_out"),
            ("past.7.value", "present.7.value"),
        ] {
            let spec = read(&graph(&[(past, present, KV)])).unwrap();
            assert_eq!((spec.cache[0].past.as_str(), spec.cache[0].present.as_str()), (past, present));
            let kind = CacheKind::Columns { num_heads: 2, head_size: 16, window: None };
            assert_eq!((&spec.cache[0].kind, spec.family), (&kind, GraphFamily::Concat));
        }
        for (past, present) in [
            ("past.0.conv", "present.0.conv"),
            ("past.2.recurrent", "present.2.recurrent"),
            ("past_conv.0", "present_conv.0"),
            ("past_ssm.5", "present_ssm.5"),
            ("past_recurrent.1", "present_recurrent.1"),
            ("past_conv.1.query", "present_conv.1.query"),
        ] {
            let spec = read(&graph(&[(past, present, STATE)])).unwrap();
            assert_eq!(spec.cache[0].kind, CacheKind::State { sizes: vec![64, 2], is_in_place: false }, "{past}");
        }
    }

    #[test]
    fn layers_may_be_missing_and_differ() {
        let cache = [
            ("past_key_values.1.key", "present.1.key", KV),
            ("past_key_values.1.value", "present.1.value", &[None, Some(2), None, Some(8)]),
            ("past_key_values.5.key", "present.5.key", &[None, Some(4), None, Some(32)]),
            ("past.0.conv", "present.0.conv", STATE),
        ];
        let config = HfConfig { num_hidden_layers: Some(6), ..HfConfig::default() };
        let spec = read_with(&graph(&cache), &config).unwrap();
        assert_eq!((spec.num_layers, spec.cache.len()), (3, 4));
        assert_eq!(spec.cache_bytes_per_token(), 4 * (2 * 16 + 2 * 8 + 4 * 32));
        assert_eq!(spec.cache_bytes_per_slot(10), 4 * (10 * (2 * 16 + 2 * 8 + 4 * 32) + 64 * 2));
        let error = read_with(&graph(&cache), &HfConfig { num_hidden_layers: Some(5), ..config }).unwrap_err();
        assert!(error.contains("num_hidden_layers = 6 and config.json says 5"), "{error}");
    }

    #[test]
    fn sizes_that_the_graph_leaves_open_are_those_of_the_config() {
        let open = graph(&[("past_key_values.0.key", "present.0.key", &[None, None, None, None])]);
        let config = HfConfig { num_attention_heads: Some(4), hidden_size: Some(64), ..HfConfig::default() };
        let spec = read_with(&open, &config).unwrap();
        assert_eq!(spec.cache[0].kind, CacheKind::Columns { num_heads: 4, head_size: 16, window: None });
        let error = read(&open).unwrap_err();
        assert!(error.contains("neither `past_key_values.0.key` nor config.json says"), "{error}");
    }

    #[test]
    fn attention_with_shared_buffers_tells_of_windows_and_packed_numbers() {
        let mut graph = graph(&[("past_key_values.0.key", "present.0.key", &[None, Some(2), None, None])]);
        let config = HfConfig { head_dim: Some(16), ..HfConfig::default() };
        let node = add_node(
            &mut graph,
            "GroupQueryAttention",
            &["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value"],
            &["out", "present.0.key", "present.0.value"],
        );
        let kind = |graph: &Graph| read_with(graph, &config).map(|spec| (spec.family, spec.cache[0].kind.clone()));
        let columns =
            |head_size, window| Ok((GraphFamily::Gqa, CacheKind::Columns { num_heads: 2, head_size, window }));
        // A head's size is what the operator's keys are wide, or else what the config says.
        let integers = [("num_heads", 4), ("kv_num_heads", 2)];
        graph.nodes[node].integers.extend(integers.map(|(name, count)| (name.to_owned(), count)));
        let say = |graph: &mut Graph, name: &str, width| {
            graph.between.insert(name.to_owned(), tensor(name, ElementCode::FLOAT, &[None, None, Some(width)]));
        };
        say(&mut graph, "q", 8 * 24);
        assert_eq!(kind(&graph), columns(16, None));
        say(&mut graph, "k", 2 * 32);
        assert_eq!(kind(&graph), columns(32, None));
        graph.nodes[node].inputs[1].clear();
        assert_eq!(kind(&graph), columns(24, None));
        graph.between.clear();
        // A window alone only masks.
        graph.nodes[node].integers.insert("local_window_size".to_owned(), 8);
        assert_eq!(kind(&graph), columns(16, None));
        graph.nodes[node].integers.insert("sliding_window_cache".to_owned(), 1);
        assert_eq!(kind(&graph), columns(16, Some(8)));
        graph.inputs[2].element_type = ElementCode::UINT8;
        graph.outputs[1].element_type = ElementCode::UINT8;
        graph.nodes[node].integers.insert("kv_cache_bit_width".to_owned(), 4);
        assert_eq!(kind(&graph), columns(8, Some(8)));
        graph.nodes[node].integers.insert("local_window_size".to_owned(), -1);
        assert!(kind(&graph).unwrap_err().contains("a window of no known width"));
        graph.nodes[node].inputs[3] = "cast".to_owned();
        assert!(kind(&graph).unwrap_err().contains("does not go straight into one of its `GroupQueryAttention`"));
    }

    #[test]
    fn factors_for_long_texts_are_known_by_what_chooses_them() {
        let mut graph = plain();
        let inputs = ["q", "k", "v", "past_key_values.0.key", "", "seqlens", "total", "cosines", "sines"];
        add_node(&mut graph, "Shape", &["attention_mask"], &["shape"]);
        add_node(&mut graph, "Gather", &["shape", "one"], &["width"]);
        let comparison = add_node(&mut graph, "Greater", &["width", "longest"], &["is_long"]);
        add_node(&mut graph, "If", &["is_long"], &["cosines", "sines"]);
        add_node(&mut graph, "GroupQueryAttention", &inputs, &["out", "present.0.key", ""]);
        graph.constants.extend([("one".to_owned(), 1), ("longest".to_owned(), 4096)]);
        assert_eq!(read(&graph).unwrap().num_short_tokens, Some(4096));
        graph.nodes[comparison].inputs[0] = "other".to_owned();
        assert_eq!(read(&graph).unwrap().num_short_tokens, None);
    }

    #[test]
    fn a_state_is_in_place_where_only_an_operator_that_can_do_so_touches_it() {
        let is_in_place = |nodes: &[(&str, &[&str], &[&str])]| {
            let mut graph = graph(&[("past.0.conv", "present.0.conv", STATE)]);
            for (op_type, inputs, outputs) in nodes {
                add_node(&mut graph, op_type, inputs, outputs);
            }
            matches!(read(&graph).unwrap().cache[0].kind, CacheKind::State { is_in_place: true, .. })
        };
        let own: (&str, &[&str], &[&str]) =
            ("CausalConvWithState", &["x", "w", "", "past.0.conv"], &["y", "present.0.conv"]);
        assert!(is_in_place(&[own]));
        assert!(!is_in_place(&[own, ("Slice", &["past.0.conv"], &["z"])]));
        assert!(!is_in_place(&[own, ("If", &["choice"], &["z"])]));
        assert!(!is_in_place(&[("Concat", &["past.0.conv", "x"], &["present.0.conv"])]));
    }

    #[test]
    fn what_a_step_tells_the_graph_may_differ() {
        let mut graph = plain();
        graph.inputs[0].element_type = ElementCode::INT32;
        graph.inputs.push(tensor("position_ids", ElementCode::INT32, &[Some(3), None, None]));
        graph.inputs.push(tensor("num_logits_to_keep", ElementCode::INT64, &[]));
        graph.inputs.push(tensor("use_cache_branch", ElementCode::BOOL, &[Some(1)]));
        graph.outputs[0].element_type = ElementCode::BFLOAT16;
        let spec = read(&graph).unwrap();
        assert_eq!((spec.ids_type, spec.mask_type), (IntType::I32, Some(IntType::I64)));
        assert_eq!(spec.position_ids, Some(PositionIds { int_type: IntType::I32, num_axes: Some(3) }));
        let name = "num_logits_to_keep".to_owned();
        assert_eq!(spec.num_logits, Some(NumLogits { name, int_type: IntType::I64, is_vector: false }));
        assert_eq!((spec.has_cache_branch, spec.logits_type), (true, FloatType::BF16));
    }

    /// What is said of a plain graph with one more input, or another shape of one.
    fn refusal(name: &str, element_type: ElementCode, shape: Shape<'_>) -> String {
        let mut graph = plain();
        graph.inputs.retain(|input| input.name != name);
        graph.inputs.push(tensor(name, element_type, shape));
        read(&graph).unwrap_err()
    }

    #[test]
    fn what_is_not_understood_is_named() {
        const LONG: ElementCode = ElementCode::INT64;
        const FLOAT: ElementCode = ElementCode::FLOAT;
        let refusals = [
            refusal("block_table", ElementCode::INT32, &[None, None]),
            refusal("block_table_windowed", ElementCode::INT32, &[None, None]),
            refusal("inputs_embeds", FLOAT, &[None, None, Some(64)]),
            refusal("pixel_values", FLOAT, &[None, Some(3), None, None]),
            refusal("encoder_hidden_states", FLOAT, &[None, None, Some(64)]),
            refusal("cache_position", LONG, &[None]),
            refusal("past_compressor.0.kv", FLOAT, &[None, None, Some(8)]),
            refusal("past_key_values.0.key", FLOAT, &[None, None, Some(8)]),
            refusal("past_key_values.0.key", ElementCode(11), KV),
            refusal("past.0.key", FLOAT, KV),
            refusal("input_ids", LONG, &[Some(1), Some(128)]),
            refusal("input_ids", FLOAT, &[None, None]),
            refusal("attention_mask", FLOAT, &[None, Some(1), None, None]),
            refusal("position_ids", LONG, &[None, Some(4), None]),
            refusal("num_logits_to_keep", LONG, &[Some(2)]),
            refusal("use_cache_branch", LONG, &[Some(1)]),
        ];
        insta::assert_snapshot!(refusals.join("\n"), @r#"
        the graph FILE is not understood: ortolan does not know what to feed its input `block_table`
        the graph FILE is not understood: its input `block_table_windowed` says that it keeps the blocks of some layers in a ring; export it with `windowed_kv_cache=false`
        the graph FILE is not understood: its input `inputs_embeds` says that it takes embeddings instead of tokens, as the language part of a model for pictures or sound does; take an export of the text model with `input_ids`
        the graph FILE is not understood: its input `pixel_values` says that it encodes pictures or sound; take the graph of a language model
        the graph FILE is not understood: its input `encoder_hidden_states` says that it is a part of an encoder-decoder model; take a decoder-only model
        the graph FILE is not understood: ortolan does not know what to feed its input `cache_position`
        the graph FILE is not understood: it has no output that goes with its input `past_compressor.0.kv`
        the graph FILE is not understood: `past_key_values.0.key` and `present.0.key` have the shapes [?, ?, 8] and [?, 2, ?, 16]; known are [batch, heads, past, head size] and states of one size, [batch, sizes…]
        the graph FILE is not understood: `past_key_values.0.key` and `present.0.key` differ in type, so one cannot become the other; export it in another type
        the graph FILE is not understood: two inputs go with its output `present.0.key`
        the graph FILE is not understood: `input_ids` has the shape [1, 128]; export it with a batch and a length that vary
        the graph FILE is not understood: `input_ids` has element type 1; int32 (6) and int64 (7) are known
        the graph FILE is not understood: `attention_mask` has the shape [?, 1, ?, ?]; export it with a batch and a length that vary
        the graph FILE is not understood: `position_ids` has the shape [?, 4, ?]; known are [batch, sequence] and [3, batch, sequence]
        the graph FILE is not understood: `num_logits_to_keep` is not one number but [2]
        the graph FILE is not understood: `use_cache_branch` is no boolean (9) but has element type 7
        "#);
    }

    /// A graph of packed rows, with a quantized cache.
    fn paged() -> Graph {
        const BLOCKS: Shape<'_> = &[None, None, Some(2), Some(64)];
        let mut graph = plain();
        add_node(&mut graph, packed::OPERATOR, &[], &[]);
        graph.inputs = vec![tensor("input_ids", ElementCode::INT64, &[None])];
        for (name, rank) in packed::INPUTS {
            graph.inputs.push(tensor(name, ElementCode::INT32, &vec![None; rank]));
        }
        graph.outputs = vec![tensor("logits", ElementCode::FLOAT16, &[None, Some(100)])];
        for (kind, element_type, shape) in
            [("key", ElementCode::INT8, BLOCKS), ("key_scale", ElementCode::FLOAT16, &BLOCKS[..3])]
        {
            graph.inputs.push(tensor(&format!("past_key_values.0.{kind}"), element_type, shape));
            graph.outputs.push(tensor(&format!("present.0.{kind}"), element_type, shape));
        }
        graph
    }

    #[test]
    fn packed_rows_have_blocks_of_what_each_token_leaves() {
        let spec = read(&paged()).unwrap();
        assert_eq!((spec.family, spec.vocab_size, spec.mask_type), (GraphFamily::Paged, 100, None));
        let kinds: Vec<_> = spec.cache.iter().map(|tensor| tensor.kind.clone()).collect();
        assert_eq!(kinds, [CacheKind::Blocks { sizes: vec![2, 64] }, CacheKind::Blocks { sizes: vec![2] }]);
        assert_eq!(spec.cache_bytes_per_token(), 2 * 64 + 2 * 2);
        assert!(spec.has_logits_indices && spec.has_attention_metadata && !spec.has_last_logits_only);
        // Without what is not required, all tokens are scored.
        let mut graph = paged();
        graph.inputs.retain(|input| !["attention_metadata", "logits_indices"].contains(&input.name.as_str()));
        let spec = read(&graph).unwrap();
        assert!(!spec.has_logits_indices && !spec.has_attention_metadata);

        let mut errors = Vec::new();
        let mut graph = paged();
        graph.inputs.retain(|input| input.name != "block_table");
        errors.push(read(&graph).unwrap_err());
        let mut graph = paged();
        graph.inputs[1].element_type = ElementCode::INT64;
        errors.push(read(&graph).unwrap_err());
        let mut graph = paged();
        graph.inputs.push(tensor("position_ids", ElementCode::INT64, &[Some(3), None]));
        errors.push(read(&graph).unwrap_err());
        let mut graph = paged();
        graph.inputs.push(tensor("attention_mask", ElementCode::INT64, &[None, None]));
        errors.push(read(&graph).unwrap_err());
        let mut graph = paged();
        graph.inputs[0].shape = vec![None; 2];
        errors.push(read(&graph).unwrap_err());
        let mut graph = paged();
        graph.inputs.iter_mut().find(|input| input.name == "attention_metadata").unwrap().shape = vec![Some(2)];
        errors.push(read(&graph).unwrap_err());
        for shape in [&[None, Some(96), Some(3)][..], &[None, Some(2), Some(64), Some(64)], &[None; 2]] {
            let mut graph = paged();
            graph.inputs.push(tensor("past_conv.1", ElementCode::FLOAT16, shape));
            graph.outputs.push(tensor("present_conv.1", ElementCode::FLOAT16, shape));
            errors.push(read(&graph).unwrap_err());
        }
        insta::assert_snapshot!(errors.join("\n"), @"
        the graph FILE is not understood: it has no input `block_table`
        the graph FILE is not understood: `cumulative_sequence_lengths` is not int32 with 1 dimensions
        the graph FILE is not understood: its rows are packed and it takes `position_ids`
        the graph FILE is not understood: its rows are packed and it takes `attention_mask`
        the graph FILE is not understood: `input_ids` has the shape [?, ?]; export it with a batch and a length that vary
        the graph FILE is not understood: `attention_metadata` has 2 numbers instead of 3; export it with a newer onnxruntime-genai
        the graph FILE is not understood: its rows are packed, and `past_conv.1` has the shape [?, 96, 3] instead of [blocks, tokens, heads, head size]; export it without `use_paged_attention`
        the graph FILE is not understood: its rows are packed, and `past_conv.1` has the shape [?, 2, 64, 64] instead of [blocks, tokens, heads, head size]; export it without `use_paged_attention`
        the graph FILE is not understood: its rows are packed, and `past_conv.1` has the shape [?, ?] instead of [blocks, tokens, heads, head size]; export it without `use_paged_attention`
        ");
    }

    #[test]
    fn packed_rows_may_be_scored_at_their_ends_only() {
        let mut graph = paged();
        add_node(&mut graph, "Slice", &["cumulative_sequence_lengths", "one"], &["ends"]);
        // Which tokens are scored, the graph is told.
        assert!(!read(&graph).unwrap().has_last_logits_only);
        graph.inputs.retain(|input| input.name != "logits_indices");
        assert!(read(&graph).unwrap().has_last_logits_only);
    }

    #[test]
    fn graphs_that_count_blocks_to_know_long_texts_are_given_such_blocks() {
        let mut graph = paged();
        let spec = read(&graph).unwrap();
        assert_eq!((spec.num_short_tokens, spec.block_tokens()), (None, Some(256)));
        add_node(&mut graph, "Shape", &["block_table"], &["shape"]);
        add_node(&mut graph, "Gather", &["shape", "one"], &["columns"]);
        let product = add_node(&mut graph, "Mul", &["columns", "tokens"], &["length"]);
        add_node(&mut graph, "Greater", &["length", "longest"], &["is_long"]);
        add_node(&mut graph, "If", &["is_long"], &["cosines", "sines"]);
        graph.nodes[0].inputs = ["q", "k", "v", "key", "value", "cumulative", "past", "table", "cosines", "sines"]
            .map(str::to_owned)
            .into();
        graph.constants.extend([("longest".to_owned(), 4096), ("tokens".to_owned(), 512)]);
        let spec = read(&graph).unwrap();
        assert_eq!((spec.num_short_tokens, spec.block_tokens()), (Some(4096), Some(512)));
        graph.nodes[product].inputs[0] = "other".to_owned();
        assert_eq!(read(&graph).unwrap().num_short_tokens, None);
        graph.nodes[product].inputs[0] = "columns".to_owned();
        graph.constants.insert("tokens".to_owned(), 768);
        insta::assert_snapshot!(read(&graph).unwrap_err(), @"the graph FILE is not understood: its blocks are of 768 tokens, which is no power of two; export it with `paged_block_size=256`");
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |name: &str| {
            let mut graph = plain();
            graph.inputs.retain(|input| input.name != name);
            graph.outputs.retain(|output| output.name != name);
            read(&graph).unwrap_err()
        };
        let names = ["input_ids", "attention_mask", "past_key_values.0.key", "logits"];
        insta::assert_snapshot!(names.map(without).join("\n"), @r#"
        the graph FILE is not understood: it has no input `input_ids`
        the graph FILE is not understood: it has no input `attention_mask`
        the graph FILE is not understood: it has no inputs `past_key_values.*`; export it with a KV cache
        the graph FILE is not understood: it has no output `logits`; export it for text generation, with its language-model head
        "#);
        // A model without attention needs no mask.
        let mut recurrent = graph(&[("past_ssm.0", "present_ssm.0", STATE)]);
        recurrent.inputs.retain(|input| input.name != "attention_mask");
        assert_eq!(read(&recurrent).unwrap().mask_type, None);
    }
}
