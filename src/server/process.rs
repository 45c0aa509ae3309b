//! What the system says of this process, under the names that Prometheus' own client libraries have for it.

use super::exposition::Exposition;
use std::{fmt, fs};

/// Whatever cannot be found out is left out.
pub(super) fn encode(exposition: &mut Exposition<'_>) -> fmt::Result {
    if let Some(bytes) = resident_bytes() {
        exposition.gauge("process_resident_memory_bytes", "Memory that is in use", bytes)?;
    }
    if let Some(seconds) = cpu_seconds() {
        exposition.counter("process_cpu_seconds", "Time on all processors, user and system", seconds)?;
    }
    if let Some(files) =
        fs::read_dir("/proc/self/fd").ok().map(Iterator::count).and_then(|files| u32::try_from(files).ok())
    {
        exposition.gauge("process_open_fds", "Open file descriptors", f64::from(files))?;
    }
    if let Some(seconds) = start_seconds() {
        exposition.gauge("process_start_time_seconds", "When the process began, in seconds since 1970", seconds)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 bytes")]
fn resident_bytes() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some((pages * rustix::param::page_size() as u64) as f64)
}

/// Fields of `/proc/self/stat` from the third one on: the second may hold anything, in parentheses.
fn stat(field: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "there are a hundred or a thousand in a second")]
fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn cpu_seconds() -> Option<f64> {
    const USER: usize = 14;
    const SYSTEM: usize = 15;
    Some((stat(USER)? + stat(SYSTEM)?) / ticks_per_second())
}

fn start_seconds() -> Option<f64> {
    const START: usize = 22;
    let stat_of_all = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat_of_all.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(boot + stat(START)? / ticks_per_second())
}
