//! Graphs whose rows are packed, and which keep keys and values in blocks.

use super::{CacheKind, ElementCode, KNOWN_INPUTS, ModelDirError, Node, Reader, RotaryChoice, TensorInfo, shape};

/// What they are known by.
pub(super) const OPERATOR: &str = "PagedAttention";
/// What a step tells them beside its tokens, all of 32 bits, and how many dimensions each has.
pub(super) const INPUTS: [(&str, usize); 5] =
    [(CUMULATIVE, 1), ("past_sequence_lengths", 1), ("block_table", 2), (METADATA, 1), ("logits_indices", 1)];
/// Those of them that have to be there.
const NUM_REQUIRED: usize = 3;
const CUMULATIVE: &str = "cumulative_sequence_lengths";
const METADATA: &str = "attention_metadata";
/// Numbers that it has. Older exports have two.
const METADATA_LEN: usize = 3;

impl Reader<'_> {
    pub(super) fn is_packed(&self) -> bool {
        self.graph.summary.operators.contains_key(OPERATOR)
    }

    /// Whether an input tells how rows are packed.
    pub(super) fn tells_of_packed(&self, name: &str) -> bool {
        self.is_packed() && INPUTS.iter().any(|(input, _)| *input == name)
    }

    /// Whether what a run is told has the types and dimensions that ortolan knows. Returns of how many tokens blocks have to
    /// be, where that is so.
    pub(super) fn check_packed(&self, rotary_choice: Option<RotaryChoice>) -> Result<Option<usize>, ModelDirError> {
        for (number, (name, rank)) in INPUTS.iter().enumerate() {
            match self.input(name) {
                None if number < NUM_REQUIRED => return Err(self.unsupported(format!("it has no input `{name}`"))),
                Some(input) if input.element_type != ElementCode::INT32 || input.shape.len() != *rank => {
                    return Err(self.unsupported(format!("`{name}` is not int32 with {rank} dimensions")));
                }
                Some(_) | None => {}
            }
        }
        if let Some(len) = self.input(METADATA).and_then(|input| input.shape[0]).filter(|len| *len != METADATA_LEN) {
            return Err(self.unsupported(format!(
                "`{METADATA}` has {len} numbers instead of {METADATA_LEN}; export it with a newer onnxruntime-genai"
            )));
        }
        let of_others = KNOWN_INPUTS.iter().find(|name| **name != "input_ids" && self.input(name).is_some());
        if let Some(name) = of_others {
            return Err(self.unsupported(format!("its rows are packed and it takes `{name}`")));
        }
        match rotary_choice.and_then(|choice| choice.tokens_in_block) {
            Some(tokens) if !tokens.is_power_of_two() => Err(self.unsupported(format!(
                "its blocks are of {tokens} tokens, which is no power of two; export it with `paged_block_size=256`"
            ))),
            tokens_in_block => Ok(tokens_in_block),
        }
    }

    /// Whether the last token of each row is scored and no other, though nobody says which. Without pruning, only the
    /// operator asks where rows end.
    pub(super) fn scores_last_of_packed(&self) -> bool {
        let cuts = |node: &Node| node.op_type == "Slice" && node.inputs.iter().any(|input| input == CUMULATIVE);
        self.input("logits_indices").is_none() && self.graph.nodes.iter().any(cuts)
    }

    /// Keys or values, or what quantized ones are to be multiplied by: a number for each token and head.
    pub(super) fn blocks(&self, past: &TensorInfo) -> Result<CacheKind, ModelDirError> {
        let [None, None, sizes @ ..] = &past.shape[..] else { return Err(self.no_blocks(past)) };
        let of_config = [("num_key_value_heads", self.config.num_kv_heads()), ("head_dim", self.config.head_size())];
        if sizes.is_empty() || of_config.len() < sizes.len() {
            return Err(self.no_blocks(past));
        }
        let sizes = (2..past.shape.len()).zip(of_config);
        let sizes = sizes.map(|(dimension, (name, size))| self.size(past, dimension, name, size));
        Ok(CacheKind::Blocks { sizes: sizes.collect::<Result<_, _>>()? })
    }

    fn no_blocks(&self, past: &TensorInfo) -> ModelDirError {
        self.unsupported(format!(
            "its rows are packed, and `{}` has the shape {} instead of [blocks, tokens, heads, head size]; export it \
             without `use_paged_attention`",
            past.name,
            shape(past)
        ))
    }
}
