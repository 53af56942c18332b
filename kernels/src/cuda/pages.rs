//! The page pool on the device: `[page][layer][K,V][kv_head][token][dim]` in bf16, one allocation.
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
        if !shape.head_dim.is_multiple_of(8) || !(8..=256).contains(&shape.head_dim) {
            return refuse("head_dim", shape.head_dim, "heads have a multiple of 8 dimensions up to 256");
        }
        if shape.kind != KvType::Bf16 {
            return refuse("kv bits", 32, "keys and values are held as bf16 on a GPU");
        }
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
        let head = s.page_tokens * s.head_dim;
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
