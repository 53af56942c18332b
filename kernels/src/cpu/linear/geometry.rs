//! Where each byte of a packed weight and of packed activations lies.
//!
//! ```text
//! weight       panel 0 │ panel 1 │ …            a panel is 32 outputs
//! panel        group 0 │ group 1 │ …            a group is 32 inputs (k), one sequential stream
//! group  bf16  16 steps of [32 outputs][2 k]    a step is 128 bytes: two 64-byte registers
//!        f32   32 steps of [32 outputs]
//!        f16   32 steps of [32 outputs]         64 bytes
//!        q8     8 steps of [32 outputs][4 k]    bytes hold w + 128, then 32 f16 scales
//!        q4     4 steps of [32 outputs][8 k]    nibbles hold w + 8, then 32 f16 scales
//!
//! activations  block of R rows │ block │ …      R at most `Tile::rows_max`
//! block        group 0 │ group 1 │ …
//! group  bf16  16 steps of [R rows][2 k]        what one broadcast load takes, side by side
//!        f32, f16  32 steps of [R rows]         f32
//!        q8, q4     8 steps of [R rows][4 k] s8, then [R] offset sums i32, then [R] scales f32
//! ```
//!
//! One lane is one output, so nothing is ever summed across lanes and the order along k is the order in
//! memory. Outputs and inputs are padded with zeros to 32. Not the file's row-major layout: a dot product
//! along a row needs a reduction per output and as many streams as outputs in flight.

use super::form::Form;

/// Outputs of one panel.
pub const PANEL: usize = 32;
/// Inputs of one group; also the span of a quantization scale.
pub const GROUP: usize = 32;

/// Bytes of one group of one panel.
pub fn group_bytes(form: Form) -> usize {
    match form {
        Form::F32 => PANEL * GROUP * 4,
        Form::F16 | Form::Bf16 => PANEL * GROUP * 2,
        Form::Q8 => PANEL * GROUP + PANEL * 2,
        Form::Q4 => PANEL * GROUP / 2 + PANEL * 2,
    }
}

/// Where the f16 scales start inside a group of a quantized form.
pub fn scales_at(form: Form) -> usize {
    match form {
        Form::Q8 => PANEL * GROUP,
        Form::Q4 => PANEL * GROUP / 2,
        _ => unreachable!("{form:?} has no scales"),
    }
}

/// Bytes of one row's packed activations in one group.
pub fn row_group_bytes(form: Form) -> usize {
    match form {
        Form::F32 | Form::F16 => GROUP * 4,
        Form::Bf16 => GROUP * 2,
        Form::Q8 | Form::Q4 => GROUP + 4 + 4,
    }
}

/// Byte offset inside a group of the weight of output `o` (0..32) for input `i` (0..32); for q4 the byte
/// that holds its nibble.
pub fn weight_at(form: Form, o: usize, i: usize) -> usize {
    match form {
        Form::F32 => (i * PANEL + o) * 4,
        Form::F16 => (i * PANEL + o) * 2,
        Form::Bf16 => ((i / 2 * PANEL + o) * 2 + i % 2) * 2,
        Form::Q8 => (i / 4 * PANEL + o) * 4 + i % 4,
        Form::Q4 => (i / 8 * PANEL + o) * 4 + i % 4,
    }
}

/// True if the weight of input `i` is in the high nibble of its byte.
pub fn high_nibble(i: usize) -> bool {
    i % 8 >= 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_weight_of_a_group_has_its_own_place() {
        for form in [Form::F32, Form::F16, Form::Bf16, Form::Q8, Form::Q4] {
            let places: HashSet<_> = (0..PANEL)
                .flat_map(|o| (0..GROUP).map(move |i| (o, i)))
                .map(|(o, i)| (weight_at(form, o, i), form == Form::Q4 && high_nibble(i)))
                .collect();
            assert_eq!(places.len(), PANEL * GROUP, "{form:?}");
            assert!(places.iter().all(|&(at, _)| at < group_bytes(form)));
        }
    }
}
