//! Packing weights on load: rows of a file become panels (see `geometry`).
//!
//! Each row gives the words (u32) that one lane of a step takes, and a panel is their transpose; so every
//! form is one function from 32 inputs to a few words. All workers pack, each whole panels, straight from
//! the mapped file: there is no intermediate copy of a tensor. The rounding is plain Rust, compiled once
//! more for AVX2 because quantizing with SSE2 would be slower than reading the file.

use half::f16;

use super::form::Form;
use super::geometry::{GROUP, PANEL, group_bytes, scales_at};
use super::quant::{QuantGroup, quantize_q4, quantize_q8};
use crate::cpu::arena::RowsMut;
use crate::cpu::isa::Isa;
use crate::cpu::pool::{Pool, Tickets};
use crate::{HostTensor, HostType, KernelError};

/// Groups of a row that are packed before the next row's: what is written stays in the first-level cache.
const CHUNK: usize = 8;

/// Rows and columns of `parts` stacked; refuses parts of different widths.
pub fn stacked(parts: &[HostTensor<'_>]) -> Result<(usize, usize), KernelError> {
    let cols = parts.first().map_or(0, HostTensor::cols);
    if let Some(odd) = parts.iter().find(|p| p.cols() != cols) {
        return Err(KernelError::Columns(cols, odd.cols()));
    }
    Ok((parts.iter().map(HostTensor::rows).sum(), cols))
}

/// Fills `panels` (one row per panel) with `parts` stacked.
pub fn pack(parts: &[HostTensor<'_>], form: Form, isa: Isa, pool: &Pool, panels: &RowsMut<'_, u8>) {
    let sources: Vec<RowBytes<'_>> =
        parts.iter().flat_map(|part| (0..part.rows()).map(|row| RowBytes::of(part, row))).collect();
    let tickets = Tickets::new(panels.rows, 1);
    pool.run(&|_, _| {
        while let Some(taken) = tickets.take() {
            for panel in taken {
                let from = (panel * PANEL).min(sources.len());
                let rows = &sources[from..(from + PANEL).min(sources.len())];
                // SAFETY: each ticket is taken once, so each panel is written by one worker.
                let out = unsafe { panels.row(panel) };
                pack_panel(rows, form, isa, out);
            }
        }
    });
}

/// One row of a tensor in host memory.
#[derive(Clone, Copy)]
struct RowBytes<'a> {
    kind: HostType,
    bytes: &'a [u8],
}

impl<'a> RowBytes<'a> {
    fn of(tensor: &HostTensor<'a>, row: usize) -> Self {
        Self { kind: tensor.kind(), bytes: tensor.row_range(row, row + 1).bytes() }
    }

    /// Inputs `g * 32..` of the row as raw bytes; short at the end of the row.
    #[inline(always)]
    fn group(&self, g: usize) -> &'a [u8] {
        let width = GROUP * self.kind.bytes();
        &self.bytes[g * width..((g + 1) * width).min(self.bytes.len())]
    }
}

fn pack_panel(rows: &[RowBytes<'_>], form: Form, isa: Isa, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the set was found at run time.
        return unsafe { pack_panel_avx2(rows, form, out) };
    }
    let _ = isa;
    pack_panel_any(rows, form, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn pack_panel_avx2(rows: &[RowBytes<'_>], form: Form, out: &mut [u8]) {
    pack_panel_any(rows, form, out);
}

#[inline(always)]
fn pack_panel_any(rows: &[RowBytes<'_>], form: Form, out: &mut [u8]) {
    let size = group_bytes(form);
    for (c, chunk) in out.chunks_mut(CHUNK * size).enumerate() {
        for (o, row) in rows.iter().enumerate() {
            prefetch_later(rows, o, c);
            for (g, group) in chunk.chunks_exact_mut(size).enumerate() {
                pack_lane(group, o, row.kind, row.group(c * CHUNK + g), form);
            }
        }
        for group in chunk.chunks_exact_mut(size) {
            offset_missing(group, rows.len(), form);
        }
    }
}

/// Rows of a file lie far apart, so the processor's own prefetcher does not see the next one coming.
#[inline(always)]
fn prefetch_later(rows: &[RowBytes<'_>], o: usize, c: usize) {
    const ROWS_AHEAD: usize = 4;
    let later = o + ROWS_AHEAD;
    let Some(row) = rows.get(later % rows.len()) else { return };
    let width = CHUNK * GROUP * row.kind.bytes();
    let from = (c + later / rows.len()) * width;
    for line in row.bytes.get(from..).unwrap_or_default().iter().take(width).step_by(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

#[inline(always)]
fn pack_lane(group: &mut [u8], o: usize, kind: HostType, bytes: &[u8], form: Form) {
    match form {
        Form::Bf16 if kind == HostType::Bf16 => scatter(group, o, words::<16>(bytes)),
        Form::F16 if kind == HostType::F16 => scatter_halves(group, o, halves(bytes)),
        Form::F32 if kind == HostType::F32 => scatter(group, o, words::<32>(bytes)),
        _ => pack_converted(group, o, &widened(kind, bytes), form),
    }
}

#[inline(always)]
fn pack_converted(group: &mut [u8], o: usize, values: &[f32; GROUP], form: Form) {
    match form {
        Form::F32 => scatter(group, o, values.map(f32::to_bits)),
        Form::F16 => scatter_halves(group, o, values.map(|v| f16::from_f32(v).to_bits())),
        Form::Bf16 => {
            let bits = values.map(bf16_bits);
            let pairs: [u32; 16] = std::array::from_fn(|j| pair(bits[2 * j], bits[2 * j + 1]));
            scatter(group, o, pairs);
        }
        Form::Q8 => {
            let quant = quantize_q8(values);
            let bytes = quant.values.map(|v| (i16::from(v) + 128) as u8);
            let quads: [u32; 8] = std::array::from_fn(|j| quad(&bytes[4 * j..]));
            scatter(group, o, quads);
            store_scale(group, o, &quant, form);
        }
        Form::Q4 => {
            let quant = quantize_q4(values);
            let n = quant.values.map(|v| (v + 8) as u8);
            let both: [u8; 16] = std::array::from_fn(|b| {
                let low = b / 4 * 8 + b % 4;
                n[low] | n[low + 4] << 4
            });
            let quads: [u32; 4] = std::array::from_fn(|j| quad(&both[4 * j..]));
            scatter(group, o, quads);
            store_scale(group, o, &quant, form);
        }
    }
}

/// Zero weights for outputs that the panel has but the tensor lacks: the offset with scale zero.
#[inline(always)]
fn offset_missing(group: &mut [u8], present: usize, form: Form) {
    for o in present..PANEL {
        match form {
            Form::Q8 => scatter(group, o, [0x8080_8080u32; 8]),
            Form::Q4 => scatter(group, o, [0x8888_8888u32; 4]),
            _ => {} // zero already
        }
    }
}

/// Writes the words of output `o`: step `j` of the group has 32 words, one per output.
#[inline(always)]
fn scatter<const N: usize>(group: &mut [u8], o: usize, words: [u32; N]) {
    for (step, word) in group.chunks_exact_mut(PANEL * 4).zip(words) {
        step[o * 4..o * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
}

#[inline(always)]
fn scatter_halves(group: &mut [u8], o: usize, halves: [u16; GROUP]) {
    for (step, half) in group.chunks_exact_mut(PANEL * 2).zip(halves) {
        step[o * 2..o * 2 + 2].copy_from_slice(&half.to_le_bytes());
    }
}

#[inline(always)]
fn store_scale(group: &mut [u8], o: usize, quant: &QuantGroup, form: Form) {
    let at = scales_at(form) + o * 2;
    group[at..at + 2].copy_from_slice(&quant.scale.to_bits().to_le_bytes());
}

/// The bytes of a group as words, zeros where the row has ended.
#[inline(always)]
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut out = [0u32; N];
    if bytes.len() == N * 4 {
        for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *o = u32::from_le_bytes(*b);
        }
    } else {
        for (i, &b) in bytes.iter().enumerate() {
            out[i / 4] |= u32::from(b) << (i % 4 * 8);
        }
    }
    out
}

#[inline(always)]
fn halves(bytes: &[u8]) -> [u16; GROUP] {
    let mut out = [0u16; GROUP];
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = u16::from_le_bytes(*b);
    }
    out
}

/// A group widened to f32, zeros where the row has ended.
#[inline(always)]
fn widened(kind: HostType, bytes: &[u8]) -> [f32; GROUP] {
    match kind {
        HostType::F32 => words::<32>(bytes).map(f32::from_bits),
        HostType::Bf16 => halves(bytes).map(|h| f32::from_bits(u32::from(h) << 16)),
        HostType::F16 => halves(bytes).map(|h| f16::from_bits(h).to_f32()),
    }
}

/// Rounds to bf16, nearest even; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

#[inline(always)]
pub fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

#[inline(always)]
fn quad(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn packed(values: &[f32], rows: usize, form: Form, isa: Isa) -> Vec<u8> {
        let cols = values.len() / rows;
        let bytes = bytemuck::cast_slice(values);
        let tensor = HostTensor::new(HostType::F32, rows, cols, bytes).unwrap();
        let (panels, width) = (rows.div_ceil(PANEL), cols.div_ceil(GROUP) * group_bytes(form));
        let mut out = vec![0u8; panels * width];
        let pool = Pool::new(2).unwrap();
        pack(&[tensor], form, isa, &pool, &RowsMut::new(&mut out, panels, width));
        out
    }

    #[test]
    fn stacking_refuses_unequal_widths() {
        let bytes = [0u8; 48];
        let a = HostTensor::new(HostType::F32, 2, 6, &bytes).unwrap();
        let b = HostTensor::new(HostType::F32, 3, 4, &bytes).unwrap();
        assert_eq!(stacked(&[a, a]).unwrap(), (4, 6));
        assert!(matches!(stacked(&[a, b]), Err(KernelError::Columns(6, 4))));
    }

    #[test]
    fn every_instruction_set_packs_the_same_bytes() {
        let mut rng = base::SplitMix::new(7);
        let values: Vec<f32> = (0..37 * 70).map(|_| (rng.next_u64() % 2001) as f32 / 1000.0 - 1.0).collect();
        for form in [Form::F32, Form::F16, Form::Bf16, Form::Q8, Form::Q4] {
            let plain = packed(&values, 37, form, Isa::Portable);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                assert!(packed(&values, 37, form, isa) == plain, "{form:?} {isa:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn bf16_rounds_as_the_half_crate_does(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits());
        }
    }
}
