//! The ONNX Runtime library: found, loaded once, kept.

use super::{
    CudaLibrary, LoadError, ProviderConfig, ProviderName, cuda_libraries::CudaLibraries, elf, error::words, ffi,
};
use ort::{LoadDynamicError, environment::Environment, session::Session};
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// File name of the library on this system.
const LIBRARY: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else if cfg!(windows) {
    "onnxruntime.dll"
} else {
    "libonnxruntime.so"
};

/// The loaded library. Sessions are made in it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    library: PathBuf,
    cuda_libraries: CudaLibraries,
    /// Where TensorRT keeps what it has built.
    pub(super) tensorrt_cache: Option<PathBuf>,
}

impl Runtime {
    /// Loads the library at `configured`, else the one that `from_environment` (`ORT_DYLIB_PATH`) names, else the one
    /// beside the executable, else the one in `.runtime/` of the working directory.
    ///
    /// # Errors
    /// `LibraryMissing` or `LibraryUnusable`.
    pub fn load(configured: Option<&Path>, from_environment: Option<&Path>) -> Result<Self, LoadError> {
        let library = match configured.or(from_environment) {
            Some(named) if named.is_file() => named.to_path_buf(),
            Some(named) => return Err(LoadError::LibraryMissing { searched: vec![named.to_path_buf()] }),
            None => find()?,
        };
        let library = library.canonicalize().unwrap_or(library);
        let unusable = |message: String| LoadError::LibraryUnusable { message };
        if cfg!(target_os = "linux") {
            elf::needed(&library).map_err(|error| unusable(format!("{} {error}", library.display())))?;
        }
        let builder = ort::init_from(&library).map_err(|error| match &error {
            LoadDynamicError::Dlopen { error, .. } => unusable(ffi::loader_words(error)),
            LoadDynamicError::MissingApi { .. }
            | LoadDynamicError::InvalidVersionString
            | LoadDynamicError::BadVersion { .. } => unusable(error.to_string()),
        })?;
        let environment =
            builder.with_name("ortolan").with_telemetry(false).build().map_err(|error| unusable(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Warning);
        tracing::info!(library = %library.display(), build = ort::info(), "loaded ONNX Runtime");
        Ok(Self { environment, library, cuda_libraries: CudaLibraries::default(), tensorrt_cache: None })
    }

    /// The same, with what its providers for NVIDIA GPUs need looked for in these folders, in the loader's, and where CUDA
    /// usually is. `variable` looks up an environment variable.
    #[must_use]
    pub fn with_cuda_libraries(self, folders: &[PathBuf], variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let cuda_libraries = CudaLibraries::new(folders, &self.library, variable);
        Self { cuda_libraries, ..self }
    }

    /// The same, with what TensorRT has built kept in this folder.
    #[must_use]
    pub fn with_tensorrt_cache(self, folder: Option<PathBuf>) -> Self {
        Self { tensorrt_cache: folder, ..self }
    }

    /// The file that was loaded; its name ends in its version.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether a session could run on this provider.
    ///
    /// # Errors
    /// `Provider`, as a load would say it.
    pub fn check(&self, provider: &ProviderConfig) -> Result<(), LoadError> {
        let builder = Session::builder(&self.environment);
        let mut builder = builder.map_err(|error| LoadError::LibraryUnusable { message: words(&error) })?;
        provider.register(&mut builder, self, None, (None, false)).map(drop)
    }

    /// The libraries of CUDA, its driver and TensorRT that a provider needs. None where this build does not have the provider.
    pub fn cuda_libraries(&self, provider: ProviderName) -> Option<Vec<CudaLibrary>> {
        let library = self.library.with_file_name(provider.library()?);
        library.is_file().then(|| self.cuda_libraries.needed_by(&library))
    }
}

fn find() -> Result<PathBuf, LoadError> {
    let beside = env::current_exe().ok().and_then(|executable| Some(executable.parent()?.join(LIBRARY)));
    let searched: Vec<PathBuf> = beside.into_iter().chain([Path::new(".runtime").join(LIBRARY)]).collect();
    match searched.iter().find(|path| path.is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(LoadError::LibraryMissing { searched }),
    }
}

/// One for all tests of a process, which can have no more.
#[cfg(test)]
pub(super) fn for_tests() -> &'static Runtime {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        let library = env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        Runtime::load(None, library.as_deref()).expect("scripts/fetch-runtime has fetched it")
    })
}
