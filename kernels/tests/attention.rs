//! Attention against the reference, and the law: a row's bits depend on its tokens and positions only.

use base::SplitMix;
use proptest::prelude::*;
use quire_kernels::cpu::Isa;
use quire_kernels::{
    AttentionShape, Backend, Batch, BufferId, KvShape, KvType, Precision, RopeStore, SeqSpan,
};

use crate::support::*;

/// Sequences with given fused rows, and the pages they live in.
#[derive(Clone, Debug)]
struct World {
    shape: AttentionShape,
    kind: KvType,
    page_tokens: usize,
    /// Fused rows of each sequence.
    rows: Vec<Vec<f32>>,
    /// What a page holds before anything is stored.
    garbage: u8,
}

/// A run of a sequence: `(sequence, first token, tokens)`.
type Run = (usize, usize, usize);

impl World {
    fn new(seed: u64, shape: AttentionShape, kind: KvType, page_tokens: usize, lengths: &[usize]) -> Self {
        let mut rng = SplitMix::new(seed);
        let rows = lengths.iter().map(|n| normal(&mut rng, n * shape.qkv_cols())).collect();
        Self { shape, kind, page_tokens, rows, garbage: 0 }
    }

    fn tokens(&self, sequence: usize) -> usize {
        self.rows[sequence].len() / self.shape.qkv_cols()
    }

    /// Everything at once, one sequence a step.
    fn whole(&self) -> Vec<Vec<Run>> {
        (0..self.rows.len()).map(|s| vec![(s, 0, self.tokens(s))]).collect()
    }

    /// Runs the steps; returns each sequence's output rows.
    fn run(&self, maker: Maker, steps: &[Vec<Run>]) -> Vec<Vec<f32>> {
        let mut b = maker.make();
        let pages_of = |s: usize| self.tokens(s).div_ceil(self.page_tokens);
        let pages: usize = (0..self.rows.len()).map(pages_of).sum();
        b.kv_pool(KvShape {
            pages,
            page_tokens: self.page_tokens,
            layers: 2,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            kind: self.kind,
        })
        .unwrap();
        if self.garbage != 0 {
            let bytes = vec![self.garbage; b.page_read(0).len()];
            (0..pages as u32).for_each(|p| b.page_write(p, &bytes));
        }
        // Pages are dealt in turn, so that no sequence has neighbouring ones.
        let mut tables = vec![Vec::new(); self.rows.len()];
        let mut next = (0..pages as u32).rev();
        while let Some(s) =
            (0..tables.len()).filter(|&s| tables[s].len() < pages_of(s)).min_by_key(|&s| tables[s].len())
        {
            tables[s].extend(next.next());
        }
        let most = steps.iter().map(|s| s.iter().map(|r| r.2).sum()).max().unwrap_or(0);
        let qkv = b.buffer(most, self.shape.qkv_cols(), Precision::Full).unwrap();
        let out = b.buffer(most, self.shape.q_cols(), Precision::Full).unwrap();
        let mut outputs: Vec<Vec<f32>> = vec![Vec::new(); self.rows.len()];
        for runs in steps {
            let got = self.step(&mut *b, runs, &tables, (qkv, out));
            let mut rows = got.chunks(self.shape.q_cols());
            for &(s, from, count) in runs {
                assert_eq!(outputs[s].len(), from * self.shape.q_cols(), "steps are in order");
                rows.by_ref().take(count).for_each(|row| outputs[s].extend(row));
            }
        }
        outputs
    }

    fn step(
        &self,
        b: &mut dyn Backend,
        runs: &[Run],
        tables: &[Vec<u32>],
        (qkv, out): (BufferId, BufferId),
    ) -> Vec<f32> {
        let cols = self.shape.qkv_cols();
        let (mut spans, mut table, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for &(s, from, count) in runs {
            spans.push(SeqSpan {
                row: (data.len() / cols) as u32,
                rows: count as u32,
                start: from as u32,
                table: table.len() as u32,
            });
            // Only the pages that exist by now.
            table.extend(&tables[s][..(from + count).div_ceil(self.page_tokens)]);
            data.extend(&self.rows[s][from * cols..(from + count) * cols]);
        }
        let rows = data.len() / cols;
        b.begin(&Batch { tokens: &vec![0; rows], spans: &spans, page_table: &table });
        b.write(qkv, rows, &data);
        let spec = RopeStore { shape: self.shape, rope: None, q_norm: None, k_norm: None, eps: 0.0 };
        b.rope_store(qkv, 1, &spec);
        b.attend(qkv, 1, &self.shape, out);
        b.end();
        b.read(out)
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<u32>) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5), window }
}

/// Rounding of queries to bf16, where the instruction set does that, moves a score by about 2⁻⁹ of itself.
fn tolerance(kind: KvType) -> f32 {
    match kind {
        KvType::F32 => 1e-5,
        KvType::Bf16 => 1e-2,
        KvType::E4m3 => unreachable!("not on a CPU"),
    }
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 64),
    (14, 2, 64),
    (16, 1, 24),
    (4, 4, 80),
    (6, 3, 128),
    (5, 5, 96),
    (8, 1, 256),
    (3, 1, 2),
    (9, 3, 34),
];

#[test]
fn attention_is_the_reference_softmax() {
    for (i, (heads, kv_heads, dim)) in SHAPES.into_iter().enumerate() {
        for kind in [KvType::F32, KvType::Bf16] {
            for window in [None, Some(1), Some(40), Some(300)] {
                let page_tokens = [16, 32, 64][i % 3];
                let shape = shape(heads, kv_heads, dim, window);
                let world = World::new(i as u64, shape, kind, page_tokens, &[530, 17]);
                let want = world.run(Maker::Reference, &world.whole());
                for isa in isas() {
                    let got = world.run(Maker::Cpu(isa, 2), &world.whole());
                    for (got, want) in got.iter().zip(&want) {
                        let what = format!("{isa:?} {heads}/{kv_heads}x{dim} {kind:?} window {window:?}");
                        assert_near(got, want, tolerance(kind), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn sharp_and_large_scores_stay_exact() {
    for isa in isas() {
        let mut world = World::new(3, shape(4, 2, 64, None), KvType::F32, 16, &[300]);
        let cols = world.shape.qkv_cols();
        // Some tokens have keys and queries thirty times larger: scores of thousands, one token takes all.
        for row in world.rows[0].chunks_mut(cols).step_by(7) {
            row[..cols - world.shape.kv_cols()].iter_mut().for_each(|v| *v *= 30.0);
        }
        let want = world.run(Maker::Reference, &world.whole());
        let got = world.run(Maker::Cpu(isa, 1), &world.whole());
        // A score of 3,000 is known to 2⁻¹³ in f32, which is what its weight may be off by.
        assert_near(&got[0], &want[0], 1e-3, &format!("{isa:?}"));
    }
}

#[test]
fn garbage_in_dead_slots_reaches_nothing() {
    for kind in [KvType::F32, KvType::Bf16] {
        for (page_tokens, window) in [(16, None), (64, None), (32, Some(50))] {
            let clean = World::new(5, shape(6, 2, 40, window), kind, page_tokens, &[277, 5, 16]);
            let steps = [
                vec![(0, 0, 130), (1, 0, 3)],
                vec![(0, 130, 140), (1, 3, 1), (2, 0, 16)],
                vec![(1, 4, 1), (0, 270, 7)],
            ];
            let dirty = World { garbage: 0xFF, ..clean.clone() }; // NaN in f32, bf16 and f64
            for maker in all() {
                let (clean, dirty) = (clean.run(maker, &steps), dirty.run(maker, &steps));
                for (clean, dirty) in clean.iter().zip(&dirty) {
                    assert_bits(dirty, clean, &format!("{maker:?} {kind:?} pages of {page_tokens}"));
                }
            }
        }
    }
}

/// Later tokens of the own sequence may be anything too: with values of infinity, only rows that see them
/// may notice.
#[test]
fn tokens_in_the_future_reach_nothing() {
    for (kind, isa) in [KvType::F32, KvType::Bf16].into_iter().flat_map(|k| isas().map(move |i| (k, i))) {
        let world = World::new(6, shape(2, 2, 32, None), kind, 16, &[300]);
        let mut poisoned = world.clone();
        let cols = world.shape.qkv_cols();
        poisoned.rows[0][277 * cols + world.shape.q_cols()..278 * cols].fill(f32::INFINITY);
        let want = world.run(Maker::Cpu(isa, 2), &world.whole());
        let got = poisoned.run(Maker::Cpu(isa, 2), &world.whole());
        let before = 277 * world.shape.q_cols();
        assert_bits(&got[0][..before], &want[0][..before], &format!("{isa:?} {kind:?}"));
        assert!(got[0][before..].iter().all(|v| v.is_nan()), "{isa:?} {kind:?}: infinity must not vanish");
    }
}

/// The steps of chunked prefill, the last tokens one by one.
fn chunked(world: &World, chunk: usize) -> Vec<Vec<Run>> {
    let mut steps = Vec::new();
    for s in 0..world.rows.len() {
        let end = world.tokens(s) - 3;
        steps.extend((0..end).step_by(chunk).map(|from| vec![(s, from, chunk.min(end - from))]));
        steps.extend((end..end + 3).map(|at| vec![(s, at, 1)]));
    }
    steps
}

/// All sequences side by side, each with its own pace.
fn mixed(world: &World, paces: &[usize]) -> Vec<Vec<Run>> {
    let mut done = vec![0; world.rows.len()];
    let mut steps = Vec::new();
    loop {
        let mut runs = Vec::new();
        for s in 0..done.len() {
            let count = paces[s % paces.len()].min(world.tokens(s) - done[s]);
            if count > 0 {
                runs.push((s, done[s], count));
                done[s] += count;
            }
        }
        if runs.is_empty() {
            return steps;
        }
        steps.push(runs);
    }
}

#[test]
fn a_row_is_the_same_however_its_sequence_was_cut() {
    for isa in isas() {
        for (kind, (heads, kv_heads, dim), window) in [
            (KvType::Bf16, (14, 2, 64), None),
            (KvType::F32, (3, 3, 24), None),
            (KvType::Bf16, (4, 1, 80), Some(100)),
            (KvType::F32, (16, 1, 34), Some(270)),
        ] {
            let world = World::new(7, shape(heads, kv_heads, dim, window), kind, 16, &[340]);
            let want = world.run(Maker::Cpu(isa, 1), &world.whole());
            for chunk in [1, 7, 16, 33, 64, 256] {
                let got = world.run(Maker::Cpu(isa, 2), &chunked(&world, chunk));
                assert_bits(
                    &got[0],
                    &want[0],
                    &format!("{isa:?} {kind:?} {heads}/{kv_heads} chunks of {chunk}"),
                );
            }
        }
    }
}

#[test]
fn a_row_is_the_same_beside_any_neighbours_and_threads() {
    for isa in isas() {
        for kind in [KvType::F32, KvType::Bf16] {
            let world = World::new(8, shape(6, 3, 48, None), kind, 32, &[300, 40, 513, 5, 256, 257]);
            let want = world.run(Maker::Cpu(isa, 1), &world.whole());
            for (threads, paces) in [(1, &[40, 1][..]), (2, &[1, 64, 7]), (3, &[100]), (4, &[13, 256, 1, 2])]
            {
                let got = world.run(Maker::Cpu(isa, threads), &mixed(&world, paces));
                for (s, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_bits(
                        got,
                        want,
                        &format!("{isa:?} {kind:?} sequence {s}, {threads} threads, {paces:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn page_size_changes_no_bit() {
    for isa in isas() {
        for kind in [KvType::F32, KvType::Bf16] {
            let world = World::new(9, shape(4, 2, 64, Some(200)), kind, 16, &[530]);
            let want = world.run(Maker::Cpu(isa, 1), &chunked(&world, 50));
            for page_tokens in [32, 64] {
                let other = World { page_tokens, ..world.clone() };
                let got = other.run(Maker::Cpu(isa, 1), &chunked(&other, 50));
                assert_bits(&got[0], &want[0], &format!("{isa:?} {kind:?} pages of {page_tokens}"));
            }
        }
    }
}

/// Long contexts with fewer heads than threads are cut along tiles and merged in a second pass.
#[test]
fn splitting_a_long_context_over_threads_changes_no_bit() {
    for isa in isas() {
        for (heads, kv_heads, kind) in [(4, 1, KvType::Bf16), (3, 3, KvType::F32)] {
            let world = World::new(10, shape(heads, kv_heads, 40, None), kind, 64, &[3000]);
            let steps = |last: usize| vec![vec![(0, 0, 3000 - last)], vec![(0, 3000 - last, last)]];
            let want = world.run(Maker::Cpu(isa, 1), &world.whole());
            for (threads, last) in [(2, 1), (4, 1), (4, 5), (7, 2)] {
                let got = world.run(Maker::Cpu(isa, threads), &steps(last));
                assert_bits(&got[0], &want[0], &format!("{isa:?} {kind:?}, {threads} threads, last {last}"));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_schedule_gives_the_reference_rows_and_the_same_bits(
        seed in any::<u64>(),
        group in 1usize..=16,
        kv_heads in 1usize..=3,
        dim in (1usize..=40).prop_map(|d| 2 * d),
        window in prop::option::of(1u32..600),
        page_tokens in prop::sample::select(vec![16, 32, 64]),
        kind in prop::sample::select(vec![KvType::F32, KvType::Bf16]),
        lengths in prop::collection::vec(1usize..560, 1..4),
        paces in prop::collection::vec(1usize..300, 1..4),
        threads in 1usize..4,
    ) {
        let shape = shape(group * kv_heads, kv_heads, dim, window);
        let world = World { garbage: 0xFF, ..World::new(seed, shape, kind, page_tokens, &lengths) };
        let isa = Isa::detect();
        let got = world.run(Maker::Cpu(isa, threads), &mixed(&world, &paces));
        let alone = world.run(Maker::Cpu(isa, 1), &world.whole());
        let want = world.run(Maker::Reference, &world.whole());
        for ((got, alone), want) in got.iter().zip(&alone).zip(&want) {
            assert_bits(got, alone, "alone");
            assert_near(got, want, tolerance(kind), "reference");
        }
    }
}
