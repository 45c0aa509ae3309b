//! Padding of deltas, so that the sizes of encrypted packets do not tell how long each token is.

use rand::{RngExt, distr::Alphanumeric};
use serde_json::json;

/// Of delta and padding together. Few tokens are longer.
const BLOCK_BYTES: usize = 16;

/// Random letters that make the delta, as JSON spells it, a whole number of blocks.
pub(super) fn padding(delta: &str) -> String {
    let num_bytes = json!(delta).to_string().len() - "\"\"".len();
    let num_missing = num_bytes.next_multiple_of(BLOCK_BYTES) - num_bytes;
    rand::rng().sample_iter(Alphanumeric).take(num_missing).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_look_alike() {
        let size = |delta: &str| json!([delta, padding(delta)]).to_string().len();
        for delta in ["a", " hello", "\n", "🦉", "sixteen letters!"] {
            assert_eq!(size(delta), size("b"), "{delta}");
        }
        assert_eq!(size("seventeen letters"), size("b") + BLOCK_BYTES);
    }
}
