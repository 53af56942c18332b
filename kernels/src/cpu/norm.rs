//! Root-mean-square norms.
//!
//! The sum of squares runs in four vectors of sixteen lanes that then fold in a fixed order: a function of
//! the row alone, and exact enough in f32 (each lane adds a sixty-fourth of the row).

use super::arena::{Rows, RowsMut};
use super::each::each;
use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, dispatch, load_part};
use super::pool::Pool;

/// `out = rmsnorm(x) * weight`, row by row.
pub fn rmsnorm(pool: &Pool, isa: Isa, x: Rows<'_>, weight: &[f32], eps: f32, out: RowsMut<'_>) {
    assert!(x.rows == out.rows && x.cols == out.cols && weight.len() == x.cols);
    each(pool, x.rows, x.rows * x.cols, &|r| {
        // SAFETY: each row belongs to one worker.
        let out = unsafe { out.row(r) };
        dispatch(isa, Norm { x: x.row(r), weight, eps, out });
    });
}

/// `residual += delta; out = rmsnorm(residual) * weight`, row by row.
pub fn add_rmsnorm(
    pool: &Pool,
    isa: Isa,
    residual: RowsMut<'_>,
    delta: Rows<'_>,
    weight: &[f32],
    eps: f32,
    out: RowsMut<'_>,
) {
    assert!(residual.rows == delta.rows && residual.cols == delta.cols);
    assert!(residual.rows == out.rows && residual.cols == out.cols && weight.len() == out.cols);
    each(pool, delta.rows, delta.rows * delta.cols, &|r| {
        // SAFETY: each row belongs to one worker.
        let (sum, out) = unsafe { (residual.row(r), out.row(r)) };
        dispatch(isa, Add { sum, delta: delta.row(r) });
        dispatch(isa, Norm { x: sum, weight, eps, out });
    });
}

struct Add<'a> {
    sum: &'a mut [f32],
    delta: &'a [f32],
}

impl Kernel for Add<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (s, d) in self.sum.iter_mut().zip(self.delta) {
            *s += d;
        }
    }
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let scale = inverse_rms(lanes, self.x, self.eps);
        for ((o, x), w) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *o = x * scale * w;
        }
    }
}

/// Norm of a row in place, for use inside another kernel.
#[inline(always)]
pub(super) fn norm_in_place<L: Lanes>(lanes: L, x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(lanes, x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<L: Lanes>(lanes: L, x: &[f32], eps: f32) -> f32 {
    let mut acc = [lanes.splat(0.0); 4];
    let (quads, rest) = x.as_chunks::<{ 4 * LANES }>();
    for quad in quads {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: four vectors in a chunk of four.
            let v = unsafe { lanes.load(quad.as_ptr().add(i * LANES)) };
            *acc = lanes.mul_add(v, v, *acc);
        }
    }
    for (acc, part) in acc.iter_mut().zip(rest.chunks(LANES)) {
        // SAFETY: a part has at most sixteen values.
        let v = unsafe { load_part(lanes, part.as_ptr(), part.len()) };
        *acc = lanes.mul_add(v, v, *acc);
    }
    let sum = lanes.sum(lanes.add(lanes.add(acc[0], acc[1]), lanes.add(acc[2], acc[3])));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}
