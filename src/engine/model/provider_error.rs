//! What keeps a provider from being loaded, and what mends it.

use super::{CudaLibrary, LoadError, ProviderName, cuda_libraries::DRIVER};

/// The pip package, by how the names of its libraries begin; the first that fits.
const PACKAGES: [(&str, &str); 9] = [
    ("libcudart", "nvidia-cuda-runtime"),
    ("libcublas", "nvidia-cublas"),
    ("libnvblas", "nvidia-cublas"),
    ("libcurand", "nvidia-curand"),
    ("libcufft", "nvidia-cufft"),
    ("libnvrtc", "nvidia-cuda-nvrtc"),
    ("libcudnn", "nvidia-cudnn-cu13"),
    ("libnvinfer", "'tensorrt-cu13==10.*'"),
    ("libnvonnxparser", "'tensorrt-cu13==10.*'"),
];
/// Those that `scripts/fetch-runtime --with-cuda` brings.
const FETCHED: [&str; 3] = ["nvidia-cuda-runtime", "nvidia-cublas", "nvidia-curand"];

const INSTALL_DRIVER: &str = "install the NVIDIA driver, and give a container the GPU (with docker: `--gpus all`)";
const GPU_BUILD: &str =
    "run scripts/fetch-runtime --gpu and set `runtime.library = \".runtime/gpu/libonnxruntime.so\"`";
const LOOK_AT_DRIVER: &str = "look at what nvidia-smi says, and restart the machine or its driver";

/// What CUDA says of a driver that is too old, and where there is none.
const NO_GOOD_DRIVER: [&str; 2] = ["CUDA failure 35:", "driver version is insufficient"];

/// What is known of an error, by words that ONNX Runtime and CUDA have for it.
const KNOWN: [Known; 11] = [
    Known {
        words: &NO_GOOD_DRIVER,
        message: "the NVIDIA driver is too old for this CUDA",
        advice: "update the driver (CUDA 13 needs 580 or newer)",
    },
    Known {
        words: &["CUDA failure 803:", "CUDA failure 804:", "unsupported display driver / cuda driver combination"],
        message: "the NVIDIA driver and its library libcuda.so.1 are of different versions",
        advice: "restart the machine after an update of the driver, and give a container the library of its host",
    },
    Known {
        words: &["CUDA failure 34:", "stub library"],
        message: "the libcuda.so.1 that was found is the one to build with, which does nothing",
        advice: "take its folder (stubs) out of LD_LIBRARY_PATH and `runtime.cuda_libraries`",
    },
    Known {
        words: &["CUDA failure 100:", "no CUDA-capable device"],
        message: "there is no GPU that this process may use",
        advice: "look at CUDA_VISIBLE_DEVICES, and give a container the GPU (with docker: `--gpus all`)",
    },
    Known {
        words: &["CUDA failure 101:", "invalid device ordinal"],
        message: "there is no GPU of this `device_id`",
        advice: "set another `device_id`; the first GPU is 0, and only those in CUDA_VISIBLE_DEVICES count",
    },
    Known {
        words: &["CUDA failure 46:", "CUDA failure 708:", "devices are busy or unavailable"],
        message: "the GPU is taken by another process that does not share it",
        advice: "end that process, or set the GPU's compute mode to the default (nvidia-smi -c 0)",
    },
    Known {
        words: &["CUDA failure 802:", "system not yet initialized"],
        message: "the GPUs of this machine are not ready",
        advice: "start the fabric manager (systemctl start nvidia-fabricmanager), or wait for it",
    },
    Known {
        words: &["CUDA failure 2:", "out of memory"],
        message: "the GPU has no memory left",
        advice: "end what else uses it (nvidia-smi tells), or take a GPU with more",
    },
    Known {
        words: &["CUDA failure 209:", "no kernel image is available"],
        message: "this GPU is of a generation that this build of ONNX Runtime has no code for",
        advice: "build ONNX Runtime for it, or take a GPU of compute capability 7.5 or higher",
    },
    Known {
        words: &["CUDA failure 3:", "CUDA failure 999:", "CUDA failure 304:"],
        message: "CUDA cannot be started",
        advice: LOOK_AT_DRIVER,
    },
    Known {
        words: &[
            "providers_cuda.so: cannot open",
            "providers_tensorrt.so: cannot open",
            "providers_shared.so: cannot open",
        ],
        message: "a library of ONNX Runtime's GPU build is missing beside libonnxruntime.so",
        advice: GPU_BUILD,
    },
];

struct Known {
    /// Any of them.
    words: &'static [&'static str],
    message: &'static str,
    advice: &'static str,
}

/// This build of the runtime does not have it.
pub(super) fn not_in_this_build(name: ProviderName) -> LoadError {
    let message = "this build of ONNX Runtime does not have it".to_owned();
    let advice = if name == ProviderName::Cpu { "use another library" } else { GPU_BUILD };
    LoadError::Provider { name, message, advice: advice.to_owned() }
}

/// What the runtime says of a provider that cannot be loaded, where it needs these libraries.
pub(super) fn explain(name: ProviderName, said: &str, needed: &[CudaLibrary]) -> LoadError {
    let error = |message: String, advice: String| LoadError::Provider { name, message, advice };
    let has_no_driver = needed.iter().any(|library| library.name == DRIVER && library.path.is_none());
    if has_no_driver && NO_GOOD_DRIVER.iter().any(|words| said.contains(words)) {
        return error(format!("{DRIVER} was not found"), advice(&[DRIVER]));
    }
    if let Some(known) = KNOWN.iter().find(|known| known.words.iter().any(|words| said.contains(words))) {
        return error(known.message.to_owned(), known.advice.to_owned());
    }
    if let Some(missing) = missing_library(said) {
        let lacking = needed.iter().filter(|library| library.is_needed && library.path.is_none());
        let flaws: Vec<&str> = lacking.clone().filter_map(|library| library.flaw.as_deref()).collect();
        let mut names: Vec<&str> = lacking.map(|library| library.name.as_str()).collect();
        // What was asked for first comes first. What the provider does not need, as one of another CUDA, matters only where all
        // else is there.
        match names.iter().position(|name| *name == missing) {
            Some(place) => names[..=place].rotate_right(1),
            None if names.is_empty() => names.push(missing),
            None => {}
        }
        let verb = if names.len() == 1 { "was" } else { "were" };
        let flaws = if flaws.is_empty() { String::new() } else { format!(" ({})", flaws.join("; ")) };
        return error(format!("{} {verb} not found{flaws}", list(&names)), advice(&names));
    }
    if let Some((id, count)) = invalid_device(said) {
        let message = match count {
            1 => format!("there is no GPU with `device_id = {id}`: this process may use one, which is 0"),
            count => format!(
                "there is no GPU with `device_id = {id}`: this process may use {count}, from 0 to {}",
                count - 1
            ),
        };
        return error(message, "set another `device_id`, or look at CUDA_VISIBLE_DEVICES".to_owned());
    }
    if let Some(option) = between(said, "Unknown provider option: \"", "\"") {
        let message = format!("this version of ONNX Runtime does not know its option `{option}`");
        return error(message, "leave the option out, or take a newer library".to_owned());
    }
    if let Some(option) = between(said, "Failed to parse provider option \"", "\"") {
        let message = format!("ONNX Runtime does not take the value of its option `{option}`");
        return error(message, "set it to another value".to_owned());
    }
    if let Some(library) = of_another_version(said) {
        let message = format!("{library} is of another version than ONNX Runtime was built with ({said})");
        let advice =
            "name the folder of the right one in `runtime.cuda_libraries`; `ortolan doctor` tells which was found";
        return error(message, advice.to_owned());
    }
    error(without_place(said).to_owned(), "`ortolan doctor` tells what was found of what it needs".to_owned())
}

/// What to do to have these libraries.
pub(super) fn advice(names: &[&str]) -> String {
    let mut packages: Vec<&str> = Vec::new();
    for name in names {
        let package = PACKAGES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, package)| *package);
        packages.extend(package.filter(|package| !packages.contains(package)));
    }
    let mut steps = Vec::new();
    if !packages.is_empty() {
        let fetched = packages.iter().all(|package| FETCHED.contains(package));
        let fetch = if fetched { "run scripts/fetch-runtime --gpu --with-cuda, or " } else { "" };
        let them = if names.iter().filter(|name| **name != DRIVER).count() == 1 { "it" } else { "them" };
        steps.push(format!(
            "{fetch}install {them} (pip install {}), or set `runtime.cuda_libraries` to the folder that has {them}",
            packages.join(" ")
        ));
    }
    if names.contains(&DRIVER) {
        steps.push(INSTALL_DRIVER.to_owned());
    }
    if steps.is_empty() {
        steps.push("set `runtime.cuda_libraries` to the folder that has it".to_owned());
    }
    steps.join("; ")
}

/// `libcublas.so.13: cannot open shared object file: No such file or directory`
pub(super) fn missing_library(said: &str) -> Option<&str> {
    let (before, _) = said.split_once(": cannot open shared object file")?;
    before.rsplit([' ', '/']).next().filter(|name| name.contains(".so"))
}

/// `Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive).`
fn invalid_device(said: &str) -> Option<(i64, u32)> {
    let id = between(said, "Invalid device ID: ", ",")?.trim().parse().ok()?;
    let count = between(said, "(inclusive) and ", " (exclusive)")?.trim().parse().ok()?;
    (0 < count).then_some((id, count))
}

/// The library that lacks a symbol or a version which the provider asks for.
fn of_another_version(said: &str) -> Option<&str> {
    let is_version = said.contains("' not found (required by") || said.contains("undefined symbol: ");
    let version = between(said, "version `", "' not found")?;
    is_version.then_some(version).filter(|version| version.starts_with("lib"))
}

fn between<'s>(text: &'s str, before: &str, after: &str) -> Option<&'s str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// Without what CUDA's errors tell of ONNX Runtime's source.
fn without_place(said: &str) -> &str {
    said.split(" ; GPU=").next().unwrap_or(said).trim_end_matches([';', ' '])
}

fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA: &str = "Failed to load library /opt/ort/libonnxruntime_providers_cuda.so with error: ";

    fn explained(name: ProviderName, said: &str, missing: &[&str]) -> String {
        let library = |name: &&str| CudaLibrary {
            name: (*name).to_owned(),
            path: None,
            flaw: (*name == "libcufft.so.12").then(|| "/lib/libcufft.so.12 is cut short".to_owned()),
            is_needed: true,
        };
        let present = CudaLibrary { path: Some("/lib/libcurand.so.10".into()), ..library(&"libcurand.so.10") };
        let optional = CudaLibrary { is_needed: false, ..library(&"libcudnn.so.9") };
        let needed: Vec<CudaLibrary> = missing.iter().map(library).chain([present, optional]).collect();
        let sentence = explain(name, said, &needed).to_string();
        let sentence = sentence.strip_prefix("the execution provider `").unwrap();
        let end = ", or set `engine.fallback = true` to run on the CPU";
        sentence.strip_suffix(end).unwrap().replace("` cannot be loaded: ", ": ")
    }

    fn cuda(said: &str) -> String {
        explained(ProviderName::Cuda, said, &[])
    }

    /// As CUDA's errors reach us, with where in ONNX Runtime's source they come from.
    fn failure(error: &str) -> String {
        cuda(&format!(
            "provider_options_utils.h:187 Parse Failed to parse provider option \"device_id\": CUDA failure {error} ; GPU=-1 ; \
             hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc ; line=70 ; \
             expr=cudaGetDeviceCount(&num_devices);"
        ))
    }

    #[test]
    fn all_libraries_that_are_missing_are_named_at_once() {
        let missing = |name: &str| format!("{CUDA}{name}: cannot open shared object file: No such file or directory");
        let all = ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"];
        insta::assert_snapshot!(explained(ProviderName::Cuda, &missing("libcublasLt.so.13"), &all), @"cuda: libcublasLt.so.13, libcudart.so.13 and libcublas.so.13 were not found; run scripts/fetch-runtime --gpu --with-cuda, or install them (pip install nvidia-cublas nvidia-cuda-runtime), or set `runtime.cuda_libraries` to the folder that has them");
        insta::assert_snapshot!(explained(ProviderName::Cuda, &missing("libcuda.so.1"), &["libcuda.so.1"]), @"cuda: libcuda.so.1 was not found; install the NVIDIA driver, and give a container the GPU (with docker: `--gpus all`)");
        insta::assert_snapshot!(explained(ProviderName::Cuda, &missing("libcublas.so.13"), &["libcublas.so.13", "libcuda.so.1"]), @"cuda: libcublas.so.13 and libcuda.so.1 were not found; run scripts/fetch-runtime --gpu --with-cuda, or install it (pip install nvidia-cublas), or set `runtime.cuda_libraries` to the folder that has it; install the NVIDIA driver, and give a container the GPU (with docker: `--gpus all`)");
        insta::assert_snapshot!(explained(ProviderName::TensorRt, &missing("libnvinfer.so.10"), &["libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"]), @"tensorrt: libnvinfer.so.10, libnvonnxparser.so.10 and libcudnn.so.9 were not found; install them (pip install 'tensorrt-cu13==10.*' nvidia-cudnn-cu13), or set `runtime.cuda_libraries` to the folder that has them");
        insta::assert_snapshot!(explained(ProviderName::Cuda, &missing("libcufft.so.12"), &["libcufft.so.12"]), @"cuda: libcufft.so.12 was not found (/lib/libcufft.so.12 is cut short); install it (pip install nvidia-cufft), or set `runtime.cuda_libraries` to the folder that has it");
        insta::assert_snapshot!(cuda(&missing("libstrange.so.2")), @"cuda: libstrange.so.2 was not found; set `runtime.cuda_libraries` to the folder that has it");
        insta::assert_snapshot!(cuda("Failed to load library /opt/ort/libonnxruntime_providers_cuda.so with error: /opt/ort/libonnxruntime_providers_cuda.so: cannot open shared object file: No such file or directory"), @r#"cuda: a library of ONNX Runtime's GPU build is missing beside libonnxruntime.so; run scripts/fetch-runtime --gpu and set `runtime.library = ".runtime/gpu/libonnxruntime.so"`"#);
    }

    #[test]
    fn what_cuda_says_becomes_what_to_do() {
        insta::assert_snapshot!(failure("35: CUDA driver version is insufficient for CUDA runtime version"), @"cuda: the NVIDIA driver is too old for this CUDA; update the driver (CUDA 13 needs 580 or newer)");
        insta::assert_snapshot!(explained(ProviderName::Cuda, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", &["libcuda.so.1"]), @"cuda: libcuda.so.1 was not found; install the NVIDIA driver, and give a container the GPU (with docker: `--gpus all`)");
        insta::assert_snapshot!(failure("100: no CUDA-capable device is detected"), @"cuda: there is no GPU that this process may use; look at CUDA_VISIBLE_DEVICES, and give a container the GPU (with docker: `--gpus all`)");
        insta::assert_snapshot!(failure("101: invalid device ordinal"), @"cuda: there is no GPU of this `device_id`; set another `device_id`; the first GPU is 0, and only those in CUDA_VISIBLE_DEVICES count");
        insta::assert_snapshot!(failure("34: CUDA driver is a stub library"), @"cuda: the libcuda.so.1 that was found is the one to build with, which does nothing; take its folder (stubs) out of LD_LIBRARY_PATH and `runtime.cuda_libraries`");
        insta::assert_snapshot!(failure("3: initialization error"), @"cuda: CUDA cannot be started; look at what nvidia-smi says, and restart the machine or its driver");
        insta::assert_snapshot!(failure("999: unknown error"), @"cuda: CUDA cannot be started; look at what nvidia-smi says, and restart the machine or its driver");
        insta::assert_snapshot!(failure("803: system has unsupported display driver / cuda driver combination"), @"cuda: the NVIDIA driver and its library libcuda.so.1 are of different versions; restart the machine after an update of the driver, and give a container the library of its host");
        insta::assert_snapshot!(failure("802: system not yet initialized"), @"cuda: the GPUs of this machine are not ready; start the fabric manager (systemctl start nvidia-fabricmanager), or wait for it");
        insta::assert_snapshot!(failure("46: all CUDA-capable devices are busy or unavailable"), @"cuda: the GPU is taken by another process that does not share it; end that process, or set the GPU's compute mode to the default (nvidia-smi -c 0)");
        insta::assert_snapshot!(failure("2: out of memory"), @"cuda: the GPU has no memory left; end what else uses it (nvidia-smi tells), or take a GPU with more");
        insta::assert_snapshot!(cuda("CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ; hostname=vm"), @"cuda: this GPU is of a generation that this build of ONNX Runtime has no code for; build ONNX Runtime for it, or take a GPU of compute capability 7.5 or higher");
        insta::assert_snapshot!(cuda("CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=vm ; file=a.cc ; line=1 ; expr=cudaSetDevice(0);"), @"cuda: CUDA failure 719: unspecified launch failure; `ortolan doctor` tells what was found of what it needs");
    }

    #[test]
    fn devices_and_options_that_are_not_there_are_named() {
        let device = |count: u32| {
            cuda(&format!(
                "provider_options_utils.h:187 Parse Failed to parse provider option \"device_id\": Invalid device ID: 3, must be \
                 between 0 (inclusive) and {count} (exclusive)."
            ))
        };
        insta::assert_snapshot!(device(1), @"cuda: there is no GPU with `device_id = 3`: this process may use one, which is 0; set another `device_id`, or look at CUDA_VISIBLE_DEVICES");
        insta::assert_snapshot!(device(2), @"cuda: there is no GPU with `device_id = 3`: this process may use 2, from 0 to 1; set another `device_id`, or look at CUDA_VISIBLE_DEVICES");
        insta::assert_snapshot!(cuda("provider_options_utils.h:182 Parse Unknown provider option: \"enable_cudnn\"."), @"cuda: this version of ONNX Runtime does not know its option `enable_cudnn`; leave the option out, or take a newer library");
        insta::assert_snapshot!(cuda("provider_options_utils.h:187 Parse Failed to parse provider option \"use_tf32\": parse_string.h:116 ParseStringWithClassicLocale Failed to parse value: \"1\""), @"cuda: ONNX Runtime does not take the value of its option `use_tf32`; set it to another value");
        insta::assert_snapshot!(cuda(&format!("{CUDA}/usr/lib/libcublas.so.13: version `libcublas.so.13' not found (required by /opt/ort/libonnxruntime_providers_cuda.so)")), @"cuda: libcublas.so.13 is of another version than ONNX Runtime was built with (Failed to load library /opt/ort/libonnxruntime_providers_cuda.so with error: /usr/lib/libcublas.so.13: version `libcublas.so.13' not found (required by /opt/ort/libonnxruntime_providers_cuda.so)); name the folder of the right one in `runtime.cuda_libraries`; `ortolan doctor` tells which was found");
        insta::assert_snapshot!(not_in_this_build(ProviderName::Cuda), @r#"the execution provider `cuda` cannot be loaded: this build of ONNX Runtime does not have it; run scripts/fetch-runtime --gpu and set `runtime.library = ".runtime/gpu/libonnxruntime.so"`, or set `engine.fallback = true` to run on the CPU"#);
    }
}
