//! The memory that a graph runs on, and pieces of it.

use super::cuda::Stream;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use ort::{
    Result,
    memory::{Allocator, MemoryInfo},
};
use std::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr::{self, NonNull},
    sync::Arc,
};

/// Where a graph keeps what it computes, and what orders the work on it. Must not outlive the session that it is of.
pub(in crate::engine::model) struct Memory {
    pub(super) allocator: Allocator,
    /// Where the host does not reach it.
    pub(super) stream: Option<Arc<Stream>>,
}

// SAFETY: ONNX Runtime's allocators may be used from any thread, and lock what they change.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Whatever runs on what the allocator gives has to do so in `stream`, if that is not the host's.
    pub(in crate::engine::model) fn new(allocator: Allocator, stream: Option<Arc<Stream>>) -> Self {
        let stream = stream.filter(|_| !allocator.memory_info().is_cpu_accessible());
        Self { allocator, stream }
    }

    pub(in crate::engine::model) fn info(&self) -> &MemoryInfo<'_> {
        self.allocator.memory_info()
    }

    /// Bytes that nobody has taken, of a device that has memory of its own.
    pub(in crate::engine::model) fn num_free_bytes(&self) -> Result<Option<usize>> {
        self.stream.as_ref().map(|stream| stream.memory().map(|(free, _)| free)).transpose()
    }

    pub(super) fn is_on_host(&self) -> bool {
        self.allocator.memory_info().is_cpu_accessible()
    }

    /// # Safety
    /// As many bytes must lie there, in this memory. They may be given back to the allocator at once: whoever gets them next
    /// uses them in the same order of work.
    pub(super) unsafe fn zero(&self, data: NonNull<c_void>, num_bytes: usize) -> Result<()> {
        match &self.stream {
            // SAFETY: as the caller promises.
            Some(stream) => unsafe { stream.zero(data.as_ptr(), num_bytes) },
            None => {
                // SAFETY: as the caller promises.
                unsafe { self.host_bytes(data).write_bytes(0, num_bytes) };
                Ok(())
            }
        }
    }

    /// Copies rows from one place to another, as long and as many.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), of all rows; they must not overlap.
    pub(super) unsafe fn copy_rows(
        &self,
        (from, from_rows): (NonNull<c_void>, Rows),
        (to, to_rows): (NonNull<c_void>, Rows),
    ) -> Result<()> {
        let Rows { num_bytes, count, .. } = from_rows;
        assert_eq!((num_bytes, count), (to_rows.num_bytes, to_rows.count), "as much is written as is read");
        if let Some(stream) = &self.stream {
            let (from, to) = ((from.as_ptr().cast_const(), from_rows.pitch), (to.as_ptr(), to_rows.pitch));
            // SAFETY: as the caller promises.
            return unsafe { stream.copy_rows(from, to, num_bytes, count) };
        }
        let (from, to) = (self.host_bytes(from).as_ptr(), self.host_bytes(to).as_ptr());
        let strided = |rows: Rows| (count, num_bytes).strides((rows.pitch, 1));
        // SAFETY: as the caller promises; bytes need not be initialized.
        let (source, mut target) = unsafe {
            (ArrayView2::from_shape_ptr(strided(from_rows), from), ArrayViewMut2::from_shape_ptr(strided(to_rows), to))
        };
        target.assign(&source);
        Ok(())
    }

    fn host_bytes(&self, data: NonNull<c_void>) -> NonNull<MaybeUninit<u8>> {
        assert!(self.is_on_host(), "the host sees only its own memory");
        data.cast()
    }
}

/// Rows of bytes that begin at equal distances.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::model) struct Rows {
    /// From the beginning of one row to that of the next.
    pub(in crate::engine::model) pitch: usize,
    /// Of each row.
    pub(in crate::engine::model) num_bytes: usize,
    pub(in crate::engine::model) count: usize,
}

impl Rows {
    /// From the beginning of the first to the end of the last.
    pub(super) fn span(self) -> usize {
        self.count.saturating_sub(1) * self.pitch + self.num_bytes
    }
}

/// A piece of memory, whose contents only ONNX Runtime looks at.
pub(in crate::engine::model) struct Buffer {
    pub(super) memory: Arc<Memory>,
    pub(super) data: NonNull<c_void>,
    pub(super) num_bytes: usize,
}

// SAFETY: the bytes belong to this value alone, and their memory may be used from any thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Takes `num_bytes`; what they hold is undefined.
    pub(in crate::engine::model) fn allocate(memory: &Arc<Memory>, num_bytes: usize) -> Result<Self> {
        let block = memory.allocator.alloc::<u8>(num_bytes)?.into_raw();
        let data = NonNull::new(block).ok_or_else(|| ort::Error::new("the allocator returned no memory"))?;
        Ok(Self { memory: Arc::clone(memory), data, num_bytes })
    }

    /// The same, set to zero. An operator multiplies what it does not attend to by zero, which is only nothing where that is
    /// a number.
    pub(in crate::engine::model) fn zeroed(memory: &Arc<Memory>, num_bytes: usize) -> Result<Self> {
        let buffer = Self::allocate(memory, num_bytes)?;
        // Fresh memory of the host is not touched before it is needed: its operators read no more than they attend to.
        if !memory.is_on_host() {
            // SAFETY: the whole buffer.
            unsafe { memory.zero(buffer.data, num_bytes)? };
        }
        Ok(buffer)
    }

    pub(in crate::engine::model) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Sets a part of it to zero.
    pub(in crate::engine::model) fn zero(&mut self, first_byte: usize, num_bytes: usize) -> Result<()> {
        assert!(first_byte + num_bytes <= self.num_bytes, "the part lies inside the buffer");
        // SAFETY: as many bytes lie there, and are this value's.
        unsafe { self.memory.zero(self.data.byte_add(first_byte), num_bytes) }
    }

    /// Copies rows from one place to another, which do not overlap.
    pub(in crate::engine::model) fn copy(&mut self, from: usize, to: usize, rows: Rows) -> Result<()> {
        self.check_apart(from, to, rows);
        // SAFETY: both places lie inside the buffer and do not overlap.
        unsafe {
            let (from, to) = (self.data.byte_add(from), self.data.byte_add(to));
            self.memory.copy_rows((from, rows), (to, rows))
        }
    }

    /// Exchanges rows of two places, which do not overlap. A device does so by way of `spare`, which is as large as one row
    /// times their number.
    pub(in crate::engine::model) fn swap(
        &mut self,
        one: usize,
        other: usize,
        rows: Rows,
        spare: Option<&mut Self>,
    ) -> Result<()> {
        self.check_apart(one, other, rows);
        let Rows { pitch, num_bytes, count } = rows;
        if self.memory.is_on_host() {
            let data = self.memory.host_bytes(self.data);
            for row in 0..count {
                // SAFETY: both rows lie inside the buffer and do not overlap; bytes need not be initialized.
                unsafe {
                    let (one, other) = (data.add(one + row * pitch), data.add(other + row * pitch));
                    ptr::swap_nonoverlapping(one.as_ptr(), other.as_ptr(), num_bytes);
                }
            }
            return Ok(());
        }
        let spare = spare.expect("a device needs a place to swap by");
        assert!(num_bytes * count <= spare.num_bytes, "the rows fit the spare place");
        let packed = Rows { pitch: num_bytes, ..rows };
        // SAFETY: all rows lie inside the two buffers, and those of the two places do not overlap.
        unsafe {
            let (one, other) = (self.data.byte_add(one), self.data.byte_add(other));
            self.memory.copy_rows((one, rows), (spare.data, packed))?;
            self.memory.copy_rows((other, rows), (one, rows))?;
            self.memory.copy_rows((spare.data, packed), (other, rows))
        }
    }

    pub(super) fn host_data(&self) -> NonNull<MaybeUninit<u8>> {
        self.memory.host_bytes(self.data)
    }

    fn check_apart(&self, one: usize, other: usize, rows: Rows) {
        assert!(one.max(other) + rows.span() <= self.num_bytes, "both places lie inside the buffer");
        assert!(rows.span() <= one.abs_diff(other), "the places do not overlap");
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What still runs may use it. That the device is lost, whoever asked for that work is told.
        let _ = self.memory.stream.as_ref().map(|stream| stream.synchronize());
        // SAFETY: `data` came from this allocator and is freed once.
        unsafe { self.memory.allocator.free(self.data.as_ptr()) };
    }
}
