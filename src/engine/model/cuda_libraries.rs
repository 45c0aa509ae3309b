//! Where the libraries are that ONNX Runtime's providers for NVIDIA GPUs need, and loading them before it does.
//!
//! The loader of the system looks only where it was told to before the process began. What is loaded already, from wherever,
//! satisfies it by its name.

use super::{elf, ffi, provider_error};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// The driver's own library.
pub(super) const DRIVER: &str = "libcuda.so.1";
/// How the name of CUDA's runtime begins; its version follows.
pub(super) const RUNTIME: &str = "libcudart.so.";
/// What the CUDA provider loads by itself when a graph asks for it, by the provider's own library.
const OPTIONAL: [(&str, &str); 1] = [("libonnxruntime_providers_cuda.so", "libcudnn.so.9")];
/// How the names of libraries begin that come with CUDA, its driver or TensorRT.
const FAMILIES: [&str; 2] = ["libcu", "libnv"];

/// Folders that may hold such libraries, the best first.
#[derive(Clone, Debug, Default)]
pub(super) struct CudaLibraries {
    folders: Vec<PathBuf>,
}

/// One library, found or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CudaLibrary {
    /// As the loader knows it, such as `libcublas.so.13`.
    pub name: String,
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Where that is not known, what is wrong with the file that was found, which begins with its path.
    pub flaw: Option<String>,
    /// Whether the provider cannot be loaded without it.
    pub is_needed: bool,
}

impl CudaLibrary {
    /// What to do to have it.
    pub fn advice(&self) -> String {
        provider_error::advice(&[&self.name])
    }
}

impl CudaLibraries {
    /// Looks in the folders that the config names, where the loader looks, beside ONNX Runtime's `library`, and where CUDA and
    /// Python's packages of it are usually installed. `variable` looks up an environment variable.
    pub(super) fn new(configured: &[PathBuf], library: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        Self { folders: folders(Path::new("/"), configured, library, variable) }
    }

    /// What the library needs, directly or not, each behind what it needs itself. What comes with the system is left out.
    pub(super) fn needed_by(&self, library: &Path) -> Vec<CudaLibrary> {
        let mut found = Vec::new();
        self.add_needed(library, &mut Vec::new(), &mut found);
        // CUDA's runtime opens it by itself.
        if found.iter().any(|known| known.name.starts_with(RUNTIME)) && !found.iter().any(|known| known.name == DRIVER)
        {
            found.push(self.look_for(DRIVER, true));
        }
        for (_, name) in OPTIONAL.iter().filter(|(user, _)| library.ends_with(user)) {
            if !found.iter().any(|known| known.name == *name) {
                found.push(self.look_for(name, false));
            }
        }
        found
    }

    fn add_needed(&self, library: &Path, begun: &mut Vec<String>, found: &mut Vec<CudaLibrary>) {
        // What cannot be read says at least by itself what it lacks, when it is loaded.
        for name in elf::needed(library).unwrap_or_default() {
            let is_ours = FAMILIES.iter().any(|family| name.starts_with(family)) && !name.contains('/');
            if is_ours && !begun.contains(&name) {
                begun.push(name.clone());
                let library = self.look_for(&name, true);
                // The driver brings what it needs.
                if let Some(path) = library.path.as_deref().filter(|_| name != DRIVER) {
                    self.add_needed(path, begun, found);
                }
                found.push(library);
            }
        }
    }

    /// The first that can be used, as the system's loader passes over those of other machines.
    fn look_for(&self, name: &str, is_needed: bool) -> CudaLibrary {
        let (mut path, mut flaw) = (None, None);
        for file in self.folders.iter().map(|folder| folder.join(name)).filter(|file| file.is_file()) {
            match elf::needed(&file) {
                Ok(_) => {
                    (path, flaw) = (Some(file), None);
                    break;
                }
                Err(error) => drop(flaw.get_or_insert_with(|| format!("{} {error}", file.display()))),
            }
        }
        CudaLibrary { name: name.to_owned(), path, flaw, is_needed }
    }

    /// Loads all that can be found of what the library needs. What cannot be loaded has a flaw from then on and no path, unless
    /// all that it lacks is another of them; what only the system's loader finds has its name for a path.
    pub(super) fn load(needed: &mut [CudaLibrary]) {
        for CudaLibrary { name, path, flaw, is_needed } in needed {
            if *is_needed && path.is_none() && ffi::load_library(Path::new(name)).is_ok() {
                *path = Some(PathBuf::from(&*name));
            }
            if let Some(file) = path.clone()
                && let Err(error) = ffi::load_library(&file)
            {
                tracing::warn!(library = name, error, "this library cannot be loaded");
                if provider_error::missing_library(&error).is_none() {
                    *flaw = Some(format!("{} cannot be loaded: {error}", file.display()));
                    *path = None;
                }
            }
        }
    }
}

/// In the order in which they are searched. Only what the system has is below `root`.
fn folders(
    root: &Path,
    configured: &[PathBuf],
    library: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<PathBuf> {
    let in_list = |name: &str| variable(name).iter().flat_map(env::split_paths).collect::<Vec<_>>();
    let below = |paths: &[&str]| paths.iter().map(|path| root.join(path)).collect::<Vec<_>>();
    let mut folders = configured.to_vec();
    folders.extend(in_list("LD_LIBRARY_PATH"));
    folders.extend(library.parent().map(Path::to_path_buf));
    folders.extend(loader_folders(root));
    folders.extend(below(&["usr/local/nvidia/lib64", "usr/lib/wsl/lib", "usr/local/cuda/lib64"]));
    folders.extend(children(&root.join("usr/local"), "cuda-").into_iter().rev().map(|cuda| cuda.join("lib64")));

    // The environment of the first Python on the path, which is told by where it is and not by asking it.
    let python = in_list("PATH").into_iter().find(|folder| folder.join("python3").exists());
    let environments = variable("VIRTUAL_ENV").map(PathBuf::from).into_iter();
    let environments = environments.chain(python.and_then(|bin| Some(bin.parent()?.to_path_buf())));
    let environments = environments.chain(variable("HOME").map(|home| Path::new(&home).join(".local")));
    for environment in environments.chain(below(&["usr/local", "usr"])) {
        for python in children(&environment.join("lib"), "python3").into_iter().rev() {
            for packages in ["site-packages", "dist-packages"].map(|packages| python.join(packages)) {
                let nvidia = children(&packages.join("nvidia"), "");
                // One folder for all of CUDA 13, one for each library before.
                let (whole, single): (Vec<_>, Vec<_>) = nvidia.into_iter().partition(|package| is_whole(package));
                folders.extend(whole.into_iter().rev().chain(single).map(|package| package.join("lib")));
                folders.push(packages.join("tensorrt_libs"));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    let mut seen = Vec::new();
    folders.retain(|folder| {
        !seen.contains(folder) && {
            seen.push(folder.clone());
            true
        }
    });
    folders
}

/// Whether a folder of `nvidia` has the libraries of a whole CUDA, as `cu13` does.
fn is_whole(package: &Path) -> bool {
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("cu")
        .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Where the loader looks without being told: what `/etc/ld.so.conf` lists, and its own.
fn loader_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let own = root.join("etc/ld.so.conf");
    let included = children(&root.join("etc/ld.so.conf.d"), "").into_iter();
    let included = included.filter(|file| file.extension().is_some_and(|extension| extension == "conf"));
    for file in [own].into_iter().chain(included) {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        folders.extend(lines.filter_map(|line| Some(root.join(line.strip_prefix('/')?))));
    }
    let machine = format!("{}-linux-gnu", env::consts::ARCH);
    for lib in ["lib", "usr/lib"].map(|lib| root.join(lib)) {
        folders.extend([lib.join(&machine), lib.with_file_name("lib64"), lib]);
    }
    folders
}

/// What is in a folder and begins with this, in order.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()));
    let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    paths.sort_by_key(|path| numbers(&path.to_string_lossy()));
    paths
}

/// What puts `3.9` before `3.13`.
fn numbers(name: &str) -> (Vec<u32>, String) {
    let parts = name.rsplit('/').next().unwrap_or_default().split(|part: char| !part.is_ascii_digit());
    (parts.filter_map(|part| part.parse().ok()).collect(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &[&str])]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for (file, needed) in files {
                machine.write(file, &elf::library(needed));
            }
            machine
        }

        fn write(&self, file: &str, contents: &[u8]) {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        /// The folders, without where the machine itself is.
        fn folders(&self, configured: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
            let configured: Vec<PathBuf> = configured.iter().map(|path| self.path(path)).collect();
            let library = self.path("runtime/libonnxruntime.so");
            let folders = folders(self.0.path(), &configured, &library, |name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(value.replace('@', &self.0.path().display().to_string()).into())
            });
            let short = |folder: &PathBuf| folder.strip_prefix(self.0.path()).unwrap().display().to_string();
            folders.iter().map(short).collect()
        }
    }

    #[test]
    fn what_is_named_comes_before_what_is_usual() {
        let machine = Machine::with(&[]);
        let usual = ["usr/local/cuda/lib64/a", "usr/local/cuda-13.0/lib64/a", "usr/local/cuda-13.10/lib64/a"];
        for file in usual.iter().chain(&["own/a", "path/a", "runtime/a", "opt/listed/a", "usr/lib/a"]) {
            machine.write(file, b"");
        }
        machine.write("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n");
        machine.write("etc/ld.so.conf.d/cuda.conf", b"# CUDA\n/opt/listed # here\n/opt/gone\n");
        let folders = machine.folders(&["own"], &[("LD_LIBRARY_PATH", "@/path::@/own")]);
        assert_eq!(
            folders,
            [
                "own",
                "path",
                "runtime",
                "opt/listed",
                "usr/lib",
                "usr/local/cuda/lib64",
                "usr/local/cuda-13.10/lib64",
                "usr/local/cuda-13.0/lib64"
            ]
        );
    }

    #[test]
    fn packages_of_python_are_found_without_running_it() {
        let machine = Machine::with(&[]);
        for file in [
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/a",
            "venv/lib/python3.12/site-packages/nvidia/cublas/lib/a",
            "venv/lib/python3.12/site-packages/tensorrt_libs/a",
            "conda/bin/python3",
            "conda/lib/python3.9/site-packages/nvidia/cu13/lib/a",
            "conda/lib/python3.13/site-packages/nvidia/cu13/lib/a",
            "later/bin/python3",
            "later/lib/python3.13/site-packages/nvidia/cu13/lib/a",
            "home/.local/lib/python3.11/site-packages/nvidia/cuda_runtime/lib/a",
            "usr/local/lib/python3.11/dist-packages/nvidia/cu13/lib/a",
            "usr/lib/python3/dist-packages/nvidia/cu13/lib/a",
        ] {
            machine.write(file, b"");
        }
        let variables = [("VIRTUAL_ENV", "@/venv"), ("PATH", "@/none:@/conda/bin:@/later/bin"), ("HOME", "@/home")];
        let mut folders = machine.folders(&[], &variables);
        folders.retain(|folder| folder.contains("python"));
        assert_eq!(
            folders,
            [
                "venv/lib/python3.12/site-packages/nvidia/cu13/lib",
                "venv/lib/python3.12/site-packages/nvidia/cublas/lib",
                "venv/lib/python3.12/site-packages/tensorrt_libs",
                "conda/lib/python3.13/site-packages/nvidia/cu13/lib",
                "conda/lib/python3.9/site-packages/nvidia/cu13/lib",
                "home/.local/lib/python3.11/site-packages/nvidia/cuda_runtime/lib",
                "usr/local/lib/python3.11/dist-packages/nvidia/cu13/lib",
                "usr/lib/python3/dist-packages/nvidia/cu13/lib",
            ]
        );
    }

    #[test]
    fn libraries_come_behind_those_that_they_need() {
        let machine = Machine::with(&[
            (
                "a/libonnxruntime_providers_cuda.so",
                &["libcurand.so.10", "libcublas.so.13", "libcuda.so.1", "libc.so.6"],
            ),
            ("a/libcurand.so.10", &["libcudart.so.13"]),
            ("b/libcudart.so.13", &["libstdc++.so.6"]),
            ("b/libcublas.so.13", &["libcublasLt.so.13", "libcublas.so.13"]),
            ("b/libcuda.so.1", &["libnvidia-own.so.1"]),
        ]);
        let libraries = CudaLibraries { folders: ["a", "b"].map(|folder| machine.path(folder)).to_vec() };
        let needed = libraries.needed_by(&machine.path("a/libonnxruntime_providers_cuda.so"));
        let found = |library: &CudaLibrary| {
            let path =
                library.path.as_ref().map(|path| path.strip_prefix(machine.0.path()).unwrap().display().to_string());
            format!("{}{} {}", library.name, if library.is_needed { "" } else { "?" }, path.as_deref().unwrap_or("-"))
        };
        insta::assert_snapshot!(needed.iter().map(found).collect::<Vec<_>>().join("\n"), @"
        libcudart.so.13 b/libcudart.so.13
        libcurand.so.10 a/libcurand.so.10
        libcublasLt.so.13 -
        libcublas.so.13 b/libcublas.so.13
        libcuda.so.1 b/libcuda.so.1
        libcudnn.so.9? -
        ");
    }

    #[test]
    fn what_was_loaded_by_its_path_is_found_by_its_name() {
        let name = "libonnxruntime_providers_shared.so";
        assert!(ffi::load_library(Path::new(name)).is_err(), "the loader knows it already");
        let path = Some(Path::new(".runtime").join(name));
        CudaLibraries::load(&mut [CudaLibrary { name: name.to_owned(), path, flaw: None, is_needed: true }]);
        ffi::load_library(Path::new(name)).unwrap();
        let mut needed = [name, "libcuda-nowhere.so.1"].map(|name| CudaLibrary {
            name: name.to_owned(),
            path: None,
            flaw: None,
            is_needed: true,
        });
        CudaLibraries::load(&mut needed);
        assert_eq!(needed.map(|library| library.path.is_some()), [true, false]);
    }

    #[test]
    fn whoever_needs_cuda_needs_its_driver() {
        let machine = Machine::with(&[("a/libonnxruntime_providers_tensorrt.so", &["libcudart.so.13"])]);
        let libraries = CudaLibraries { folders: Vec::new() };
        let needed = libraries.needed_by(&machine.path("a/libonnxruntime_providers_tensorrt.so"));
        assert_eq!(needed.iter().map(|library| library.name.as_str()).collect::<Vec<_>>(), ["libcudart.so.13", DRIVER]);
    }

    #[test]
    fn what_cannot_be_used_is_passed_over_and_told_where_there_is_no_other() {
        let machine = Machine::with(&[("b/libcublas.so.13", &[]), ("b/libcurand.so.10", &[])]);
        let whole = elf::library(&[]);
        machine.write("a/libcublas.so.13", &whole[..whole.len() - 1]);
        machine.write("a/libcublasLt.so.13", &whole[..100]);
        machine.write("a/libcudart.so.13", b"version https://git-lfs.github.com/spec/v1");
        fs::create_dir(machine.path("a/libcurand.so.10")).unwrap();
        std::os::unix::fs::symlink("libcufft.so.12", machine.path("a/libcufft.so.12")).unwrap();
        let libraries = CudaLibraries { folders: ["a", "b"].map(|folder| machine.path(folder)).to_vec() };
        let look_for = |name: &str| {
            let CudaLibrary { path, flaw, .. } = libraries.look_for(name, true);
            let found = path.map(|path| path.display().to_string()).or(flaw).unwrap_or_else(|| "-".to_owned());
            found.replace(&machine.0.path().display().to_string(), "")
        };
        assert_eq!(look_for("libcublas.so.13"), "/b/libcublas.so.13");
        assert_eq!(look_for("libcublasLt.so.13"), "/a/libcublasLt.so.13 is cut short");
        assert_eq!(look_for("libcudart.so.13"), "/a/libcudart.so.13 is cut short");
        assert_eq!(look_for("libcurand.so.10"), "/b/libcurand.so.10");
        assert_eq!(look_for("libcufft.so.12"), "-");
    }

    #[test]
    fn what_the_loader_refuses_has_a_flaw_in_its_words() {
        let machine = Machine::with(&[("a/libcublas.so.13", &["libcublasLt.so.13"])]);
        let path = machine.path("a/libcublas.so.13");
        let error = ffi::load_library(&machine.path("a/none.so")).unwrap_err();
        assert!(error.ends_with("none.so: cannot open shared object file: No such file or directory"), "{error}");
        let mut needed = [CudaLibrary { name: "a".to_owned(), path: Some(path), flaw: None, is_needed: true }];
        CudaLibraries::load(&mut needed);
        let [CudaLibrary { path, flaw, .. }] = needed;
        let flaw = flaw.unwrap();
        assert!(
            path.is_none() && flaw.contains("libcublas.so.13 cannot be loaded: ") && !flaw.contains("dlopen"),
            "{flaw}"
        );
    }
}
