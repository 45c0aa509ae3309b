//! `manifest.json`: the SHA-256 of every file of a model folder. A runtime loads a flipped bit without a word.

use super::{ModelDirError, folder::Folder, variant::ListedFile};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const FILE: &str = "manifest.json";

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    files: BTreeMap<String, Listed>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    num_bytes: u64,
    sha256: String,
}

/// Compares each file with the manifest, if there is one; false when there is none. The listed files must be all there
/// are, and none may have another name elsewhere, under which it could be changed.
pub(super) fn check(folder: &Folder, files: &[ListedFile]) -> Result<bool, ModelDirError> {
    let Some(manifest) = folder.json::<Manifest>(FILE)? else { return Ok(false) };
    let altered = |name: &str, what: String| ModelDirError::Altered { path: folder.root().join(name), what };
    if let Some(missing) =
        manifest.files.keys().find(|name| files.binary_search_by(|(file, _)| file.cmp(name)).is_err())
    {
        return Err(ModelDirError::Missing { path: folder.root().join(missing) });
    }
    let differences = content(files).map(|(name, num_bytes)| {
        let Some(listed) = manifest.files.get(name) else {
            return Err(altered(name, "it is not listed there".to_owned()));
        };
        if listed.num_bytes != *num_bytes {
            let what = format!("it has {num_bytes} bytes, and {} are listed", listed.num_bytes);
            return Err(altered(name, what));
        }
        let path = folder.require(name)?;
        let unreadable = |cause| ModelDirError::Unreadable { path: path.clone(), cause };
        if 1 < fs::metadata(&path).map_err(unreadable)?.nlink() {
            return Err(altered(name, "it has another name elsewhere, a hard link".to_owned()));
        }
        match sha256(&path).map_err(unreadable)? == listed.sha256 {
            true => Ok(()),
            false => Err(altered(name, "its SHA-256 is another".to_owned())),
        }
    });
    differences.collect::<Result<(), ModelDirError>>()?;
    Ok(true)
}

/// Writes the manifest of a folder as it is now; returns where, and how many files are in it.
///
/// # Errors
/// When a file lies outside of the folder or cannot be read, or the manifest cannot be written.
pub fn write_manifest(root: &Path) -> Result<(PathBuf, usize), ModelDirError> {
    let folder = Folder::open(root)?;
    let files = folder.files()?;
    let list = |(name, num_bytes): &ListedFile| {
        let path = folder.require(name)?;
        let sha256 = sha256(&path).map_err(|cause| ModelDirError::Unreadable { path, cause })?;
        Ok((name.clone(), Listed { num_bytes: *num_bytes, sha256 }))
    };
    let manifest = Manifest { files: content(&files).map(list).collect::<Result<_, ModelDirError>>()? };
    let mut text = serde_json::to_string_pretty(&manifest).expect("texts and numbers are JSON");
    text.push('\n');
    let path = root.join(FILE);
    match write_anew(&path, &text) {
        Ok(()) => Ok((path, manifest.files.len())),
        Err(cause) => Err(ModelDirError::Unwritable { path, cause }),
    }
}

/// What has the name already may be a link, which could lead anywhere.
fn write_anew(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => File::create_new(path)?.write_all(text.as_bytes()),
    }
}

/// All files but the manifest itself.
fn content(files: &[ListedFile]) -> impl ParallelIterator<Item = &ListedFile> {
    files.par_iter().filter(|(name, _)| name != FILE)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let num_read = file.read(&mut buffer)?;
        if num_read == 0 {
            break;
        }
        hasher.update(&buffer[..num_read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A folder with a manifest.
    fn sealed() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("onnx")).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join("onnx/model.onnx"), [7; 100]).unwrap();
        assert_eq!(write_manifest(dir.path()).unwrap().1, 2);
        dir
    }

    fn checked(dir: &TempDir) -> Result<bool, String> {
        let folder = Folder::open(dir.path()).unwrap();
        let files = folder.files().unwrap();
        check(&folder, &files).map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_folder_is_as_it_was_sealed_or_the_file_is_named() {
        let dir = sealed();
        let model = dir.path().join("onnx/model.onnx");
        assert_eq!(checked(&dir), Ok(true));
        fs::write(&model, [7; 99]).unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err(), @"DIR/onnx/model.onnx is not as manifest.json says: it has 99 bytes, and 100 are listed; download it again, or run `ortolan manifest` if it was you who changed it");
        fs::write(&model, [vec![7; 99], vec![8]].concat()).unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err(), @"DIR/onnx/model.onnx is not as manifest.json says: its SHA-256 is another; download it again, or run `ortolan manifest` if it was you who changed it");
        fs::remove_file(&model).unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err(), @"the model folder is not complete: DIR/onnx/model.onnx is missing; download the whole folder");
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("a"), [7; 100]).unwrap();
        symlink(elsewhere.path().join("a"), &model).unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err().replace(&elsewhere.path().display().to_string(), ""), @"DIR/onnx/model.onnx lies outside of the model folder, where nothing is read; copy the file into it");
        fs::remove_file(&model).unwrap();
        fs::hard_link(elsewhere.path().join("a"), &model).unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err(), @"DIR/onnx/model.onnx is not as manifest.json says: it has another name elsewhere, a hard link; download it again, or run `ortolan manifest` if it was you who changed it");
        fs::remove_file(&model).unwrap();
        fs::write(&model, [7; 100]).unwrap();
        fs::write(dir.path().join("onnx/more.onnx"), "").unwrap();
        insta::assert_snapshot!(checked(&dir).unwrap_err(), @"DIR/onnx/more.onnx is not as manifest.json says: it is not listed there; download it again, or run `ortolan manifest` if it was you who changed it");
        fs::remove_file(dir.path().join("manifest.json")).unwrap();
        assert_eq!(checked(&dir), Ok(false));
    }

    #[test]
    fn a_manifest_is_written_into_its_folder_and_nowhere_else() {
        let (dir, elsewhere) = (sealed(), tempfile::tempdir().unwrap());
        let (manifest, target) = (dir.path().join(FILE), elsewhere.path().join("precious"));
        for is_there in [false, true] {
            if is_there {
                fs::write(&target, "mine").unwrap();
            }
            fs::remove_file(&manifest).unwrap();
            symlink(&target, &manifest).unwrap();
            write_manifest(dir.path()).unwrap();
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), is_there.then_some("mine"));
            assert_eq!(checked(&dir), Ok(true));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Of the weights and of the manifest itself.
        #[test]
        fn no_flipped_bit_goes_unseen(file in prop::sample::select(vec!["onnx/model.onnx", "manifest.json"]), place: u16, bit in 0_u32..8) {
            let dir = sealed();
            let path = dir.path().join(file);
            let mut bytes = fs::read(&path).unwrap();
            let place = usize::from(place) % bytes.len();
            // White space between tokens of JSON means nothing, whatever it is.
            prop_assume!(file != "manifest.json" || !bytes[place].is_ascii_whitespace());
            bytes[place] ^= 1_u8 << bit;
            fs::write(&path, bytes).unwrap();
            prop_assert!(checked(&dir).is_err());
        }
    }
}
