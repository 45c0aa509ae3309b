//! The files of a model folder. None is read that lies outside of it, whatever a link or a name in a file says.

use super::{ModelDirError, variant::ListedFile};
use serde::de::DeserializeOwned;
use std::{
    borrow::Cow,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// A folder as exported to Hugging Face.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Where its files may truly lie: in the folder itself, or where the hub's cache keeps what a snapshot links to.
    homes: Vec<PathBuf>,
}

/// Tokenizers have the largest files that are read whole: 35 MB for 262,144 tokens.
const MAX_TEXT_BYTES: u64 = 256 * 1024 * 1024;
/// No export comes near.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 6;

impl Folder {
    pub(super) fn open(root: &Path) -> Result<Self, ModelDirError> {
        let (path, unreadable) =
            (root.to_path_buf(), |cause| ModelDirError::Unreadable { path: root.to_path_buf(), cause });
        if !root.exists() {
            return Err(ModelDirError::NotAFolder { path });
        }
        let real = root.canonicalize().map_err(unreadable)?;
        let is_part = !real.is_dir() || real.ends_with("onnx") && !is_model(&real);
        if let Some(folder) = real.ancestors().skip(1).take(2).find(|above| is_part && is_model(above)) {
            return Err(ModelDirError::PartOfFolder { path, folder: folder.to_path_buf() });
        }
        if !root.is_dir() {
            return Err(ModelDirError::NotAFolder { path });
        }
        // `models--org--name/snapshots/REVISION` links into `models--org--name/blobs`.
        let snapshots = real.ancestors().find(|above| above.file_name().is_some_and(|name| name == "snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
        let homes = [Some(real), blobs].into_iter().flatten().collect();
        Ok(Self { root: root.to_path_buf(), homes })
    }

    /// A folder in it, as a model folder of its own.
    pub(super) fn enter(&self, name: &str) -> Result<Self, ModelDirError> {
        if name.is_empty() {
            return Ok(Self { root: self.root.clone(), homes: self.homes.clone() });
        }
        Ok(Self { root: self.require(name)?, homes: self.homes.clone() })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file is, if it is there.
    ///
    /// # Errors
    /// When the name or a link leads out of the folder.
    pub(super) fn find(&self, name: &str) -> Result<Option<PathBuf>, ModelDirError> {
        let path = self.root.join(name);
        let stays = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let real = match path.canonicalize() {
            _ if !stays => return Err(ModelDirError::Outside { path }),
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(ModelDirError::Unreadable { path, cause }),
        };
        match self.homes.iter().any(|home| real.starts_with(home)) {
            true => Ok(Some(path)),
            false => Err(ModelDirError::Outside { path }),
        }
    }

    /// Where a file is that must be there.
    pub(super) fn require(&self, name: &str) -> Result<PathBuf, ModelDirError> {
        self.find(name)?.ok_or_else(|| ModelDirError::Missing { path: self.root.join(name) })
    }

    /// The text of a file that may be missing.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, ModelDirError> {
        let Some(path) = self.find(name)? else { return Ok(None) };
        let unreadable = |cause| ModelDirError::Unreadable { path: path.clone(), cause };
        let num_bytes = fs::metadata(&path).map_err(unreadable)?.len();
        if MAX_TEXT_BYTES < num_bytes {
            let message = format!("it has {num_bytes} bytes, more than the {MAX_TEXT_BYTES} that are read");
            return Err(ModelDirError::Invalid { path, message });
        }
        fs::read_to_string(&path).map(Some).map_err(unreadable)
    }

    /// The JSON of a file that may be missing.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelDirError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let invalid = |error: serde_json::Error| ModelDirError::Invalid {
            path: self.root.join(name),
            message: error.to_string(),
        };
        serde_json::from_str(&without_infinities(text.trim_start_matches(BYTE_ORDER_MARK))).map(Some).map_err(invalid)
    }

    /// All files with their sizes, sorted by name, hidden ones and folders aside.
    pub(super) fn files(&self) -> Result<Vec<ListedFile>, ModelDirError> {
        let mut files = Vec::new();
        self.list("", 0, &mut files)?;
        files.sort_unstable();
        Ok(files)
    }

    fn list(&self, within: &str, depth: usize, files: &mut Vec<ListedFile>) -> Result<(), ModelDirError> {
        let folder = self.root.join(within);
        let unreadable = |cause| ModelDirError::Unreadable { path: folder.clone(), cause };
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let name = if within.is_empty() { name } else { format!("{within}/{name}") };
            // A link is followed, since the hub's cache is made of them; a folder that is one is not entered.
            let is_link = entry.file_type().map_err(unreadable)?.is_symlink();
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                files.push((name, metadata.len()));
            } else if metadata.is_dir() && !is_link && depth < MAX_DEPTH {
                self.list(&name, depth + 1, files)?;
            }
            if MAX_FILES < files.len() {
                let message = format!("it holds more than {MAX_FILES} files, so it is no model folder");
                return Err(ModelDirError::Invalid { path: self.root.clone(), message });
            }
        }
        Ok(())
    }
}

/// Whether one of the files that every model has is in a folder.
fn is_model(folder: &Path) -> bool {
    ["config.json", "genai_config.json"].iter().any(|name| folder.join(name).is_file())
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Python writes numbers that JSON has no word for, as in `"time_step_limit": [0.0, Infinity]`: here they are `null`.
fn without_infinities(json: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !WORDS.iter().any(|word| json.contains(word)) {
        return Cow::Borrowed(json);
    }
    let (mut plain, mut rest, mut is_in_text) = (String::with_capacity(json.len()), json, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !is_in_text && rest.starts_with(*word));
        let taken = match (first, word) {
            (_, Some(word)) => word.len(),
            ('\\', None) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (_, None) => first.len_utf8(),
        };
        is_in_text ^= first == '"';
        plain.push_str(if word.is_some() { "null" } else { &rest[..taken] });
        rest = &rest[taken..];
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(folder: &Folder) -> Vec<String> {
        folder.files().unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn nothing_outside_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "{}").unwrap();
        let root = dir.path().join("model");
        fs::create_dir_all(root.join("onnx")).unwrap();
        fs::write(root.join("onnx/model.onnx"), "").unwrap();
        fs::write(root.join(".hidden"), "").unwrap();
        symlink("../secret", root.join("config.json")).unwrap();
        symlink("onnx/model.onnx", root.join("model.onnx")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let folder = Folder::open(&root).unwrap();
        for outside in ["../secret", "/etc/passwd", "onnx/../../secret", "config.json", "up/secret"] {
            let error = folder.text(outside).unwrap_err().to_string();
            assert!(error.contains("lies outside of the model folder"), "{error}");
        }
        assert_eq!(folder.text("model.onnx").unwrap().as_deref(), Some(""));
        assert_eq!(folder.text("missing").unwrap(), None);
        assert_eq!(names(&folder), ["config.json", "model.onnx", "onnx/model.onnx"]);
    }

    #[test]
    fn what_is_in_a_model_folder_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let graph = dir.path().join("onnx/model.onnx");
        fs::create_dir(dir.path().join("onnx")).unwrap();
        fs::write(&graph, "").unwrap();
        assert!(matches!(Folder::open(&graph), Err(ModelDirError::NotAFolder { .. })));
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let real = dir.path().canonicalize().unwrap();
        for part in [&graph, &dir.path().join("onnx"), &dir.path().join("config.json")] {
            let error = Folder::open(part).unwrap_err();
            assert!(
                matches!(error, ModelDirError::PartOfFolder { folder, .. } if folder == real),
                "{}",
                part.display()
            );
        }
        assert!(Folder::open(dir.path()).is_ok());
    }

    #[test]
    fn json_as_python_and_editors_write_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let json = "\u{feff}{\"a\": [NaN, Infinity, -Infinity, 1], \"NaN \\\" Infinity\": \"-Infinity é\"}";
        fs::write(dir.path().join("config.json"), json).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let read: serde_json::Value = folder.json("config.json").unwrap().unwrap();
        assert_eq!(read, serde_json::json!({ "a": [null, null, null, 1], "NaN \" Infinity": "-Infinity é" }));
        fs::write(dir.path().join("config.json"), "{\"a\": NaN, \\").unwrap();
        assert!(matches!(folder.json::<serde_json::Value>("config.json"), Err(ModelDirError::Invalid { .. })));
    }

    #[test]
    fn a_snapshot_of_the_hubs_cache_is_made_of_links() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/5f0a/cpu/int4");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("blobs")).unwrap();
        fs::write(repository.join("blobs/77b2"), "{\"a\": 1}").unwrap();
        fs::write(cache.path().join("token"), "").unwrap();
        symlink("../../../../blobs/77b2", snapshot.join("config.json")).unwrap();
        symlink("../../../../../token", snapshot.join("tokenizer.json")).unwrap();
        let folder = Folder::open(&snapshot).unwrap();
        let config: serde_json::Value = folder.json("config.json").unwrap().unwrap();
        assert_eq!(config["a"], 1);
        assert!(matches!(folder.find("tokenizer.json"), Err(ModelDirError::Outside { .. })));
    }
}
