//! The gated activation: `silu(gate) * up`, one pass, vectors of sixteen.

use super::arena::{Rows, RowsMut};
use super::each::each;
use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, dispatch, load_part, store_part};
use super::pool::Pool;

/// Columns that one worker takes at a time: a decode step has one row, so rows alone do not share out.
const COLUMNS: usize = 512;

/// `out = silu(gate) * up` on rows `[gate | up]`.
pub fn silu_mul(pool: &Pool, isa: Isa, gate_up: Rows<'_>, out: RowsMut<'_>) {
    assert!(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols);
    let pieces = out.cols.div_ceil(COLUMNS);
    each(pool, out.rows * pieces, out.rows * out.cols * 2, &|item| {
        let from = item % pieces * COLUMNS;
        let cols = from..(from + COLUMNS).min(out.cols);
        let (gate, up) = gate_up.row(item / pieces).split_at(out.cols);
        // SAFETY: each piece of a row belongs to one worker.
        let to = unsafe { out.part(item / pieces, cols.clone()) };
        dispatch(isa, SiluMul { gate: &gate[cols.clone()], up: &up[cols], out: to });
    });
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (gates, gate_rest) = self.gate.as_chunks::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            // SAFETY: arrays of sixteen.
            let (g, u) = unsafe { (lanes.load(gate.as_ptr()), lanes.load(up.as_ptr())) };
            // SAFETY: as above.
            unsafe { lanes.store(out.as_mut_ptr(), silu_mul_lanes(lanes, g, u)) };
        }
        let n = out_rest.len();
        // SAFETY: all three rests are `n` < 16 long.
        let (g, u) =
            unsafe { (load_part(lanes, gate_rest.as_ptr(), n), load_part(lanes, up_rest.as_ptr(), n)) };
        // SAFETY: as above.
        unsafe { store_part(lanes, out_rest.as_mut_ptr(), silu_mul_lanes(lanes, g, u), n) };
    }
}

/// `g / (1 + e^-g) * u`.
#[inline(always)]
fn silu_mul_lanes<L: Lanes>(lanes: L, g: L::V, u: L::V) -> L::V {
    let e = lanes.exp(lanes.sub(lanes.splat(0.0), g));
    lanes.mul(lanes.div(g, lanes.add(lanes.splat(1.0), e)), u)
}
