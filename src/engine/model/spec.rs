//! What the engine must know of a graph before it opens it.

use std::path::PathBuf;

/// How a graph keeps keys and values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GraphFamily {
    /// `GroupQueryAttention`: past and present may be one buffer, written in place.
    Gqa,
    /// Plain attention: present is past with the new tokens appended.
    Concat,
    /// `PagedAttention`: keys and values lie in blocks that a table tells of, and rows are packed.
    Paged,
}

impl GraphFamily {
    /// As `ortolan inspect` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gqa => "gqa",
            Self::Concat => "concat",
            Self::Paged => "paged",
        }
    }
}

/// Number format of scores.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FloatType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of single precision.
    BF16,
}

/// Number format of a tensor in the cache. Its numbers are moved and never looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ElementType {
    /// As scores may have it.
    Float(FloatType),
    /// One quantized number a byte, or a part of several.
    Int8,
    /// As above; two of 4 bits share a byte.
    Uint8,
    /// `float8e4m3fn`
    Float8,
}

impl FloatType {
    /// As `ortolan inspect` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

impl ElementType {
    /// Size of one element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Float(FloatType::F32) => 4,
            Self::Float(FloatType::F16 | FloatType::BF16) => 2,
            Self::Int8 | Self::Uint8 | Self::Float8 => 1,
        }
    }

    /// As `ortolan inspect` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(float) => float.name(),
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Float8 => "float8",
        }
    }
}

/// Number format of ids, masks and positions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IntType {
    /// As most exporters have it.
    I64,
    /// As some runtimes of small devices want it.
    I32,
}

/// An input that holds what earlier tokens left behind, and the output that holds the same with the new tokens in it.
/// The first dimension of both is the batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheTensor {
    /// Name of the input, such as `past_key_values.0.key`.
    pub past: String,
    /// Name of the output, such as `present.0.key`.
    pub present: String,
    /// Of input and output.
    pub element_type: ElementType,
    /// What the other dimensions are.
    pub kind: CacheKind,
}

/// How a tensor of the cache remembers tokens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CacheKind {
    /// Keys or values of one layer, `[batch, num_heads, past, head_size]`: a column for each token.
    Columns {
        /// Heads that keys and values have, which several query heads may share.
        num_heads: usize,
        /// Elements of one head.
        head_size: usize,
        /// Where the operator evicts what is so many tokens old, so that there need not be a column for each token.
        window: Option<usize>,
    },
    /// Keys or values of one layer, `[num_blocks, block_tokens, sizes…]`: a place in a block for each token.
    Blocks {
        /// What one token leaves.
        sizes: Vec<usize>,
    },
    /// A state of convolution or recurrence, `[batch, sizes…]`: of one size, whatever the number of tokens. Nothing can be
    /// taken out of it again.
    State {
        /// All dimensions but the batch.
        sizes: Vec<usize>,
        /// Whether one operator reads it and writes it, and is known to do so in one place.
        is_in_place: bool,
    },
}

/// Dimensions that a tensor of the cache may have, the batch among them.
pub(crate) const MAX_CACHE_RANK: usize = 8;

/// Columns that a window is given beyond its own width on a CPU, so that evicting, which moves all of them, is needed only
/// every so many tokens.
pub(super) const WINDOW_SLACK: usize = 16;

impl CacheTensor {
    /// Memory that one token takes in it, as long as nothing is evicted.
    pub fn bytes_per_token(&self) -> usize {
        match self.kind {
            CacheKind::Columns { num_heads, head_size, window: None } => {
                num_heads.saturating_mul(head_size).saturating_mul(self.element_type.num_bytes())
            }
            CacheKind::Blocks { ref sizes } => {
                sizes.iter().copied().fold(self.element_type.num_bytes(), usize::saturating_mul)
            }
            CacheKind::Columns { window: Some(_), .. } | CacheKind::State { .. } => 0,
        }
    }

    /// Memory that one sequence of this length takes in it.
    pub fn bytes_per_slot(&self, context_tokens: usize) -> usize {
        let num_elements = match &self.kind {
            CacheKind::Columns { num_heads, head_size, window } => {
                let columns =
                    window.map_or(context_tokens, |window| window_columns(window, WINDOW_SLACK, context_tokens));
                num_heads.saturating_mul(*head_size).saturating_mul(columns)
            }
            CacheKind::Blocks { sizes } => sizes.iter().copied().fold(context_tokens, usize::saturating_mul),
            CacheKind::State { sizes, .. } => sizes.iter().copied().fold(1, usize::saturating_mul),
        };
        num_elements.saturating_mul(self.element_type.num_bytes())
    }
}

/// Columns of a window: never fewer than its width, and not more than there can be tokens.
pub(super) fn window_columns(window: usize, slack: usize, context_tokens: usize) -> usize {
    window.max(context_tokens.min(window.saturating_add(slack)))
}

/// How a graph is told positions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PositionIds {
    /// Of `position_ids`.
    pub int_type: IntType,
    /// Dimension before the batch, where there is one: a token has a position in time, height and width where pictures
    /// stand in the text. For words all three are the same.
    pub num_axes: Option<usize>,
}

/// A scalar by which a graph is told how many of a run's last positions to score; 0 means all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NumLogits {
    /// Name of the input.
    pub name: String,
    /// Its number format.
    pub int_type: IntType,
    /// Whether it is a vector of one element.
    pub is_vector: bool,
}

/// A graph's own inputs and outputs, checked against the model's `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each tells of an input or output of its own")]
pub struct ModelSpec {
    /// The ONNX file.
    pub path: PathBuf,
    /// How it keeps keys and values.
    pub family: GraphFamily,
    /// What is kept from token to token, in the graph's order.
    pub cache: Vec<CacheTensor>,
    /// Layers that keep something.
    pub num_layers: usize,
    /// Of `input_ids`.
    pub ids_type: IntType,
    /// Of `attention_mask`, where the graph takes one.
    pub mask_type: Option<IntType>,
    /// Where it turns positions by other factors once its mask, or a row's blocks, have room for more tokens than this, those
    /// of all rows and columns of a run. What is in the cache was turned by those of its own run, so all runs must take the
    /// same.
    pub num_short_tokens: Option<usize>,
    /// Tokens in a block, where the graph counts on that.
    pub own_block_tokens: Option<usize>,
    /// Where it takes `position_ids`.
    pub position_ids: Option<PositionIds>,
    /// Where it takes `num_logits_to_keep`.
    pub num_logits: Option<NumLogits>,
    /// Whether it holds two graphs, one for the start of a sequence, and is told by `use_cache_branch` which to run. The
    /// other one is made for single tokens.
    pub has_cache_branch: bool,
    /// Of the output `logits`, `[batch, sequence, vocab_size]`.
    pub logits_type: FloatType,
    /// Whether it takes `logits_indices`, the tokens of a packed run to be scored.
    pub has_logits_indices: bool,
    /// Whether it takes `attention_metadata`, bounds of the rows of a packed run.
    pub has_attention_metadata: bool,
    /// Whether `logits` holds only the row of each sequence's last token, however many it computes.
    pub has_last_logits_only: bool,
    /// Scores per row of logits.
    pub vocab_size: usize,
    /// What the model was trained for, prompt and reply together.
    pub context_tokens: usize,
}

impl ModelSpec {
    /// Memory that one more token takes over all layers.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.cache.iter().map(CacheTensor::bytes_per_token).fold(0, usize::saturating_add)
    }

    /// Memory that one sequence takes at most.
    pub fn cache_bytes_per_slot(&self, context_tokens: usize) -> usize {
        self.cache.iter().map(|tensor| tensor.bytes_per_slot(context_tokens)).fold(0, usize::saturating_add)
    }

    /// Tokens in a block, where keys and values lie in blocks: as many as the operator's kernels read at once, for the size
    /// of a head, unless the graph says. Fewer and they fall back to slower ones; more and fewer beginnings are shared.
    pub fn block_tokens(&self) -> Option<usize> {
        let head_size = |tensor: &CacheTensor| match &tensor.kind {
            CacheKind::Blocks { sizes } => Some(sizes.get(1).copied().unwrap_or(1)),
            CacheKind::Columns { .. } | CacheKind::State { .. } => None,
        };
        let head_size = self.cache.iter().filter_map(head_size).max()?;
        Some(self.own_block_tokens.unwrap_or(if head_size <= 64 { 256 } else { 128 }))
    }

    /// Whether a layer keeps a state instead of, or beside, keys and values.
    pub fn has_states(&self) -> bool {
        self.cache.iter().any(|tensor| matches!(tensor.kind, CacheKind::State { .. }))
    }

    /// Whether a layer keeps keys and values of a window only.
    pub fn has_windows(&self) -> bool {
        self.cache.iter().any(|tensor| matches!(tensor.kind, CacheKind::Columns { window: Some(_), .. }))
    }
}
