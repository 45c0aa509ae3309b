//! Databases give back what is on the disk, whether or not it is what was written: so each row tells what it was.

use super::Key;
use sha2::{Digest, Sha256};

/// Of a row's key and texts, in hexadecimal digits.
pub(super) fn checksum(key: Key<'_>, texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in [key.tenant, key.id].iter().chain(texts) {
        // With its length, so that what moves from one text to the next shows.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_shows() {
        let of = |tenant, id, texts: &[&str]| checksum(Key { tenant, id }, texts);
        let written = of("ann", "resp_1", &["[]", "{}"]);
        assert_eq!(written.len(), 64);
        assert_eq!(written, of("ann", "resp_1", &["[]", "{}"]));
        for other in [
            of("bob", "resp_1", &["[]", "{}"]),
            of("ann", "resp_2", &["[]", "{}"]),
            of("ann", "resp_1", &["[", "]{}"]),
            of("ann", "resp_1", &["[]{}"]),
            of("annr", "esp_1", &["[]", "{}"]),
            of("ann", "resp_1", &["[]", "{}", ""]),
        ] {
            assert_ne!(written, other);
        }
    }
}
