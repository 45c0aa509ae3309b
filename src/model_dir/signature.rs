//! From a graph's inputs and outputs to the engine's view of it, checked against `config.json`.

use super::{
    ModelDirError,
    hf::HfConfig,
    onnx::{ElementCode, Graph, TensorInfo},
};
use crate::engine::{ElementType, GraphFamily, KvTensor, ModelSpec};
use std::path::Path;

/// What the engine must know, or what about the graph is not understood.
pub(super) fn spec(
    path: &Path,
    graph: &Graph,
    config: &HfConfig,
    context_tokens: usize,
) -> Result<ModelSpec, ModelDirError> {
    let reader = Reader { path, graph, config };
    let mut kv = Vec::new();
    let mut has_position_ids = false;
    for input in &graph.inputs {
        match input.name.as_str() {
            "input_ids" | "attention_mask" => reader.expect_int64(input)?,
            "position_ids" => {
                reader.expect_int64(input)?;
                has_position_ids = true;
            }
            _ => kv.push(reader.kv_tensor(input)?),
        }
    }
    for needed in ["input_ids", "attention_mask"] {
        if !graph.inputs.iter().any(|input| input.name == needed) {
            return Err(reader.unsupported(format!("it has no input `{needed}`")));
        }
    }
    if kv.is_empty() {
        return Err(reader.unsupported("it has no inputs `past_key_values.*`; export it with a KV cache".to_owned()));
    }
    reader.agree("num_hidden_layers", kv.len() / 2, config.num_hidden_layers)?;
    let logits = reader.output("logits")?;
    if logits.shape.len() != 3 {
        return Err(reader.unsupported(format!("`logits` has {} dimensions instead of 3", logits.shape.len())));
    }
    let vocab_size = reader.size(logits, 2, "vocab_size", config.vocab_size)?;
    Ok(ModelSpec {
        path: path.to_path_buf(),
        family: match graph.summary.operators.contains_key("GroupQueryAttention") {
            true => GraphFamily::Gqa,
            false => GraphFamily::Concat,
        },
        kv,
        has_position_ids,
        logits_type: reader.float_type(logits)?,
        has_last_logits_only: logits.shape[1] == Some(1),
        vocab_size,
        context_tokens,
    })
}

struct Reader<'a> {
    path: &'a Path,
    graph: &'a Graph,
    config: &'a HfConfig,
}

impl Reader<'_> {
    /// `past_key_values.N.key` or `.value`, `[batch, heads, past, head size]`, and the output that goes with it.
    fn kv_tensor(&self, input: &TensorInfo) -> Result<KvTensor, ModelDirError> {
        let unknown = || self.unsupported(format!("ortolan does not know what to feed its input `{}`", input.name));
        let layer = input.name.strip_prefix("past_key_values.").ok_or_else(unknown)?;
        if !matches!(layer.split_once('.'), Some((number, "key" | "value")) if number.parse::<u32>().is_ok()) {
            return Err(unknown());
        }
        if input.shape.len() != 4 {
            let message = format!("`{}` has {} dimensions instead of 4", input.name, input.shape.len());
            return Err(self.unsupported(message));
        }
        let present = self.output(&format!("present.{layer}"))?;
        let element_type = self.float_type(input)?;
        if present.element_type != input.element_type {
            return Err(self.unsupported(format!("`{}` and `{}` differ in type", input.name, present.name)));
        }
        Ok(KvTensor {
            past: input.name.clone(),
            present: present.name.clone(),
            num_heads: self.size(input, 1, "num_key_value_heads", self.config.num_kv_heads())?,
            head_size: self.size(input, 3, "head_dim", self.config.head_size())?,
            element_type,
        })
    }

    fn output(&self, name: &str) -> Result<&TensorInfo, ModelDirError> {
        let found = self.graph.outputs.iter().find(|output| output.name == name);
        found.ok_or_else(|| self.unsupported(format!("it has no output `{name}`")))
    }

    /// A dimension's size: the graph's, which must agree with the config, or the config's where the graph leaves it open.
    fn size(
        &self,
        tensor: &TensorInfo,
        dimension: usize,
        name: &'static str,
        config: Option<usize>,
    ) -> Result<usize, ModelDirError> {
        match tensor.shape.get(dimension).copied().flatten() {
            Some(0) => Err(self.unsupported(format!("`{}` has a dimension of 0", tensor.name))),
            Some(size) => self.agree(name, size, config).map(|()| size),
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

    fn float_type(&self, tensor: &TensorInfo) -> Result<ElementType, ModelDirError> {
        match tensor.element_type {
            ElementCode::FLOAT => Ok(ElementType::F32),
            ElementCode::FLOAT16 => Ok(ElementType::F16),
            ElementCode(code) => {
                let message =
                    format!("`{}` has element type {code}; float32 (1) and float16 (10) are known", tensor.name);
                Err(self.unsupported(message))
            }
        }
    }

    fn expect_int64(&self, input: &TensorInfo) -> Result<(), ModelDirError> {
        match input.element_type {
            ElementCode::INT64 => Ok(()),
            ElementCode(code) => {
                Err(self.unsupported(format!("`{}` has element type {code} instead of int64 (7)", input.name)))
            }
        }
    }

    fn unsupported(&self, message: String) -> ModelDirError {
        ModelDirError::Unsupported { path: self.path.to_path_buf(), message }
    }
}
