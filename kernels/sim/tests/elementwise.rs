//! Rows, norms, activation, rope with store, and pages, against formulas in f64.
//!
//! Every case runs on three schedules and must give the same bytes each time. Rows beyond the live count hold
//! NaN and stay as they were, and so does everything around an output.

use base::SplitMix;
use bytemuck::Pod;
use kernels::cuda::driver::{DevicePtr, Launch};
use kernels::cuda::params::act::SiluMulParams;
use kernels::cuda::params::norm::{AddRmsNormParams, RmsNormParams};
use kernels::cuda::params::pages::{PageCopyParams, PageStageParams, PageVerifyParams, PageZeroParams};
use kernels::cuda::params::rope_store::{RopeStoreParams, lanes};
use kernels::cuda::params::rows::{EmbedParams, GatherParams};
use kernels::{KvType, e4m3};

use crate::support::{Guarded, SEEDS, assert_close, bf16, bf16_values, cases, f32_of, normal, normal_bf16};

const NAN_BF16: u16 = 0xFFFF;
const EPS: f32 = 1e-5;

pub(crate) fn start(launch: &Launch<'_>, seed: u64) {
    let options = cusim::Options { seed, threads: 1 };
    let block = [launch.block, 1, 1];
    if let Err(fault) = cusim::launch(launch.kernel, launch.grid, block, launch.smem, launch.params, &options)
    {
        panic!("{fault}");
    }
}

pub(crate) fn device<T: Pod>(buffer: &mut Guarded<T>) -> DevicePtr {
    DevicePtr(buffer.address())
}

/// The result of three schedules, which must be one.
fn on_schedules<T: PartialEq + std::fmt::Debug>(what: &str, run: impl Fn(u64) -> T) -> T {
    let first = run(SEEDS[0]);
    for seed in &SEEDS[1..3] {
        assert!(run(*seed) == first, "{what}: seed {seed} gives other bytes");
    }
    first
}

fn below(rng: &mut SplitMix, n: usize) -> usize {
    rng.below(n as u64) as usize
}

/// A multiple of `of`, mostly small, at times wide.
fn columns(rng: &mut SplitMix, of: usize, most: usize) -> usize {
    let wide = rng.below(20) == 0;
    of * (1 + below(rng, if wide { most / of } else { 80.min(most / of) }))
}

/// `rows` times `cols` values of which those from row `live` on are NaN.
fn rows_bf16(rng: &mut SplitMix, rows: usize, live: usize, cols: usize) -> Vec<u16> {
    let mut values = normal_bf16(rng, rows * cols);
    values[live * cols..].fill(NAN_BF16);
    values
}

fn rows_f32(rng: &mut SplitMix, rows: usize, live: usize, cols: usize) -> Vec<f32> {
    let mut values = normal(rng, rows * cols);
    values[live * cols..].fill(f32::NAN);
    values
}

fn untouched<T: Pod>(values: &[T]) -> bool {
    bytemuck::cast_slice::<T, u8>(values).iter().all(|b| *b == 0xFF)
}

#[test]
fn embedding_widens_the_rows_of_the_tokens() {
    let mut rng = SplitMix::new(1);
    for case in 0..cases(200) {
        let (vocab, cols) = (1 + below(&mut rng, 50), columns(&mut rng, 8, 8192));
        let rows = below(&mut rng, 5);
        let spare = below(&mut rng, 3) + usize::from(rows == 0); // a grid has at least one block
        let tokens: Vec<u32> = (0..rows + spare).map(|_| rng.below(vocab as u64) as u32).collect();
        let mut table = normal_bf16(&mut rng, vocab * cols);
        for t in (0..vocab).filter(|t| !tokens[..rows].contains(&(*t as u32))) {
            table[t * cols..][..cols].fill(NAN_BF16);
        }
        let out = on_schedules(&format!("case {case}"), |seed| {
            let (mut table, mut tokens) = (Guarded::from(&table), Guarded::from(&tokens));
            let (mut live, mut out) =
                (Guarded::from(&[rows as u32]), Guarded::<f32>::new((rows + spare) * cols));
            let params = EmbedParams {
                table: device(&mut table),
                tokens: device(&mut tokens),
                rows_live: device(&mut live),
                out: device(&mut out),
                cols: cols as u32,
                pad: 0,
            };
            start(&params.launch((rows + spare) as u32), seed);
            bits(&out.take("out"))
        });
        let want = tokens[..rows].iter().flat_map(|t| bf16_values(&table[*t as usize * cols..][..cols]));
        assert_eq!(out[..rows * cols], want.map(f32::to_bits).collect::<Vec<_>>(), "case {case}");
        assert!(untouched(&out[rows * cols..]), "case {case}: a dead row was written");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Gathers rows of `T`, launched by `launch`.
fn check_gather<T: Pod + PartialEq + std::fmt::Debug>(
    rng: &mut SplitMix,
    of: usize,
    launch: fn(&GatherParams, u32) -> Launch<'_>,
    value: fn(&mut SplitMix) -> T,
) {
    let cols = columns(rng, of, 4096);
    let (sources, rows) = (1 + below(rng, 6), below(rng, 6));
    let spare = below(rng, 3) + usize::from(rows == 0);
    let x: Vec<T> = (0..sources * cols).map(|_| value(rng)).collect();
    let wanted: Vec<u32> = (0..rows + spare).map(|_| rng.below(sources as u64) as u32).collect();
    let out = on_schedules("gather", |seed| {
        let (mut x, mut wanted) = (Guarded::from(&x), Guarded::from(&wanted));
        let (mut live, mut out) = (Guarded::from(&[rows as u32]), Guarded::<T>::new((rows + spare) * cols));
        let params = GatherParams {
            x: device(&mut x),
            rows: device(&mut wanted),
            rows_live: device(&mut live),
            out: device(&mut out),
            cols: cols as u32,
            pad: 0,
        };
        start(&launch(&params, (rows + spare) as u32), seed);
        bytemuck::cast_slice::<T, u8>(&out.take("out")).to_vec()
    });
    let want: Vec<T> = wanted[..rows].iter().flat_map(|r| x[*r as usize * cols..][..cols].to_vec()).collect();
    let (written, rest) = out.split_at(rows * cols * size_of::<T>());
    assert_eq!(written, bytemuck::cast_slice::<T, u8>(&want), "{sources} sources, {rows} rows of {cols}");
    assert!(untouched(rest), "a dead row was written");
}

#[test]
fn gather_copies_the_rows_asked_for() {
    let mut rng = SplitMix::new(2);
    for _ in 0..cases(100) {
        check_gather(&mut rng, 4, GatherParams::launch_f32, |rng| rng.normal() as f32);
        check_gather(&mut rng, 8, GatherParams::launch_bf16, |rng| bf16(rng.normal() as f32));
    }
}

/// `x / rms(x) * weight` of one row.
fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(v, w)| f64::from(*v) * scale * f64::from(*w)).collect()
}

/// Each value is the reference rounded to bf16, or its neighbour where the f32 sums moved it across a tie.
fn assert_rounded(out: &[u16], reference: &[f64], what: &str) {
    for (i, (o, r)) in out.iter().zip(reference).enumerate() {
        let error = (f64::from(f32_of(*o)) - r).abs();
        assert!(error <= r.abs() * 1.002 / 256.0 + 1e-30, "{what}: value {i} is {} for {r}", f32_of(*o));
    }
}

fn run_rmsnorm(x: &[f32], weight: &[f32], live: usize, seed: u64) -> Vec<u16> {
    let cols = weight.len();
    let (mut x, mut weight, mut live) =
        (Guarded::from(x), Guarded::from(weight), Guarded::from(&[live as u32]));
    let mut out = Guarded::<u16>::new(x.as_slice().len());
    let params = RmsNormParams {
        x: device(&mut x),
        weight: device(&mut weight),
        out: device(&mut out),
        rows_live: device(&mut live),
        eps: EPS,
        cols: cols as u32,
    };
    start(&params.launch((out.as_slice().len() / cols) as u32), seed);
    out.take("out")
}

#[test]
fn rmsnorm_divides_by_the_root_mean_square() {
    let mut rng = SplitMix::new(3);
    for case in 0..cases(200) {
        let cols = if case < 2 { 16384 - 8 * case } else { columns(&mut rng, 8, 16384) };
        let (live, spare) = (1 + below(&mut rng, 3), below(&mut rng, 2));
        let mut x = rows_f32(&mut rng, live + spare, live, cols);
        let scale = 10f32.powi(below(&mut rng, 9) as i32 - 4);
        x.iter_mut().for_each(|v| *v *= scale);
        let weight = normal(&mut rng, cols);
        let what = format!("case {case}, {live} rows of {cols}");
        let out = on_schedules(&what, |seed| run_rmsnorm(&x, &weight, live, seed));
        for r in 0..live {
            let row = r * cols..(r + 1) * cols;
            assert_rounded(&out[row.clone()], &normed(&x[row.clone()], &weight), &what);
            let alone = run_rmsnorm(&x[row.clone()], &weight, 1, 7);
            assert_eq!(out[row], alone, "{what}: row {r} has other bits alone");
        }
        assert!(untouched(&out[live * cols..]), "{what}: a dead row was written");
    }
}

#[test]
fn add_rmsnorm_updates_the_residual_and_norms_it() {
    let mut rng = SplitMix::new(4);
    for case in 0..cases(200) {
        let cols = columns(&mut rng, 8, 16384);
        let (live, spare) = (1 + below(&mut rng, 3), below(&mut rng, 2));
        let x = rows_f32(&mut rng, live + spare, live, cols);
        let delta = rows_bf16(&mut rng, live + spare, live, cols);
        let weight = normal(&mut rng, cols);
        let what = format!("case {case}, {live} rows of {cols}");
        let (residual, out) = on_schedules(&what, |seed| {
            let (mut x, mut delta) = (Guarded::from(&x), Guarded::from(&delta));
            let (mut weight, mut words) = (Guarded::from(&weight), Guarded::from(&[live as u32]));
            let mut out = Guarded::<u16>::new((live + spare) * cols);
            let params = AddRmsNormParams {
                residual: device(&mut x),
                delta: device(&mut delta),
                weight: device(&mut weight),
                out: device(&mut out),
                rows_live: device(&mut words),
                eps: EPS,
                cols: cols as u32,
            };
            start(&params.launch((live + spare) as u32), seed);
            (bits(&x.take("residual")), out.take("out"))
        });
        let sums: Vec<f32> = x.iter().zip(&delta).map(|(x, d)| x + f32_of(*d)).collect();
        assert_eq!(residual[..live * cols], bits(&sums[..live * cols]), "{what}");
        assert_eq!(residual[live * cols..], bits(&x[live * cols..]), "{what}: a dead row changed");
        for r in 0..live {
            let row = r * cols..(r + 1) * cols;
            assert_rounded(&out[row.clone()], &normed(&sums[row], &weight), &what);
        }
        assert!(untouched(&out[live * cols..]), "{what}: a dead row was written");
    }
}

#[test]
fn silu_mul_gates_the_other_half() {
    let mut rng = SplitMix::new(5);
    for case in 0..cases(200) {
        let cols = columns(&mut rng, 8, 16384);
        let (live, spare) = (1 + below(&mut rng, 3), below(&mut rng, 2));
        let mut gate_up = rows_bf16(&mut rng, live + spare, live, 2 * cols);
        for i in 0..live * cols / 8 {
            let at = i / cols * 2 * cols + below(&mut rng, cols);
            gate_up[at] = bf16([0.0, -0.0, 40.0, -40.0, 300.0, -300.0, -3e38][below(&mut rng, 7)]);
        }
        let what = format!("case {case}, {live} rows of {cols}");
        let out = on_schedules(&what, |seed| {
            let (mut from, mut words) = (Guarded::from(&gate_up), Guarded::from(&[live as u32]));
            let mut out = Guarded::<u16>::new((live + spare) * cols);
            let params = SiluMulParams {
                gate_up: device(&mut from),
                out: device(&mut out),
                rows_live: device(&mut words),
                cols: cols as u32,
                pad: 0,
            };
            start(&params.launch((live + spare) as u32), seed);
            out.take("out")
        });
        for (r, row) in gate_up.chunks(2 * cols).take(live).enumerate() {
            let (gate, up) = row.split_at(cols);
            let pairs = gate.iter().zip(up).map(|(g, u)| (f64::from(f32_of(*g)), f64::from(f32_of(*u))));
            let want: Vec<f64> = pairs.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            assert_rounded(&out[r * cols..][..cols], &want, &what);
        }
        assert!(untouched(&out[live * cols..]), "{what}: a dead row was written");
    }
}

/// One step of rope and store.
#[derive(Clone)]
struct RopeCase {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    page_tokens: usize,
    live: usize,
    positions: Vec<u32>,
    row_pages: Vec<u32>,
    qkv: Vec<u16>,
    angles: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    pages: usize,
    kind: KvType,
}

const POSITIONS: usize = 150;

impl RopeCase {
    fn random(rng: &mut SplitMix) -> Self {
        let head_dim = [8, 16, 24, 40, 64, 64, 80, 96, 128, 128, 128, 192, 256][below(rng, 13)];
        let kv_heads = 1 + below(rng, 4);
        let heads = kv_heads * [1, 2, 3, 4, 7, 8, 16][below(rng, if head_dim > 96 { 5 } else { 7 })];
        let pairs = match rng.below(3) {
            0 => head_dim / 2,
            1 => (head_dim / 16 * 8 / (1 + below(rng, 2))).max(1),
            _ => 1 + below(rng, head_dim / 2),
        };
        let (live, spare) = (1 + below(rng, 4), below(rng, 2));
        let (page_tokens, pages) = ([16, 32, 64][below(rng, 3)], 8);
        let mut order: Vec<u32> = (0..pages as u32).collect();
        order.sort_by_cached_key(|_| rng.next_u64());
        let mut positions: Vec<u32> = (0..live).map(|_| rng.below(POSITIONS as u64) as u32).collect();
        positions[0] = [0, page_tokens as u32 - 1, page_tokens as u32, positions[0]][below(rng, 4)];
        positions.resize(live + spare, u32::MAX);
        let table: Vec<f32> = (0..POSITIONS * 2 * pairs)
            .map(|i| {
                let angle = (i / (2 * pairs)) as f64 * 0.9f64.powi((i % pairs) as i32);
                (if i % (2 * pairs) < pairs { angle.cos() } else { angle.sin() }) as f32
            })
            .collect();
        let norms = rng.below(3);
        Self {
            heads,
            kv_heads,
            head_dim,
            pairs,
            page_tokens,
            live,
            positions,
            row_pages: order[..live + spare].to_vec(),
            qkv: rows_bf16(rng, live + spare, live, (heads + 2 * kv_heads) * head_dim),
            angles: (rng.below(5) > 0).then_some(table),
            q_norm: (norms > 0).then(|| normal(rng, head_dim)),
            k_norm: (norms == 2).then(|| normal(rng, head_dim)),
            pages,
            kind: KvType::Bf16,
        }
    }

    fn row_cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    fn head_stride(&self) -> usize {
        self.page_tokens * (self.head_dim + self.kind.exponent_bytes())
    }
    fn v_offset(&self) -> usize {
        self.kv_heads * self.head_stride()
    }
    /// Two layers; the second is written.
    fn page_stride(&self) -> usize {
        4 * self.v_offset()
    }
    fn layer_offset(&self) -> usize {
        2 * self.v_offset()
    }

    /// The rows and the pool of `T` after a launch.
    fn run<T: Pod>(&self, launch: impl Fn(RopeStoreParams, u32)) -> (Vec<u16>, Vec<T>) {
        let mut qkv = Guarded::from(&self.qkv);
        let mut pool = Guarded::<T>::new(self.pages * self.page_stride());
        let (mut positions, mut pages) = (Guarded::from(&self.positions), Guarded::from(&self.row_pages));
        let mut live = Guarded::from(&[self.live as u32]);
        let mut optional =
            [&self.angles, &self.q_norm, &self.k_norm].map(|v| v.as_ref().map(|v| Guarded::from(v)));
        let [angles, q_norm, k_norm] =
            [0, 1, 2].map(|i| optional[i].as_mut().map_or(DevicePtr::NULL, device));
        let params = RopeStoreParams {
            qkv: device(&mut qkv),
            rows_live: device(&mut live),
            positions: device(&mut positions),
            row_pages: device(&mut pages),
            angles,
            q_norm,
            k_norm,
            kv: device(&mut pool).plus(size_of::<T>() * self.layer_offset()),
            page_stride: self.page_stride() as u64,
            v_offset: self.v_offset() as u64,
            head_stride: self.head_stride() as u64,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            pairs: self.pairs as u32,
            page_tokens: self.page_tokens as u32,
            lanes: lanes(self.head_dim as u32),
            eps: EPS,
            pad: 0,
        };
        launch(params, self.positions.len() as u32);
        (qkv.take("qkv"), pool.take("pool"))
    }

    /// Head `index` of row `r` after norm and rotation, in f64.
    fn head(&self, r: usize, index: usize) -> Vec<f64> {
        let raw = bf16_values(&self.qkv[r * self.row_cols() + index * self.head_dim..][..self.head_dim]);
        let (is_q, is_k) = (index < self.heads, index < self.heads + self.kv_heads);
        let norm = if is_q { &self.q_norm } else { &self.k_norm };
        let mut x: Vec<f64> = match norm {
            Some(weight) if is_k => normed(&raw, weight),
            _ => raw.iter().map(|v| f64::from(*v)).collect(),
        };
        let Some(table) = self.angles.as_ref().filter(|_| is_k) else { return x };
        let row = &table[self.positions[r] as usize * 2 * self.pairs..][..2 * self.pairs];
        for i in 0..self.pairs {
            let (c, s) = (f64::from(row[i]), f64::from(row[self.pairs + i]));
            let (a, b) = (x[i], x[i + self.pairs]);
            (x[i], x[i + self.pairs]) = (a * c - b * s, b * c + a * s);
        }
        x
    }

    /// Where head `index` of row `r` is stored.
    fn stored_at(&self, r: usize, index: usize) -> usize {
        let stored = index - self.heads;
        let side = if stored < self.kv_heads { 0 } else { self.v_offset() };
        let slot = self.positions[r] as usize % self.page_tokens;
        let head = stored % self.kv_heads * self.head_stride();
        self.row_pages[r] as usize * self.page_stride()
            + self.layer_offset()
            + side
            + head
            + slot * self.head_dim
    }

    /// Where the exponent of head `index` of row `r` is stored.
    fn exponent_at(&self, r: usize, index: usize) -> usize {
        let slot = self.positions[r] as usize % self.page_tokens;
        self.stored_at(r, index) + (self.page_tokens - slot) * self.head_dim + slot
    }

    fn check(&self, what: &str) {
        let (qkv, mut pool) =
            on_schedules(what, |seed| self.run::<u16>(|params, rows| start(&params.launch(rows), seed)));
        let mut want = self.qkv.clone();
        for r in 0..self.live {
            for index in 0..self.heads + 2 * self.kv_heads {
                let reference = self.head(r, index);
                let in_row = r * self.row_cols() + index * self.head_dim;
                let got = if index < self.heads {
                    want[in_row..][..self.head_dim].copy_from_slice(&qkv[in_row..][..self.head_dim]);
                    qkv[in_row..][..self.head_dim].to_vec()
                } else {
                    let at = self.stored_at(r, index)..self.stored_at(r, index) + self.head_dim;
                    let got = pool[at.clone()].to_vec();
                    pool[at].fill(0xFFFF);
                    got
                };
                assert_close(&bf16_values(&got), &reference, 5e-3, &format!("{what}, row {r} head {index}"));
                let exact = self.angles.is_none() && self.q_norm.is_none();
                if exact || index >= self.heads + self.kv_heads {
                    assert_eq!(
                        got,
                        self.qkv[in_row..][..self.head_dim],
                        "{what}: values that nothing changes"
                    );
                }
            }
        }
        assert_eq!(qkv, want, "{what}: k, v or a dead row changed in place");
        assert!(untouched(&pool), "{what}: another slot was written");
    }
}

/// Some steps of heads that e4m3 pages can hold.
fn narrow_cases(seed: u64) -> impl Iterator<Item = (String, RopeCase)> {
    let mut rng = SplitMix::new(seed);
    let all = std::iter::repeat_with(move || RopeCase::random(&mut rng));
    let fitting = all.filter(|c| c.head_dim.is_multiple_of(16)).take(cases(200)).enumerate();
    fitting.map(|(case, c)| {
        let what = format!("case {case}: {}q {}kv heads of {}", c.heads, c.kv_heads, c.head_dim);
        (what, RopeCase { kind: KvType::E4m3, ..c })
    })
}

/// Holds one head's bytes and exponent against what should be stored; values that nothing changes exactly.
fn check_narrow(c: &RopeCase, r: usize, index: usize, codes: &[u8], exponent: u8, what: &str) {
    let want = c.head(r, index);
    let narrow: Vec<f32> = want.iter().map(|&v| v as f32).collect();
    let scale = e4m3::run_scale(exponent);
    let got: Vec<f32> = (0..c.head_dim).map(|d| e4m3::value(codes[e4m3::place(d)]) * scale).collect();
    let is_v = index >= c.heads + c.kv_heads;
    if is_v || (c.angles.is_none() && c.q_norm.is_none()) {
        assert_eq!(exponent, e4m3::run_exponent(&narrow), "{what}, row {r} head {index}");
        assert_eq!(got, e4m3::run_stored(&narrow), "{what}, row {r} head {index}");
        return;
    }
    let top = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!((224.0 * 0.999..=448.0 * 1.001).contains(&(top / f64::from(scale))), "{what}: {top} by {scale}");
    for (got, want) in got.into_iter().map(f64::from).zip(want) {
        let step = (want.abs() / 16.0).max(f64::from(scale) * 2f64.powi(-10)) * 1.001;
        // What cancels in a rotation is as exact as its terms.
        assert!((got - want).abs() <= step + 1e-6 * top, "{what}: {got} for {want}");
    }
}

#[test]
fn rope_store_rounds_to_eight_bits_by_the_largest_of_a_head() {
    for (what, mut c) in narrow_cases(11) {
        // Heads of very different sizes, which one scale for all would not serve.
        let live = c.live * c.row_cols();
        for (i, v) in c.qkv[..live].iter_mut().enumerate() {
            *v = bf16(f32_of(*v) * f32::exp2((i / c.head_dim % 13) as f32 * 4.0 - 36.0));
        }
        let (qkv, mut pool) =
            on_schedules(&what, |seed| c.run::<u8>(|params, rows| start(&params.launch_e4m3(rows), seed)));
        let wide = RopeCase { kind: KvType::Bf16, ..c.clone() };
        let (same, _) = wide.run::<u16>(|params, rows| start(&params.launch(rows), 7));
        assert_eq!(qkv, same, "{what}: q depends on the pool's type");
        for (r, index) in (0..c.live).flat_map(|r| (c.heads..c.heads + 2 * c.kv_heads).map(move |i| (r, i))) {
            let (at, exponent) = (c.stored_at(r, index), c.exponent_at(r, index));
            check_narrow(&c, r, index, &pool[at..at + c.head_dim], pool[exponent], &what);
            pool[at..at + c.head_dim].fill(0xFF);
            pool[exponent] = 0xFF;
        }
        assert!(untouched(&pool), "{what}: another slot was written");
    }
}

#[test]
fn a_head_that_is_not_finite_says_so_and_spoils_no_other() {
    for (i, (what, mut c)) in narrow_cases(13).take(40).enumerate() {
        c.angles = None;
        let head = c.heads + i % (2 * c.kv_heads);
        let values = c.live * c.row_cols() - c.row_cols() + head * c.head_dim;
        c.qkv[values + i % c.head_dim] = if i % 2 == 0 { NAN_BF16 } else { 0xFF80 };
        let (_, pool) = c.run::<u8>(|params, rows| start(&params.launch_e4m3(rows), 1));
        for (r, index) in (0..c.live).flat_map(|r| (c.heads..c.heads + 2 * c.kv_heads).map(move |i| (r, i))) {
            let spoiled = (r, index) == (c.live - 1, head);
            assert_eq!(pool[c.exponent_at(r, index)] == 255, spoiled, "{what}: row {r} head {index}");
        }
    }
}

#[test]
fn rope_store_turns_norms_and_stores() {
    let mut rng = SplitMix::new(6);
    for case in 0..cases(200) {
        let c = RopeCase::random(&mut rng);
        let (d, p) = (c.head_dim, c.pairs);
        c.check(&format!(
            "case {case}: {}q {}kv heads of {d}, {p} pairs, pages of {}",
            c.heads, c.kv_heads, c.page_tokens
        ));
    }
}

/// A pool of random bytes and a list of distinct pages.
struct Pages {
    pool: Vec<u8>,
    page_bytes: usize,
    list: Vec<u32>,
}

impl Pages {
    fn random(rng: &mut SplitMix) -> Self {
        let page_bytes = match rng.below(8) {
            0 => 16 << 10,
            1 => 16 * (1 + below(rng, 4000)),
            _ => 16 * (1 + below(rng, 200)),
        };
        let pages = 2 + below(rng, 9);
        let pool = (0..pages * page_bytes).map(|_| rng.next_u64() as u8 | 1).collect();
        let mut list: Vec<u32> = (0..pages as u32).collect();
        list.sort_by_cached_key(|_| rng.next_u64());
        list.truncate(below(rng, pages + 1));
        Self { pool, page_bytes, list }
    }

    fn page(&self, page: u32) -> &[u8] {
        &self.pool[page as usize * self.page_bytes..][..self.page_bytes]
    }
}

/// Multiprocessors that the launches are cut for: fewer blocks than chunks at times.
const SMS: u32 = 1;

#[test]
fn page_copy_moves_pairs() {
    let mut rng = SplitMix::new(7);
    for case in 0..cases(200) {
        let p = Pages::random(&mut rng);
        let pairs = &p.list[..p.list.len() / 2 * 2];
        let pool = on_schedules(&format!("case {case}"), |seed| {
            let (mut pool, mut list) = (Guarded::from(&p.pool), Guarded::from(pairs));
            let params = PageCopyParams {
                pool: device(&mut pool),
                pairs: device(&mut list),
                page_bytes: p.page_bytes as u64,
                count: pairs.len() as u32 / 2,
                pad: 0,
            };
            start(&params.launch(SMS), seed);
            pool.take("pool")
        });
        let mut want = p.pool.clone();
        for pair in pairs.chunks(2) {
            want[pair[1] as usize * p.page_bytes..][..p.page_bytes].copy_from_slice(p.page(pair[0]));
        }
        assert!(pool == want, "case {case}: {} pairs of {} bytes", pairs.len() / 2, p.page_bytes);
    }
}

#[test]
fn page_zero_zeroes_the_listed_pages_alone() {
    let mut rng = SplitMix::new(8);
    for case in 0..cases(200) {
        let p = Pages::random(&mut rng);
        let pool = on_schedules(&format!("case {case}"), |seed| {
            let (mut pool, mut list) = (Guarded::from(&p.pool), Guarded::from(&p.list));
            let params = PageZeroParams {
                pool: device(&mut pool),
                pages: device(&mut list),
                page_bytes: p.page_bytes as u64,
                count: p.list.len() as u32,
                pad: 0,
            };
            start(&params.launch(SMS), seed);
            pool.take("pool")
        });
        let mut want = p.pool.clone();
        for page in &p.list {
            want[*page as usize * p.page_bytes..][..p.page_bytes].fill(0);
        }
        assert!(pool == want, "case {case}: {} pages of {} bytes", p.list.len(), p.page_bytes);
    }
}

#[test]
fn page_verify_counts_every_planted_word() {
    let mut rng = SplitMix::new(9);
    for case in 0..cases(200) {
        let mut p = Pages::random(&mut rng);
        for page in &p.list {
            p.pool[*page as usize * p.page_bytes..][..p.page_bytes].fill(0);
        }
        let mut planted = vec![std::collections::BTreeSet::new(); p.list.len()];
        for _ in 0..below(&mut rng, 12).min(p.list.len() * 4) {
            let (i, at) = (below(&mut rng, p.list.len()), below(&mut rng, p.page_bytes));
            p.pool[p.list[i] as usize * p.page_bytes + at] |= 1 << rng.below(8);
            planted[i].insert(at / 4);
        }
        let counts = on_schedules(&format!("case {case}"), |seed| {
            let (mut pool, mut list) = (Guarded::from(&p.pool), Guarded::from(&p.list));
            let mut counts = Guarded::from(&vec![0u32; p.list.len()]);
            let params = PageVerifyParams {
                pool: device(&mut pool),
                pages: device(&mut list),
                counts: device(&mut counts),
                page_bytes: p.page_bytes as u64,
                count: p.list.len() as u32,
                pad: 0,
            };
            start(&params.launch(SMS), seed);
            assert!(pool.take("pool") == p.pool, "a scan writes nothing");
            counts.take("counts")
        });
        let want: Vec<u32> = planted.iter().map(|words| words.len() as u32).collect();
        assert_eq!(counts, want, "case {case}: pages of {} bytes", p.page_bytes);
    }
}

#[test]
fn pages_go_to_staging_and_come_back() {
    let mut rng = SplitMix::new(10);
    for case in 0..cases(200) {
        let p = Pages::random(&mut rng);
        let (staged, restored) = on_schedules(&format!("case {case}"), |seed| {
            let (mut pool, mut list) = (Guarded::from(&p.pool), Guarded::from(&p.list));
            let mut staging = Guarded::<u8>::new(p.list.len() * p.page_bytes);
            let params = PageStageParams {
                pool: device(&mut pool),
                pages: device(&mut list),
                staging: device(&mut staging),
                page_bytes: p.page_bytes as u64,
                count: p.list.len() as u32,
                pad: 0,
            };
            start(&params.launch_gather(SMS), seed);
            for page in &p.list {
                pool.as_mut_slice()[*page as usize * p.page_bytes..][..p.page_bytes].fill(0);
            }
            start(&params.launch_scatter(SMS), seed);
            (staging.take("staging"), pool.take("pool"))
        });
        let want: Vec<u8> = p.list.iter().flat_map(|page| p.page(*page).to_vec()).collect();
        assert!(staged == want, "case {case}: {} pages of {} bytes", p.list.len(), p.page_bytes);
        assert!(restored == p.pool, "case {case}: scatter");
    }
}
