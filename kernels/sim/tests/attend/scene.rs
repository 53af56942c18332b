//! Sequences in a paged pool, steps over them, and attention of a step: by a kernel, and in f64.
//!
//! What is dead is NaN: tokens not yet written, pages that nobody has, the other layer, columns of a fused row that
//! are not q. Values follow from (page, slot) and (sequence, position), so that two steps that mean the same read
//! the same.

use base::SplitMix;
use half::bf16;
use kernels::SeqSpan;
use kernels::cuda::attend_plan::{AttendGeometry, AttendGroup, AttendLimits, AttendPlan};
use kernels::cuda::driver::{DevicePtr, TensorMap};
use kernels::cuda::params::attend::{
    AttendArgs, AttendKernel, AttendMmaParams, AttendSm90Params, AttendWidth,
};
use kernels::cuda::params::merge::MergeParams;

use crate::support::{Guarded, assert_close, bf16_values, run};

const NAN: u16 = 0x7fff;
const LAYERS: usize = 2;
/// The layer that has values.
const LAYER: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    Mma,
    Sm90(AttendWidth),
}

pub const FAMILIES: [Family; 3] =
    [Family::Mma, Family::Sm90(AttendWidth::Narrow), Family::Sm90(AttendWidth::Wide)];

#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page: usize,
    pub window: Option<u32>,
}

impl Model {
    pub fn heads(&self) -> usize {
        self.group * self.kv_heads
    }
    fn scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.5)
    }
    pub fn kernel(&self, family: Family) -> Option<AttendKernel> {
        match family {
            Family::Mma => AttendKernel::mma(self.head_dim),
            Family::Sm90(width) => AttendKernel::sm90(self.head_dim, width),
        }
    }
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
    }
}

/// Sequences with their pages; some may share pages.
#[derive(Clone)]
pub struct Scene {
    pub model: Model,
    pub seed: u64,
    /// Page table of each sequence.
    pub tables: Vec<Vec<u32>>,
    pub pages: usize,
}

/// A run of rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub sequence: usize,
    pub start: usize,
    pub rows: usize,
}

/// A prefix group in terms of runs of the step.
#[derive(Clone, Debug)]
pub struct Shared {
    pub tokens: usize,
    pub runs: Vec<usize>,
}

impl Scene {
    /// Sequences of these lengths, none sharing, pages in random order with dead ones between.
    pub fn new(model: Model, seed: u64, lengths: &[usize]) -> Scene {
        let wanted: Vec<usize> = lengths.iter().map(|n| n.div_ceil(model.page)).collect();
        let pages = wanted.iter().sum::<usize>() + 3;
        let mut free = shuffled(pages, seed);
        let tables = wanted.iter().map(|&n| free.split_off(free.len() - n)).collect();
        Scene { model, seed, tables, pages }
    }

    pub fn spans(&self, runs: &[Run]) -> (Vec<SeqSpan>, Vec<u32>) {
        let starts: Vec<usize> = prefix_sums(self.tables.iter().map(Vec::len));
        let rows = prefix_sums(runs.iter().map(|run| run.rows));
        let spans = runs.iter().zip(rows).map(|(run, row)| SeqSpan {
            row: row as u32,
            rows: run.rows as u32,
            start: run.start as u32,
            table: starts[run.sequence] as u32,
        });
        (spans.collect(), self.tables.concat())
    }

    pub fn plan(&self, runs: &[Run], shared: &[Shared], rows_max: u32, sms: u32) -> AttendPlan {
        self.plan_within(runs, shared, rows_max, sms, u32::MAX)
    }

    /// Every row in one item, without a partial state.
    pub fn flat_plan(&self, runs: &[Run], rows_max: u32) -> AttendPlan {
        let plan = self.plan_within(runs, &[], rows_max, 1, 0);
        assert_eq!(plan.states, 0);
        plan
    }

    fn plan_within(
        &self,
        runs: &[Run],
        shared: &[Shared],
        rows_max: u32,
        sms: u32,
        states: u32,
    ) -> AttendPlan {
        let (spans, _) = self.spans(runs);
        let members: Vec<Vec<u32>> =
            shared.iter().map(|s| s.runs.iter().map(|&r| r as u32).collect()).collect();
        let groups: Vec<AttendGroup<'_>> = shared
            .iter()
            .zip(&members)
            .map(|(s, members)| AttendGroup {
                tokens: s.tokens as u32,
                table: spans[*s.runs.last().expect("a member")].table,
                spans: members,
            })
            .collect();
        let geometry = AttendGeometry {
            group: self.model.group as u32,
            kv_heads: self.model.kv_heads as u32,
            window: self.model.window,
            rows_max,
            sms,
        };
        let limits = AttendLimits { items: u32::MAX, rows: u32::MAX, states };
        AttendPlan::new(&geometry, &spans, &groups, &limits)
    }

    /// q of a row, all heads.
    fn query(&self, sequence: usize, position: usize) -> Vec<u16> {
        let cols = self.model.heads() * self.model.head_dim;
        noise(self.seed ^ ((sequence as u64 + 1) << 40 | position as u64), cols, 1.0)
    }

    /// The live positions of each sequence in a step: up to its last row, from the first that any row sees.
    fn live(&self, runs: &[Run]) -> Vec<std::ops::Range<usize>> {
        let mut live = vec![usize::MAX..0; self.tables.len()];
        for run in runs {
            let live = &mut live[run.sequence];
            live.start = live.start.min(self.model.first_visible(run.start));
            live.end = live.end.max(run.start + run.rows);
        }
        live
    }

    /// Elements from (page) to the next, and of one block (layer, K/V, head).
    fn strides(&self) -> (usize, usize) {
        let block = self.model.page * self.model.head_dim;
        (LAYERS * 2 * self.model.kv_heads * block, block)
    }

    fn pool(&self, runs: &[Run]) -> Vec<u16> {
        let (page_stride, block) = self.strides();
        let (m, dim) = (&self.model, self.model.head_dim);
        let mut pool = vec![NAN; self.pages * page_stride];
        for (table, live) in self.tables.iter().zip(self.live(runs)) {
            for (i, &page) in table.iter().enumerate() {
                let slots = live.start.max(i * m.page)..live.end.min((i + 1) * m.page);
                if slots.is_empty() {
                    continue;
                }
                for head_block in 0..2 * m.kv_heads {
                    let at = page as usize * page_stride + (LAYER * 2 * m.kv_heads + head_block) * block;
                    let values = noise(self.seed ^ (u64::from(page) << 8 | head_block as u64), block, 1.0);
                    let part = (slots.start % m.page) * dim..(slots.end - i * m.page) * dim;
                    pool[at..at + block][part.clone()].copy_from_slice(&values[part]);
                }
            }
        }
        pool
    }

    /// The outputs of all rows by a kernel, bf16 bits; also looks at what must not have been written.
    pub fn attend(&self, runs: &[Run], plan: &AttendPlan, family: Family, seed: u64) -> Vec<u16> {
        let m = &self.model;
        let (cols, qkv) = (m.heads() * m.head_dim, (m.heads() + 2 * m.kv_heads) * m.head_dim);
        let rows: Vec<(usize, usize)> = rows_of(runs);
        let mut q = vec![NAN; rows.len() * qkv];
        for (row, &(sequence, position)) in rows.iter().enumerate() {
            q[row * qkv..row * qkv + cols].copy_from_slice(&self.query(sequence, position));
        }
        let stride = cols + 8;
        let mut out = Guarded::<u16>::new(rows.len() * stride);
        let mut device = Device::new(self, runs, plan, &q);
        device.launch(self, plan, family, &mut out, [qkv, stride], seed);
        device.check();
        let out = out.take("out");
        for row in out.chunks(stride) {
            assert!(row[cols..].iter().all(|&bits| bits == 0xffff), "wrote between rows");
        }
        out.chunks(stride).flat_map(|row| &row[..cols]).copied().collect()
    }

    /// The same in f64.
    pub fn reference(&self, runs: &[Run]) -> Vec<f64> {
        let pool = self.pool(runs);
        let mut out = Vec::new();
        for (sequence, position) in rows_of(runs) {
            let q = bf16_values(&self.query(sequence, position));
            for head in 0..self.model.heads() {
                let q = &q[head * self.model.head_dim..][..self.model.head_dim];
                out.extend(self.reference_head(&pool, sequence, position, head / self.model.group, q));
            }
        }
        out
    }

    fn reference_head(
        &self,
        pool: &[u16],
        sequence: usize,
        position: usize,
        kv: usize,
        q: &[f32],
    ) -> Vec<f64> {
        let m = &self.model;
        let (page_stride, block) = self.strides();
        let at = |key: usize, values: usize| {
            let page = self.tables[sequence][key / m.page] as usize;
            let block_at = (LAYER * 2 + values) * m.kv_heads + kv;
            let first = page * page_stride + block_at * block + key % m.page * m.head_dim;
            pool[first..first + m.head_dim].iter().map(|&bits| f64::from(bf16::from_bits(bits).to_f32()))
        };
        let keys = m.first_visible(position)..position + 1;
        let scores: Vec<f64> = keys
            .clone()
            .map(|key| at(key, 0).zip(q).map(|(k, &q)| k * f64::from(q)).sum::<f64>() * m.scale())
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let mut out = vec![0.0; m.head_dim];
        for (key, score) in keys.zip(scores) {
            let weight = (score - top).exp() / sum;
            out.iter_mut().zip(at(key, 1)).for_each(|(o, v)| *o += weight * v);
        }
        out
    }

    pub fn assert_right(&self, runs: &[Run], out: &[u16], what: &str) {
        assert_close(&bf16_values(out), &self.reference(runs), 5e-3, what);
    }
}

/// What lies in device memory for a step.
struct Device {
    pool: Guarded<u16>,
    q: Guarded<u16>,
    words: Vec<Guarded<u32>>,
    part_o: Guarded<f32>,
    part_ml: Guarded<f32>,
}

impl Device {
    fn new(scene: &Scene, runs: &[Run], plan: &AttendPlan, q: &[u16]) -> Device {
        let (_, table) = scene.spans(runs);
        let positions: Vec<u32> = rows_of(runs).iter().map(|&(_, position)| position as u32).collect();
        let live = [positions.len() as u32, plan.items.len() as u32, 0, plan.merges.len() as u32];
        let words: [&[u32]; 7] = [
            bytemuck::cast_slice(&plan.items),
            &plan.row_list,
            &positions,
            &table,
            bytemuck::cast_slice(&plan.merges),
            &plan.slots,
            &live,
        ];
        let heads = scene.model.heads();
        Device {
            pool: Guarded::from(&scene.pool(runs)),
            q: Guarded::from(q),
            words: words.iter().map(|words| Guarded::from(words)).collect(),
            part_o: Guarded::new(plan.states as usize * heads * scene.model.head_dim),
            part_ml: Guarded::new(plan.states as usize * heads * 2),
        }
    }

    fn launch(
        &mut self,
        scene: &Scene,
        plan: &AttendPlan,
        family: Family,
        out: &mut Guarded<u16>,
        [q_stride, out_stride]: [usize; 2],
        seed: u64,
    ) {
        let m = &scene.model;
        let words: Vec<u64> = self.words.iter_mut().map(Guarded::address).collect();
        let args = AttendArgs {
            q: DevicePtr(self.q.address()),
            out: DevicePtr(out.address()),
            part_o: DevicePtr(self.part_o.address()),
            part_ml: DevicePtr(self.part_ml.address()),
            items: DevicePtr(words[0]),
            row_list: DevicePtr(words[1]),
            positions: DevicePtr(words[2]),
            page_table: DevicePtr(words[3]),
            items_live: DevicePtr(words[6] + 4),
            q_stride: q_stride as u32,
            out_stride: out_stride as u32,
            heads: m.heads() as u32,
            group: m.group as u32,
            head_dim: m.head_dim as u32,
            window: m.window.unwrap_or(0),
            page_shift: m.page.trailing_zeros(),
            scale_log2: (m.scale() * std::f64::consts::LOG2_E) as f32,
        };
        self.launch_attend(scene, plan, family, args, seed);
        let merge = MergeParams {
            part_o: args.part_o,
            part_ml: args.part_ml,
            rows: DevicePtr(words[4]),
            slots: DevicePtr(words[5]),
            out: args.out,
            rows_live: DevicePtr(words[6] + 12),
            heads: args.heads,
            head_dim: args.head_dim,
            out_stride: args.out_stride,
            pad: 0,
        };
        let launch = merge.launch(plan.merges.len() as u32 + 1);
        run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &merge, seed);
    }

    fn launch_attend(
        &mut self,
        scene: &Scene,
        plan: &AttendPlan,
        family: Family,
        args: AttendArgs,
        seed: u64,
    ) {
        let m = &scene.model;
        let (page_stride, block) = scene.strides();
        let kernel = m.kernel(family).expect("a kernel for this head dimension");
        let (items_max, kv_heads) = (plan.items.len() as u32 + 1, m.kv_heads as u32);
        let pool = self.pool.address();
        if family == Family::Mma {
            let params = AttendMmaParams {
                args,
                kv: DevicePtr(pool + (LAYER * 2 * m.kv_heads * block * 2) as u64),
                page_stride: page_stride as u64,
                value_offset: (m.kv_heads * block) as u64,
                head_stride: block as u64,
            };
            let launch = kernel.launch(items_max, kv_heads, &params);
            run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &params, seed);
            return;
        }
        let spec = cusim::TensorMapSpec {
            base: pool,
            element_bytes: 2,
            dims: [m.head_dim, m.page, LAYERS * 2 * m.kv_heads, scene.pages].map(|n| n as u64).to_vec(),
            strides: [m.head_dim, block, page_stride].map(|n| n as u64 * 2).to_vec(),
            tile: vec![64, m.page as u32, 1, 1],
            swizzle: cusim::Swizzle::Bytes128,
        };
        let params = AttendSm90Params {
            map: TensorMap(spec.encode().expect("a map that the driver takes")),
            args,
            block_base: (LAYER * 2 * m.kv_heads) as u32,
            kv_heads,
            pages: scene.pages as u32,
            pad: [0; 3],
        };
        let launch = kernel.launch(items_max, kv_heads, &params);
        run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &params, seed);
    }

    fn check(self) {
        self.pool.assert_guards("pool");
        self.part_o.assert_guards("part_o");
        let sums = self.part_ml.take("part_ml");
        assert!(sums.iter().all(|v| !v.is_nan()), "a state was not written");
    }
}

fn rows_of(runs: &[Run]) -> Vec<(usize, usize)> {
    runs.iter().flat_map(|run| (0..run.rows).map(|i| (run.sequence, run.start + i))).collect()
}

fn prefix_sums(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    lengths
        .scan(0, |sum, n| {
            *sum += n;
            Some(*sum - n)
        })
        .collect()
}

/// Standard normal bf16 bits; cheap, since tests make millions (a sum of uniforms).
fn noise(seed: u64, n: usize, scale: f32) -> Vec<u16> {
    let mut rng = SplitMix::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (0..n)
        .map(|_| {
            let bits = rng.next_u64();
            let sum: i64 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i64 - 0x8000).sum();
            bf16::from_f32(sum as f32 * (scale / 37837.0)).to_bits()
        })
        .collect()
}

pub fn shuffled(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = SplitMix::new(seed);
    let mut all: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        all.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    all
}
