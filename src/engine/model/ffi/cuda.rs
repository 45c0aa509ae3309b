//! The calls of NVIDIA's CUDA runtime that ONNX Runtime's C API has no counterpart for: copies that do not wait, on the
//! stream that the graph runs on, and how much memory a device has. The library is the one that ONNX Runtime's provider
//! needs anyway; it is looked up at run time, so that one binary runs with and without a GPU.

use super::loader_words;
use libloading::Library;
use ort::{Error, Result};
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    sync::Arc,
};

/// `cudaError_t`
type Status = c_int;

/// `cudaMemcpyKind`: the addresses tell.
const MEMCPY_DEFAULT: c_int = 4;
/// `cudaStreamNonBlocking`: does not wait for the default stream.
const NON_BLOCKING: c_uint = 1;

/// Functions of `libcudart`, which stays loaded for as long as they can be called.
struct Cuda {
    device_count: unsafe extern "C" fn(*mut c_int) -> Status,
    set_device: unsafe extern "C" fn(c_int) -> Status,
    mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    stream_create: unsafe extern "C" fn(*mut *mut c_void, c_uint) -> Status,
    stream_destroy: unsafe extern "C" fn(*mut c_void) -> Status,
    stream_synchronize: unsafe extern "C" fn(*mut c_void) -> Status,
    memcpy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> Status,
    memcpy_2d:
        unsafe extern "C" fn(*mut c_void, usize, *const c_void, usize, usize, usize, c_int, *mut c_void) -> Status,
    memset: unsafe extern "C" fn(*mut c_void, c_int, usize, *mut c_void) -> Status,
    host_alloc: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> Status,
    host_free: unsafe extern "C" fn(*mut c_void) -> Status,
    last_error: unsafe extern "C" fn() -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    _library: Library,
}

impl Cuda {
    /// The one that ONNX Runtime's provider is linked against: another asks for another driver.
    fn load(name: &str) -> Result<Self> {
        let failed = |error| Error::new(format!("the CUDA runtime cannot be loaded: {}", loader_words(&error)));
        // SAFETY: the CUDA runtime has no initializers that could do harm.
        let library = unsafe { Library::new(name) }.map_err(failed)?;
        // SAFETY: the types are those of `cuda_runtime_api.h`, the same in CUDA 12 and 13.
        unsafe { Self::look_up(library) }.map_err(failed)
    }

    /// # Safety
    /// `library` must be `libcudart`.
    unsafe fn look_up(library: Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: as the caller promises.
        unsafe {
            Ok(Self {
                device_count: *library.get(b"cudaGetDeviceCount\0")?,
                set_device: *library.get(b"cudaSetDevice\0")?,
                mem_get_info: *library.get(b"cudaMemGetInfo\0")?,
                stream_create: *library.get(b"cudaStreamCreateWithFlags\0")?,
                stream_destroy: *library.get(b"cudaStreamDestroy\0")?,
                stream_synchronize: *library.get(b"cudaStreamSynchronize\0")?,
                memcpy: *library.get(b"cudaMemcpyAsync\0")?,
                memcpy_2d: *library.get(b"cudaMemcpy2DAsync\0")?,
                memset: *library.get(b"cudaMemsetAsync\0")?,
                host_alloc: *library.get(b"cudaHostAlloc\0")?,
                host_free: *library.get(b"cudaFreeHost\0")?,
                last_error: *library.get(b"cudaGetLastError\0")?,
                error_string: *library.get(b"cudaGetErrorString\0")?,
                _library: library,
            })
        }
    }

    /// Names the error as ONNX Runtime does, so that one reader understands both.
    fn check(&self, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the first takes the error back, or whoever asks next were told of it; the other returns a constant string for
        // every number.
        let words = unsafe {
            (self.last_error)();
            CStr::from_ptr((self.error_string)(status))
        };
        Err(Error::new(format!("CUDA failure {status}: {}", words.to_string_lossy())))
    }
}

/// An order of work on one device: each copy and each run begins when what came before has ended.
pub(in crate::engine::model) struct Stream {
    cuda: Cuda,
    raw: NonNull<c_void>,
    device_id: c_int,
}

// SAFETY: the CUDA runtime may be called from any thread, and a stream is not tied to one.
unsafe impl Send for Stream {}
// SAFETY: as above; its own locks order what several threads ask.
unsafe impl Sync for Stream {}

impl Stream {
    /// On this device, by way of the CUDA runtime of this name.
    pub(in crate::engine::model) fn open(device_id: i32, cuda_runtime: &str) -> Result<Arc<Self>> {
        let cuda = Cuda::load(cuda_runtime)?;
        let mut count = 0;
        // SAFETY: the out pointer is valid.
        cuda.check(unsafe { (cuda.device_count)(&raw mut count) })?;
        if !(0..count).contains(&device_id) {
            // As ONNX Runtime says it.
            let range = format!("must be between 0 (inclusive) and {count} (exclusive).");
            return Err(Error::new(format!("Invalid device ID: {device_id}, {range}")));
        }
        let mut raw = ptr::null_mut();
        // SAFETY: the out pointer is valid.
        unsafe {
            cuda.check((cuda.set_device)(device_id))?;
            cuda.check((cuda.stream_create)(&raw mut raw, NON_BLOCKING))?;
        }
        let raw = NonNull::new(raw).expect("a stream of its own is not null");
        Ok(Arc::new(Self { cuda, raw, device_id }))
    }

    /// Its address, for providers that shall run on it.
    pub(in crate::engine::model) fn address(&self) -> usize {
        self.raw.as_ptr().addr()
    }

    /// For calls from this thread. One that asks for something before it has named a device would take memory from the first.
    fn on_device(&self) -> Result<&Cuda> {
        // SAFETY: the device was there when the stream was opened.
        self.cuda.check(unsafe { (self.cuda.set_device)(self.device_id) })?;
        Ok(&self.cuda)
    }

    /// Bytes of the device's memory: free, and in all.
    pub(in crate::engine::model) fn memory(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        let cuda = self.on_device()?;
        // SAFETY: the out pointers are valid.
        cuda.check(unsafe { (cuda.mem_get_info)(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Waits until everything that was asked for is done.
    pub(in crate::engine::model) fn synchronize(&self) -> Result<()> {
        let cuda = self.on_device()?;
        // SAFETY: the stream is valid.
        cuda.check(unsafe { (cuda.stream_synchronize)(self.raw.as_ptr()) })
    }

    /// Copies between places that the device reaches.
    ///
    /// # Safety
    /// Both ranges must lie in the device's memory or in [`Pinned`] one, and stay allocated until the stream is past this.
    pub(super) unsafe fn copy(&self, from: *const c_void, to: *mut c_void, num_bytes: usize) -> Result<()> {
        let cuda = self.on_device()?;
        // SAFETY: as the caller promises.
        cuda.check(unsafe { (cuda.memcpy)(to, from, num_bytes, MEMCPY_DEFAULT, self.raw.as_ptr()) })
    }

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// As for [`copy`](Self::copy).
    pub(super) unsafe fn zero(&self, data: *mut c_void, num_bytes: usize) -> Result<()> {
        let cuda = self.on_device()?;
        // SAFETY: as the caller promises.
        cuda.check(unsafe { (cuda.memset)(data, 0, num_bytes, self.raw.as_ptr()) })
    }

    /// Copies `num_rows` times `row_bytes`, whose beginnings are so many bytes apart.
    ///
    /// # Safety
    /// As for [`copy`](Self::copy), of all rows.
    pub(super) unsafe fn copy_rows(
        &self,
        (from, from_pitch): (*const c_void, usize),
        (to, to_pitch): (*mut c_void, usize),
        row_bytes: usize,
        num_rows: usize,
    ) -> Result<()> {
        let (cuda, stream) = (self.on_device()?, self.raw.as_ptr());
        // SAFETY: as the caller promises.
        cuda.check(unsafe {
            (cuda.memcpy_2d)(to, to_pitch, from, from_pitch, row_bytes, num_rows, MEMCPY_DEFAULT, stream)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is ours and not used again; that the device is lost is known by now.
        unsafe {
            (self.cuda.stream_synchronize)(self.raw.as_ptr());
            (self.cuda.stream_destroy)(self.raw.as_ptr());
        }
    }
}

/// Host memory that a device reads and writes by itself.
pub(super) struct Pinned {
    stream: Arc<Stream>,
    data: NonNull<u8>,
    num_bytes: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn allocate(stream: &Arc<Stream>, num_bytes: usize) -> Result<Self> {
        let (cuda, mut data) = (stream.on_device()?, ptr::null_mut());
        // SAFETY: the out pointer is valid.
        cuda.check(unsafe { (cuda.host_alloc)(&raw mut data, num_bytes.max(1), 0) })?;
        let data = NonNull::new(data.cast::<u8>()).expect("allocated memory is not null");
        // SAFETY: the memory is as large and nobody else has it; slices are of initialized bytes.
        unsafe { data.write_bytes(0, num_bytes) };
        Ok(Self { stream: Arc::clone(stream), data, num_bytes })
    }

    pub(super) fn len(&self) -> usize {
        self.num_bytes
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the memory is ours; the device may still be at work on it, and is waited for.
        unsafe {
            (self.stream.cuda.stream_synchronize)(self.stream.raw.as_ptr());
            (self.stream.cuda.host_free)(self.data.as_ptr().cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::runtime;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        runtime::for_tests();
        let error = Cuda::load("libcudart.so.0").err().expect("there is no such version");
        assert!(error.to_string().contains("libcudart.so.0"), "{error}");
    }
}
