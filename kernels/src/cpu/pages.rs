//! The page pool of the CPU backend: one region, `[page][layer][K,V][kv_head][block]`.
//!
//! A *block* is one head's tokens of one page, in groups of sixteen tokens so that sixteen scores are the
//! lanes of one register and no dot product needs a horizontal sum:
//!
//! ```text
//! K, f32    [token / 16][dim][16 tokens]               one line of the group = one dim of 16 tokens
//! K, bf16   [token / 16][dim / 2][16 tokens][2 dims]   … = a pair of dims, as the bf16 dot product reads
//! V         [token][dim]                               one line = 16 (32) dims of one token
//! ```
//!
//! A group of K and a group of V take the same bytes, and no group crosses a page: attention only ever sees
//! groups, so the page size cannot change its bits. Slots that hold no token may hold anything.

use std::marker::PhantomData;

use super::arena::Region;
use crate::{KernelError, KvShape, KvType};

/// Tokens whose keys are interleaved.
pub(crate) const GROUP_TOKENS: usize = 16;

/// Which half of a layer's page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    K,
    V,
}

/// Refuses what there are no attention kernels for: a CPU would widen e4m3 in software, once for each reading.
pub fn check_kind(kind: KvType) -> Result<(), KernelError> {
    match kind {
        KvType::F32 | KvType::Bf16 => Ok(()),
        KvType::E4m3 => Err(KernelError::Form {
            backend: "cpu",
            what: "keys and values",
            form: "fp8",
            why: "bfloat16 is what its kernels read",
        }),
    }
}

/// All pages of the device tier.
pub struct KvPages {
    memory: Region,
    shape: KvShape,
}

impl KvPages {
    pub fn new(shape: KvShape) -> Result<Self, KernelError> {
        let refuse = |what, value, why| Err(KernelError::Unsupported { backend: "cpu", what, value, why });
        if ![16, 32, 64].contains(&shape.page_tokens) {
            return refuse("page_tokens", shape.page_tokens, "pages hold 16, 32 or 64 tokens");
        }
        if !shape.head_dim.is_multiple_of(2) || !(2..=256).contains(&shape.head_dim) {
            return refuse("head_dim", shape.head_dim, "heads have an even number of dimensions up to 256");
        }
        check_kind(shape.kind)?;
        let bytes = shape.page_bytes().saturating_mul(shape.pages);
        Ok(Self { memory: Region::new(bytes, "kv pages")?, shape })
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// The blocks of one layer and KV head, for reading.
    pub(crate) fn blocks(&self, layer: usize, head: usize) -> Blocks<'_> {
        let s = &self.shape;
        let key = group_offset(s, 0, layer, Side::K, head, 0);
        Blocks {
            memory: self.memory.as_slice(),
            first_key: key,
            to_value: group_offset(s, 0, layer, Side::V, head, 0) - key,
            page_bytes: s.page_bytes(),
            page_shift: s.page_tokens.trailing_zeros(),
            token_bytes: s.head_dim * s.kind.bytes(),
        }
    }

    /// For writing tokens from several workers.
    pub fn writer(&mut self) -> PageWriter<'_> {
        PageWriter {
            base: self.memory.as_mut_slice::<u8>().as_mut_ptr(),
            shape: self.shape,
            _borrow: PhantomData,
        }
    }

    pub fn copy(&mut self, pairs: &[(u32, u32)]) {
        let len = self.shape.page_bytes();
        for &(from, to) in pairs {
            let from = from as usize * len;
            self.memory.as_mut_slice::<u8>().copy_within(from..from + len, to as usize * len);
        }
    }

    pub fn zero(&mut self, pages: &[u32]) {
        pages.iter().for_each(|&page| self.page_mut(page).fill(0));
    }

    /// True if every byte of the page is zero.
    pub fn is_zero(&self, page: u32) -> bool {
        // Or-ing a line at a time keeps the loop free of branches; pages are whole lines.
        let lines = self.page(page).as_chunks::<64>().0;
        lines.iter().all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
    }

    pub fn page(&self, page: u32) -> &[u8] {
        let len = self.shape.page_bytes();
        &self.memory.as_slice()[page as usize * len..(page as usize + 1) * len]
    }

    pub fn page_mut(&mut self, page: u32) -> &mut [u8] {
        let len = self.shape.page_bytes();
        &mut self.memory.as_mut_slice()[page as usize * len..(page as usize + 1) * len]
    }
}

/// One layer's keys and values of one head, over all pages.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    memory: &'a [u8],
    first_key: usize,
    to_value: usize,
    page_bytes: usize,
    page_shift: u32,
    token_bytes: usize,
}

impl Blocks<'_> {
    /// Starts of the key and value groups of the sixteen tokens from position `token`, by page table. A
    /// group is 64-byte aligned and `16 × head_dim` elements long.
    #[inline(always)]
    pub(crate) fn groups(&self, table: &[u32], token: usize) -> (*const u8, *const u8) {
        let slot = token & ((1 << self.page_shift) - 1);
        let page = table[token >> self.page_shift] as usize;
        let key = page * self.page_bytes + self.first_key + slot * self.token_bytes;
        let value = key + self.to_value;
        assert!(
            value + GROUP_TOKENS * self.token_bytes <= self.memory.len(),
            "page {page} is outside the pool"
        );
        (self.memory[key..].as_ptr(), self.memory[value..].as_ptr())
    }
}

/// The pages while workers store tokens into them, each token by one worker.
#[derive(Clone, Copy)]
pub struct PageWriter<'a> {
    base: *mut u8,
    shape: KvShape,
    _borrow: PhantomData<&'a mut KvPages>,
}

// SAFETY: writing goes through an `unsafe` method whose contract is disjointness between threads.
unsafe impl Send for PageWriter<'_> {}
// SAFETY: as above.
unsafe impl Sync for PageWriter<'_> {}

impl PageWriter<'_> {
    pub fn page_tokens(&self) -> usize {
        self.shape.page_tokens
    }

    /// Writes one head's key or value of one token.
    ///
    /// # Safety
    /// Nobody else writes or reads this token's slot meanwhile.
    pub unsafe fn put(
        &self,
        (page, slot): (u32, usize),
        layer: usize,
        side: Side,
        head: usize,
        values: &[f32],
    ) {
        assert_eq!(values.len(), self.shape.head_dim);
        let at = group_offset(&self.shape, page, layer, side, head, slot);
        // SAFETY: `group_offset` has checked its indices, so the group lies inside the region.
        let group = unsafe { self.base.add(at) };
        let lane = slot % GROUP_TOKENS;
        // Where dimension `d` goes within the group, in elements.
        let place = |d: usize| match (side, self.shape.kind) {
            (Side::V, _) => lane * values.len() + d,
            (Side::K, KvType::F32) => d * GROUP_TOKENS + lane,
            (Side::K, _) => (d / 2) * 2 * GROUP_TOKENS + lane * 2 + d % 2,
        };
        for (d, &value) in values.iter().enumerate() {
            match self.shape.kind {
                // SAFETY: `place` stays inside the group; exclusive by the caller's contract.
                KvType::F32 => unsafe { group.cast::<f32>().add(place(d)).write(value) },
                KvType::Bf16 => {
                    let bits = half::bf16::from_f32(value).to_bits();
                    // SAFETY: as above.
                    unsafe { group.cast::<u16>().add(place(d)).write(bits) }
                }
                KvType::E4m3 => unreachable!("refused when the pages were made"),
            }
        }
    }
}

/// Byte offset of a group in the region; panics on any index outside the pool.
fn group_offset(s: &KvShape, page: u32, layer: usize, side: Side, head: usize, slot: usize) -> usize {
    assert!((page as usize) < s.pages && layer < s.layers && head < s.kv_heads && slot < s.page_tokens);
    let block = ((page as usize * s.layers + layer) * 2 + side as usize) * s.kv_heads + head;
    block * s.block_bytes() + slot / GROUP_TOKENS * GROUP_TOKENS * s.head_dim * s.kind.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: KvType) -> KvShape {
        KvShape { pages: 3, page_tokens: 32, layers: 2, kv_heads: 2, head_dim: 6, kind }
    }

    #[test]
    fn keys_lie_by_sixteen_tokens_and_values_by_token() {
        let mut pages = KvPages::new(shape(KvType::F32)).unwrap();
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for side in [Side::K, Side::V] {
            // SAFETY: one thread.
            unsafe { pages.writer().put((2, 17), 1, side, 1, &values) };
        }
        let page: &[f32] = bytemuck::cast_slice(pages.page(2));
        let (block, group) = (32 * 6, 16 * 6);
        let k = &page[5 * block + group..][..group];
        let v = &page[7 * block + group..][..group];
        for d in 0..6 {
            assert_eq!((k[d * 16 + 1], v[6 + d]), (values[d], values[d]));
        }
        assert_eq!(page.iter().filter(|x| **x != 0.0).count(), 12);
    }

    #[test]
    fn bf16_keys_lie_in_pairs_of_dimensions() {
        let mut pages = KvPages::new(shape(KvType::Bf16)).unwrap();
        // SAFETY: one thread.
        unsafe { pages.writer().put((0, 3), 0, Side::K, 0, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) };
        let page: &[half::bf16] = bytemuck::cast_slice(pages.page(0));
        let at = |d: usize| page[(d / 2) * 32 + 3 * 2 + d % 2].to_f32();
        assert_eq!([at(0), at(1), at(2), at(5)], [1.0, 2.0, 3.0, 6.0]);
    }

    #[test]
    fn pages_copy_zero_and_scan_whole() {
        let mut pages = KvPages::new(shape(KvType::Bf16)).unwrap();
        pages.page_mut(1).fill(7);
        pages.copy(&[(1, 2)]);
        let silent = |of: &[u32]| of.iter().all(|&page| pages.is_zero(page));
        assert!(silent(&[0]) && !silent(&[2]) && !silent(&[0, 1]));
        assert_eq!(pages.page(1), pages.page(2));
        pages.zero(&[1]);
        assert!(pages.is_zero(0) && pages.is_zero(1) && !pages.is_zero(2));
        let last = pages.shape().page_bytes() - 1;
        pages.zero(&[2]);
        pages.page_mut(2)[last] = 1;
        assert!(!pages.is_zero(2));
    }

    #[test]
    fn strange_shapes_are_refused() {
        for bad in [
            KvShape { page_tokens: 48, ..shape(KvType::F32) },
            KvShape { head_dim: 7, ..shape(KvType::F32) },
            KvShape { head_dim: 258, ..shape(KvType::F32) },
        ] {
            assert!(matches!(KvPages::new(bad), Err(KernelError::Unsupported { .. })));
        }
    }
}
