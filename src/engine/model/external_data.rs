//! The files beside a graph that hold its weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path, PathBuf},
};

/// Where a graph's data files are. The runtime looks in one folder and follows no link out of it, but the Hugging Face
/// cache keeps every file of a model as a link into one folder of blobs: then the graph must name the blobs.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct ExternalData {
    /// For the runtime.
    pub(super) folder: PathBuf,
    /// Names in that folder, by the graph's own names, where these differ.
    names: BTreeMap<String, String>,
}

/// Why a data file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataFileError {
    /// The download was not complete.
    #[error("{} cannot be found: {source}; download the whole folder", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
    /// A graph may not read any file of the machine.
    #[error("it names the data file {file}, which is outside its own folder; take another export")]
    Outside {
        /// In the graph's words.
        file: String,
    },
}

/// Where a data file really is that a graph names: in the graph's folder or, in the Hugging Face cache, among the blobs
/// of the same model.
pub(crate) fn locate(graph: &Path, file: &str) -> Result<PathBuf, DataFileError> {
    let beside = graph.parent().unwrap_or(Path::new("."));
    let real = |path: PathBuf| path.canonicalize().map_err(|source| DataFileError::Missing { path, source });
    let folder = real(beside.to_path_buf())?;
    let outside = || DataFileError::Outside { file: file.to_owned() };
    if !Path::new(file).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    let place = real(beside.join(file))?;
    let snapshots = folder.ancestors().find(|ancestor| ancestor.ends_with("snapshots"));
    let blobs = snapshots.and_then(|snapshots| snapshots.with_file_name("blobs").canonicalize().ok());
    let is_inside = place.starts_with(&folder) || blobs.is_some_and(|blobs| place.starts_with(blobs));
    if is_inside { Ok(place) } else { Err(outside()) }
}

impl ExternalData {
    /// Looks for the files that a graph names.
    ///
    /// # Errors
    /// A file that is missing or outside, or files in more folders than one; in words for the operator.
    pub(super) fn find(graph: &Path, files: &BTreeSet<String>) -> Result<Self, String> {
        let beside = graph.parent().unwrap_or(Path::new("."));
        let folder = beside.canonicalize().map_err(|error| format!("{} cannot be found: {error}", beside.display()))?;
        let mut places = Vec::new();
        for file in files {
            places.push((file, locate(graph, file).map_err(|error| error.to_string())?));
        }
        if places.iter().all(|(file, place)| *place == folder.join(file)) {
            return Ok(Self { folder, names: BTreeMap::new() });
        }
        let folder = places.first().and_then(|(_, place)| place.parent()).unwrap_or(&folder).to_path_buf();
        let mut names = BTreeMap::new();
        for (file, place) in &places {
            match place.file_name() {
                Some(name) if place.parent() == Some(&folder) => {
                    names.insert((*file).clone(), name.to_string_lossy().into_owned());
                }
                _ => {
                    return Err(format!(
                        "its data file {file} is not in one folder with the others; put them together"
                    ));
                }
            }
        }
        Ok(Self { folder, names })
    }

    /// What the graph is to call a file.
    pub(super) fn name(&self, file: &str) -> String {
        self.names.get(file).map_or(file, String::as_str).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn files(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn plain_files_keep_their_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.onnx_data"), "").unwrap();
        let data = ExternalData::find(&dir.path().join("model.onnx"), &files(&["model.onnx_data"])).unwrap();
        assert_eq!(data.folder, dir.path().canonicalize().unwrap());
        assert_eq!(data.name("model.onnx_data"), "model.onnx_data");
    }

    #[test]
    fn links_are_followed_to_the_folder_where_they_all_lead() {
        let dir = tempfile::tempdir().unwrap();
        let [blobs, snapshot] = ["blobs", "snapshots/5e1f/onnx"].map(|name| dir.path().join(name));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for (blob, name) in [("5f0a", "a.data"), ("77b2", "b.data")] {
            fs::write(blobs.join(blob), "").unwrap();
            symlink(Path::new("../../../blobs").join(blob), snapshot.join(name)).unwrap();
        }
        let graph = snapshot.join("model.onnx");
        let data = ExternalData::find(&graph, &files(&["a.data", "b.data"])).unwrap();
        assert_eq!(data.folder, blobs.canonicalize().unwrap());
        assert_eq!([data.name("a.data"), data.name("b.data")], ["5f0a", "77b2"]);
        fs::write(snapshot.join("c.data"), "").unwrap();
        let scattered = ExternalData::find(&graph, &files(&["a.data", "c.data"])).unwrap_err();
        assert_eq!(scattered, "its data file c.data is not in one folder with the others; put them together");
    }

    #[test]
    fn a_file_that_is_missing_or_elsewhere_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let graph = dir.path().join("model.onnx");
        for outside in ["../secret", "/etc/passwd", "a/../../b"] {
            let error = ExternalData::find(&graph, &files(&[outside])).unwrap_err();
            assert!(error.contains("is outside its own folder"), "{error}");
        }
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        symlink(elsewhere.path(), dir.path().join("link")).unwrap();
        let error = ExternalData::find(&graph, &files(&["link"])).unwrap_err();
        assert!(error.contains("the data file link, which is outside"), "{error}");
        let error = ExternalData::find(&graph, &files(&["gone"])).unwrap_err();
        assert!(error.contains("/gone cannot be found") && error.contains("download the whole folder"), "{error}");
    }
}
