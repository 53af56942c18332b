//! The conformance cases: one wrapper of `ptx.cuh` or `hopper.cuh` alone, with inputs that show its layout.
//!
//! Data, so that a GPU check can run the same list: launch each kernel there with [`Case::params`], and compare its
//! output with [`Case::emulate`] by [`Case::compare`]. The emulator itself is held to the PTX tables by
//! tests/conformance.rs. Every device buffer starts as 0xFF bytes.

use crate::{Fault, Options, Swizzle, TensorMapSpec, launch};

/// How near two machines must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    Bits,
    /// f32 words within this part of the larger; NaN with NaN, and zero with anything subnormal.
    Relative(f32),
}

/// One launch of one conformance kernel.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique.
    pub name: String,
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    /// The least compute capability: 80 or 90 (meaning sm_90a).
    pub sm: u32,
    pub input: Vec<u32>,
    /// A tensor inside of the input; `base` is its distance in bytes from the input's address.
    pub tensor: Option<TensorMapSpec>,
    pub output_words: usize,
    pub agreement: Agreement,
}

/// Where the tensor of a TMA case begins in its input, in words; before it: bytes of the box, coordinates.
pub const TENSOR_AT: usize = 32;

impl Case {
    /// The tensor with its true address, for an encoder of tensor maps.
    pub fn tensor_at(&self, input_address: u64) -> Option<TensorMapSpec> {
        let tensor = self.tensor.clone()?;
        Some(TensorMapSpec { base: tensor.base + input_address, ..tensor })
    }

    /// The kernel's parameter struct; `map` is the encoded tensor map, zeros where there is none.
    pub fn params(&self, map: [u64; 16], input_address: u64, output_address: u64) -> Vec<u8> {
        let words = map.into_iter().chain([input_address, output_address]).chain([0; 6]);
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// What the kernel writes under the emulator.
    pub fn emulate(&self, options: &Options) -> Result<Vec<u32>, Fault> {
        let mut input = vec![Line([0; 32]); self.input.len().div_ceil(32)];
        for (i, word) in self.input.iter().enumerate() {
            input[i / 32].0[i % 32] = *word;
        }
        let mut output = vec![Line([u32::MAX; 32]); self.output_words.div_ceil(32)];
        let address = input.as_ptr() as u64;
        let map = match self.tensor_at(address).map(|tensor| tensor.encode()) {
            None => [0; 16],
            Some(Ok(map)) => map,
            Some(Err(e)) => return Err(Fault::Refused { kernel: self.kernel.into(), what: e.to_string() }),
        };
        let params = self.params(map, address, output.as_mut_ptr() as u64);
        launch(self.kernel, self.grid, self.block, self.shared_bytes, &params, options)?;
        Ok(output.iter().flat_map(|line| line.0).take(self.output_words).collect())
    }

    /// Says where two outputs first differ by more than the case allows.
    pub fn compare(&self, one: &[u32], other: &[u32]) -> Result<(), String> {
        if one.len() != other.len() {
            return Err(format!("{}: {} words and {}", self.name, one.len(), other.len()));
        }
        let differs = |(a, b): (&u32, &u32)| match self.agreement {
            Agreement::Bits => a != b,
            Agreement::Relative(part) => !near(f32::from_bits(*a), f32::from_bits(*b), part),
        };
        match one.iter().zip(other).position(differs) {
            None => Ok(()),
            Some(i) => Err(format!("{}: word {i} is {:#010x} and {:#010x}", self.name, one[i], other[i])),
        }
    }
}

/// 128 aligned bytes, as TMA wants a tensor's base.
#[derive(Clone)]
#[repr(C, align(128))]
struct Line([u32; 32]);

fn near(a: f32, b: f32, part: f32) -> bool {
    if a.is_nan() || b.is_nan() || a.is_infinite() || b.is_infinite() {
        return a == b || (a.is_nan() && b.is_nan());
    }
    (a - b).abs() <= f32::max(part * a.abs().max(b.abs()), f32::MIN_POSITIVE)
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        values("bf16_round", 16, floats(4096), 1),
        values("bf16_pack", 8, floats(4096), 1),
        values("bf16_unpack", 8, floats(2048), 3),
        values("e4m3_decode", 1, (0..256).collect(), 1),
        values("e4m3_encode", 16, e4m3_edges(4096), 1),
        values("e4m3_widen", 1, (0..256).map(|i| i << 8 | (255 - i) << 24 | 0x0055_00AA).collect(), 1),
        values("e4m3_scaled", 2, e4m3_scales(), 1),
        values("unfused", 4, moderate(3072), 1),
        approximate("ex2", exponents(2048), 3e-7),
        approximate("lg2", positive(2048), 1e-6),
        approximate("rsqrt", positive(2048), 3e-7),
        block("vector_copy", 64, 0, words(256), 256),
        block("cp_async", 64, 3 * 64 * 16, words(768), 64 * 12),
        block("shared_arrays", 64, 256, words(64), 64 * 3),
        block("atomics", 64, 0, (0..64).map(|i| i * 77 + 1).collect(), 4),
        block("warp_reduce", 64, 0, whole_floats(64, 100), 64 * 2),
        block("shuffles", 32, 0, words(32), 32 * 10),
        block("votes", 32, 0, words(32), 32 * 6),
        block("ldsm4", 32, 32 * 48, words(128), 128),
        block("ldsm4t", 32, 32 * 48, words(128), 128),
        block("mma", 32, 0, mma_registers(), 128),
        named("mma: a masked block", block("mma", 32, 0, masked_mma_registers(), 128)),
    ];
    all.extend(hopper_cases().into_iter().map(|case| Case { sm: 90, ..case }));
    all
}

fn hopper_cases() -> Vec<Case> {
    let mut all = vec![
        block("bar_sync", 128, 512, words(128), 128 * 3),
        block("mbar_ring", 64, 256, words(160), 160),
        block("wgmma_ss_n32", 128, 8192 + 4096, whole_bf16(64 * 64 + 32 * 64), 128 * 16),
        block("wgmma_ss_n64", 128, 8192 * 2, whole_bf16(64 * 64 * 2), 128 * 32),
        block("wgmma_ss_n128", 128, 8192 * 3, whole_bf16(64 * 64 * 3), 128 * 64),
        block("wgmma_ss_n256", 128, 8192 * 5, whole_bf16(64 * 64 * 5), 128 * 128),
        block("wgmma_rs_tb_n64", 128, 2048, whole_bf16(1024 + 64 * 16), 128 * 32),
        block("wgmma_rs_tb_n128", 128, 4096, whole_bf16(1024 + 128 * 16), 128 * 64),
        block("wgmma_rs_tb_n256", 128, 8192, whole_bf16(1024 + 256 * 16), 128 * 128),
        block("wgmma_groups", 128, 8192 * 2, whole_bf16(64 * 64 * 2), 128 * 64),
        block("no_ops", 256, 0, words(256), 256),
    ];
    for (short, shared, n) in
        [("wgmma_rs_tb_n64", 2048, 64), ("wgmma_rs_tb_n128", 4096, 128), ("wgmma_rs_tb_n256", 8192, 256)]
    {
        let input = masked(whole_bf16(1024 + n * 16));
        all.push(named(&format!("{short}: a masked block"), block(short, 128, shared, input, 128 * n / 2)));
    }
    let plain = Swizzle::None;
    let swizzled = Swizzle::Bytes128;
    all.push(tma("plain", "tma_2d", &[80, 12], &[32, 8], plain, &[16, 2]));
    all.push(tma("swizzled", "tma_2d", &[64, 24], &[64, 16], swizzled, &[0, 5]));
    all.push(tma("beyond both ends", "tma_2d", &[72, 12], &[64, 16], swizzled, &[40, 4]));
    all.push(tma("before the start", "tma_2d", &[64, 12], &[64, 8], swizzled, &[-24, -3]));
    all.push(tma("a page of keys", "tma_3d", &[128, 16, 6], &[64, 16, 1], swizzled, &[64, 0, 3]));
    all.push(tma("outside", "tma_3d", &[128, 16, 6], &[64, 16, 1], swizzled, &[0, 0, 6]));
    all.push(tma("two pages", "tma_3d", &[64, 8, 5], &[64, 8, 2], swizzled, &[0, 0, 4]));
    all.push(tma("head of a page", "tma_4d", &[64, 16, 3, 4], &[64, 16, 1, 1], swizzled, &[0, 0, 2, 1]));
    all.push(tma("across pages", "tma_4d", &[64, 4, 3, 4], &[64, 4, 2, 2], swizzled, &[0, 1, 1, 2]));
    all.push(tma("phases", "tma_phases", &[64, 32], &[64, 8], swizzled, &[0, 0]));
    all
}

// ---- kinds of cases -------------------------------------------------------------------------------------------------

fn case(short: &str, threads: u32, input: Vec<u32>, output_words: usize) -> Case {
    let kernel = KERNELS.iter().find(|name| name.strip_prefix("quire_conform_") == Some(short));
    Case {
        name: short.into(),
        kernel: kernel.unwrap_or_else(|| panic!("{short} is not in the list of kernels")),
        grid: [1, 1, 1],
        block: [threads, 1, 1],
        shared_bytes: 0,
        sm: 80,
        input,
        tensor: None,
        output_words,
        agreement: Agreement::Bits,
    }
}

/// 256 threads a block, so many words out a thread.
fn values(short: &str, blocks: u32, input: Vec<u32>, out_words: usize) -> Case {
    Case { grid: [blocks, 1, 1], ..case(short, 256, input, blocks as usize * 256 * out_words) }
}

fn approximate(short: &str, input: Vec<u32>, part: f32) -> Case {
    Case { agreement: Agreement::Relative(part), ..values(short, 8, input, 1) }
}

fn block(short: &str, threads: u32, shared_bytes: u32, input: Vec<u32>, output_words: usize) -> Case {
    Case { shared_bytes, ..case(short, threads, input, output_words) }
}

fn named(name: &str, case: Case) -> Case {
    Case { name: name.into(), ..case }
}

/// A dense tensor of 16-bit elements; the box comes out of shared memory word by word.
fn tma(what: &str, short: &str, dims: &[u64], tile: &[u32], swizzle: Swizzle, at: &[i32]) -> Case {
    // Phases: two boxes at a time, twice.
    let (boxes, held, threads) = if short == "tma_phases" { (4, 2, 64) } else { (1, 1, 32) };
    let bytes = 2 * tile.iter().product::<u32>();
    let strides = (1..dims.len()).map(|d| 2 * dims[..d].iter().product::<u64>()).collect();
    let mut input = vec![bytes];
    input.extend(at.iter().map(|c| *c as u32));
    input.resize(TENSOR_AT, 0);
    input.extend(words(dims.iter().product::<u64>() as usize / 2));
    let tensor = TensorMapSpec {
        base: TENSOR_AT as u64 * 4,
        element_bytes: 2,
        dims: dims.to_vec(),
        strides,
        tile: tile.to_vec(),
        swizzle,
    };
    let case = block(short, threads, bytes * held, input, (bytes * boxes / 4) as usize);
    Case { name: format!("{short}: {what}"), tensor: Some(tensor), ..case }
}

const KERNELS: [&str; 36] = [
    "quire_conform_bf16_round",
    "quire_conform_bf16_pack",
    "quire_conform_bf16_unpack",
    "quire_conform_ex2",
    "quire_conform_lg2",
    "quire_conform_rsqrt",
    "quire_conform_unfused",
    "quire_conform_e4m3_decode",
    "quire_conform_e4m3_encode",
    "quire_conform_e4m3_widen",
    "quire_conform_e4m3_scaled",
    "quire_conform_vector_copy",
    "quire_conform_cp_async",
    "quire_conform_shared_arrays",
    "quire_conform_atomics",
    "quire_conform_warp_reduce",
    "quire_conform_shuffles",
    "quire_conform_votes",
    "quire_conform_ldsm4",
    "quire_conform_ldsm4t",
    "quire_conform_mma",
    "quire_conform_bar_sync",
    "quire_conform_mbar_ring",
    "quire_conform_tma_2d",
    "quire_conform_tma_3d",
    "quire_conform_tma_4d",
    "quire_conform_tma_phases",
    "quire_conform_wgmma_ss_n32",
    "quire_conform_wgmma_ss_n64",
    "quire_conform_wgmma_ss_n128",
    "quire_conform_wgmma_ss_n256",
    "quire_conform_wgmma_rs_tb_n64",
    "quire_conform_wgmma_rs_tb_n128",
    "quire_conform_wgmma_rs_tb_n256",
    "quire_conform_wgmma_groups",
    "quire_conform_no_ops",
];

// ---- inputs ---------------------------------------------------------------------------------------------------------

/// The finaliser of MurmurHash3: every word another, the same on every machine.
fn mixed(i: usize) -> u32 {
    let mut h = (i as u32).wrapping_mul(0x9E37_79B9).wrapping_add(0x1234_5678);
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

fn words(n: usize) -> Vec<u32> {
    (0..n).map(mixed).collect()
}

/// Any bits, after the values where rounding decides: zeros, ends of ranges, ties on both sides, NaN.
fn floats(n: usize) -> Vec<u32> {
    let edges = [
        0x0000_0000,
        0x8000_0000,
        0x0000_0001,
        0x007f_ffff,
        0x0080_0000,
        0x3f80_0000,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_7fff,
        0x3f80_8001,
        0xbf80_8000,
        0xbf81_8000,
        0x7f7f_0000,
        0x7f7f_7fff,
        0x7f7f_8000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
        0x7fc0_0000,
        0xffc0_0000,
        0x7fff_ffff,
        0xffff_ffff,
        0x0000_8000,
        0x0001_8000,
        0x8000_8000,
    ];
    edges.into_iter().chain((0..).map(mixed)).take(n).collect()
}

/// Every e4m3 number in both places, with scales that differ: 0, the least and the largest that runs have, infinity.
fn e4m3_scales() -> Vec<u32> {
    let scales = [0u32, 0x7f80, 147 << 7, 254 << 7, 247 << 7, 240 << 7];
    let word = |i: u32| (i % 256) << 8 | (255 - i % 256) << 24 | mixed(i as usize) & 0x00ff_00ff;
    let scale = |i: u32| scales[i as usize % 6] | scales[(i as usize / 6 + i as usize / 256) % 6] << 16;
    (0..512).flat_map(|i| [word(i), scale(i)]).collect()
}

/// Values around every e4m3 number and every midpoint, then any bits.
fn e4m3_edges(n: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for step in 0..1024u32 {
        // Sixteenths of the spacing at every magnitude from 2^-11 to 2^10.
        let exponent = 116 + step / 48;
        let mantissa = step % 48;
        all.push(exponent << 23 | mantissa << 18);
        all.push((exponent << 23 | mantissa << 18) + 1);
        all.push(1 << 31 | ((exponent << 23 | mantissa << 18).wrapping_sub(1)));
    }
    all.extend(floats(n));
    all.truncate(n);
    all
}

/// Between 1/2 and 2 in magnitude, all mantissa bits used.
fn moderate(n: usize) -> Vec<u32> {
    (0..n).map(|i| (mixed(i) & 0x80ff_ffff) | 0x3f00_0000).collect()
}

/// -140 to 140, infinities and NaN.
fn exponents(n: usize) -> Vec<u32> {
    let edges =
        [0.0f32, -0.0, 1.0, -1.0, 127.0, 128.0, -126.0, -127.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let spread = (0..).map(|i| (mixed(i) as f32 / u32::MAX as f32 - 0.5) * 280.0);
    edges.into_iter().chain(spread).take(n).map(f32::to_bits).collect()
}

/// Normal positive values of all magnitudes, and far enough from 1 for lg2 to have relative precision.
fn positive(n: usize) -> Vec<u32> {
    let edges = [2.0f32, 4.0, 0.5, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE];
    let spread = (0..).map(|i| f32::from_bits(0x0080_0000 + mixed(i) % 0x7e80_0000));
    let far = spread.filter(|v| !(0.5..2.0).contains(v));
    edges.into_iter().chain(far).take(n).map(f32::to_bits).collect()
}

/// Whole numbers in -limit..=limit.
fn whole_floats(n: usize, limit: u32) -> Vec<u32> {
    (0..n).map(|i| ((mixed(i) % (2 * limit + 1)) as f32 - limit as f32).to_bits()).collect()
}

/// Whole numbers from -8 to 8 as bf16, two a word: sums of a thousand products are exact in f32.
fn whole_bf16(values: usize) -> Vec<u32> {
    let bits = |i: usize| ((mixed(i) % 17) as f32 - 8.0).to_bits() >> 16;
    (0..values / 2).map(|i| bits(2 * i) | bits(2 * i + 1) << 16).collect()
}

/// A lane: six words of bf16 pairs, four of f32.
fn mma_registers() -> Vec<u32> {
    let (pairs, sums) = (whole_bf16(32 * 12), whole_floats(128, 1000));
    (0..32)
        .flat_map(|lane| [&pairs[lane * 6..lane * 6 + 6], &sums[lane * 4..lane * 4 + 4]].concat())
        .collect()
}

/// Weights of zero, as of a block that is masked whole: sums, of any magnitude, keep every bit.
fn masked_mma_registers() -> Vec<u32> {
    let pairs = whole_bf16(32 * 12);
    let sum = |i: usize| (mixed(i) & 0x80ff_ffff) | (100 + i as u32 % 56) << 23;
    (0..32)
        .flat_map(|lane| {
            let sums: Vec<u32> = (0..4).map(|i| sum(lane * 4 + i)).collect();
            [&[0; 4], &pairs[lane * 6..lane * 6 + 2], &sums[..]].concat()
        })
        .collect()
}

/// A of zeros: its registers come first, four words a thread.
fn masked(mut input: Vec<u32>) -> Vec<u32> {
    input[..512].fill(0);
    input
}
