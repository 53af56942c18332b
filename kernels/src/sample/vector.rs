//! The passes over a whole vocabulary: maximum, masses, bins.
//!
//! Each is plain Rust compiled twice, once for AVX2, chosen at run time. The compiler fuses and reorders no
//! float arithmetic, so both give the same bits and a draw does not depend on the processor.

use crate::exp::exp;

/// Lanes of the running sums and maxima.
const LANES: usize = 16;
/// Logits handled between two looks at memory.
const CHUNK: usize = 512;

/// Logits of one block of [`block_maxima`].
pub(super) const BLOCK: usize = 64;

/// Bins of [`bins`]; the last holds everything that has no mass.
pub(super) const BINS: usize = 24 * 128 + 1;

/// Defines a function whose body is compiled for the baseline and for AVX2.
macro_rules! wide {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: AVX2 was just found.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

wide! {
    /// The largest number, and whether there is a NaN or +∞ (then the maximum means nothing).
    fn max(logits: &[f32]) -> (f32, bool) {
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let (mut best, mut fine) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
        for chunk in chunks {
            for i in 0..LANES {
                best[i] = if chunk[i] > best[i] { chunk[i] } else { best[i] };
                fine[i] &= chunk[i] < f32::INFINITY;
            }
        }
        let mut most = f32::NEG_INFINITY;
        for &x in best.iter().chain(rest) {
            most = if x > most { x } else { most };
        }
        let odd = fine.contains(&false) || rest.iter().any(|x| x.is_nan() || *x == f32::INFINITY);
        (most, odd)
    }
}

wide! {
    /// The maximum of each block of 64 logits.
    fn block_maxima(logits: &[f32], out: &mut Vec<f32>) {
        let (blocks, rest) = logits.as_chunks::<BLOCK>();
        out.clear();
        for block in blocks {
            let mut best = [f32::NEG_INFINITY; LANES];
            for part in block.as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    best[i] = if part[i] > best[i] { part[i] } else { best[i] };
                }
            }
            let mut half = LANES / 2;
            while half > 0 {
                for i in 0..half {
                    best[i] = if best[i + half] > best[i] { best[i + half] } else { best[i] };
                }
                half /= 2;
            }
            out.push(best[0]);
        }
        if !rest.is_empty() {
            out.push(rest.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m }));
        }
    }
}

wide! {
    /// The first place of a value.
    fn find(logits: &[f32], value: f32) -> Option<usize> {
        for (i, chunk) in logits.chunks(CHUNK).enumerate() {
            let mut hits = 0u32;
            for &x in chunk {
                hits += u32::from(x == value);
            }
            if hits > 0 {
                return chunk.iter().position(|&x| x == value).map(|at| i * CHUNK + at);
            }
        }
        None
    }
}

wide! {
    /// Sum of `e^(x - max)`.
    fn exp_sum(logits: &[f32], max: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        let mut weights = [0.0f32; CHUNK];
        for chunk in logits.chunks(CHUNK) {
            for (w, &x) in weights.iter_mut().zip(chunk) {
                *w = exp(x - max);
            }
            weights[chunk.len()..].fill(0.0);
            for part in weights.as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    sums[i] += f64::from(part[i]);
                }
            }
        }
        sums.iter().sum()
    }
}

wide! {
    /// Sum of the masses of all logits.
    fn mass_sum(logits: &[f32], max: f32, temperature: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        let mut weights = [0.0f32; CHUNK];
        for chunk in logits.chunks(CHUNK) {
            for (w, &x) in weights.iter_mut().zip(chunk) {
                *w = weight(x, max, temperature);
            }
            weights[chunk.len()..].fill(0.0);
            for part in weights.as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    sums[i] += mass(part[i]);
                }
            }
        }
        sums.iter().sum()
    }
}

wide! {
    /// The mass of each logit.
    fn masses(logits: &[f32], max: f32, temperature: f32, out: &mut [f64]) {
        for (out, &x) in out.iter_mut().zip(logits) {
            *out = mass(weight(x, max, temperature));
        }
    }
}

wide! {
    /// The mass of each logit, and the bin of its distance below the maximum: nearer ones never have a
    /// larger bin, since each operation is monotone.
    fn bins(logits: &[f32], max: f32, temperature: f32, masses: &mut [f64; CHUNK_BINS], bins: &mut [u16; CHUNK_BINS]) {
        for (i, &x) in logits.iter().enumerate().take(CHUNK_BINS) {
            let bin = depth(x, max, temperature) * 128.0;
            let last = (BINS - 1) as f32;
            bins[i] = (if bin < last { bin } else { last }) as i32 as u16;
            masses[i] = mass(weight(x, max, temperature));
        }
    }
}

/// Logits of one call of [`bins`].
pub(super) const CHUNK_BINS: usize = 256;

/// How far a logit lies below the likeliest one, in nats at this temperature; infinite for −∞.
#[inline(always)]
pub(super) fn depth(x: f32, max: f32, temperature: f32) -> f32 {
    // −∞ is named: divided by an infinite temperature it would be NaN.
    if x == f32::NEG_INFINITY { f32::INFINITY } else { (max - x) / temperature }
}

/// Weight relative to the likeliest token, in `0..=1`.
#[inline(always)]
pub(super) fn weight(x: f32, max: f32, temperature: f32) -> f32 {
    exp(-depth(x, max, temperature))
}

/// A weight as a multiple of 2⁻³⁴: sums of up to 2¹⁸ of them are exact, whatever their order.
#[inline(always)]
pub(super) fn mass(weight: f32) -> f64 {
    const SNAP: f64 = 1.5 * (1u64 << 18) as f64;
    (f64::from(weight) + SNAP) - SNAP
}
