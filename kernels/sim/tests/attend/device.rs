//! A step in device memory: launched, and what must not have been written looked at.

use kernels::KvType;
use kernels::cuda::attend_plan::AttendPlan;
use kernels::cuda::driver::{DevicePtr, TensorMap};
use kernels::cuda::params::attend::{
    AttendArgs, AttendItem, AttendMmaParams, AttendSm90E4m3Params, AttendSm90Params,
};
use kernels::cuda::params::merge::{MergeParams, MergeRow};

use super::scene::{Family, LAYER, LAYERS, NAN, Run, Scene, rows_of};
use crate::support::{Guarded, run};

/// The outputs of all rows as a plan has them computed, bf16 bits.
pub fn outputs(scene: &Scene, runs: &[Run], plan: &AttendPlan, family: Family, seed: u64) -> Vec<u16> {
    let mut device = Device::new(scene, runs, plan, seed);
    device.attend(scene, plan, family);
    device.merge(scene, plan);
    let (cols, stride) = (scene.model.heads() * scene.model.head_dim, out_stride(scene));
    let out = device.check();
    let rows = out.chunks(stride);
    assert!(rows.clone().all(|row| row[cols..].iter().all(|&bits| bits == 0xffff)), "wrote between rows");
    rows.flat_map(|row| &row[..cols]).copied().collect()
}

/// The same before the division and its rounding to bf16, which would hide most differences: (m, l, o) of each
/// (row, head), f32 bits. Items that write directly are made to leave a state, and states merge here.
pub fn sums(scene: &Scene, runs: &[Run], plan: &AttendPlan, family: Family, seed: u64) -> Vec<u32> {
    let plan = with_states(plan);
    let mut device = Device::new(scene, runs, &plan, seed);
    device.attend(scene, &plan, family);
    let (heads, dim) = (scene.model.heads(), scene.model.head_dim);
    let mut merges = plan.merges.clone();
    merges.sort_by_key(|merge| merge.row);
    let mut all = Vec::new();
    for merge in merges {
        for head in 0..heads {
            let states = &plan.slots[merge.first as usize..][..merge.count as usize];
            let mut sum = Folded::new(dim);
            for at in states.iter().map(|&slot| slot as usize * heads + head) {
                let ml = &device.part_ml.as_slice()[at * 2..][..2];
                sum.fold([ml[0], ml[1]], &device.part_o.as_slice()[at * dim..][..dim]);
            }
            all.extend([sum.m.to_bits(), sum.l.to_bits()]);
            all.extend(sum.o.iter().map(|o| o.to_bits()));
        }
    }
    device.check();
    all
}

fn with_states(plan: &AttendPlan) -> AttendPlan {
    let mut plan = plan.clone();
    for item in plan.items.iter_mut().filter(|item| item.slot == AttendItem::DIRECT) {
        (item.slot, item.flags) = (plan.states, AttendItem::FOLD);
        plan.states += item.rows;
        for i in 0..item.rows {
            let row = plan.row_list[(item.row_list + i) as usize];
            plan.merges.push(MergeRow { row, first: plan.slots.len() as u32, count: 1, pad: 0 });
            plan.slots.push(item.slot + i);
        }
    }
    plan
}

/// The law by which states merge, once more, in plain f32.
pub struct Folded {
    pub m: f32,
    pub l: f32,
    pub o: Vec<f32>,
}

impl Folded {
    pub fn new(dim: usize) -> Folded {
        Folded { m: f32::NEG_INFINITY, l: 0.0, o: vec![0.0; dim] }
    }

    pub fn fold(&mut self, [m, l]: [f32; 2], o: &[f32]) {
        let (keep, add) = match self.m >= m {
            true if m == f32::NEG_INFINITY => (1.0, 0.0),
            true => (1.0, (m - self.m).exp2()),
            false => ((self.m - m).exp2(), 1.0),
        };
        self.m = self.m.max(m);
        self.l = self.l * keep + l * add;
        self.o.iter_mut().zip(o).for_each(|(sum, o)| *sum = *sum * keep + o * add);
    }
}

fn out_stride(scene: &Scene) -> usize {
    scene.model.heads() * scene.model.head_dim + 8
}

/// Columns of a fused row.
fn q_stride(scene: &Scene) -> usize {
    (scene.model.heads() + 2 * scene.model.kv_heads) * scene.model.head_dim
}

/// What lies in device memory for a step.
struct Device {
    /// In bf16.
    pool: Guarded<u16>,
    /// In e4m3; empty for models of bf16.
    narrow: Guarded<u8>,
    q: Guarded<u16>,
    /// Items, row list, positions, page table, merge rows, slots, live counts.
    words: Vec<Guarded<u32>>,
    out: Guarded<u16>,
    seed: u64,
    part_o: Guarded<f32>,
    part_ml: Guarded<f32>,
}

impl Device {
    fn new(scene: &Scene, runs: &[Run], plan: &AttendPlan, seed: u64) -> Device {
        let (_, table) = scene.spans(runs);
        let rows = rows_of(runs);
        let positions: Vec<u32> = rows.iter().map(|&(_, position)| position as u32).collect();
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
        let mut q = vec![NAN; rows.len() * q_stride(scene)];
        for (fused, &(sequence, position)) in q.chunks_mut(q_stride(scene)).zip(&rows) {
            fused[..heads * scene.model.head_dim].copy_from_slice(&scene.query(sequence, position));
        }
        Device {
            pool: Guarded::from(&scene.pool(runs)),
            narrow: match scene.model.kind {
                KvType::E4m3 => Guarded::from(&scene.narrow_pool(runs)),
                _ => Guarded::new(0),
            },
            q: Guarded::from(&q),
            words: words.iter().map(|words| Guarded::from(words)).collect(),
            out: Guarded::new(rows.len() * out_stride(scene)),
            seed,
            part_o: Guarded::new(plan.states as usize * heads * scene.model.head_dim),
            part_ml: Guarded::new(plan.states as usize * heads * 2),
        }
    }

    fn args(&mut self, scene: &Scene) -> AttendArgs {
        let m = &scene.model;
        let words: Vec<u64> = self.words.iter_mut().map(Guarded::address).collect();
        AttendArgs {
            q: DevicePtr(self.q.address()),
            out: DevicePtr(self.out.address()),
            part_o: DevicePtr(self.part_o.address()),
            part_ml: DevicePtr(self.part_ml.address()),
            items: DevicePtr(words[0]),
            row_list: DevicePtr(words[1]),
            positions: DevicePtr(words[2]),
            page_table: DevicePtr(words[3]),
            items_live: DevicePtr(words[6] + 4),
            q_stride: q_stride(scene) as u32,
            out_stride: out_stride(scene) as u32,
            heads: m.heads() as u32,
            group: m.group as u32,
            head_dim: m.head_dim as u32,
            window: m.window.unwrap_or(0),
            page_shift: m.page.trailing_zeros(),
            scale_log2: (m.scale() * std::f64::consts::LOG2_E) as f32,
        }
    }

    fn merge(&mut self, scene: &Scene, plan: &AttendPlan) {
        let args = self.args(scene);
        let params = MergeParams {
            part_o: args.part_o,
            part_ml: args.part_ml,
            rows: DevicePtr(self.words[4].address()),
            slots: DevicePtr(self.words[5].address()),
            out: args.out,
            rows_live: DevicePtr(self.words[6].address() + 12),
            heads: args.heads,
            head_dim: args.head_dim,
            out_stride: args.out_stride,
            pad: 0,
        };
        let launch = params.launch(plan.merges.len() as u32 + 1);
        run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &params, self.seed);
    }

    fn attend(&mut self, scene: &Scene, plan: &AttendPlan, family: Family) {
        let (m, args, seed) = (&scene.model, self.args(scene), self.seed);
        let (page_stride, block) = scene.strides();
        let kernel = m.kernel(family).expect("a kernel for this head dimension");
        let (items_max, kv_heads) = (plan.items.len() as u32 + 1, m.kv_heads as u32);
        let pool = self.pool.address();
        if family == Family::Mma || family == Family::MmaE4m3 {
            let is_narrow = family == Family::MmaE4m3;
            assert!(!is_narrow || m.kind == KvType::E4m3);
            let block = if is_narrow { block + m.page } else { block };
            let kv = if is_narrow { self.narrow.address() } else { pool };
            let element = if is_narrow { 1 } else { 2 };
            let params = AttendMmaParams {
                args,
                kv: DevicePtr(kv + (LAYER * 2 * m.kv_heads * block * element) as u64),
                page_stride: (LAYERS * 2 * m.kv_heads * block) as u64,
                value_offset: (m.kv_heads * block) as u64,
                head_stride: block as u64,
            };
            let launch = kernel.launch(items_max, kv_heads, &params);
            run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &params, seed);
            return;
        }
        let blocks = LAYERS * 2 * m.kv_heads;
        let mut spec = cusim::TensorMapSpec {
            base: pool,
            element_bytes: 2,
            dims: [m.head_dim, m.page, blocks, scene.pages].map(|n| n as u64).to_vec(),
            strides: [m.head_dim, block, page_stride].map(|n| n as u64 * 2).to_vec(),
            tile: vec![64, m.page as u32, 1, 1],
            swizzle: cusim::Swizzle::Bytes128,
        };
        let narrow_block = block + m.page;
        if matches!(family, Family::Sm90E4m3(_)) {
            spec = cusim::TensorMapSpec {
                base: self.narrow.address(),
                dims: [m.head_dim / 2, m.page, blocks, scene.pages].map(|n| n as u64).to_vec(),
                strides: [m.head_dim, narrow_block, blocks * narrow_block].map(|n| n as u64).to_vec(),
                tile: vec![m.head_dim as u32 / 2, m.page as u32, 1, 1],
                swizzle: cusim::Swizzle::None,
                ..spec
            };
        }
        let at = AttendSm90Params {
            map: TensorMap(spec.encode().expect("a map that the driver takes")),
            args,
            block_base: (LAYER * 2 * m.kv_heads) as u32,
            kv_heads,
            pages: scene.pages as u32,
            pad: [0; 3],
        };
        if matches!(family, Family::Sm90E4m3(_)) {
            let params = AttendSm90E4m3Params {
                at,
                exponents: DevicePtr(self.narrow.address() + (m.page * m.head_dim) as u64),
                page_bytes: (blocks * narrow_block) as u64,
                block_bytes: narrow_block as u64,
                pad: [0; 5],
            };
            let launch = kernel.launch(items_max, kv_heads, &params);
            run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &params, seed);
            return;
        }
        let launch = kernel.launch(items_max, kv_heads, &at);
        run(launch.kernel, launch.grid, [launch.block, 1, 1], launch.smem, &at, seed);
    }

    /// Guards, and that every state was written; gives the output.
    fn check(self) -> Vec<u16> {
        self.pool.assert_guards("pool");
        self.narrow.assert_guards("pool of e4m3");
        self.part_o.assert_guards("part_o");
        let sums = self.part_ml.take("part_ml");
        assert!(sums.iter().all(|v| !v.is_nan()), "a state was not written");
        self.out.take("out")
    }
}
