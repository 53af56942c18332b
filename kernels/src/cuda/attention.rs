//! Attention of a step: the work list, uploaded once for each shape of layer, and its launches.
//!
//! Layers of one shape (heads, window) share a plan. It is made when the step begins, for every shape that
//! was met before, so that a replayed step finds its lists in place.

use super::attend_plan::{AttendGeometry, AttendLimits, AttendPlan};
use super::driver::{DevicePtr, Driver, Memory, Swizzle, TensorMap, TensorMapSpec};
use super::memory::{Buffer, DeviceArray};
use super::pages::DevicePages;
use super::params::attend::{
    AttendArgs, AttendItem, AttendKernel, AttendMmaParams, AttendSm90E4m3Params, AttendSm90Params,
    AttendWidth,
};
use super::params::merge::{MergeParams, MergeRow};
use super::prefix_groups::{PrefixGroups, SharedLayer, SharingRule};
use super::step::StepArrays;
use crate::{AttentionShape, KernelError, KvShape, KvType, Precision, StepLimits};

/// Memory for partial states.
const STATE_BYTES: usize = 128 << 20;
const STATES_MAX: usize = 8192;
/// Shapes of layers that have lists from the start: full attention and a window.
const SHAPES: usize = 2;
/// Levels of shared prefixes for which the row list has room.
const LEVELS: usize = 4;

/// One shape's lists on the device.
struct Lists {
    /// Items, merge rows.
    live: DeviceArray<u32>,
    items: DeviceArray<AttendItem>,
    row_list: DeviceArray<u32>,
    merges: DeviceArray<MergeRow>,
    slots: DeviceArray<u32>,
    /// As planned for the present step.
    plan: AttendPlan,
    shape: Option<AttentionShape>,
}

/// What a launch is made for, where more may be launched than is live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub rows: usize,
    /// Whether the step is recorded, and so must serve any step of its bucket.
    pub recorded: bool,
}

pub(super) struct Attention {
    lists: Vec<Lists>,
    part_o: DevicePtr,
    part_ml: DevicePtr,
    limits: AttendLimits,
    /// Of the pages.
    kind: KvType,
    rule: Option<SharingRule>,
    /// Of keys and values in one layer.
    token_bytes: u64,
    map: Option<TensorMap>,
}

impl Attention {
    /// `rule`: which prefixes are read once for several sequences; `None` = none.
    pub fn new(
        memory: &dyn Memory,
        sms: u32,
        limits: StepLimits,
        kv: &KvShape,
        rule: Option<SharingRule>,
    ) -> Result<Self, KernelError> {
        let state = limits.heads * kv.head_dim * size_of::<f32>();
        let states = (STATE_BYTES / state.max(1)).min(STATES_MAX);
        let rows = limits.rows;
        let limits_of = AttendLimits {
            items: (rows + 4 * sms as usize) as u32,
            rows: (rows * (1 + LEVELS)) as u32,
            states: states as u32,
        };
        let mut made = Self {
            lists: Vec::new(),
            part_o: memory.alloc(states * state, "attention states")?,
            part_ml: memory.alloc(states * limits.heads * 8, "attention states")?,
            limits: limits_of,
            kind: kv.kind,
            rule,
            token_bytes: (kv.page_bytes() / (kv.layers * kv.page_tokens)) as u64,
            map: None,
        };
        for _ in 0..SHAPES {
            made.lists.push(made.new_lists(memory, rows)?);
        }
        Ok(made)
    }

    fn new_lists(&self, memory: &dyn Memory, rows: usize) -> Result<Lists, KernelError> {
        let limits = &self.limits;
        Ok(Lists {
            live: DeviceArray::new(memory, 2, "attention lists")?,
            items: DeviceArray::new(memory, limits.items as usize, "attention lists")?,
            row_list: DeviceArray::new(memory, limits.rows as usize, "attention lists")?,
            merges: DeviceArray::new(memory, rows, "attention lists")?,
            slots: DeviceArray::new(memory, limits.states as usize, "attention lists")?,
            plan: AttendPlan::default(),
            shape: None,
        })
    }

    /// Plans the step for every shape met so far.
    pub fn begin(&mut self, driver: &dyn Driver, step: &StepArrays, page_tokens: usize) {
        for i in 0..self.lists.len() {
            if let Some(shape) = self.lists[i].shape {
                self.plan(driver, step, page_tokens, i, &shape);
            }
        }
    }

    /// True if a recording for `rows` rows launches enough for the present step.
    pub fn fits(&self, driver: &dyn Driver, rows: usize) -> bool {
        let sms = driver.device().sms;
        self.lists.iter().all(|lists| {
            lists.shape.is_none_or(|s| lists.plan.items.len() <= items_of(rows, sms, s.kv_heads) as usize)
        })
    }

    /// True if some row's states have to be merged.
    pub fn merges(&self) -> bool {
        self.lists.iter().any(|lists| lists.shape.is_some() && !lists.plan.merges.is_empty())
    }

    fn plan(
        &mut self,
        driver: &dyn Driver,
        step: &StepArrays,
        page_tokens: usize,
        at: usize,
        shape: &AttentionShape,
    ) {
        let kernel = kernel_of(driver, self.kind, shape, step);
        let geometry = AttendGeometry {
            group: shape.group() as u32,
            kv_heads: shape.kv_heads as u32,
            window: shape.window,
            rows_max: kernel.rows_max,
            sms: driver.device().sms,
        };
        let groups = match self.rule {
            Some(rule) if shape.window.is_none() => {
                let layer = SharedLayer {
                    group: geometry.group,
                    kv_heads: geometry.kv_heads,
                    token_bytes: self.token_bytes,
                };
                PrefixGroups::find(&step.batch(), page_tokens, layer, rule)
            }
            _ => PrefixGroups::default(),
        };
        let lists = &mut self.lists[at];
        lists.plan = AttendPlan::new(&geometry, &step.spans, &groups.list(), &self.limits);
        let plan = &lists.plan;
        lists.live.put(driver, &[plan.items.len() as u32, plan.merges.len() as u32]);
        lists.items.put(driver, &plan.items);
        lists.row_list.put(driver, &plan.row_list);
        lists.merges.put(driver, &plan.merges);
        lists.slots.put(driver, &plan.slots);
    }

    /// The lists of `shape`; planned now if this is the first layer of it.
    fn lists_of(
        &mut self,
        driver: &dyn Driver,
        step: &StepArrays,
        page_tokens: usize,
        shape: &AttentionShape,
    ) -> usize {
        if let Some(at) = self.lists.iter().position(|lists| lists.shape == Some(*shape)) {
            return at;
        }
        let at = self.lists.iter().position(|lists| lists.shape.is_none()).unwrap_or_else(|| {
            let rows = self.lists[0].merges.capacity();
            let made = self.new_lists(driver, rows).expect("a few lists more");
            self.lists.push(made);
            self.lists.len() - 1
        });
        self.lists[at].shape = Some(*shape);
        self.plan(driver, step, page_tokens, at, shape);
        at
    }

    /// Attention of the q part of `qkv` over the pages of `layer` into `out`.
    pub fn run(
        &mut self,
        driver: &dyn Driver,
        step: &StepArrays,
        pages: &DevicePages,
        layer: usize,
        shape: &AttentionShape,
        extent: Extent,
        (qkv, out): (&Buffer, &Buffer),
    ) {
        let at = self.lists_of(driver, step, pages.shape().page_tokens, shape);
        let kernel = kernel_of(driver, self.kind, shape, step);
        let args = self.args(step, pages, shape, at, (qkv, out));
        let plan = &self.lists[at].plan;
        let items = match extent.recorded {
            true => items_of(extent.rows, driver.device().sms, shape.kv_heads),
            false => plan.items.len() as u32,
        };
        if items == 0 {
            return;
        }
        if kernel.takes_map() {
            let map = *self.map.get_or_insert_with(|| driver.tensor_map(&pool_map(pages)));
            let kv = pages.shape();
            let at = AttendSm90Params {
                map,
                args,
                block_base: (layer * 2 * shape.kv_heads) as u32,
                kv_heads: shape.kv_heads as u32,
                pages: kv.pages as u32,
                pad: [0; 3],
            };
            let of_e4m3 = || AttendSm90E4m3Params {
                at,
                exponents: pages.base().plus(kv.page_tokens * kv.head_dim),
                page_bytes: kv.page_bytes() as u64,
                block_bytes: kv.block_bytes() as u64,
                pad: [0; 5],
            };
            match kv.kind {
                KvType::E4m3 => driver.launch(&kernel.launch(items, shape.kv_heads as u32, &of_e4m3())),
                _ => driver.launch(&kernel.launch(items, shape.kv_heads as u32, &at)),
            }
        } else {
            let (page_stride, value_offset, head_stride) = pages.strides();
            let kv = pages.layer(layer);
            let params = AttendMmaParams { args, kv, page_stride, value_offset, head_stride };
            driver.launch(&kernel.launch(items, shape.kv_heads as u32, &params));
        }
        // A recording serves every step of its kind, also one in which this shape has states to merge and the
        // present one has not.
        if !plan.merges.is_empty() || (extent.recorded && self.merges()) {
            let rows = if extent.recorded { extent.rows } else { plan.merges.len() };
            driver.launch(&self.merge(at, shape, out).launch(rows as u32));
        }
    }

    fn args(
        &self,
        step: &StepArrays,
        pages: &DevicePages,
        shape: &AttentionShape,
        at: usize,
        (qkv, out): (&Buffer, &Buffer),
    ) -> AttendArgs {
        let lists = &self.lists[at];
        AttendArgs {
            q: qkv.expect(Precision::Half),
            out: out.expect(Precision::Half),
            part_o: self.part_o,
            part_ml: self.part_ml,
            items: lists.items.at(),
            row_list: lists.row_list.at(),
            positions: step.positions.at(),
            page_table: step.page_table.at(),
            items_live: lists.live.at(),
            q_stride: qkv.cols as u32,
            out_stride: out.cols as u32,
            heads: shape.heads as u32,
            group: shape.group() as u32,
            head_dim: shape.head_dim as u32,
            window: shape.window.unwrap_or(0),
            page_shift: pages.shape().page_tokens.trailing_zeros(),
            scale_log2: shape.scale * std::f32::consts::LOG2_E,
        }
    }

    fn merge(&self, at: usize, shape: &AttentionShape, out: &Buffer) -> MergeParams {
        let lists = &self.lists[at];
        MergeParams {
            part_o: self.part_o,
            part_ml: self.part_ml,
            rows: lists.merges.at(),
            slots: lists.slots.at(),
            out: out.at,
            rows_live: lists.live.at().plus(size_of::<u32>()),
            heads: shape.heads as u32,
            head_dim: shape.head_dim as u32,
            out_stride: out.cols as u32,
            pad: 0,
        }
    }
}

/// Items that a recorded step of `rows` decodes is launched for: two a row (its own and a shared prefix's), and
/// what cutting for two waves adds.
fn items_of(rows: usize, sms: u32, kv_heads: usize) -> u32 {
    2 * rows as u32 + 2 * sms.div_ceil(kv_heads as u32) + 1
}

/// The kernel for this shape on this device. A pure function of both and of whether there are long spans, and
/// every answer for a shape gives the same bits.
fn kernel_of(driver: &dyn Driver, kind: KvType, shape: &AttentionShape, step: &StepArrays) -> AttendKernel {
    let decodes = step.spans.iter().all(|span| (span.rows as usize * shape.group()) <= 64);
    let width = if decodes { AttendWidth::Narrow } else { AttendWidth::Wide };
    let (dim, is_hopper) = (shape.head_dim, driver.device().arch.is_hopper());
    let (hopper, any) = match kind {
        KvType::E4m3 => (AttendKernel::sm90_e4m3(dim, width), AttendKernel::mma_e4m3(dim)),
        _ => (AttendKernel::sm90(dim, width), AttendKernel::mma(dim)),
    };
    let kernel = hopper.filter(|_| is_hopper).or(any);
    kernel.unwrap_or_else(|| panic!("heads of {} dimensions were refused at load", shape.head_dim))
}

/// The pool as (dim, token, block of a layer and head, page); a box is 64 dims of one head's tokens of a page. Of
/// e4m3 an element is two dims, and a box has all of them.
fn pool_map(pages: &DevicePages) -> TensorMapSpec {
    let s = pages.shape();
    let (row, block) = (s.head_dim * s.kind.bytes(), s.block_bytes());
    let (width, swizzle) = match s.kind {
        KvType::E4m3 => (s.head_dim as u32 / 2, Swizzle::None),
        _ => (64, Swizzle::Bytes128),
    };
    TensorMapSpec {
        base: pages.base(),
        dims: [row as u64 / 2, s.page_tokens as u64, (s.layers * 2 * s.kv_heads) as u64, s.pages as u64],
        strides: [row as u64, block as u64, s.page_bytes() as u64],
        boxes: [width, s.page_tokens as u32, 1, 1],
        rank: 4,
        swizzle,
    }
}
