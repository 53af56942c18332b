//! How attention reads keys and values of either element type.

use crate::cpu::lanes::{LANES, Lanes, load_part};

/// Loads and dot products over one element type. A *unit* is what one line of a key group holds: a
/// dimension (f32) or a pair of dimensions (bf16) of sixteen tokens, 64 bytes either way.
pub(super) trait Form<L: Lanes> {
    type Key: Copy;
    /// Bytes of an element.
    const BYTES: usize;
    /// Dimensions of a unit.
    const UNIT: usize;
    /// 32-bit words that a packed query takes per unit.
    const WORDS: usize;

    /// Packs one query row for [`Self::dot`].
    /// # Safety
    /// `q.len() / UNIT * WORDS` words are writable at `to`.
    unsafe fn pack(lanes: L, q: &[f32], to: *mut u32);
    /// # Safety
    /// `group` is a key group with more than `unit` units.
    unsafe fn load_key(lanes: L, group: *const u8, unit: usize) -> Self::Key;
    /// Adds one unit's products.
    /// # Safety
    /// `q` points at the unit's words of a packed query.
    unsafe fn dot(lanes: L, acc: L::V, key: Self::Key, q: *const u32) -> L::V;
    /// Sixteen values from element `at` of a value group.
    /// # Safety
    /// They lie inside the group.
    unsafe fn load_value(lanes: L, group: *const u8, at: usize) -> L::V;
    /// The first `n` of sixteen values.
    /// # Safety
    /// They lie inside the group.
    unsafe fn load_value_part(lanes: L, group: *const u8, at: usize, n: usize) -> L::V;
}

pub(super) struct F32;

impl<L: Lanes> Form<L> for F32 {
    type Key = L::V;
    const BYTES: usize = 4;
    const UNIT: usize = 1;
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn pack(_: L, q: &[f32], to: *mut u32) {
        // SAFETY: the caller's contract; f32 and u32 are alike in size and alignment.
        unsafe { std::ptr::copy_nonoverlapping(q.as_ptr().cast(), to, q.len()) }
    }
    #[inline(always)]
    unsafe fn load_key(lanes: L, group: *const u8, unit: usize) -> L::V {
        // SAFETY: the caller's contract.
        unsafe { lanes.load(group.cast::<f32>().add(unit * LANES)) }
    }
    #[inline(always)]
    unsafe fn dot(lanes: L, acc: L::V, key: L::V, q: *const u32) -> L::V {
        // SAFETY: the caller's contract.
        let q = unsafe { q.cast::<f32>().read() };
        lanes.mul_add(key, lanes.splat(q), acc)
    }
    #[inline(always)]
    unsafe fn load_value(lanes: L, group: *const u8, at: usize) -> L::V {
        // SAFETY: the caller's contract.
        unsafe { lanes.load(group.cast::<f32>().add(at)) }
    }
    #[inline(always)]
    unsafe fn load_value_part(lanes: L, group: *const u8, at: usize, n: usize) -> L::V {
        // SAFETY: the caller's contract.
        unsafe { load_part(lanes, group.cast::<f32>().add(at), n) }
    }
}

/// bf16 keys and values. Where the dot product takes bf16 on both sides, queries are rounded to it: as
/// much error as the keys carry already, half the instructions.
pub(super) struct Bf16;

impl<L: Lanes> Form<L> for Bf16 {
    type Key = L::Pairs;
    const BYTES: usize = 2;
    const UNIT: usize = 2;
    const WORDS: usize = L::PAIR_WORDS;

    #[inline(always)]
    unsafe fn pack(lanes: L, q: &[f32], to: *mut u32) {
        for (i, [a, b]) in q.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { lanes.pack_pair(*a, *b, to.add(i * L::PAIR_WORDS)) }
        }
    }
    #[inline(always)]
    unsafe fn load_key(lanes: L, group: *const u8, unit: usize) -> L::Pairs {
        // SAFETY: the caller's contract.
        unsafe { lanes.load_pairs(group.cast::<u16>().add(unit * 2 * LANES)) }
    }
    #[inline(always)]
    unsafe fn dot(lanes: L, acc: L::V, key: L::Pairs, q: *const u32) -> L::V {
        // SAFETY: the caller's contract.
        unsafe { lanes.dot_pairs(acc, key, q) }
    }
    #[inline(always)]
    unsafe fn load_value(lanes: L, group: *const u8, at: usize) -> L::V {
        // SAFETY: the caller's contract.
        unsafe { lanes.load_bf16(group.cast::<u16>().add(at)) }
    }
    #[inline(always)]
    unsafe fn load_value_part(lanes: L, group: *const u8, at: usize, n: usize) -> L::V {
        let mut whole = [0u16; LANES];
        // SAFETY: the caller's contract, `n` ≤ 16.
        unsafe { std::ptr::copy_nonoverlapping(group.cast::<u16>().add(at), whole.as_mut_ptr(), n) };
        // SAFETY: an array of sixteen.
        unsafe { lanes.load_bf16(whole.as_ptr()) }
    }
}
