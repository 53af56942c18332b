//! The plan of the device's memory: the constructors of the load run over a ledger, which adds up.
//!
//! The obvious other, formulas beside the constructors, is right until somebody changes one of the two.

use std::cell::Cell;

use super::attention::Attention;
use super::driver::{ALIGN, DeviceInfo, DevicePtr, Memory};
use super::memory::Buffer;
use super::pages::DevicePages;
use super::rope::Angles;
use super::sampling::Sampler;
use super::step::StepArrays;
use super::weights::{Linear, Vector};
use crate::needs::{DevicePlan, MemoryNeeds};
use crate::{KernelError, StepLimits};

/// Left to the driver's recordings and the library's kernels. Not measured on a card yet.
const RESERVE: u64 = 256 << 20;

/// Takes no memory and notes how much was asked for.
#[derive(Debug, Default)]
struct Ledger(Cell<u64>);

impl Ledger {
    fn add(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes.max(1).next_multiple_of(ALIGN) as u64);
    }
}

impl Memory for Ledger {
    fn alloc(&self, bytes: usize, _what: &'static str) -> Result<DevicePtr, KernelError> {
        self.add(bytes);
        Ok(DevicePtr::NULL)
    }
}

/// What `needs` take of `device`, of which `free` bytes are to be had; refuses shapes that are not served.
pub(super) fn plan(
    device: &DeviceInfo,
    free: u64,
    logit_rows: usize,
    needs: &MemoryNeeds,
) -> Result<DevicePlan, KernelError> {
    let (weights, buffers) = (Ledger::default(), Ledger::default());
    for l in &needs.linears {
        let sizes = Linear::bytes_of(l.rows, l.cols, l.form)?;
        sizes.into_iter().filter(|&bytes| bytes > 0).for_each(|bytes| weights.add(bytes));
    }
    needs.vectors.iter().flat_map(|&len| Vector::bytes_of(len)).for_each(|bytes| weights.add(bytes));
    needs.ropes.iter().for_each(|&(positions, pairs)| buffers.add(Angles::bytes(positions, pairs)));
    for b in &needs.buffers {
        Buffer::new(&buffers, b.rows, b.cols, b.precision)?;
    }
    make_step(&buffers, device, logit_rows, needs.limits, needs)?;
    Ok(DevicePlan { free, weights: weights.0.get(), buffers: buffers.0.get(), reserve: RESERVE })
}

fn make_step(
    memory: &dyn Memory,
    device: &DeviceInfo,
    logit_rows: usize,
    limits: StepLimits,
    needs: &MemoryNeeds,
) -> Result<(), KernelError> {
    StepArrays::new(memory, limits, needs.kv.page_tokens)?;
    Attention::new(memory, device.sms, limits, &needs.kv, None)?;
    Sampler::new(memory, limits.rows.min(logit_rows))?;
    DevicePages::lists(memory, needs.kv)?;
    Ok(())
}
