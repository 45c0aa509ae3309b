//! What this machine has for a model.

use crate::{
    engine::{ProviderConfig, ProviderName},
    model_dir::variant::Device,
};
use std::{fs, path::Path};

/// Where the first of these providers computes.
pub(super) fn device(providers: &[ProviderConfig]) -> Device {
    match providers.first().map(|provider| provider.name) {
        Some(ProviderName::Cuda | ProviderName::TensorRt) => Device::Gpu,
        Some(ProviderName::Cpu) | None => Device::Cpu,
    }
}

/// Memory of a machine or container, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SystemMemory {
    pub(super) total: u64,
    /// What the process may still take.
    pub(super) free: u64,
}

/// Memory for what runs on this device, where the system tells.
pub(super) fn memory(device: Device) -> Option<SystemMemory> {
    match device {
        Device::Cpu => memory_below(Path::new("/")),
        // The driver knows, and to ask it takes its library.
        Device::Gpu => None,
    }
}

/// What the kernel says, and a container's limit, whichever is less.
fn memory_below(root: &Path) -> Option<SystemMemory> {
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let meminfo = read("proc/meminfo")?;
    let line = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    let (total, free) = (line("MemTotal")?, line("MemAvailable")?);
    let limit = number("sys/fs/cgroup/memory.max").unwrap_or(u64::MAX);
    let taken = number("sys/fs/cgroup/memory.current").unwrap_or(0);
    Some(SystemMemory { total: total.min(limit), free: free.min(limit.saturating_sub(taken)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_machines_or_the_containers() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let memory = || memory_below(root.path()).map(|SystemMemory { total, free }| (total, free));
        assert_eq!(memory(), None);
        write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  5 kB\nMemAvailable:    8000 kB\n");
        assert_eq!(memory(), Some((16_384_000, 8_192_000)));
        write("sys/fs/cgroup/memory.max", "max\n");
        write("sys/fs/cgroup/memory.current", "1000\n");
        assert_eq!(memory(), Some((16_384_000, 8_192_000)));
        write("sys/fs/cgroup/memory.max", "4000\n");
        assert_eq!(memory(), Some((4000, 3000)));
    }
}
