//! Activations in the form that the tiles broadcast from, blocks of a few rows side by side.
//!
//! Converted once per op: a prefill reads each activation a hundred times, and a strided row-major source
//! would put all rows of a tile into one set of the first-level cache. What a row becomes depends on that
//! row alone; the block it lies in only decides where its words go.

use std::ops::Range;

use super::form::Form;
use super::geometry::{GROUP, row_group_bytes};
use super::pack::{bf16_bits, pair};
use super::quant::quantize_activations;
#[cfg(target_arch = "x86_64")]
use super::x86::activations_avx512::pack_whole;
use crate::cpu::arena::Rows;
use crate::cpu::isa::Isa;

/// How rows are cut into blocks: as few as possible, as even as possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocks {
    rows: usize,
    pub count: usize,
}

impl Blocks {
    pub fn new(rows: usize, rows_max: usize) -> Self {
        Self { rows, count: rows.div_ceil(rows_max) }
    }
    /// The rows of block `index`.
    pub fn rows(&self, index: usize) -> Range<usize> {
        self.rows * index / self.count..self.rows * (index + 1) / self.count
    }
}

/// Packs the rows `block` and groups `part` of `x` into `out`, which holds exactly these.
pub fn pack_block(
    x: &Rows<'_>,
    block: Range<usize>,
    part: Range<usize>,
    form: Form,
    isa: Isa,
    out: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512 => return pack_block_avx512(x, block, part, form, out),
        // SAFETY: the set was found at run time.
        Isa::Avx2 => return unsafe { pack_block_avx2(x, block, part, form, out) },
        Isa::Portable => {}
    }
    let _ = isa;
    pack_block_any(x, block, part, form, out);
}

/// Whole groups by hand-written code, the ragged last one by the plain loop.
#[cfg(target_arch = "x86_64")]
fn pack_block_avx512(x: &Rows<'_>, block: Range<usize>, part: Range<usize>, form: Form, out: &mut [u8]) {
    let whole = part.start..part.end.min(x.cols / GROUP).max(part.start);
    let (done, rest) = out.split_at_mut(whole.len() * block.len() * row_group_bytes(form));
    // SAFETY: the set was found at run time.
    unsafe { pack_whole(x, block.clone(), whole.clone(), form, done) };
    if whole.end < part.end {
        pack_block_any(x, block, whole.end..part.end, form, rest);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn pack_block_avx2(x: &Rows<'_>, block: Range<usize>, part: Range<usize>, form: Form, out: &mut [u8]) {
    pack_block_any(x, block, part, form, out);
}

#[inline(always)]
fn pack_block_any(x: &Rows<'_>, block: Range<usize>, part: Range<usize>, form: Form, out: &mut [u8]) {
    let count = block.len();
    for (lane, row) in block.enumerate() {
        let row = x.row(row);
        let row = &row[part.start * GROUP..(part.end * GROUP).min(row.len())];
        let (whole, rest) = row.as_chunks::<GROUP>();
        let mut last = [0f32; GROUP];
        last[..rest.len()].copy_from_slice(rest);
        let groups = whole.iter().chain((!rest.is_empty()).then_some(&last));
        for (values, out) in groups.zip(out.chunks_exact_mut(count * row_group_bytes(form))) {
            pack_group(values, lane, count, form, out);
        }
    }
}

#[inline(always)]
fn pack_group(values: &[f32; GROUP], lane: usize, count: usize, form: Form, out: &mut [u8]) {
    match form {
        Form::F32 | Form::F16 => scatter(out, lane, count, values.map(f32::to_bits)),
        Form::Bf16 => {
            let bits = values.map(bf16_bits);
            let pairs: [u32; 16] = std::array::from_fn(|j| pair(bits[2 * j], bits[2 * j + 1]));
            scatter(out, lane, count, pairs);
        }
        Form::Q8 | Form::Q4 => {
            let (scale, q) = quantize_activations(values);
            let offset = if form == Form::Q8 { -128 } else { -8 };
            let sum: i32 = q.iter().map(|&v| i32::from(v)).sum();
            let mut words = [0u32; 10];
            for (word, b) in words.iter_mut().zip(q.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(b.map(|v| v as u8));
            }
            words[8] = (offset * sum) as u32;
            words[9] = scale.to_bits();
            scatter(out, lane, count, words);
        }
    }
}

/// Word `j` of row `lane` goes to place `j * count + lane`.
#[inline(always)]
fn scatter<const N: usize>(out: &mut [u8], lane: usize, count: usize, words: [u32; N]) {
    let out = &mut out.as_chunks_mut::<4>().0[..N * count];
    for (place, word) in out.chunks_exact_mut(count).zip(words) {
        place[lane] = word.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_few_and_even() {
        for (rows, rows_max, sizes) in [(1, 12, vec![1]), (16, 12, vec![8, 8]), (25, 12, vec![8, 8, 9])] {
            let blocks = Blocks::new(rows, rows_max);
            assert_eq!((0..blocks.count).map(|b| blocks.rows(b).len()).collect::<Vec<_>>(), sizes);
        }
        assert_eq!(Blocks::new(0, 12).count, 0);
    }

    #[test]
    fn a_row_packs_to_the_same_words_in_any_block() {
        let data: Vec<f32> = (0..5 * 70).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let x = Rows::new(&data, 5, 70);
        for form in [Form::F32, Form::F16, Form::Bf16, Form::Q8, Form::Q4] {
            let size = 3 * row_group_bytes(form);
            let mut all = vec![0u8; 5 * size];
            pack_block(&x, 0..5, 0..3, form, Isa::Portable, &mut all);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                for row in 0..5 {
                    let mut one = vec![0u8; size];
                    pack_block(&x, row..row + 1, 0..3, form, isa, &mut one);
                    let same = one.chunks(4).enumerate().all(|(j, w)| w == &all[(j * 5 + row) * 4..][..4]);
                    assert!(same, "{form:?} {isa:?} row {row}");
                }
            }
        }
    }
}
