//! The calls of ONNX Runtime's C API that `ort` has no safe counterpart for: tensors over a part of a buffer, and one
//! buffer bound as input and output at once; and loading a library that others need. All unsafe code of the crate is here
//! and below, behind a safe surface: a [`Tensor<'d>`] cannot outlive its data, and a [`Run<'_, 'd>`] unbinds everything when it ends.

#![expect(unsafe_code, reason = "see above")]

mod cuda;
mod transfers;

pub(super) use cuda::Stream;
pub(super) use transfers::{Piece, Transfers};

use super::{ElementType, FloatType};
use half::{bf16, f16};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use ort::{
    AsPointer, Result,
    memory::{Allocator, MemoryInfo},
    session::{IoBinding, RunOptions, Session},
    sys,
};
use std::{
    error::Error as _,
    ffi::{CStr, c_void},
    marker::PhantomData,
    mem::MaybeUninit,
    path::Path,
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

/// Loads a library for the rest of the process's life: others that need one of its name get it.
///
/// # Errors
/// In the loader's words.
pub(super) fn load_library(path: &Path) -> std::result::Result<(), String> {
    // SAFETY: this runs what the library does when it is loaded, as the loader would when it found the library by itself. It
    // is one that ONNX Runtime's providers are made for, and is never unloaded.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) };
    let library = library.map_err(|error| loader_words(&error))?;
    let _handle = library.into_raw();
    Ok(())
}

/// What the system's loader says, which the error itself only calls the source of "dlopen failed".
pub(super) fn loader_words(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// What one call of the C API returned.
///
/// # Safety
/// `status` must come from the C API and be checked once.
unsafe fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: as the caller promises.
    unsafe { ort::Error::result_from_status(status) }
}

/// Memory on a device, whose contents only ONNX Runtime looks at.
pub(super) struct Buffer {
    allocator: Allocator,
    data: NonNull<c_void>,
    num_bytes: usize,
    /// What orders the work on it, where the host does not reach it.
    stream: Option<Arc<Stream>>,
}

// SAFETY: the memory belongs to this value alone and ONNX Runtime's allocators may be used from any thread.
unsafe impl Send for Buffer {}

/// Rows of bytes that begin at equal distances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// From the beginning of one row to that of the next.
    pub(super) pitch: usize,
    /// Of each row.
    pub(super) num_bytes: usize,
    pub(super) count: usize,
}

impl Rows {
    /// From the beginning of the first to the end of the last.
    fn span(self) -> usize {
        self.count.saturating_sub(1) * self.pitch + self.num_bytes
    }
}

impl Buffer {
    /// Takes `num_bytes` from the allocator; what they hold is undefined. Whatever runs on the memory has to do so in
    /// `stream`, if the memory is not the host's.
    pub(super) fn allocate(allocator: Allocator, num_bytes: usize, stream: Option<Arc<Stream>>) -> Result<Self> {
        let block = allocator.alloc::<u8>(num_bytes)?.into_raw();
        let data = NonNull::new(block).ok_or_else(|| ort::Error::new("the allocator returned no memory"))?;
        let stream = stream.filter(|_| !allocator.memory_info().is_cpu_accessible());
        Ok(Self { allocator, data, num_bytes, stream })
    }

    /// The same, set to zero. An operator multiplies what it does not attend to by zero, which is only nothing where that is
    /// a number.
    pub(super) fn zeroed(allocator: Allocator, num_bytes: usize, stream: Option<Arc<Stream>>) -> Result<Self> {
        let buffer = Self::allocate(allocator, num_bytes, stream)?;
        // Fresh memory of the host is not touched before it is needed: its operators read no more than they attend to.
        if let Some(stream) = &buffer.stream {
            // SAFETY: the whole buffer, which waits for the stream before it is freed.
            unsafe { stream.zero(buffer.data.as_ptr(), num_bytes)? };
        }
        Ok(buffer)
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Copies rows from one place to another, which do not overlap.
    pub(super) fn copy(&mut self, from: usize, to: usize, rows: Rows) -> Result<()> {
        self.check_apart(from, to, rows);
        let (data, Rows { pitch, num_bytes, count }) = (self.data, rows);
        match &self.stream {
            // SAFETY: all rows lie inside the buffer, and the stream orders this with what else is done to them.
            Some(stream) => unsafe {
                let (from, to) = (data.byte_add(from).as_ptr().cast_const(), data.byte_add(to).as_ptr());
                stream.copy_rows((from, pitch), (to, pitch), num_bytes, count)
            },
            None => {
                let data = self.host_data();
                for row in 0..count {
                    // SAFETY: both rows lie inside the buffer and do not overlap; bytes need not be initialized.
                    unsafe {
                        data.add(from + row * pitch).copy_to_nonoverlapping(data.add(to + row * pitch), num_bytes);
                    }
                }
                Ok(())
            }
        }
    }

    /// Exchanges rows of two places, which do not overlap. A device does so by way of `spare`, which is as large as one row
    /// times their number.
    pub(super) fn swap(&mut self, one: usize, other: usize, rows: Rows, spare: Option<&mut Self>) -> Result<()> {
        self.check_apart(one, other, rows);
        let Rows { pitch, num_bytes, count } = rows;
        let Some(stream) = &self.stream else {
            let data = self.host_data();
            for row in 0..count {
                // SAFETY: both rows lie inside the buffer and do not overlap; bytes need not be initialized.
                unsafe {
                    let (one, other) = (data.add(one + row * pitch), data.add(other + row * pitch));
                    ptr::swap_nonoverlapping(one.as_ptr(), other.as_ptr(), num_bytes);
                }
            }
            return Ok(());
        };
        let spare = spare.expect("a device needs a place to swap by");
        assert!(num_bytes * count <= spare.num_bytes && spare.stream.is_some(), "the rows fit the spare place");
        // SAFETY: all rows lie inside the two buffers, which the stream orders.
        unsafe {
            let (one, other) = (self.data.byte_add(one).as_ptr(), self.data.byte_add(other).as_ptr());
            let spare = spare.data.as_ptr();
            stream.copy_rows((one, pitch), (spare, num_bytes), num_bytes, count)?;
            stream.copy_rows((other, pitch), (one, pitch), num_bytes, count)?;
            stream.copy_rows((spare, num_bytes), (other, pitch), num_bytes, count)
        }
    }

    fn host_data(&self) -> NonNull<MaybeUninit<u8>> {
        assert!(self.allocator.memory_info().is_cpu_accessible(), "the host sees only its own memory");
        self.data.cast()
    }

    fn check_apart(&self, one: usize, other: usize, rows: Rows) {
        assert!(one.max(other) + rows.span() <= self.num_bytes, "both places lie inside the buffer");
        assert!(rows.span() <= one.abs_diff(other), "the places do not overlap");
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What still runs may use it. That the device is lost, whoever asked for that work is told.
        let _ = self.stream.as_ref().map(|stream| stream.synchronize());
        // SAFETY: `data` came from this allocator and is freed once.
        unsafe { self.allocator.free(self.data.as_ptr()) };
    }
}

/// A tensor that ONNX Runtime can read or write, over data that lives for `'d`.
pub(super) struct Tensor<'d> {
    value: NonNull<sys::OrtValue>,
    /// Whether a run may write it.
    is_writable: bool,
    data: PhantomData<&'d ()>,
}

// SAFETY: the value is owned and ONNX Runtime's values are not tied to a thread.
unsafe impl Send for Tensor<'_> {}

impl Drop for Tensor<'_> {
    fn drop(&mut self) {
        // SAFETY: `value` is owned and released once; a binding that still uses it holds its own reference.
        unsafe { (ort::api().ReleaseValue)(self.value.as_ptr()) };
    }
}

/// Rust numbers that a tensor may be made of.
pub(super) trait Element: Copy {
    const TYPE: sys::ONNXTensorElementDataType;
}

/// Numbers as they lie in memory.
pub(super) fn bytes_of<T: Element>(numbers: &[T]) -> &[u8] {
    // SAFETY: numbers have no padding, and their bytes live and stay as they are for as long as the slice.
    unsafe { slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

impl Element for i64 {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
}

impl Element for i32 {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
}

impl Element for f32 {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

impl Element for f16 {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

impl Element for bf16 {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

impl Element for bool {
    const TYPE: sys::ONNXTensorElementDataType = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
}

impl ElementType {
    fn raw(self) -> sys::ONNXTensorElementDataType {
        match self {
            Self::Float(FloatType::F32) => f32::TYPE,
            Self::Float(FloatType::F16) => f16::TYPE,
            Self::Float(FloatType::BF16) => bf16::TYPE,
            Self::Int8 => sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
            Self::Uint8 => sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            Self::Float8 => sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        }
    }
}

impl<'d> Tensor<'d> {
    /// A tensor to read.
    pub(super) fn from_slice<T: Element>(memory: &MemoryInfo<'_>, data: &'d [T], shape: &[i64]) -> Result<Self> {
        assert_eq!(num_elements(shape), data.len());
        // SAFETY: the data lives for 'd, is as large as the shape says, and only a writable tensor can be an output.
        let mut tensor =
            unsafe { Self::over(memory, data.as_ptr().cast_mut().cast(), size_of_val(data), shape, T::TYPE)? };
        tensor.is_writable = false;
        Ok(tensor)
    }

    /// A tensor to write.
    pub(super) fn from_slice_mut<T: Element>(
        memory: &MemoryInfo<'_>,
        data: &'d mut [T],
        shape: &[i64],
    ) -> Result<Self> {
        assert_eq!(num_elements(shape), data.len());
        // SAFETY: the data lives for 'd, is borrowed for as long, and is as large as the shape says.
        unsafe { Self::over(memory, data.as_mut_ptr().cast(), size_of_val(data), shape, T::TYPE) }
    }

    /// A tensor over a part of a buffer. Several may overlap: only ONNX Runtime looks at the memory, and
    /// `GroupQueryAttention` is made for past and present in one place.
    pub(super) fn from_buffer(
        buffer: &'d Buffer,
        first_byte: usize,
        shape: &[i64],
        element_type: ElementType,
    ) -> Result<Self> {
        let num_bytes = num_elements(shape) * element_type.num_bytes();
        assert!(first_byte + num_bytes <= buffer.num_bytes, "the view lies inside the buffer");
        // SAFETY: the range lies inside the buffer, which lives for 'd.
        unsafe {
            let data = buffer.data.as_ptr().byte_add(first_byte);
            Self::over(buffer.allocator.memory_info(), data, num_bytes, shape, element_type.raw())
        }
    }

    /// The same, of numbers that are not those of a cache.
    pub(super) fn over_buffer<T: Element>(buffer: &'d Buffer, first_byte: usize, shape: &[i64]) -> Result<Self> {
        let num_bytes = num_elements(shape) * size_of::<T>();
        assert!(first_byte + num_bytes <= buffer.num_bytes, "the view lies inside the buffer");
        // SAFETY: the range lies inside the buffer, which lives for 'd.
        unsafe {
            let data = buffer.data.as_ptr().byte_add(first_byte);
            Self::over(buffer.allocator.memory_info(), data, num_bytes, shape, T::TYPE)
        }
    }

    /// # Safety
    /// `data` must be `num_bytes` long, lie where `memory` says, and live for `'d`.
    unsafe fn over(
        memory: &MemoryInfo<'_>,
        data: *mut c_void,
        num_bytes: usize,
        shape: &[i64],
        element_type: sys::ONNXTensorElementDataType,
    ) -> Result<Self> {
        let mut value = ptr::null_mut();
        // SAFETY: as the caller promises; the runtime copies the shape.
        unsafe {
            check((ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data,
                num_bytes,
                shape.as_ptr(),
                shape.len(),
                element_type,
                &raw mut value,
            ))?;
        };
        Ok(Self {
            value: NonNull::new(value).expect("a created value is not null"),
            is_writable: true,
            data: PhantomData,
        })
    }
}

impl Tensor<'static> {
    /// A tensor with no elements, and so with no data that anybody would have to free.
    pub(super) fn empty(memory: &MemoryInfo<'_>, shape: &[i64], element_type: ElementType) -> Result<Self> {
        assert_eq!(num_elements(shape), 0);
        // SAFETY: no bytes lie anywhere and live for ever.
        unsafe { Self::over(memory, NonNull::<u64>::dangling().as_ptr().cast(), 0, shape, element_type.raw()) }
    }

    /// A tensor that owns its data, on the host.
    pub(super) fn zeros(shape: &[i64], element_type: ElementType) -> Result<Self> {
        let tensor = Self::uninitialized(shape, element_type)?;
        let (data, num_bytes) = tensor.host_data()?;
        // SAFETY: the data is as large, on the host, and nobody else has it; zero bytes are a number in every type.
        unsafe { data.write_bytes(0, num_bytes) };
        Ok(tensor)
    }

    fn uninitialized(shape: &[i64], element_type: ElementType) -> Result<Self> {
        // The runtime's own, which is never freed: the value frees its data with it.
        let allocator = Allocator::default();
        let mut value = ptr::null_mut();
        // SAFETY: the allocator is valid for as long as the process runs, and the runtime copies the shape.
        unsafe {
            check((ort::api().CreateTensorAsOrtValue)(
                allocator.ptr().cast_mut(),
                shape.as_ptr(),
                shape.len(),
                element_type.raw(),
                &raw mut value,
            ))?;
        };
        Ok(Self {
            value: NonNull::new(value).expect("a created value is not null"),
            is_writable: true,
            data: PhantomData,
        })
    }

    /// The data of a tensor on the host that a run has written or that was made here.
    pub(super) fn host_bytes(&self) -> Result<&[u8]> {
        let (data, num_bytes) = self.host_data()?;
        // SAFETY: the data is as large, initialized, and lives as long as the value; a run that writes it needs `&mut`.
        Ok(unsafe { slice::from_raw_parts(data.as_ptr(), num_bytes) })
    }

    /// As [`host_bytes`](Self::host_bytes), to write.
    pub(super) fn host_bytes_mut(&mut self) -> Result<&mut [u8]> {
        let (data, num_bytes) = self.host_data()?;
        // SAFETY: as above, and the value is borrowed for as long.
        Ok(unsafe { slice::from_raw_parts_mut(data.as_ptr(), num_bytes) })
    }

    fn host_data(&self) -> Result<(NonNull<u8>, usize)> {
        let (mut memory, mut num_bytes, mut data) = (ptr::null(), 0, ptr::null_mut());
        let mut device = sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
        // SAFETY: the value is valid and so are the out pointers; the memory info belongs to the value.
        unsafe {
            let value = self.value.as_ptr();
            check((ort::api().GetTensorMemoryInfo)(value, &raw mut memory))?;
            (ort::api().MemoryInfoGetDeviceType)(memory, &raw mut device);
            check((ort::api().GetTensorSizeInBytes)(value, &raw mut num_bytes))?;
            check((ort::api().GetTensorMutableData)(value, &raw mut data))?;
        };
        let is_on_host = matches!(device, sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU);
        match NonNull::new(data.cast()) {
            Some(data) if is_on_host => Ok((data, num_bytes)),
            _ => Err(ort::Error::new("the tensor's data is not in the host's memory")),
        }
    }
}

fn num_elements(shape: &[i64]) -> usize {
    shape.iter().map(|dimension| usize::try_from(*dimension).expect("dimensions are not negative")).product()
}

/// What one run reads and writes. Everything is unbound when it is dropped.
pub(super) struct Run<'g, 'd> {
    session: &'g mut Session,
    binding: &'g mut IoBinding,
    /// Outputs bound to data of ours.
    num_own: usize,
    /// Outputs that the runtime will allocate.
    num_new: usize,
    data: PhantomData<&'d ()>,
}

impl<'g, 'd> Run<'g, 'd> {
    /// Nothing bound.
    pub(super) fn new(session: &'g mut Session, binding: &'g mut IoBinding) -> Self {
        binding.clear(); // A run that was forgotten instead of dropped has left its data bound.
        Self { session, binding, num_own: 0, num_new: 0, data: PhantomData }
    }

    /// Reads `tensor`.
    pub(super) fn bind_input(&mut self, name: &CStr, tensor: &Tensor<'d>) -> Result<()> {
        // SAFETY: all three are valid; the binding takes its own reference to the value, whose data lives for 'd.
        unsafe { check((ort::api().BindInput)(self.binding.ptr_mut(), name.as_ptr(), tensor.value.as_ptr())) }
    }

    /// Writes `tensor`. To be called before any [`bind_new_output`](Self::bind_new_output).
    pub(super) fn bind_output(&mut self, name: &CStr, tensor: &Tensor<'d>) -> Result<()> {
        assert!(tensor.is_writable, "outputs are borrowed to be written");
        assert_eq!(self.num_new, 0, "outputs of ours are bound first");
        self.num_own += 1;
        // SAFETY: as above.
        unsafe { check((ort::api().BindOutput)(self.binding.ptr_mut(), name.as_ptr(), tensor.value.as_ptr())) }
    }

    /// Lets the runtime allocate the output; [`execute`](Self::execute) returns it.
    pub(super) fn bind_new_output(&mut self, name: &CStr, memory: &MemoryInfo<'_>) -> Result<()> {
        self.num_new += 1;
        // SAFETY: all three are valid.
        unsafe { check((ort::api().BindOutputToDevice)(self.binding.ptr_mut(), name.as_ptr(), memory.ptr())) }
    }

    /// Runs the graph, with the default options where there are none. Returns the outputs that the runtime allocated, in
    /// the order of binding.
    pub(super) fn execute(self, options: Option<&RunOptions>) -> Result<Vec<Tensor<'static>>> {
        let options = options.map_or(ptr::null(), AsPointer::ptr);
        // SAFETY: session, binding and options are valid and borrowed; null options mean the defaults.
        unsafe { check((ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options, self.binding.ptr()))? };
        if self.num_new == 0 {
            return Ok(Vec::new());
        }
        let allocator = Allocator::default();
        let (mut values, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the out pointers are valid; the runtime allocates the array with the given allocator.
        unsafe {
            check((ort::api().GetBoundOutputValues)(
                self.binding.ptr(),
                allocator.ptr().cast_mut(),
                &raw mut values,
                &raw mut count,
            ))?;
        };
        // SAFETY: the runtime made an array of `count` values, each of which is ours to release.
        let outputs = unsafe { slice::from_raw_parts(values, count) };
        let own = |value: &*mut sys::OrtValue| Tensor {
            value: NonNull::new(*value).expect("an output of a successful run is not null"),
            is_writable: true,
            data: PhantomData,
        };
        let mut tensors: Vec<Tensor<'static>> = outputs.iter().map(own).collect();
        // SAFETY: the array came from this allocator and is not looked at again.
        unsafe { allocator.free(values) };
        assert_eq!(tensors.len(), self.num_own + self.num_new, "each bound output has a value");
        // Those over data of ours may not live longer than the data.
        tensors.drain(..self.num_own);
        Ok(tensors)
    }
}

impl Drop for Run<'_, '_> {
    fn drop(&mut self) {
        self.binding.clear();
    }
}
