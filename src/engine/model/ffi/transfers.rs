//! Copies between the host and the memory that a graph runs on, by way of memory that a device reaches by itself.

use super::{
    Buffer, Memory,
    cuda::{Pinned, Stream},
};
use crate::engine::Copied;
use ort::Result;
use std::{ops::Range, slice, sync::Arc};

/// Both directions.
pub(in crate::engine::model) struct Transfers {
    way: Way,
    pub(in crate::engine::model) copied: Copied,
}

enum Way {
    /// There is one memory. What was asked for last lies here.
    Memory(Vec<u8>),
    Bus {
        stream: Arc<Stream>,
        to_device: Pinned,
        /// Bytes of it that copies may still be reading.
        num_in_flight: usize,
        to_host: Pinned,
    },
}

/// A part of a buffer.
#[derive(Clone)]
pub(in crate::engine::model) struct Piece<'b> {
    pub(in crate::engine::model) buffer: &'b Buffer,
    pub(in crate::engine::model) bytes: Range<usize>,
}

/// Room that there is at first. It grows with what is asked.
const FIRST_BYTES: usize = 1 << 20;
/// Copies are fastest from where a cache line begins.
const CACHE_LINE: usize = 64;

impl Transfers {
    /// To and from this memory.
    pub(in crate::engine::model) fn new(memory: &Memory) -> Result<Self> {
        let way = match &memory.stream {
            None => Way::Memory(Vec::new()),
            Some(stream) => Way::Bus {
                stream: Arc::clone(stream),
                to_device: Pinned::allocate(stream, FIRST_BYTES)?,
                num_in_flight: 0,
                to_host: Pinned::allocate(stream, FIRST_BYTES)?,
            },
        };
        Ok(Self { way, copied: Copied::default() })
    }

    /// Copies `bytes` to the beginning of the buffer, behind all that was asked of the stream. They may be changed as soon as
    /// this returns.
    pub(in crate::engine::model) fn upload(&mut self, bytes: &[u8], to: &Buffer) -> Result<()> {
        assert!(bytes.len() <= to.num_bytes, "the bytes fit the buffer");
        self.copied.to_device += bytes.len() as u64;
        let Way::Bus { stream, to_device, num_in_flight, .. } = &mut self.way else {
            // SAFETY: the buffer is the host's, as large, and only a run that has ended has looked at it.
            unsafe { to.host_data().cast::<u8>().copy_from_nonoverlapping(first_of(bytes), bytes.len()) };
            return Ok(());
        };
        if to_device.len() - *num_in_flight < bytes.len() {
            stream.synchronize()?;
            *num_in_flight = 0;
            if to_device.len() < bytes.len() {
                *to_device = Pinned::allocate(stream, bytes.len().next_power_of_two())?;
            }
        }
        // SAFETY: the room behind what is in flight is ours, large enough, and not read before the copy that is asked for
        // here. Both places stay until the stream is past it, since whoever frees them waits for the stream.
        unsafe {
            let room = to_device.as_ptr().add(*num_in_flight);
            room.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            stream.copy(room.cast(), to.data.as_ptr(), bytes.len())?;
        }
        *num_in_flight = (*num_in_flight + bytes.len().next_multiple_of(CACHE_LINE)).min(to_device.len());
        Ok(())
    }

    /// The pieces, one behind the other. Waits until all that was asked of the stream is done.
    pub(in crate::engine::model) fn download<'b>(
        &mut self,
        pieces: impl Iterator<Item = Piece<'b>> + Clone,
    ) -> Result<&[u8]> {
        let num_bytes = pieces.clone().map(|piece| piece.bytes.len()).sum::<usize>();
        self.copied.to_host += num_bytes as u64;
        let room = match &mut self.way {
            Way::Memory(room) => {
                room.resize(room.len().max(num_bytes), 0);
                room.as_mut_ptr()
            }
            Way::Bus { stream, to_host, .. } => {
                if to_host.len() < num_bytes {
                    *to_host = Pinned::allocate(stream, num_bytes.next_power_of_two())?;
                }
                to_host.as_ptr()
            }
        };
        let mut begin = 0;
        for Piece { buffer, bytes } in pieces {
            assert!(bytes.start <= bytes.end && bytes.end <= buffer.num_bytes, "the piece lies inside its buffer");
            // SAFETY: both places are large enough and do not overlap; a run has written the first, and who looks at the
            // second waits for the stream.
            unsafe {
                let (from, to) = (buffer.data.as_ptr().byte_add(bytes.start), room.add(begin));
                match &self.way {
                    Way::Memory(_) => to.copy_from_nonoverlapping(from.cast(), bytes.len()),
                    Way::Bus { stream, .. } => stream.copy(from, to.cast(), bytes.len())?,
                }
            }
            begin += bytes.len();
        }
        if let Way::Bus { stream, num_in_flight, .. } = &mut self.way {
            stream.synchronize()?;
            *num_in_flight = 0;
        }
        // SAFETY: the room is initialized, as large, and borrowed with `self`; the stream is idle.
        Ok(unsafe { slice::from_raw_parts(room, num_bytes) })
    }
}

fn first_of(bytes: &[u8]) -> std::ptr::NonNull<u8> {
    std::ptr::NonNull::from(bytes).cast()
}
