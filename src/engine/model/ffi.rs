//! The calls of ONNX Runtime's C API that `ort` has no safe counterpart for: tensors over a part of a buffer, and one
//! buffer bound as input and output at once; and loading a library that others need. All unsafe code of the crate is here
//! and below, behind a safe surface: a [`Tensor<'d>`] cannot outlive its data, and a [`Run<'_, 'd>`] unbinds everything when it ends.

#![expect(unsafe_code, reason = "see above")]

mod buffer;
mod cuda;
mod transfers;

pub(super) use buffer::{Buffer, Memory, Rows};
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

/// A tensor that ONNX Runtime can read or write, over data that lives for `'d`.
pub(super) struct Tensor<'d> {
    value: NonNull<sys::OrtValue>,
    /// Whether a run may write it.
    is_writable: bool,
    /// What its data is freed by.
    _memory: Option<Arc<Memory>>,
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
            Self::over(buffer.memory.info(), data, num_bytes, shape, element_type.raw())
        }
    }

    /// The same, of numbers that are not those of a cache.
    pub(super) fn over_buffer<T: Element>(buffer: &'d Buffer, first_byte: usize, shape: &[i64]) -> Result<Self> {
        let num_bytes = num_elements(shape) * size_of::<T>();
        assert!(first_byte + num_bytes <= buffer.num_bytes, "the view lies inside the buffer");
        // SAFETY: the range lies inside the buffer, which lives for 'd.
        unsafe {
            let data = buffer.data.as_ptr().byte_add(first_byte);
            Self::over(buffer.memory.info(), data, num_bytes, shape, T::TYPE)
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
            _memory: None,
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

    /// A tensor of zeros that owns its data.
    pub(super) fn zeros(memory: &Arc<Memory>, shape: &[i64], element_type: ElementType) -> Result<Self> {
        let mut value = ptr::null_mut();
        // SAFETY: the allocator lives as long as the tensor, which frees its data by it; the runtime copies the shape.
        unsafe {
            check((ort::api().CreateTensorAsOrtValue)(
                memory.allocator.ptr().cast_mut(),
                shape.as_ptr(),
                shape.len(),
                element_type.raw(),
                &raw mut value,
            ))?;
        };
        let value = NonNull::new(value).expect("a created value is not null");
        let tensor = Self { value, is_writable: true, _memory: Some(Arc::clone(memory)), data: PhantomData };
        let (data, num_bytes) = tensor.data_in(memory)?;
        // SAFETY: the data is as large and nobody else has it; zero bytes are a number in every type.
        unsafe { memory.zero(data, num_bytes)? };
        Ok(tensor)
    }

    /// Copies rows of another tensor, of which the first begins at the byte `from`, to rows of this one, as long and as
    /// many. Both lie in `memory`.
    pub(super) fn copy_rows(
        &mut self,
        (to, to_rows): (usize, Rows),
        source: &Tensor<'_>,
        (from, from_rows): (usize, Rows),
        memory: &Memory,
    ) -> Result<()> {
        let ((target, target_bytes), (source, source_bytes)) = (self.data_in(memory)?, source.data_in(memory)?);
        assert!(to + to_rows.span() <= target_bytes, "what is written lies inside its tensor");
        assert!(from + from_rows.span() <= source_bytes, "what is read lies inside its tensor");
        // SAFETY: all rows lie inside two tensors, which are not the same, since this one is borrowed to be written.
        unsafe { memory.copy_rows((source.add(from), from_rows), (target.add(to), to_rows)) }
    }
}

impl Tensor<'_> {
    pub(super) fn num_bytes(&self) -> Result<usize> {
        let mut num_bytes = 0;
        // SAFETY: the value is valid and so is the out pointer.
        unsafe { check((ort::api().GetTensorSizeInBytes)(self.value.as_ptr(), &raw mut num_bytes))? };
        Ok(num_bytes)
    }

    /// Where the data of a tensor in this memory lies, and how much it is.
    fn data_in(&self, memory: &Memory) -> Result<(NonNull<c_void>, usize)> {
        let (mut info, mut data) = (ptr::null(), ptr::null_mut());
        let mut device = sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
        // SAFETY: the value is valid and so are the out pointers; the memory info belongs to the value.
        unsafe {
            let value = self.value.as_ptr();
            check((ort::api().GetTensorMemoryInfo)(value, &raw mut info))?;
            (ort::api().MemoryInfoGetDeviceType)(info, &raw mut device);
            check((ort::api().GetTensorMutableData)(value, &raw mut data))?;
        };
        let is_on_host = matches!(device, sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU);
        match NonNull::new(data) {
            Some(data) if is_on_host == memory.is_on_host() => Ok((data, self.num_bytes()?)),
            _ => Err(ort::Error::new("a tensor of the cache lies in another memory than the others")),
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
    /// the order of binding. Where that fails, everything is still bound.
    pub(super) fn execute(&mut self, options: Option<&RunOptions>) -> Result<Vec<Tensor<'static>>> {
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
            _memory: None,
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
