//! Which shared libraries a shared library needs, as `readelf -d` shows it, and whether it can be loaded at all: the system's
//! loader ends the process where a file is shorter than it says.

use std::{env, fs::File, io, os::unix::fs::FileExt, path::Path};

/// Program headers that matter: what is mapped where, and the table of what the loader has to know.
const LOADED: u32 = 1;
const DYNAMIC: u32 = 2;
/// Entries of that table: a needed library, and where the names are.
const NEEDED: u64 = 1;
const NAMES: u64 = 5;
/// Machines.
const X86_64: u16 = 62;
const AARCH64: u16 = 183;
/// More than any library has, so that a broken file takes no memory.
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 256;

/// Names of the libraries that the loader looks for when it loads this one.
///
/// # Errors
/// The file cannot be read, is no library for this machine, or is cut short. What is said completes "it".
pub(super) fn needed(path: &Path) -> io::Result<Vec<String>> {
    let needed = File::open(path).and_then(|file| read_needed(&file));
    needed.map_err(|error| match (error.kind(), error.raw_os_error()) {
        // Also where it says that it goes on where no file can.
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput, _) => invalid("is cut short"),
        (kind, Some(_)) => io::Error::new(kind, format!("cannot be read: {error}")),
        (_, None) => error,
    })
}

fn read_needed(file: &File) -> io::Result<Vec<String>> {
    let header: [u8; 64] = read(file, 0)?;
    if header[..6] != *b"\x7fELF\x02\x01" || !is_for(env::consts::ARCH, u16_at(&header, 18)) {
        return Err(invalid("is no library for this machine"));
    }
    let (first, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let segment: [u8; 56] = read(file, first.saturating_add(index * u64::from(size)))?;
        segments.push(Segment {
            kind: u32_at(&segment, 0),
            offset: u64_at(&segment, 8),
            address: u64_at(&segment, 16),
            num_bytes: u64_at(&segment, 32),
        });
    }
    let end = segments.iter().filter(|segment| segment.kind == LOADED).map(Segment::end).max();
    if end.is_some_and(|end| file.metadata().is_ok_and(|metadata| metadata.len() < end)) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == DYNAMIC) else { return Ok(Vec::new()) };
    let (mut names, mut places) = (None, Vec::new());
    for index in 0..dynamic.num_bytes.min(MAX_DYNAMIC_BYTES) / 16 {
        let entry: [u8; 16] = read(file, dynamic.offset.saturating_add(index * 16))?;
        match (u64_at(&entry, 0), u64_at(&entry, 8)) {
            (0, _) => break,
            (NEEDED, place) => places.push(place),
            (NAMES, address) => names = Some(address),
            _ => {}
        }
    }
    let names = names.and_then(|address| segments.iter().find_map(|segment| segment.offset_of(address)));
    let names = names.ok_or_else(|| invalid("does not say what its names are"))?;
    places.into_iter().map(|place| name(file, names.saturating_add(place))).collect()
}

/// A part of the file.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    num_bytes: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.num_bytes)
    }

    /// Where in the file an address is.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(self.address).filter(|inside| *inside < self.num_bytes)?;
        (self.kind == LOADED).then(|| self.offset.saturating_add(inside))
    }
}

/// Whether a machine of this architecture runs what is marked as for this one.
fn is_for(architecture: &str, machine: u16) -> bool {
    match architecture {
        "x86_64" => machine == X86_64,
        "aarch64" => machine == AARCH64,
        _ => true,
    }
}

fn name(file: &File, offset: u64) -> io::Result<String> {
    let mut bytes = [0; MAX_NAME_BYTES];
    let num_bytes = file.read_at(&mut bytes, offset)?;
    let name = bytes[..num_bytes].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(name.to_vec()).map_err(|_| invalid("needs a library whose name is not text"))
}

fn read<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice is as long")
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A library that does nothing but need others.
#[cfg(test)]
pub(super) fn library(needed: &[&str]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let num_entries = needed.len() as u64 + 2;
    let names = HEADERS + num_entries * 16;
    let (mut entries, mut text) = (vec![(NAMES, ADDRESS + names)], vec![0]);
    for name in needed {
        entries.push((NEEDED, text.len() as u64));
        text.extend(name.bytes().chain([0]));
    }
    entries.push((0, 0));
    // The names are where the segment says, not where their address says.
    const ADDRESS: u64 = 0x1000;
    let segment = |kind: u32, offset: u64, address: u64, num_bytes: u64| {
        let words = [offset, address, address, num_bytes, num_bytes, 8];
        [kind.to_le_bytes(), 4_u32.to_le_bytes()]
            .concat()
            .into_iter()
            .chain(words.into_iter().flat_map(u64::to_le_bytes))
    };
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(64, 0);
    let machine = [X86_64, AARCH64].into_iter().find(|machine| is_for(env::consts::ARCH, *machine)).unwrap_or_default();
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 2;
    bytes.extend(segment(LOADED, 0, ADDRESS, names + text.len() as u64));
    bytes.extend(segment(DYNAMIC, HEADERS, ADDRESS + HEADERS, num_entries * 16));
    bytes.extend(entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()]).flatten());
    bytes.extend(text);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs};

    #[test]
    fn what_a_library_needs_is_read() {
        let own = needed(&env::current_exe().unwrap()).unwrap();
        assert!(own.iter().any(|name| name.starts_with("libc.")), "{own:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("liba.so");
        fs::write(&path, library(&["libb.so.1", "libc.so.6"])).unwrap();
        assert_eq!(needed(&path).unwrap(), ["libb.so.1", "libc.so.6"]);
    }

    #[test]
    fn what_cannot_be_loaded_is_an_error_wherever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("liba.so");
        let whole = library(&["libb.so.1"]);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(needed(&path).unwrap_err().to_string(), "is cut short", "{length}");
        }
        fs::write(&path, [b'x'; 200]).unwrap();
        insta::assert_snapshot!(needed(&path).unwrap_err(), @"is no library for this machine");
        insta::assert_snapshot!(needed(folder.path()).unwrap_err(), @"cannot be read: Is a directory (os error 21)");
        insta::assert_snapshot!(needed(&folder.path().join("none")).unwrap_err(), @"cannot be read: No such file or directory (os error 2)");
    }

    #[test]
    fn libraries_of_other_machines_are_not_taken_for_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Its class, byte order and machine.
        for (byte, value) in [(4, 1), (5, 2), (18, 243)] {
            let mut other = library(&["libb.so.1"]);
            other[byte] = value;
            fs::write(file.path(), &other).unwrap();
            assert_eq!(needed(file.path()).unwrap_err().to_string(), "is no library for this machine", "{byte}");
        }
    }

    #[test]
    fn no_bytes_make_it_read_without_end_or_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole = library(&["libb.so.1"]);
        for byte in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut other = whole.clone();
                other[byte] = value;
                fs::write(file.path(), &other).unwrap();
                let num_needed = needed(file.path()).map_or(0, |needed| needed.len());
                assert!(num_needed <= 3, "{num_needed} of {byte} and {value}");
            }
        }
        // All at once, as large as they can be.
        for field in [32..40, 40..64, 64..176, 72..80, 96..104, 176..224] {
            let mut other = whole.clone();
            other[field].fill(0xff);
            fs::write(file.path(), &other).unwrap();
            let _ = needed(file.path());
        }
    }
}
