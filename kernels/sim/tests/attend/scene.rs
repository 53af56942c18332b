//! Sequences in a paged pool, steps over them, and attention of a step in f64.
//!
//! Pages of e4m3 are given twice: as they lie in memory, and as bf16 of the same values, over which the bf16 kernels
//! must sum to the same bits. What is dead is NaN: tokens not yet written, pages that nobody has, the other layer, columns of a fused row that
//! are not q. Values follow from (page, slot) and (sequence, position), so that two steps that mean the same read
//! the same.

use base::SplitMix;
use half::bf16;
use kernels::cuda::attend_plan::{AttendGeometry, AttendGroup, AttendLimits, AttendPlan};
use kernels::cuda::params::attend::{AttendKernel, AttendWidth};
use kernels::{KvType, SeqSpan, e4m3};

use crate::support::{assert_close, bf16_values, bf16_vec};

pub const NAN: u16 = 0x7fff;
pub const LAYERS: usize = 2;
/// The layer that has values.
pub const LAYER: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    Mma,
    /// Over pages of e4m3.
    MmaE4m3,
    Sm90(AttendWidth),
    Sm90E4m3(AttendWidth),
}

impl Family {
    /// The family over bf16 whose bits it must have, for one that reads e4m3.
    pub fn wide(self) -> Option<Family> {
        match self {
            Family::Mma | Family::Sm90(_) => None,
            Family::MmaE4m3 => Some(Family::Mma),
            Family::Sm90E4m3(width) => Some(Family::Sm90(width)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page: usize,
    pub window: Option<u32>,
    pub kind: KvType,
}

impl Model {
    pub fn heads(&self) -> usize {
        self.group * self.kv_heads
    }
    pub fn scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.5)
    }
    pub fn kernel(&self, family: Family) -> Option<AttendKernel> {
        match family {
            Family::Mma => AttendKernel::mma(self.head_dim),
            Family::MmaE4m3 => AttendKernel::mma_e4m3(self.head_dim),
            Family::Sm90(width) => AttendKernel::sm90(self.head_dim, width),
            Family::Sm90E4m3(width) => AttendKernel::sm90_e4m3(self.head_dim, width),
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
    pub fn query(&self, sequence: usize, position: usize) -> Vec<u16> {
        let cols = self.model.heads() * self.model.head_dim;
        noise(self.seed ^ ((sequence as u64 + 1) << 40 | position as u64), cols, 1.0)
    }

    /// The live positions of a sequence in a step: up to its last row, from the first that any row sees.
    fn live(&self, sequence: usize, runs: &[Run]) -> std::ops::Range<usize> {
        let of = || runs.iter().filter(|run| run.sequence == sequence);
        let start = of().map(|run| self.model.first_visible(run.start)).min().unwrap_or(0);
        start..of().map(|run| run.start + run.rows).max().unwrap_or(0)
    }

    /// Elements from (page) to the next, and of one block (layer, K/V, head).
    pub fn strides(&self) -> (usize, usize) {
        let block = self.model.page * self.model.head_dim;
        (LAYERS * 2 * self.model.kv_heads * block, block)
    }

    /// The pool in bf16, with the values that pages of the model's type hold.
    pub fn pool(&self, runs: &[Run]) -> Vec<u16> {
        match self.model.kind {
            KvType::E4m3 => self.pool_of(runs, e4m3::run_stored),
            _ => self.pool_of(runs, <[f32]>::to_vec),
        }
    }

    /// The same pool in e4m3: of each block its rows, interleaved, then their exponents.
    pub fn narrow_pool(&self, runs: &[Run]) -> Vec<u8> {
        let (m, dim) = (&self.model, self.model.head_dim);
        let mut pool = Vec::new();
        for block in self.pool(runs).chunks(m.page * dim) {
            let rows: Vec<Option<Vec<f32>>> =
                block.chunks(dim).map(|row| (row[0] != NAN).then(|| bf16_values(row))).collect();
            pool.extend(rows.iter().flat_map(|row| row.as_ref().map_or(vec![0xff; dim], |row| narrow(row))));
            pool.extend(rows.iter().map(|row| row.as_ref().map_or(0xff, |row| e4m3::run_exponent(row))));
        }
        pool
    }

    /// What a row of keys or values is before anybody rounds it to 8 bits. Rows of 8-bit pages differ in size.
    fn row(&self, page: u32, head_block: usize, slot: usize, values: &[u16]) -> Vec<f32> {
        let mut row = bf16_values(values);
        if self.model.kind == KvType::E4m3 {
            let mut rng =
                SplitMix::new(self.seed ^ (u64::from(page) << 20 | (head_block << 8 | slot) as u64));
            let (n, least) = if head_block < self.model.kv_heads { (4, -2) } else { (9, -4) };
            let by = rng.below(n) as i32 + least;
            row.iter_mut().for_each(|v| *v *= f32::exp2(by as f32));
        }
        row
    }

    /// `keep` says what becomes of a row.
    fn pool_of(&self, runs: &[Run], keep: impl Fn(&[f32]) -> Vec<f32>) -> Vec<u16> {
        let (page_stride, block) = self.strides();
        let (m, dim) = (&self.model, self.model.head_dim);
        let mut pool = vec![NAN; self.pages * page_stride];
        for (sequence, table) in self.tables.iter().enumerate() {
            let live = self.live(sequence, runs);
            for (i, &page) in table.iter().enumerate() {
                let slots = live.start.max(i * m.page)..live.end.min((i + 1) * m.page);
                if slots.is_empty() {
                    continue;
                }
                for head_block in 0..2 * m.kv_heads {
                    let at = page as usize * page_stride + (LAYER * 2 * m.kv_heads + head_block) * block;
                    let values = noise(self.seed ^ (u64::from(page) << 8 | head_block as u64), block, 1.0);
                    for slot in slots.start % m.page..slots.end - i * m.page {
                        let part = slot * dim..(slot + 1) * dim;
                        let row = keep(&self.row(page, head_block, slot, &values[part.clone()]));
                        pool[at..at + block][part].copy_from_slice(&bf16_vec(&row));
                    }
                }
            }
        }
        pool
    }

    /// The outputs of all rows, in f64.
    pub fn reference(&self, runs: &[Run]) -> Vec<f64> {
        self.reference_over(&self.pool(runs), runs)
    }

    /// The same over keys and values that nobody rounded to 8 bits.
    pub fn reference_before_rounding(&self, runs: &[Run]) -> Vec<f64> {
        self.reference_over(&self.pool_of(runs, <[f32]>::to_vec), runs)
    }

    fn reference_over(&self, pool: &[u16], runs: &[Run]) -> Vec<f64> {
        let mut out = Vec::new();
        for (sequence, position) in rows_of(runs) {
            let q = bf16_values(&self.query(sequence, position));
            for head in 0..self.model.heads() {
                let q = &q[head * self.model.head_dim..][..self.model.head_dim];
                out.extend(self.reference_head(pool, sequence, position, head / self.model.group, q));
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

pub fn rows_of(runs: &[Run]) -> Vec<(usize, usize)> {
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

fn narrow(row: &[f32]) -> Vec<u8> {
    let inverse = 1.0 / e4m3::run_scale(e4m3::run_exponent(row));
    let codes: Vec<u8> = row.iter().map(|v| e4m3::nearest(v * inverse)).collect();
    codes.as_chunks().0.iter().flat_map(|group| e4m3::interleaved(*group)).collect()
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
