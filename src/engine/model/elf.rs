//! Which shared libraries a shared library needs, as `readelf -d` shows it.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Program headers that matter: what is mapped where, and the table of what the loader has to know.
const LOADED: u32 = 1;
const DYNAMIC: u32 = 2;
/// Entries of that table: a needed library, and where the names are.
const NEEDED: u64 = 1;
const NAMES: u64 = 5;
/// More than any library has, so that a broken file takes no memory.
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 256;

/// Names of the libraries that the loader looks for when it loads this one.
///
/// # Errors
/// The file cannot be read, or is no library of a 64-bit, little-endian machine.
pub(super) fn needed(path: &Path) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let header: [u8; 64] = read(&file, 0)?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(invalid("no library of a 64-bit, little-endian machine"));
    }
    let (first, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let segment: [u8; 56] = read(&file, first.saturating_add(index * u64::from(size)))?;
        segments.push(Segment {
            kind: u32_at(&segment, 0),
            offset: u64_at(&segment, 8),
            address: u64_at(&segment, 16),
            num_bytes: u64_at(&segment, 32),
        });
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == DYNAMIC) else { return Ok(Vec::new()) };
    let (mut names, mut places) = (None, Vec::new());
    for index in 0..dynamic.num_bytes.min(MAX_DYNAMIC_BYTES) / 16 {
        let entry: [u8; 16] = read(&file, dynamic.offset.saturating_add(index * 16))?;
        match (u64_at(&entry, 0), u64_at(&entry, 8)) {
            (0, _) => break,
            (NEEDED, place) => places.push(place),
            (NAMES, address) => names = Some(address),
            _ => {}
        }
    }
    let names = names.and_then(|address| segments.iter().find_map(|segment| segment.offset_of(address)));
    let names = names.ok_or_else(|| invalid("its names are nowhere"))?;
    places.into_iter().map(|place| name(&file, names.saturating_add(place))).collect()
}

/// A part of the file.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    num_bytes: u64,
}

impl Segment {
    /// Where in the file an address is.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(self.address).filter(|inside| *inside < self.num_bytes)?;
        (self.kind == LOADED).then(|| self.offset.saturating_add(inside))
    }
}

fn name(file: &File, offset: u64) -> io::Result<String> {
    let mut bytes = [0; MAX_NAME_BYTES];
    let num_bytes = file.read_at(&mut bytes, offset)?;
    let name = bytes[..num_bytes].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(name.to_vec()).map_err(|_| invalid("a name is not text"))
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
    fn what_is_no_library_is_an_error_wherever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("liba.so");
        let whole = library(&["libb.so.1"]);
        let names = whole.len() - "\0libb.so.1\0".len();
        for length in 0..names {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(needed(&path).is_err(), "{length}");
        }
        fs::write(&path, [b'x'; 200]).unwrap();
        insta::assert_snapshot!(needed(&path).unwrap_err(), @"no library of a 64-bit, little-endian machine");
    }
}
