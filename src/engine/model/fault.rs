//! What a failed run means for the next one, told by the words of ONNX Runtime and of what it calls.

/// What has failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Memory for the run was not there: a smaller one may go well.
    OutOfMemory,
    /// The device, or all that this process has on it: no run goes well any more, whatever it computes.
    DeviceLost,
    /// Something else, which may concern this run alone.
    Other,
}

/// Numbers of CUDA's errors after which its context is of no use: ECC, NVLink, a contained error, illegal address, launch
/// timeout, destroyed context, assertion, those from the hardware's stack to a failed launch, a leak of tensor memory, and
/// unknown. (720 is a launch that was refused, and concerns nothing else.)
const LOST_NUMBERS: [u32; 15] = [214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];
/// Number of CUDA's error for want of memory.
const MEMORY_NUMBER: u32 = 2;
/// What stands before such a number.
const BEFORE_NUMBERS: [&str; 3] = ["cuda failure ", "cuda error code ", "cuda error "];

/// The same errors by name, and by the words that CUDA has for them.
const LOST: [&str; 29] = [
    "cudaerroreccuncorrectable",
    "cudaerrornvlinkuncorrectable",
    "cudaerrorcontained",
    "cudaerrorillegaladdress",
    "cudaerrorlaunchtimeout",
    "cudaerrorcontextisdestroyed",
    "cudaerrorassert",
    "cudaerrorhardwarestackerror",
    "cudaerrorillegalinstruction",
    "cudaerrormisalignedaddress",
    "cudaerrorinvalidaddressspace",
    "cudaerrorinvalidpc",
    "cudaerrorlaunchfailure",
    "cudaerrortensormemoryleak",
    "cudaerrorunknown",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "illegal memory access",
    "launch timed out and was terminated",
    "context is destroyed",
    "device-side assert",
    "hardware stack error",
    "illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
    "device lost",
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
];

/// What allocators say.
const MEMORY: [&str; 7] = [
    "cudaerrormemoryallocation",
    "out of memory",
    "failed to allocate memory",
    "is smaller than requested bytes of",
    "bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
];

impl Fault {
    /// By the words of an error, all of them.
    pub fn of(message: &str) -> Self {
        let message = message.to_lowercase();
        let has_number = |wanted: &[u32]| numbers(&message).any(|number| wanted.contains(&number));
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
        // What is lost may say on top of it that memory cannot be had.
        if has_number(&LOST_NUMBERS) || says(&LOST) {
            Self::DeviceLost
        } else if has_number(&[MEMORY_NUMBER]) || says(&MEMORY) {
            Self::OutOfMemory
        } else {
            Self::Other
        }
    }
}

/// Numbers of errors of CUDA in a text in lower case.
fn numbers(message: &str) -> impl Iterator<Item = u32> {
    let behind = |before: &'static str| message.split(before).skip(1);
    BEFORE_NUMBERS.into_iter().flat_map(behind).filter_map(|rest| {
        let end = rest.find(|next: char| !next.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_known_by_their_words() {
        let place = "; GPU=0 ; hostname=box ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc ; line=121 ; expr=cudaStreamSynchronize(stream_); ";
        let node = "Non-zero status code returned while running MatMulNBits node. Name:'/model/layers.3/mlp/up_proj/MatMul_Q4' Status Message: ";
        let cuda = |number: u32, words: &str| format!("CUDA failure {number}: {words} {place}");
        for message in [
            cuda(700, "an illegal memory access was encountered"),
            cuda(700, "etwas anderes"),
            cuda(214, "uncorrectable ECC error encountered"),
            cuda(702, "the launch timed out and was terminated"),
            cuda(709, "context is destroyed"),
            cuda(710, "device-side assert triggered"),
            cuda(714, "hardware stack error"),
            cuda(715, "an illegal instruction was encountered"),
            cuda(716, "misaligned address"),
            cuda(717, "operation not supported on global/shared address space"),
            cuda(718, "invalid program counter"),
            cuda(719, "unspecified launch failure"),
            cuda(220, "uncorrectable NVLink error detected during the execution"),
            cuda(226, "Invalid error containment"),
            cuda(721, "tensor memory not completely freed"),
            cuda(999, "unknown error"),
            format!("{node}CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered"),
            format!("{node}CUDA error cudaErrorLaunchFailure:unspecified launch failure"),
            "CUDA error 719".to_owned(),
            "CUDA error cudaErrorUnknown".to_owned(),
            format!("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED {place}"),
            format!("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED {place}"),
            "TensorRT EP failed: Cuda Runtime (an illegal memory access was encountered)".to_owned(),
            "the adapter reports: Device Lost".to_owned(),
            cuda(700, "an illegal memory access was encountered")
                + "Failed to allocate memory for requested buffer of size 8",
        ] {
            assert_eq!(Fault::of(&message), Fault::DeviceLost, "{message}");
        }
        for message in [
            cuda(2, "out of memory"),
            cuda(2, "nicht genug"),
            format!("{node}Failed to allocate memory for requested buffer of size 2147483648"),
            format!(
                "{node}/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Available memory of 1048576 is smaller than requested bytes of 2097152"
            ),
            "Exception during initialization: std::bad_alloc".to_owned(),
            format!("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED {place}"),
        ] {
            assert_eq!(Fault::of(&message), Fault::OutOfMemory, "{message}");
        }
        for message in [
            "Got invalid dimensions for input: input_ids for the following indices".to_owned(),
            format!("{node}indices element out of data bounds, idx=700 must be within the inclusive range [-512,511]"),
            cuda(1, "invalid argument"),
            cuda(720, "too many blocks in cooperative launch"),
            cuda(7000, "there is no such number"),
            cuda(20, "neither is this one of memory"),
            "TensorRT EP execution context enqueue failed.".to_owned(),
            "the graph returned 700 bytes in `present.0.key` where 2 were expected".to_owned(),
        ] {
            assert_eq!(Fault::of(&message), Fault::Other, "{message}");
        }
    }
}
