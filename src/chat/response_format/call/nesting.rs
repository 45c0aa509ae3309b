//! How deep a text is in brackets, without an eye on what it says.

use super::{Next, Region};

/// A depth, followed byte by byte. Of a text cut anywhere, each byte is read once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nesting {
    depth: usize,
    /// The quote that ends the open string.
    quote: Option<u8>,
    is_escaped: bool,
    /// Whether strings may stand in single quotes, too.
    is_python: bool,
}

/// Where a nested text ends.
#[derive(Debug)]
pub(super) enum End {
    /// Behind its last bracket.
    At(usize),
    /// A mark breaks it off.
    Broken(usize),
    /// Not yet; so much of it is certain, and leads to here.
    Open(usize, Nesting),
}

impl Nesting {
    pub(super) fn inside_object() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    pub(super) fn of_python() -> Self {
        Self { is_python: true, ..Self::default() }
    }

    pub(super) fn is_closed(self) -> bool {
        self.depth == 0 && self.quote.is_none()
    }

    /// Follows one byte; those that matter are ASCII.
    pub(super) fn step(&mut self, byte: u8) {
        match (self.quote, byte) {
            _ if self.is_escaped => self.is_escaped = false,
            (Some(_), b'\\') => self.is_escaped = true,
            (Some(quote), _) if byte == quote => self.quote = None,
            (Some(_), _) => {}
            (None, b'"') => self.quote = Some(byte),
            (None, b'\'') if self.is_python => self.quote = Some(byte),
            (None, b'{' | b'[') => self.depth += 1,
            (None, b'(') if self.is_python => self.depth += 1,
            (None, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            (None, b')') if self.is_python => self.depth = self.depth.saturating_sub(1),
            (None, _) => {}
        }
    }

    /// Where a text ends whose brackets have begun. A mark outside of its strings breaks it off.
    pub(super) fn end(mut self, text: &str, region: Region<'_>) -> End {
        for (index, byte) in text.bytes().enumerate() {
            if self.quote.is_none() && text.is_char_boundary(index) {
                match region.end_at(text, index, false) {
                    Next::Nothing => {}
                    Next::Pending(start) => return End::Open(start, self),
                    Next::Mark(sighting) => return End::Broken(sighting.start),
                }
            }
            self.step(byte);
            if self.is_closed() {
                return End::At(index + 1);
            }
        }
        End::Open(text.len(), self)
    }
}
