//! Tiles in plain Rust: the fallback for any processor, and the model that the tests hold others against.
//!
//! Arrays of 32 lanes, which the compiler turns into what vectors the target has. Products and sums are
//! rounded separately (no FMA: a software one would be fifty times slower).

use half::f16;

use super::form::Form;
use super::geometry::{GROUP, PANEL, group_bytes, row_group_bytes, scales_at};
use super::tile::{Tile, TileFn};

pub const ROWS: usize = 4;

pub fn select(form: Form, rows: usize) -> TileFn {
    match rows {
        1 => by_form::<1>(form),
        2 => by_form::<2>(form),
        3 => by_form::<3>(form),
        4 => by_form::<4>(form),
        rows => unreachable!("{rows} rows"),
    }
}

fn by_form<const R: usize>(form: Form) -> TileFn {
    match form {
        Form::F32 => tile::<R, F32>,
        Form::F16 => tile::<R, F16>,
        Form::Bf16 => tile::<R, Bf16>,
        Form::Q8 => tile::<R, Q8>,
        Form::Q4 => tile::<R, Q4>,
    }
}

type Lanes = [f32; PANEL];

/// One group of one form.
trait Group {
    const FORM: Form;
    /// Adds the group `w` times the group `x` of R rows to `acc`.
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]);
}

unsafe fn tile<const R: usize, G: Group>(t: &Tile) {
    let (w_bytes, x_bytes) = (group_bytes(G::FORM), R * row_group_bytes(G::FORM));
    // SAFETY: the caller's pointers cover `groups` groups of the panel.
    let weights = unsafe { std::slice::from_raw_parts(t.weight, t.groups * w_bytes) };
    // SAFETY: likewise of the packed rows.
    let x = unsafe { std::slice::from_raw_parts(t.x, t.groups * x_bytes) };
    let mut acc = [[0f32; PANEL]; R];
    for (r, acc) in acc.iter_mut().enumerate().filter(|_| t.resume) {
        // SAFETY: `out` covers R rows of 32 columns at `stride`.
        *acc = unsafe { t.out.add(r * t.stride).cast::<Lanes>().read() };
    }
    for (w, x) in weights.chunks_exact(w_bytes).zip(x.chunks_exact(x_bytes)) {
        G::add(w, x, &mut acc);
    }
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: as above.
        unsafe { t.out.add(r * t.stride).cast::<Lanes>().write(*acc) };
    }
}

/// `acc[o] += w[o] · x`.
fn add_scaled(acc: &mut Lanes, w: &Lanes, x: f32) {
    for (a, w) in acc.iter_mut().zip(w) {
        *a += w * x;
    }
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks::<4>().0[index])
}

fn widen_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

struct F32;
impl Group for F32 {
    const FORM: Form = Form::F32;
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]) {
        for (i, step) in w.as_chunks::<{ PANEL * 4 }>().0.iter().enumerate() {
            let w: Lanes = std::array::from_fn(|o| f32::from_bits(word(step, o)));
            for (r, acc) in acc.iter_mut().enumerate() {
                add_scaled(acc, &w, f32::from_bits(word(x, i * R + r)));
            }
        }
    }
}

struct F16;
impl Group for F16 {
    const FORM: Form = Form::F16;
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]) {
        for (i, step) in w.as_chunks::<{ PANEL * 2 }>().0.iter().enumerate() {
            let halves = step.as_chunks::<2>().0;
            let w: Lanes = std::array::from_fn(|o| f16::from_le_bytes(halves[o]).to_f32());
            for (r, acc) in acc.iter_mut().enumerate() {
                add_scaled(acc, &w, f32::from_bits(word(x, i * R + r)));
            }
        }
    }
}

struct Bf16;
impl Group for Bf16 {
    const FORM: Form = Form::Bf16;
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]) {
        for (i, step) in w.as_chunks::<{ PANEL * 4 }>().0.iter().enumerate() {
            let even: Lanes = std::array::from_fn(|o| widen_bf16(word(step, o) & 0xffff));
            let odd: Lanes = std::array::from_fn(|o| widen_bf16(word(step, o) >> 16));
            for (r, acc) in acc.iter_mut().enumerate() {
                let pair = word(x, i * R + r);
                add_scaled(acc, &even, widen_bf16(pair & 0xffff));
                add_scaled(acc, &odd, widen_bf16(pair >> 16));
            }
        }
    }
}

/// The end of a group of either integer form: exact integer sums, then one rounding per factor.
fn close_group<const R: usize>(
    sums: &[[i32; PANEL]; R],
    form: Form,
    w: &[u8],
    x: &[u8],
    acc: &mut [Lanes; R],
) {
    let scales = w[scales_at(form)..].as_chunks::<2>().0;
    for (r, (acc, sums)) in acc.iter_mut().zip(sums).enumerate() {
        let offset = word(x, 8 * R + r) as i32;
        let x_scale = f32::from_bits(word(x, 9 * R + r));
        for (o, (a, sum)) in acc.iter_mut().zip(sums).enumerate() {
            let scale = f16::from_le_bytes(scales[o]).to_f32() * x_scale;
            *a += (sum + offset) as f32 * scale;
        }
    }
}

/// Adds four products per lane: `w(o, i)` is the stored weight of output `o`, input `i` of the quad.
fn dot_quad<const R: usize>(
    sums: &mut [[i32; PANEL]; R],
    x: &[u8],
    quad: usize,
    w: impl Fn(usize, usize) -> u8,
) {
    for i in 0..4 {
        let w: [i32; PANEL] = std::array::from_fn(|o| i32::from(w(o, i)));
        for (r, sums) in sums.iter_mut().enumerate() {
            let value = i32::from((word(x, quad * R + r) >> (8 * i)) as u8 as i8);
            for (s, w) in sums.iter_mut().zip(&w) {
                *s += w * value;
            }
        }
    }
}

struct Q8;
impl Group for Q8 {
    const FORM: Form = Form::Q8;
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]) {
        let mut sums = [[0i32; PANEL]; R];
        for (quad, step) in w.as_chunks::<{ PANEL * 4 }>().0.iter().take(GROUP / 4).enumerate() {
            dot_quad(&mut sums, x, quad, |o, i| step[o * 4 + i]);
        }
        close_group(&sums, Self::FORM, w, x, acc);
    }
}

struct Q4;
impl Group for Q4 {
    const FORM: Form = Form::Q4;
    fn add<const R: usize>(w: &[u8], x: &[u8], acc: &mut [Lanes; R]) {
        let mut sums = [[0i32; PANEL]; R];
        for (both, step) in w.as_chunks::<{ PANEL * 4 }>().0.iter().take(GROUP / 8).enumerate() {
            dot_quad(&mut sums, x, both * 2, |o, i| step[o * 4 + i] & 15);
            dot_quad(&mut sums, x, both * 2 + 1, |o, i| step[o * 4 + i] >> 4);
        }
        close_group(&sums, Self::FORM, w, x, acc);
    }
}
