//! Rotation, per-head norms and the store into pages, against the reference.

use base::SplitMix;
use quire_kernels::{AttentionShape, Batch, KvShape, KvType, Precision, RopeStore, RopeTable, SeqSpan};

use crate::support::*;

/// What to run `rope_store` with.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Rotated pairs; 0 = no positions at all.
    pairs: usize,
    norms: bool,
    magnitude: f64,
    start: usize,
}

const CASES: [Case; 6] = [
    Case { heads: 4, kv_heads: 2, dim: 64, pairs: 32, norms: false, magnitude: 1.0, start: 0 },
    Case { heads: 3, kv_heads: 1, dim: 80, pairs: 16, norms: false, magnitude: 1.0, start: 37 },
    Case { heads: 6, kv_heads: 2, dim: 128, pairs: 64, norms: true, magnitude: 1.0, start: 4000 },
    Case { heads: 2, kv_heads: 2, dim: 24, pairs: 12, norms: true, magnitude: 1.19, start: 250 },
    Case { heads: 2, kv_heads: 1, dim: 64, pairs: 0, norms: false, magnitude: 1.0, start: 10 },
    Case { heads: 2, kv_heads: 1, dim: 96, pairs: 48, norms: false, magnitude: 1.0, start: 40_000 },
];

const ROWS: usize = 9;

impl Case {
    fn shape(&self) -> AttentionShape {
        let scale = (self.dim as f32).powf(-0.5);
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale,
            window: Some(ROWS as u32),
        }
    }

    /// The fused rows after the op, and what attention then reads back from the pages.
    fn run(&self, maker: Maker, qkv: &[f32], norms: &[f32], kind: KvType) -> (Vec<f32>, Vec<f32>) {
        let mut b = maker.make();
        let shape = self.shape();
        let pages = (self.start + ROWS).div_ceil(16);
        b.kv_pool(KvShape {
            pages: 3,
            page_tokens: 16,
            layers: 1,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            kind,
        })
        .unwrap();
        let inv_freq = (0..self.pairs).map(|i| 10_000f64.powf(-(i as f64) / self.pairs as f64)).collect();
        let table = RopeTable { inv_freq, magnitude: self.magnitude, positions: self.start + ROWS };
        let rope = (self.pairs > 0).then(|| b.rope_table(&table).unwrap());
        let norm = self
            .norms
            .then(|| (load_vector(&mut *b, &norms[..self.dim]), load_vector(&mut *b, &norms[self.dim..])));
        let x = b.buffer(ROWS, shape.qkv_cols(), Precision::Full).unwrap();
        let out = b.buffer(ROWS, shape.q_cols(), Precision::Full).unwrap();
        // The window hides everything before the run, so three pages are enough for any start.
        let page_table: Vec<u32> = (0..pages as u32).map(|p| p % 3).collect();
        let span = SeqSpan { row: 0, rows: ROWS as u32, start: self.start as u32, table: 0 };
        b.begin(&Batch { tokens: &[0; ROWS], spans: &[span], page_table: &page_table });
        b.write(x, ROWS, qkv);
        let (q_norm, k_norm) = (norm.map(|n| n.0), norm.map(|n| n.1));
        b.rope_store(x, 0, &RopeStore { shape, rope, q_norm, k_norm, eps: 1e-6 });
        b.attend(x, 0, &shape, out);
        b.end();
        (b.read(x), b.read(out))
    }
}

#[test]
fn rope_store_norms_rotates_and_stores_as_the_reference() {
    let mut rng = SplitMix::new(1);
    for case in CASES {
        let qkv = normal(&mut rng, ROWS * case.shape().qkv_cols());
        let norms = normal(&mut rng, 2 * case.dim);
        for kind in [KvType::F32, KvType::Bf16] {
            let want = case.run(Maker::Reference, &qkv, &norms, kind);
            for maker in cpus() {
                let got = case.run(maker, &qkv, &norms, kind);
                assert_near(&got.0, &want.0, 1e-6, &format!("{maker:?} {case:?} rows"));
                let tolerance = if kind == KvType::F32 { 1e-5 } else { 2e-2 };
                assert_near(&got.1, &want.1, tolerance, &format!("{maker:?} {case:?} {kind:?} attention"));
            }
        }
    }
}

#[test]
fn partial_rotary_leaves_the_tail_and_values_alone() {
    let case = Case { heads: 2, kv_heads: 1, dim: 40, pairs: 8, norms: false, magnitude: 1.0, start: 5 };
    let qkv = normal(&mut SplitMix::new(2), ROWS * case.shape().qkv_cols());
    for maker in all() {
        let (rows, _) = case.run(maker, &qkv, &[], KvType::F32);
        for (got, was) in
            rows.chunks(case.dim).zip(qkv.chunks(case.dim)).enumerate().flat_map(|(i, (got, was))| {
                let kept = if i % 4 == 3 { 0 } else { 16 }; // every fourth head of a row is a value
                [(got[kept..].to_vec(), was[kept..].to_vec())]
            })
        {
            assert_bits(&got, &was, &format!("{maker:?}"));
        }
    }
}

#[test]
fn a_rotated_row_is_the_same_in_any_step() {
    let case = CASES[2];
    let cols = case.shape().qkv_cols();
    let qkv = normal(&mut SplitMix::new(3), ROWS * cols);
    let norms = normal(&mut SplitMix::new(4), 2 * case.dim);
    for isa in isas() {
        let want = case.run(Maker::Cpu(isa, 1), &qkv, &norms, KvType::Bf16);
        for threads in [2, 3] {
            let got = case.run(Maker::Cpu(isa, threads), &qkv, &norms, KvType::Bf16);
            assert_bits(&got.0, &want.0, &format!("{isa:?} {threads} threads"));
            assert_bits(&got.1, &want.1, &format!("{isa:?} {threads} threads"));
        }
    }
}
