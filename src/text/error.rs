//! Why a tokenizer cannot be used.

use std::path::PathBuf;

/// The operator should look at the model folder.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer {} cannot be used: {message}", path.display())]
pub struct TokenizerError {
    /// `tokenizer.json`
    pub path: PathBuf,
    /// In the library's words.
    pub message: String,
}
