//! The page pool on the device: `[page][layer][K,V][kv_head][token][dim]` in bf16 or e4m3, one allocation.
//! e4m3 has the exponents of a head's tokens behind its values, and dims interleaved (`kernels/cu/rope_store.cu`).
//!
//! A page is one contiguous extent, so tiers copy it in one piece. Lists of pages are uploaded and worked off
//! by one launch; zeroing and looking are two, since what is read back must not be what a kernel still holds.

use super::driver::{DevicePtr, Driver, Memory};
use super::memory::DeviceArray;
use super::params::pages::{PageCopyParams, PageVerifyParams, PageZeroParams};
use crate::{KernelError, KvShape, KvType};

/// Pages that one launch works off; longer lists are cut.
const LIST: usize = 4096;

pub(super) struct DevicePages {
    at: DevicePtr,
    shape: KvShape,
    list: DeviceArray<u32>,
    counts: DeviceArray<u32>,
}

/// Refuses what there are no kernels for.
pub(super) fn check_kind(kind: KvType, head_dim: usize) -> Result<(), KernelError> {
    let unit = match kind {
        KvType::Bf16 => 8,
        KvType::E4m3 => 16,
        KvType::F32 => {
            return Err(KernelError::Form {
                backend: "cuda",
                what: "keys and values",
                form: "float32",
                why: "a GPU holds them in bfloat16 or fp8",
            });
        }
    };
    if head_dim.is_multiple_of(unit) && (unit..=256).contains(&head_dim) {
        return Ok(());
    }
    let why = match kind {
        KvType::E4m3 => "with fp8 pages heads have a multiple of 16 dimensions up to 256",
        _ => "heads have a multiple of 8 dimensions up to 256",
    };
    Err(KernelError::Unsupported { backend: "cuda", what: "head_dim", value: head_dim, why })
}

impl DevicePages {
    pub fn new(driver: &dyn Driver, shape: KvShape) -> Result<Self, KernelError> {
        let mut made = Self::lists(driver, shape)?;
        let bytes = shape.page_bytes() * shape.pages;
        made.at = driver.alloc_pool(bytes)?;
        driver.zero(made.at, bytes);
        Ok(made)
    }

    /// All but the pages themselves; refuses shapes that the kernels do not serve.
    pub fn lists(memory: &dyn Memory, shape: KvShape) -> Result<Self, KernelError> {
        let refuse = |what, value, why| Err(KernelError::Unsupported { backend: "cuda", what, value, why });
        if ![16, 32, 64].contains(&shape.page_tokens) {
            return refuse("page_tokens", shape.page_tokens, "pages hold 16, 32 or 64 tokens");
        }
        check_kind(shape.kind, shape.head_dim)?;
        Ok(Self {
            at: DevicePtr::NULL,
            shape,
            list: DeviceArray::new(memory, 2 * LIST, "page lists")?,
            counts: DeviceArray::new(memory, LIST, "page lists")?,
        })
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }
    pub fn base(&self) -> DevicePtr {
        self.at
    }

    /// Elements from a page to the next, from K to V, from head to head.
    pub fn strides(&self) -> (u64, u64, u64) {
        let s = &self.shape;
        let head = s.block_bytes() / s.kind.bytes();
        ((s.layers * 2 * s.kv_heads * head) as u64, (s.kv_heads * head) as u64, head as u64)
    }

    /// Keys of `layer` in page 0.
    pub fn layer(&self, layer: usize) -> DevicePtr {
        let s = &self.shape;
        self.at.plus(layer * 2 * s.kv_heads * s.block_bytes())
    }

    pub fn copy(&self, driver: &dyn Driver, pairs: &[(u32, u32)]) {
        for pairs in pairs.chunks(LIST) {
            let flat: Vec<u32> = pairs.iter().flat_map(|&(from, to)| [from, to]).collect();
            self.list.put(driver, &flat);
            let params = PageCopyParams {
                pool: self.at,
                pairs: self.list.at(),
                page_bytes: self.shape.page_bytes() as u64,
                count: pairs.len() as u32,
                pad: 0,
            };
            driver.launch(&params.launch(driver.device().sms));
        }
    }

    pub fn zero(&self, driver: &dyn Driver, pages: &[u32]) {
        for pages in pages.chunks(LIST) {
            self.list.put(driver, pages);
            let params = PageZeroParams {
                pool: self.at,
                pages: self.list.at(),
                page_bytes: self.shape.page_bytes() as u64,
                count: pages.len() as u32,
                pad: 0,
            };
            driver.launch(&params.launch(driver.device().sms));
        }
    }

    /// Those that hold a byte other than zero.
    pub fn unclean(&self, driver: &dyn Driver, pages: &[u32]) -> Vec<u32> {
        let mut unclean = Vec::new();
        for pages in pages.chunks(LIST) {
            self.list.put(driver, pages);
            driver.zero(self.counts.at(), size_of_val(pages));
            let params = PageVerifyParams {
                pool: self.at,
                pages: self.list.at(),
                counts: self.counts.at(),
                page_bytes: self.shape.page_bytes() as u64,
                count: pages.len() as u32,
                pad: 0,
            };
            driver.launch(&params.launch(driver.device().sms));
            let counts = self.counts.get(driver, pages.len());
            unclean.extend(pages.iter().zip(counts).filter(|&(_, count)| count > 0).map(|(&page, _)| page));
        }
        unclean
    }

    pub fn read(&self, driver: &dyn Driver, page: u32, out: &mut [u8]) {
        driver.download(self.page(page), out);
    }

    pub fn write(&self, driver: &dyn Driver, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.shape.page_bytes());
        driver.upload(self.page(page), bytes);
    }

    /// Where a page's bytes lie.
    pub fn page(&self, page: u32) -> DevicePtr {
        assert!((page as usize) < self.shape.pages, "page {page} outside the pool");
        self.at.plus(page as usize * self.shape.page_bytes())
    }
}
