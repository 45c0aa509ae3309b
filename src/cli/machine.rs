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

/// Memory that the process may still take on this device, in bytes, where the system tells.
pub(super) fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => free_memory_below(Path::new("/")),
        // The driver knows, and to ask it takes its library.
        Device::Gpu => None,
    }
}

/// What the kernel says is available, and what is left of a container's limit, whichever is less.
fn free_memory_below(root: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let of_machine = || {
        let meminfo = read("proc/meminfo")?;
        let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = available.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    let of_container = || {
        let limit = number("sys/fs/cgroup/memory.max")?;
        Some(limit.saturating_sub(number("sys/fs/cgroup/memory.current")?))
    };
    [of_machine(), of_container()].into_iter().flatten().min()
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
        assert_eq!(free_memory_below(root.path()), None);
        write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  5 kB\nMemAvailable:    8000 kB\n");
        assert_eq!(free_memory_below(root.path()), Some(8_192_000));
        write("sys/fs/cgroup/memory.max", "max\n");
        write("sys/fs/cgroup/memory.current", "1000\n");
        assert_eq!(free_memory_below(root.path()), Some(8_192_000));
        write("sys/fs/cgroup/memory.max", "4000\n");
        assert_eq!(free_memory_below(root.path()), Some(3000));
    }
}
