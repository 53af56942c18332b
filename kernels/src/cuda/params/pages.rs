//! `kernels/cu/pages.cu`: whole pages, by list.
//!
//! Lists and counts lie in device memory; the number of pages is in the parameters, since none of this is
//! part of a recorded step.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};

const BLOCK: u32 = 256;
/// Bytes that a block moves at a time.
const CHUNK: u64 = 16 << 10;
/// Blocks that fit an SM.
const SM_BLOCKS: u32 = 8;

/// Pool pages copied inside the pool.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct PageCopyParams {
    pub pool: DevicePtr,
    /// u32 `[count][from, to]`; no destination is a source.
    pub pairs: DevicePtr,
    /// A multiple of 16.
    pub page_bytes: u64,
    pub count: u32,
    pub pad: u32,
}

/// Pool pages overwritten with zeros.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct PageZeroParams {
    pub pool: DevicePtr,
    pub pages: DevicePtr,
    pub page_bytes: u64,
    pub count: u32,
    pub pad: u32,
}

/// Nonzero words of pool pages, counted from memory.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct PageVerifyParams {
    pub pool: DevicePtr,
    pub pages: DevicePtr,
    /// u32 `[count]`, zero before the launch.
    pub counts: DevicePtr,
    pub page_bytes: u64,
    pub count: u32,
    pub pad: u32,
}

/// Pool pages to or from `staging`, `[count][page_bytes]`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct PageStageParams {
    pub pool: DevicePtr,
    pub pages: DevicePtr,
    pub staging: DevicePtr,
    pub page_bytes: u64,
    pub count: u32,
    pub pad: u32,
}

/// As many blocks as are of use on `sms` multiprocessors.
fn grid(page_bytes: u64, count: u32, sms: u32) -> [u32; 3] {
    assert!(page_bytes.is_multiple_of(16), "pages of {page_bytes} bytes");
    let chunks = page_bytes.div_ceil(CHUNK) * u64::from(count);
    [chunks.clamp(1, u64::from(sms * SM_BLOCKS)) as u32, 1, 1]
}

impl PageCopyParams {
    pub fn launch(&self, sms: u32) -> Launch<'_> {
        super::launch("quire_page_copy", grid(self.page_bytes, self.count, sms), BLOCK, self)
    }
}

impl PageZeroParams {
    pub fn launch(&self, sms: u32) -> Launch<'_> {
        super::launch("quire_page_zero", grid(self.page_bytes, self.count, sms), BLOCK, self)
    }
}

impl PageVerifyParams {
    pub fn launch(&self, sms: u32) -> Launch<'_> {
        super::launch("quire_page_verify", grid(self.page_bytes, self.count, sms), BLOCK, self)
    }
}

impl PageStageParams {
    /// Pool to staging.
    pub fn launch_gather(&self, sms: u32) -> Launch<'_> {
        super::launch("quire_page_gather", grid(self.page_bytes, self.count, sms), BLOCK, self)
    }

    /// Staging to pool.
    pub fn launch_scatter(&self, sms: u32) -> Launch<'_> {
        super::launch("quire_page_scatter", grid(self.page_bytes, self.count, sms), BLOCK, self)
    }
}
