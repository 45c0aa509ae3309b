//! What can be wrong with a model folder.

use super::variant::VariantError;
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
    /// The path leads into a model folder.
    #[error("{} is a part of a model and not the whole; set `path` of the model to {}", path.display(), folder.display())]
    PartOfFolder {
        /// As given.
        path: PathBuf,
        /// The folder above it.
        folder: PathBuf,
    },
    /// The folder is not complete.
    #[error("the model folder is not complete: {} is missing; download the whole folder", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{} is not valid: {message}; download it again", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// No graph can be taken.
    #[error("the model folder {} cannot be served: {cause}{advice}", path.display())]
    Variant {
        /// The folder.
        path: PathBuf,
        /// Why not, and what there is.
        cause: VariantError,
        /// What else is in it.
        advice: &'static str,
    },
    /// A file that a name or a link places elsewhere.
    #[error("{} lies outside of the model folder, where nothing is read; copy the file into it", path.display())]
    Outside {
        /// Where it would be in the folder.
        path: PathBuf,
    },
    /// The folder is not as its manifest says.
    #[error("{} is not as manifest.json says: {what}; download it again, or run `ortolan manifest` if it was you who changed it", path.display())]
    Altered {
        /// Which file.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// The file cannot be written.
    #[error("{} cannot be written: {cause}", path.display())]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
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
