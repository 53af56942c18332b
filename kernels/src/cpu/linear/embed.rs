//! Rows of a packed weight as f32: the embedding table is the output layer's weight when they are tied, and
//! holding it twice would cost a tenth of a small model.
//!
//! A row's values lie 128 bytes apart, a cache line each. A token's row costs about 10 µs from memory, and
//! a step needs one row a token where the output layer reads them all.

use half::{bf16, f16};

use super::form::Form;
use super::geometry::{GROUP, PANEL, group_bytes, high_nibble, scales_at, weight_at};
use super::{Linear, Slab};

impl Linear {
    /// Widens the weights of output `row` into `out`.
    pub fn read_row(&self, slab: &Slab, row: usize, out: &mut [f32]) {
        assert!(row < self.outputs, "row {row} of {}", self.outputs);
        assert_eq!(out.len(), self.inputs, "length of a row");
        let size = group_bytes(self.form);
        let panel = &slab.bytes(self.span)[row / PANEL * self.groups() * size..];
        for (values, group) in out.chunks_mut(GROUP).zip(panel.chunks_exact(size)) {
            read_group(self.form, group, row % PANEL, values);
        }
    }
}

fn read_group(form: Form, group: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| u16::from_le_bytes([group[at], group[at + 1]]);
    let places = (0..GROUP).map(|i| weight_at(form, lane, i));
    let scale = || f16::from_bits(half(scales_at(form) + lane * 2)).to_f32();
    match form {
        Form::F32 => {
            out.iter_mut().zip(places).for_each(|(o, at)| {
                *o = f32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]]);
            });
        }
        Form::F16 => {
            out.iter_mut().zip(places).for_each(|(o, at)| *o = f16::from_bits(half(at)).to_f32());
        }
        Form::Bf16 => {
            out.iter_mut().zip(places).for_each(|(o, at)| *o = bf16::from_bits(half(at)).to_f32());
        }
        Form::Q8 => {
            let scale = scale();
            out.iter_mut().zip(places).for_each(|(o, at)| *o = (i16::from(group[at]) - 128) as f32 * scale);
        }
        Form::Q4 => {
            let scale = scale();
            for (i, (o, at)) in out.iter_mut().zip(places).enumerate() {
                let nibble = if high_nibble(i) { group[at] >> 4 } else { group[at] & 15 };
                *o = (i16::from(nibble) - 8) as f32 * scale;
            }
        }
    }
}
