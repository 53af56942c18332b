//! What this machine can do at most, measured in the same run: read bandwidth, plain and prefetched, and
//! the peak of each multiply instruction on registers alone.
//!
//! Each probe does a fixed amount of work per call on every worker; the bench takes the best of many calls.

use quire_kernels::cpu::arena::Region;
use quire_kernels::cpu::pool::{Pool, share};

/// One limit of the machine.
pub struct Ceiling {
    pub name: &'static str,
    /// Billions of bytes or operations per call, over all workers.
    pub giga: f64,
    pub unit: &'static str,
    probe: Probe,
}

type Probe = fn(&Region, std::ops::Range<usize>) -> f32;

const READ_BYTES: usize = 256 << 20;
const DOT_ROUNDS: usize = 600_000;
const CHAINS: usize = 16;

impl Ceiling {
    pub fn run(&self, pool: &Pool, memory: &Region) {
        pool.run(&|worker, workers| {
            std::hint::black_box((self.probe)(memory, share(READ_BYTES, 4096, worker, workers)));
        });
    }
}

/// Memory for the read probes: far larger than any cache.
pub fn memory() -> Region {
    let mut region = Region::new(READ_BYTES, "bench").expect("memory for the bench");
    region.as_mut_slice::<u8>().fill(1);
    region
}

pub fn all(workers: usize) -> Vec<Ceiling> {
    let read = |name, probe| Ceiling { name, giga: READ_BYTES as f64 / 1e9, unit: "GB/s", probe };
    let dot = |name, lanes: usize, unit, probe| {
        let ops = (workers * DOT_ROUNDS * CHAINS * lanes * 2) as f64;
        Ceiling { name, giga: ops / 1e9, unit, probe }
    };
    vec![
        read("read, plain", read_plain as Probe),
        read("read, prefetched", read_prefetched),
        dot("bf16 dot", 32, "GFLOP/s", bf16_dot),
        dot("f32 fma", 16, "GFLOP/s", f32_fma),
        dot("int8 dot", 64, "GOP/s", int8_dot),
    ]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// Opaque to the compiler, which would otherwise compute equal chains once.
    fn chains<T: Copy>(zero: T) -> [T; CHAINS] {
        std::hint::black_box([zero; CHAINS])
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn read<const AHEAD: usize>(bytes: &[u8]) -> f32 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for lines in bytes.as_chunks::<512>().0 {
            for (line, sum) in lines.as_chunks::<64>().0.iter().zip(&mut sums) {
                let at = line.as_ptr();
                if AHEAD > 0 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                }
                // SAFETY: 64 bytes lie at `at`.
                *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(at.cast()) });
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b));
        _mm512_reduce_add_epi32(all) as f32
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn bf16() -> f32 {
        let mut acc = chains(_mm512_setzero_ps());
        let one: __m512bh =
            // SAFETY: same size, any bits are a value.
            unsafe { transmute(std::hint::black_box(_mm512_set1_epi32(0x3f80_3f80))) };
        for _ in 0..DOT_ROUNDS {
            for a in &mut acc {
                *a = _mm512_dpbf16_ps(*a, one, one);
            }
        }
        acc.into_iter().map(|a| _mm512_reduce_add_ps(a)).sum()
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn fma() -> f32 {
        let mut acc = chains(_mm512_setzero_ps());
        let one = std::hint::black_box(_mm512_set1_ps(1.0));
        for _ in 0..DOT_ROUNDS {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(one, one, *a);
            }
        }
        acc.into_iter().map(|a| _mm512_reduce_add_ps(a)).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn int8() -> f32 {
        let mut acc = chains(_mm512_setzero_si512());
        let one = std::hint::black_box(_mm512_set1_epi8(1));
        for _ in 0..DOT_ROUNDS {
            for a in &mut acc {
                *a = _mm512_dpbusd_epi32(*a, one, one);
            }
        }
        acc.into_iter().map(|a| _mm512_reduce_add_epi32(a) as f32).sum()
    }
}

/// True if the probes' instructions are there; without them the bench prints no ceilings.
pub fn available() -> bool {
    quire_kernels::cpu::Isa::Avx512.available()
}

macro_rules! probe {
    ($name:ident, $memory:ident, $part:ident, $call:expr) => {
        fn $name($memory: &Region, $part: std::ops::Range<usize>) -> f32 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the bench checks `available` first.
            return unsafe { $call };
            #[cfg(not(target_arch = "x86_64"))]
            0.0
        }
    };
}

probe!(read_plain, memory, part, x86::read::<0>(&memory.as_slice()[part]));
probe!(read_prefetched, memory, part, x86::read::<4096>(&memory.as_slice()[part]));
probe!(bf16_dot, _memory, _part, x86::bf16());
probe!(f32_fma, _memory, _part, x86::fma());
probe!(int8_dot, _memory, _part, x86::int8());
