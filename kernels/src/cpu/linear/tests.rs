//! Claims about linear ops: right against a scalar model, and the same bits whatever the company.

use base::SplitMix;
use half::{bf16, f16};

use super::*;
use crate::HostType;

const FORMS: [Form; 5] = [Form::F32, Form::F16, Form::Bf16, Form::Q8, Form::Q4];

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix::new(seed);
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// A weight of `outputs x inputs` f32 in some form, with what is needed to apply it.
struct Bench {
    pool: Pool,
    isa: Isa,
    slab: Slab,
    weight: Linear,
    scratch: Scratch,
}

impl Bench {
    fn new(values: &[f32], outputs: usize, form: Form, isa: Isa, threads: usize) -> Self {
        let (pool, mut slab) = (Pool::new(threads).unwrap(), Slab::default());
        let inputs = values.len() / outputs;
        let tensor = HostTensor::new(HostType::F32, outputs, inputs, bytemuck::cast_slice(values)).unwrap();
        let weight = Linear::load(&[tensor], form, isa, &pool, &mut slab).unwrap();
        Self { pool, isa, slab, weight, scratch: Scratch::new().unwrap() }
    }

    fn apply(&mut self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = x.len() / self.weight.inputs;
        let mut out = vec![f32::NAN; rows * self.weight.outputs];
        linear(
            Machine { pool: &self.pool, isa: self.isa },
            &self.weight,
            &self.slab,
            &Rows::new(x, rows, self.weight.inputs),
            bias,
            &RowsMut::new(&mut out, rows, self.weight.outputs),
            &mut self.scratch,
        );
        out
    }
}

/// The value that a weight has after packing, by the scalar rules.
fn held(row: &[f32], form: Form) -> Vec<f64> {
    let quantized = |quantize: fn(&[f32; GROUP]) -> quant::QuantGroup| {
        let groups = row.chunks(GROUP).map(|part| {
            let mut group = [0.0; GROUP];
            group[..part.len()].copy_from_slice(part);
            quantize(&group)
        });
        groups.flat_map(|g| g.values.map(|v| f64::from(v) * g.scale.to_f64())).take(row.len()).collect()
    };
    match form {
        Form::F32 => row.iter().map(|&w| f64::from(w)).collect(),
        Form::F16 => row.iter().map(|&w| f16::from_f32(w).to_f64()).collect(),
        Form::Bf16 => row.iter().map(|&w| bf16::from_f32(w).to_f64()).collect(),
        Form::Q8 => quantized(quant::quantize_q8),
        Form::Q4 => quantized(quant::quantize_q4),
    }
}

/// The value that an activation has inside the op.
fn seen(row: &[f32], form: Form) -> Vec<f64> {
    match form {
        Form::F32 | Form::F16 => row.iter().map(|&x| f64::from(x)).collect(),
        Form::Bf16 => row.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
        Form::Q8 | Form::Q4 => {
            let groups = row.chunks(GROUP).map(|part| {
                let mut group = [0.0; GROUP];
                group[..part.len()].copy_from_slice(part);
                quant::quantize_activations(&group)
            });
            groups.flat_map(|(s, q)| q.map(|v| f64::from(v) * f64::from(s))).take(row.len()).collect()
        }
    }
}

#[test]
fn agrees_with_a_scalar_model_of_what_is_held() {
    for (outputs, inputs, rows) in [(32, 32, 1), (33, 70, 3), (100, 257, 14), (7, 31, 2), (64, 1088, 30)] {
        let (w, x) = (random(outputs * inputs, 1), random(rows * inputs, 2));
        let bias = random(outputs, 3);
        for (form, isa) in FORMS.into_iter().flat_map(|f| isas().map(move |i| (f, i))) {
            let got = Bench::new(&w, outputs, form, isa, 2).apply(&x, Some(&bias));
            for (r, x) in x.chunks(inputs).enumerate() {
                let x = seen(x, form);
                for (o, w) in w.chunks(inputs).enumerate() {
                    let w = held(w, form);
                    let want: f64 = x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() + f64::from(bias[o]);
                    let scale: f64 = x.iter().zip(&w).map(|(x, w)| (x * w).abs()).sum();
                    let error = (f64::from(got[r * outputs + o]) - want).abs();
                    assert!(error <= 2e-6 * scale + 1e-6, "{form:?} {isa:?} [{r},{o}]: off by {error}");
                }
            }
        }
    }
}

#[test]
fn integer_forms_are_exact_where_their_scales_are_powers_of_two() {
    let (outputs, inputs, rows) = (48, 320, 9);
    let mut rng = SplitMix::new(5);
    let mut draw = |low: i64, high: i64| (rng.below((high - low + 1) as u64) as i64 + low) as f32;
    for (form, low, high, extreme) in [(Form::Q8, -127, 127, 127.0), (Form::Q4, -8, 7, -8.0)] {
        let mut w: Vec<f32> = (0..outputs * inputs).map(|_| draw(low, high) * 0.25).collect();
        w.chunks_mut(GROUP).for_each(|group| group[3] = extreme * 0.25);
        let mut x: Vec<f32> = (0..rows * inputs).map(|_| draw(-127, 127) * 0.5).collect();
        x.chunks_mut(GROUP).for_each(|group| group[5] = -127.0 * 0.5);
        for isa in isas() {
            let got = Bench::new(&w, outputs, form, isa, 2).apply(&x, None);
            for (r, x) in x.chunks(inputs).enumerate() {
                for (o, w) in w.chunks(inputs).enumerate() {
                    let want: i64 = x.iter().zip(w).map(|(x, w)| (x * 2.0) as i64 * (w * 4.0) as i64).sum();
                    assert_eq!(got[r * outputs + o], want as f32 / 8.0, "{form:?} {isa:?} [{r},{o}]");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    let (outputs, inputs) = (80, 2 * 1024 + 40);
    let (w, x) = (random(outputs * inputs, 11), random(512 * inputs, 12));
    for (form, isa) in FORMS.into_iter().flat_map(|f| isas().map(move |i| (f, i))) {
        let mut one = Bench::new(&w, outputs, form, isa, 1);
        let alone: Vec<Vec<f32>> = x.chunks(inputs).take(70).map(|row| one.apply(row, None)).collect();
        let most = if isa == Isa::Avx512 { 512 } else { 64 };
        for threads in 1..=3 {
            let mut many = Bench::new(&w, outputs, form, isa, threads);
            for rows in [2, 3, 5, 6, 7, 12, 13, 16, 17, 64, 512].into_iter().filter(|&r| r <= most) {
                let got = many.apply(&x[..rows * inputs], None);
                for (r, (got, alone)) in got.chunks(outputs).zip(&alone).enumerate() {
                    let same = got.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{form:?} {isa:?} {threads} threads, row {r} of {rows}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_at_any_place_of_the_batch() {
    let (outputs, inputs) = (64, 512);
    let (w, x) = (random(outputs * inputs, 21), random(37 * inputs, 22));
    let mut turned = x[5 * inputs..].to_vec();
    turned.extend_from_slice(&x[..5 * inputs]);
    for (form, isa) in FORMS.into_iter().flat_map(|f| isas().map(move |i| (f, i))) {
        let mut bench = Bench::new(&w, outputs, form, isa, 2);
        let (straight, mut around) = (bench.apply(&x, None), bench.apply(&turned, None));
        around.rotate_right(5 * outputs);
        assert!(straight == around, "{form:?} {isa:?}");
    }
}

#[test]
fn stacked_parts_equal_one_tall_weight() {
    let (w, x) = (random(75 * 64, 31), random(3 * 64, 32));
    let pool = Pool::new(2).unwrap();
    let tensor = |rows: std::ops::Range<usize>| {
        let bytes = bytemuck::cast_slice(&w[rows.start * 64..rows.end * 64]);
        HostTensor::new(HostType::F32, rows.len(), 64, bytes).unwrap()
    };
    for form in FORMS {
        let mut whole = Bench::new(&w, 75, form, Isa::detect(), 2);
        let want = whole.apply(&x, None);
        let parts = [tensor(0..40), tensor(40..41), tensor(41..75)];
        whole.weight = Linear::load(&parts, form, whole.isa, &pool, &mut whole.slab).unwrap();
        assert!(whole.apply(&x, None) == want, "{form:?}");
    }
}

#[test]
fn a_row_reads_back_as_it_is_held() {
    let (outputs, inputs) = (45, 77);
    let w = random(outputs * inputs, 41);
    for form in FORMS {
        let bench = Bench::new(&w, outputs, form, Isa::detect(), 1);
        let mut row = vec![f32::NAN; inputs];
        for o in [0, 31, 32, 44] {
            bench.weight.read_row(&bench.slab, o, &mut row);
            let want = held(&w[o * inputs..][..inputs], form);
            assert!(row.iter().zip(&want).all(|(&a, &b)| f64::from(a) == b), "{form:?} row {o}");
        }
    }
}

#[test]
fn no_rows_is_no_work() {
    let mut bench = Bench::new(&random(64, 1), 2, Form::Bf16, Isa::detect(), 2);
    assert!(bench.apply(&[], None).is_empty());
}
