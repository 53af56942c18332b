//! What can go wrong while loading into a backend. Ops of a step do not fail: shapes are checked when
//! weights and buffers are made, and a violation there is a bug that panics.

use base::Bytes;

/// A refusal at load time.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("tensor has {have} bytes, its shape {rows}x{cols} of {kind} needs {need}")]
    Size { have: usize, need: usize, rows: usize, cols: usize, kind: &'static str },
    #[error("parts of a stacked weight differ in columns: {0} and {1}")]
    Columns(usize, usize),
    #[error("cannot allocate {0} for {1}")]
    Memory(Bytes, &'static str),
    #[error("{what} = {value} is not supported by the {backend} backend: {why}")]
    Unsupported { backend: &'static str, what: &'static str, value: usize, why: &'static str },
    #[error("{what} in {form} are not supported by the {backend} backend: {why}")]
    Form { backend: &'static str, what: &'static str, form: &'static str, why: &'static str },
    #[error("cannot start worker threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// The device does not answer any more: an error that a fault in a kernel or the hardware leaves behind fails every
/// later call of the process, whatever it asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is lost: {0}")]
pub struct DeviceLost(pub String);
