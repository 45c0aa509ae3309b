//! What `ortolan doctor` finds of NVIDIA's libraries, its driver and the GPUs.

use crate::engine::CudaLibrary;
use std::{fs, path::Path};

/// One finding, and whether it is as it should be.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) part: String,
    pub(super) text: String,
    pub(super) is_good: bool,
}

impl Finding {
    fn good(part: &str, text: impl Into<String>) -> Self {
        Self { part: part.to_owned(), text: text.into(), is_good: true }
    }

    fn bad(part: &str, text: impl Into<String>) -> Self {
        Self { is_good: false, ..Self::good(part, text) }
    }
}

/// Where each library is. `is_loaded` says that the provider which needs them could be loaded.
pub(super) fn libraries(libraries: &[CudaLibrary], is_loaded: bool) -> Vec<Finding> {
    let finding = |library: &CudaLibrary| match &library.path {
        Some(path) => Finding::good(&library.name, path.display().to_string()),
        None if !library.is_needed => {
            let only = "not found, which matters only to graphs with convolutions";
            Finding::good(&library.name, format!("{only}; {}", library.advice()))
        }
        None if is_loaded => Finding::good(&library.name, "found by the system's loader"),
        None => match &library.flaw {
            Some(flaw) => Finding::bad(&library.name, format!("{flaw}; {}", library.advice())),
            None => Finding::bad(&library.name, format!("not found; {}", library.advice())),
        },
    };
    libraries.iter().map(finding).collect()
}

/// The oldest driver, by the version of CUDA whose runtime is needed.
const OLDEST_DRIVERS: [(&str, u32); 2] = [("libcudart.so.13", 580), ("libcudart.so.12", 525)];

/// What the kernel tells of the driver and its GPUs.
pub(super) fn driver(root: &Path, libraries: &[CudaLibrary]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok();
    let version = version.as_deref().and_then(version_in);
    let oldest = OLDEST_DRIVERS.iter().find(|(name, _)| libraries.iter().any(|library| library.name == *name));
    let part = "nvidia driver";
    findings.push(match (version, oldest) {
        (Some(version), Some((runtime, oldest))) if major(version) < *oldest => Finding::bad(
            part,
            format!("{version}, which is too old: {runtime} needs {oldest} or newer; update the driver"),
        ),
        (Some(version), _) => Finding::good(part, version),
        (None, _) if root.join("dev/dxg").exists() => Finding::good(part, "that of Windows, by way of WSL"),
        (None, _) => Finding::bad(
            part,
            "not loaded (there is no /proc/driver/nvidia/version); install it, or give the container the GPU (with docker: \
             `--gpus all`)",
        ),
    });
    let gpus = gpus(root);
    if gpus.is_empty() && !root.join("dev/dxg").exists() {
        let text = "none (/proc/driver/nvidia/gpus and /dev/nvidia0 are not there); give the container the GPU (with docker: \
                    `--gpus all`), or run on a machine that has one";
        findings.push(Finding::bad("gpus", text));
    }
    // Without numbers: CUDA has its own, the fastest first, of those that CUDA_VISIBLE_DEVICES leaves.
    findings.extend(gpus.iter().map(|gpu| Finding::good("gpu", gpu)));
    findings
}

/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build …`
fn version_in(text: &str) -> Option<&str> {
    let is_version = |word: &&str| {
        let parts: Vec<&str> = word.split('.').collect();
        1 < parts.len() && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.lines().find(|line| line.starts_with("NVRM version"))?.split_whitespace().find(is_version)
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// Each GPU's model and place, or where the kernel tells of devices only, these.
fn gpus(root: &Path) -> Vec<String> {
    let children = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    };
    let told = children("proc/driver/nvidia/gpus").into_iter().map(|place| {
        let information = root.join("proc/driver/nvidia/gpus").join(&place).join("information");
        let information = fs::read_to_string(information).unwrap_or_default();
        let model = information.lines().find_map(|line| line.strip_prefix("Model:"));
        format!("{} at {place}", model.map_or("a GPU", str::trim))
    });
    let told: Vec<String> = told.collect();
    if !told.is_empty() {
        return told;
    }
    let is_gpu = |name: &String| {
        name.strip_prefix("nvidia")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    children("dev").into_iter().filter(is_gpu).map(|name| format!("/dev/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(findings: &[Finding]) -> String {
        let line = |finding: &Finding| {
            format!("{} {}: {}", if finding.is_good { "ok" } else { "BAD" }, finding.part, finding.text)
        };
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn library(name: &str, path: Option<&str>) -> CudaLibrary {
        let is_needed = !name.starts_with("libcudnn");
        CudaLibrary { name: name.to_owned(), path: path.map(Into::into), flaw: None, is_needed }
    }

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for (file, text) in files {
                let path = machine.0.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            machine
        }

        fn driver(&self, libraries: &[&str]) -> String {
            let libraries: Vec<CudaLibrary> = libraries.iter().map(|name| library(name, None)).collect();
            told(&driver(self.0.path(), &libraries))
        }
    }

    const VERSION: &str = "proc/driver/nvidia/version";

    #[test]
    fn the_driver_and_its_gpus_are_told() {
        let version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n\
                       GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
        let machine = Machine::with(&[
            (VERSION, version),
            ("proc/driver/nvidia/gpus/0000:41:00.0/information", "Model: \t\t NVIDIA A10\nIRQ:   \t\t 61\n"),
            ("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H100 80GB HBM3\n"),
            ("dev/nvidia0", ""),
        ]);
        insta::assert_snapshot!(machine.driver(&["libcudart.so.13"]), @"
        ok nvidia driver: 580.65.06
        ok gpu: NVIDIA H100 80GB HBM3 at 0000:01:00.0
        ok gpu: NVIDIA A10 at 0000:41:00.0
        ");
        let old = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n";
        let old = Machine::with(&[(VERSION, old), ("dev/nvidia0", ""), ("dev/nvidia1", ""), ("dev/nvidiactl", "")]);
        insta::assert_snapshot!(old.driver(&["libcudart.so.13"]), @"
        BAD nvidia driver: 550.54.15, which is too old: libcudart.so.13 needs 580 or newer; update the driver
        ok gpu: /dev/nvidia0
        ok gpu: /dev/nvidia1
        ");
        insta::assert_snapshot!(old.driver(&["libcudart.so.12"]), @"
        ok nvidia driver: 550.54.15
        ok gpu: /dev/nvidia0
        ok gpu: /dev/nvidia1
        ");
    }

    #[test]
    fn what_is_not_there_is_told_with_what_to_do() {
        insta::assert_snapshot!(Machine::with(&[]).driver(&[]), @"
        BAD nvidia driver: not loaded (there is no /proc/driver/nvidia/version); install it, or give the container the GPU (with docker: `--gpus all`)
        BAD gpus: none (/proc/driver/nvidia/gpus and /dev/nvidia0 are not there); give the container the GPU (with docker: `--gpus all`), or run on a machine that has one
        ");
        insta::assert_snapshot!(Machine::with(&[("dev/dxg", "")]).driver(&[]), @"ok nvidia driver: that of Windows, by way of WSL");
        let needed = [
            library("libcublas.so.13", Some("/opt/cuda/lib64/libcublas.so.13")),
            library("libcurand.so.10", None),
            library("libcuda.so.1", None),
            library("libcudnn.so.9", None),
        ];
        insta::assert_snapshot!(told(&libraries(&needed, false)), @"
        ok libcublas.so.13: /opt/cuda/lib64/libcublas.so.13
        BAD libcurand.so.10: not found; run scripts/fetch-runtime --gpu --with-cuda, or install it (pip install nvidia-curand), or set `runtime.cuda_libraries` to the folder that has it
        BAD libcuda.so.1: not found; install the NVIDIA driver, and give a container the GPU (with docker: `--gpus all`)
        ok libcudnn.so.9: not found, which matters only to graphs with convolutions; install it (pip install nvidia-cudnn-cu13), or set `runtime.cuda_libraries` to the folder that has it
        ");
        insta::assert_snapshot!(told(&libraries(&needed[1..2], true)), @"ok libcurand.so.10: found by the system's loader");
        let broken = CudaLibrary { flaw: Some("/lib/libcurand.so.10 is cut short".to_owned()), ..needed[1].clone() };
        insta::assert_snapshot!(told(&libraries(&[broken], false)), @"BAD libcurand.so.10: /lib/libcurand.so.10 is cut short; run scripts/fetch-runtime --gpu --with-cuda, or install it (pip install nvidia-curand), or set `runtime.cuda_libraries` to the folder that has it");
    }
}
