//! Row ops: embeddings, norms, the gated activation, gather.

use base::SplitMix;
use quire_kernels::{Batch, HostTensor, HostType, Precision, SeqSpan, WeightForm};

use crate::support::*;

const SHAPES: [(usize, usize); 8] =
    [(1, 1), (3, 24), (1, 64), (2, 100), (5, 896), (1, 2048), (7, 577), (33, 130)];

#[test]
fn rmsnorm_is_the_reference_norm() {
    let mut rng = SplitMix::new(1);
    for (rows, cols) in SHAPES {
        let (x, w) = (with_outliers(&mut rng, rows * cols), normal(&mut rng, cols));
        let run = |maker: Maker| {
            let mut b = maker.make();
            let (x, w) = (filled(&mut *b, &x, rows), load_vector(&mut *b, &w));
            let out = b.buffer(rows, cols, Precision::Full).unwrap();
            step(&mut *b, rows, |b| b.rmsnorm(x, w, 1e-5, out));
            b.read(out)
        };
        let want = run(Maker::Reference);
        for maker in cpus() {
            assert_near(&run(maker), &want, 1e-6, &format!("{maker:?} {rows}x{cols}"));
        }
    }
}

#[test]
fn add_rmsnorm_updates_the_residual_and_norms_it() {
    let mut rng = SplitMix::new(2);
    for (rows, cols) in SHAPES {
        let (x, d) = (with_outliers(&mut rng, rows * cols), normal(&mut rng, rows * cols));
        let w = normal(&mut rng, cols);
        let run = |maker: Maker| {
            let mut b = maker.make();
            let (x, d) = (filled(&mut *b, &x, rows), filled(&mut *b, &d, rows));
            let (w, out) = (load_vector(&mut *b, &w), b.buffer(rows, cols, Precision::Full).unwrap());
            step(&mut *b, rows, |b| b.add_rmsnorm(x, d, w, 1e-6, out));
            (b.read(x), b.read(out))
        };
        let want = run(Maker::Reference);
        for maker in cpus() {
            let got = run(maker);
            assert_near(&got.0, &want.0, 1e-6, &format!("{maker:?} {rows}x{cols} residual"));
            assert_near(&got.1, &want.1, 1e-6, &format!("{maker:?} {rows}x{cols} normed"));
        }
    }
}

#[test]
fn norms_of_silent_rows_stay_finite() {
    for maker in all() {
        let mut b = maker.make();
        let (x, w) = (filled(&mut *b, &[0.0; 64], 1), load_vector(&mut *b, &[1.0; 64]));
        let out = b.buffer(1, 64, Precision::Full).unwrap();
        step(&mut *b, 1, |b| b.rmsnorm(x, w, 1e-6, out));
        assert_bits(&b.read(out), &[0.0; 64], &format!("{maker:?}"));
    }
}

#[test]
fn silu_mul_is_the_reference_activation() {
    let mut rng = SplitMix::new(3);
    for (rows, cols) in [(1, 1), (2, 17), (3, 64), (1, 4864), (5, 1030)] {
        let mut x = with_outliers(&mut rng, rows * 2 * cols);
        *x.last_mut().unwrap() = 1.0;
        x[0] = if rows * cols > 1 { -104.0 } else { -1.0 }; // e^104 overflows f32
        let run = |maker: Maker| {
            let mut b = maker.make();
            let (x, out) = (filled(&mut *b, &x, rows), b.buffer(rows, cols, Precision::Full).unwrap());
            step(&mut *b, rows, |b| b.silu_mul(x, out));
            b.read(out)
        };
        let want = run(Maker::Reference);
        for maker in cpus() {
            let got = run(maker);
            assert_near(&got, &want, 1e-6, &format!("{maker:?} {rows}x{cols}"));
            for (g, w) in got.iter().zip(&want).filter(|(_, w)| w.abs() > 1e-30) {
                assert!((g - w).abs() <= 1e-6 * w.abs(), "{maker:?}: {g} is not {w}");
            }
        }
    }
}

#[test]
fn row_ops_know_nothing_of_the_rows_beside_them() {
    let mut rng = SplitMix::new(4);
    let (rows, cols) = (9, 600);
    let (x, w) = (with_outliers(&mut rng, rows * cols), normal(&mut rng, cols));
    for isa in isas() {
        let run = |threads: usize, x: &[f32]| {
            let mut b = Maker::Cpu(isa, threads).make();
            let rows = x.len() / cols;
            let (x, w) = (filled(&mut *b, x, rows), load_vector(&mut *b, &w));
            let (normed, gated) = (
                b.buffer(rows, cols, Precision::Full).unwrap(),
                b.buffer(rows, cols / 2, Precision::Full).unwrap(),
            );
            step(&mut *b, rows, |b| {
                b.rmsnorm(x, w, 1e-5, normed);
                b.silu_mul(x, gated);
            });
            (b.read(normed), b.read(gated))
        };
        let batch = run(3, &x);
        for r in 0..rows {
            let alone = run(1, &x[r * cols..(r + 1) * cols]);
            assert_bits(&batch.0[r * cols..(r + 1) * cols], &alone.0, &format!("{isa:?} norm of row {r}"));
            let gated = &batch.1[r * cols / 2..(r + 1) * cols / 2];
            assert_bits(gated, &alone.1, &format!("{isa:?} activation of row {r}"));
        }
    }
}

#[test]
fn embeddings_are_the_rows_of_the_table() {
    let mut rng = SplitMix::new(5);
    let (vocab, cols) = (50, 64);
    let table = normal(&mut rng, vocab * cols);
    let half: Vec<u16> = table.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
    let brain: Vec<u16> = table.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    let forms: [(HostType, &[u8], WeightForm, Vec<f32>); 3] = [
        (HostType::F32, bytemuck::cast_slice(&table), WeightForm::F32, table.clone()),
        (
            HostType::F16,
            bytemuck::cast_slice(&half),
            WeightForm::F16,
            half.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect(),
        ),
        (
            HostType::Bf16,
            bytemuck::cast_slice(&brain),
            WeightForm::Bf16,
            brain.iter().map(|&b| half::bf16::from_bits(b).to_f32()).collect(),
        ),
    ];
    let tokens = [3, 49, 0, 3, 17];
    let spans = [SeqSpan { row: 0, rows: 5, start: 0, table: 0 }];
    for maker in all() {
        for (kind, bytes, form, values) in &forms {
            let mut b = maker.make();
            let id = b.linear_weight(&[HostTensor::new(*kind, vocab, cols, bytes).unwrap()], *form).unwrap();
            let out = b.buffer(8, cols, Precision::Full).unwrap();
            b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &[0] });
            b.embed(id, out);
            b.end();
            let want: Vec<f32> =
                tokens.iter().flat_map(|&t| values[t as usize * cols..][..cols].to_vec()).collect();
            assert_bits(&b.read(out), &want, &format!("{maker:?} {form:?}"));
        }
    }
}

#[test]
fn gather_picks_rows_and_the_next_op_follows() {
    for maker in all() {
        let mut b = maker.make();
        let x = filled(&mut *b, &[1.0, -2.0, 3.0, -4.0, 5.0, -6.0], 3);
        let (picked, out) =
            (b.buffer(4, 2, Precision::Full).unwrap(), b.buffer(4, 2, Precision::Full).unwrap());
        let w = load_vector(&mut *b, &[1.0, 1.0]);
        step(&mut *b, 3, |b| {
            b.gather(x, &[2, 0, 2, 1], picked);
            b.rmsnorm(picked, w, 0.0, out);
        });
        assert_eq!(b.read(picked), [5.0, -6.0, 1.0, -2.0, 5.0, -6.0, 3.0, -4.0], "{maker:?}");
        assert_eq!(b.read(out).len(), 8, "{maker:?}");
    }
}
