//! Linear layers of every weight form against the reference, and what quantization costs.

use base::SplitMix;
use expect_test::expect;
use quire_kernels::{HostTensor, HostType, Precision, WeightForm};

use crate::support::*;

/// (rows, in, out)
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 64, 48), (1, 896, 300), (2, 320, 65), (5, 96, 1), (17, 256, 130), (40, 128, 200), (3, 2048, 33)];

fn run(
    maker: Maker,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    shape: (usize, usize, usize),
    form: WeightForm,
) -> Vec<f32> {
    let (rows, _, out) = shape;
    let mut b = maker.make();
    let (x, w) = (filled(&mut *b, x, rows), load(&mut *b, w, out, form));
    let bias = bias.map(|bias| load_vector(&mut *b, bias));
    let y = b.buffer(rows, out, Precision::Full).unwrap();
    step(&mut *b, rows, |b| b.linear(x, w, bias, y));
    b.read(y)
}

/// The error that a form may add to the reference over the same (rounded, quantized) weights: what its
/// activations are rounded to inside the dot product.
fn tolerance(form: WeightForm) -> f32 {
    match form {
        WeightForm::F32 => 1e-5,
        WeightForm::F16 | WeightForm::Bf16 => 6e-3,
        WeightForm::Q8 | WeightForm::Q4 => 2e-2,
        WeightForm::E4m3 => unreachable!("not on a CPU"),
    }
}

const FORMS: [WeightForm; 5] =
    [WeightForm::F32, WeightForm::F16, WeightForm::Bf16, WeightForm::Q8, WeightForm::Q4];

#[test]
fn linear_is_the_reference_product_in_every_form() {
    let mut rng = SplitMix::new(1);
    for shape @ (rows, cols, out) in SHAPES {
        let (x, w) = (normal(&mut rng, rows * cols), normal(&mut rng, out * cols));
        let bias = normal(&mut rng, out);
        for form in FORMS {
            for bias in [None, Some(&bias[..])] {
                let want = run(Maker::Reference, &x, &w, bias, shape, form);
                for maker in cpus() {
                    let got = run(maker, &x, &w, bias, shape, form);
                    assert_near(&got, &want, tolerance(form), &format!("{maker:?} {form:?} {shape:?}"));
                }
            }
        }
    }
}

#[test]
fn outliers_in_the_input_stay_within_the_same_bound() {
    let mut rng = SplitMix::new(2);
    let shape @ (rows, cols, out) = (3, 512, 64);
    let (x, w) = (with_outliers(&mut rng, rows * cols), normal(&mut rng, out * cols));
    for form in FORMS {
        let want = run(Maker::Reference, &x, &w, None, shape, form);
        for maker in cpus() {
            assert_near(
                &run(maker, &x, &w, None, shape, form),
                &want,
                tolerance(form),
                &format!("{maker:?} {form:?}"),
            );
        }
    }
}

#[test]
fn a_row_is_the_same_alone_in_a_batch_and_on_any_threads() {
    let mut rng = SplitMix::new(3);
    let shape @ (rows, cols, out) = (37, 320, 130);
    let (x, w) = (with_outliers(&mut rng, rows * cols), normal(&mut rng, out * cols));
    for (isa, form) in isas().flat_map(|isa| FORMS.map(|form| (isa, form))) {
        let batch = run(Maker::Cpu(isa, 3), &x, &w, None, shape, form);
        for r in [0, 1, 7, 8, 15, 16, 31, 36] {
            let row = &x[r * cols..(r + 1) * cols];
            let alone = run(Maker::Cpu(isa, 1), row, &w, None, (1, cols, out), form);
            assert_bits(&alone, &batch[r * out..(r + 1) * out], &format!("{isa:?} {form:?} row {r}"));
        }
        for n in [2, 5, 16] {
            let part = run(Maker::Cpu(isa, 2), &x[..n * cols], &w, None, (n, cols, out), form);
            assert_bits(&part, &batch[..n * out], &format!("{isa:?} {form:?} first {n} rows"));
        }
    }
}

#[test]
fn parts_stack_along_their_rows() {
    let mut rng = SplitMix::new(4);
    let (cols, outs) = (96, [20, 3, 41]);
    let parts: Vec<Vec<f32>> = outs.iter().map(|out| normal(&mut rng, out * cols)).collect();
    let whole = parts.concat();
    let x = normal(&mut rng, cols);
    for maker in all() {
        let mut b = maker.make();
        let tensors: Vec<HostTensor<'_>> = (parts.iter().zip(outs))
            .map(|(p, out)| HostTensor::new(HostType::F32, out, cols, bytemuck::cast_slice(p)).unwrap())
            .collect();
        let stacked = b.linear_weight(&tensors, WeightForm::Bf16).unwrap();
        let single = load(&mut *b, &whole, 64, WeightForm::Bf16);
        let x = filled(&mut *b, &x, 1);
        let (y, z) = (b.buffer(1, 64, Precision::Full).unwrap(), b.buffer(1, 64, Precision::Full).unwrap());
        step(&mut *b, 1, |b| {
            b.linear(x, stacked, None, y);
            b.linear(x, single, None, z);
        });
        assert_bits(&b.read(y), &b.read(z), &format!("{maker:?}"));
    }
}

/// Error of a form against the unrounded weights: root mean square over that of the output.
fn cost(maker: Maker, form: WeightForm) -> f64 {
    let mut rng = SplitMix::new(5);
    let shape @ (rows, cols, out) = (4, 1024, 256);
    let (x, w) = (normal(&mut rng, rows * cols), normal(&mut rng, out * cols));
    let want = run(Maker::Reference, &x, &w, None, shape, WeightForm::F32);
    let got = run(maker, &x, &w, None, shape, form);
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.iter().zip(&want).map(|(g, w)| square(g - w)).sum();
    (error / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt()
}

/// The cost of quantization is part of what users are told, so it is written down here.
#[test]
fn quantization_costs_what_is_written_down() {
    let table: String =
        FORMS.map(|form| format!("{form:?}: {:.2} %\n", 100.0 * cost(Maker::Reference, form))).concat();
    expect![[r#"
        F32: 0.00 %
        F16: 0.02 %
        Bf16: 0.17 %
        Q8: 0.56 %
        Q4: 8.81 %
    "#]]
    .assert_eq(&table);
    for (maker, form) in cpus().into_iter().flat_map(|maker| FORMS.map(|form| (maker, form))) {
        let (got, weights) = (cost(maker, form), cost(Maker::Reference, form));
        // Rounding activations inside the dot product may add as much as 8 bits cost, and no more.
        assert!(got <= weights + 0.01, "{maker:?} {form:?}: {got} against {weights} of the weights alone");
    }
}
