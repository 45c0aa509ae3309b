//! What the engine must know of a graph before it opens it.

use std::path::PathBuf;

/// How a graph keeps keys and values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GraphFamily {
    /// `GroupQueryAttention`: past and present may be one buffer, written in place.
    Gqa,
    /// Plain attention: present is past with the new tokens appended.
    Concat,
}

impl GraphFamily {
    /// As `ortolan inspect` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gqa => "gqa",
            Self::Concat => "concat",
        }
    }
}

/// Number format of a floating-point tensor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ElementType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
}

impl ElementType {
    /// Size of one element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// As `ortolan inspect` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
        }
    }
}

/// Keys or values of one layer: an input of shape `[batch, num_heads, past, head_size]` and an output that is the same
/// with the new tokens in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KvTensor {
    /// Name of the input, such as `past_key_values.0.key`.
    pub past: String,
    /// Name of the output, such as `present.0.key`.
    pub present: String,
    /// Heads that keys and values have, which several query heads may share.
    pub num_heads: usize,
    /// Elements of one head.
    pub head_size: usize,
    /// Of input and output.
    pub element_type: ElementType,
}

impl KvTensor {
    /// Memory that one token takes in it.
    pub fn bytes_per_token(&self) -> usize {
        self.num_heads.saturating_mul(self.head_size).saturating_mul(self.element_type.num_bytes())
    }
}

/// A graph's own inputs and outputs, checked against the model's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The ONNX file.
    pub path: PathBuf,
    /// How it keeps keys and values.
    pub family: GraphFamily,
    /// Keys and values of all layers, in the graph's order.
    pub kv: Vec<KvTensor>,
    /// Whether it takes `position_ids`.
    pub has_position_ids: bool,
    /// Of the output `logits`, `[batch, sequence, vocab_size]`.
    pub logits_type: ElementType,
    /// Whether `logits` holds only the last token's row, whatever the length of the sequence.
    pub has_last_logits_only: bool,
    /// Scores per row of logits.
    pub vocab_size: usize,
    /// What the model was trained for, prompt and reply together.
    pub context_tokens: usize,
}

impl ModelSpec {
    /// KV memory that one token takes over all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.kv.iter().map(KvTensor::bytes_per_token).fold(0, usize::saturating_add)
    }
}
