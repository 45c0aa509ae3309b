//! What can be wrong with a model folder.

use std::{io, path::PathBuf};

/// Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ModelDirError {
    /// The path is wrong.
    #[error("the model folder {} does not exist; set `path` of the model to a folder with config.json and onnx/model.onnx", path.display())]
    NotAFolder {
        /// As given.
        path: PathBuf,
    },
    /// The folder is not complete.
    #[error("the model folder is not complete: {} is missing; download the whole folder", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{} is not valid: {message}; download it again", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// The length of the context is nowhere else.
    #[error("{} does not say `max_position_embeddings`, the length of the model's context; add it", path.display())]
    NoContext {
        /// `config.json`
        path: PathBuf,
    },
    /// The graph has a form that ortolan does not run.
    #[error("the graph {} is not understood: {message}", path.display())]
    Unsupported {
        /// The ONNX file.
        path: PathBuf,
        /// Which part of it.
        message: String,
    },
    /// The graph belongs to another model than `config.json`.
    #[error(
        "{} does not match config.json: the graph has {name} = {graph} and config.json says {config}; export them together",
        path.display()
    )]
    Mismatch {
        /// The ONNX file.
        path: PathBuf,
        /// Key of `config.json`.
        name: &'static str,
        /// In the graph.
        graph: usize,
        /// In `config.json`.
        config: usize,
    },
}
