//! Oracle 2: logits that mlx-lm computed (scripts/oracle), over every case of every family.

use kernels::{Backend, HostType, WeightForm};
use safetensors::SafeTensors;

use crate::tiny::{Bench, Case, Difference, compare, cpu, reference};

const FIXTURE: &[u8] = include_bytes!("fixtures/mlx.safetensors");

/// The rows that the fixture keeps of a prompt of `n` tokens.
fn positions(n: usize) -> Vec<usize> {
    vec![0, 1, n / 3, 2 * n / 3, n - 2, n - 1]
}

/// One array of the fixture.
fn stored(case: &Case, kind: &str) -> Vec<Vec<f32>> {
    let file = SafeTensors::deserialize(FIXTURE).expect("the fixture is intact");
    let view = file.tensor(&format!("{}/{kind}", case.name)).expect("run scripts/oracle/make_fixtures.py");
    let values: Vec<f32> = match view.dtype() {
        safetensors::Dtype::F32 => {
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        _ => (view.data().chunks_exact(2))
            .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect(),
    };
    values.chunks_exact(case.vocab()).map(<[f32]>::to_vec).collect()
}

fn ours(case: &Case, kind: HostType, form: WeightForm, backend: Box<dyn Backend>) -> Vec<Vec<f32>> {
    let mut bench = Bench::new(case.load(kind, form, 16, backend));
    bench.logits_at(&case.prompt(), &positions(case.tokens))
}

/// Every case through `backend`, in the given form, against one array of the fixture.
fn differences(
    kind: HostType,
    form: WeightForm,
    wanted: &str,
    backend: fn() -> Box<dyn Backend>,
) -> Vec<(Case, Difference)> {
    let one = |case: Case| {
        let d = compare(&ours(&case, kind, form, backend()), &stored(&case, wanted));
        (case, d)
    };
    Case::all().into_iter().map(one).collect()
}

#[test]
fn f32_logits_match_mlx_on_the_reference_backend() {
    for (case, d) in differences(HostType::F32, WeightForm::F32, "f32", reference) {
        assert!(d.relative_max <= 1e-4, "{}: {d:?}", case.name);
    }
}

#[test]
fn f32_logits_match_mlx_on_the_cpu_backend() {
    for (case, d) in differences(HostType::F32, WeightForm::F32, "f32", cpu) {
        assert!(d.relative_max <= 1e-4, "{}: {d:?}", case.name);
    }
}

#[test]
fn bf16_logits_stay_within_twice_the_floor_of_mlx() {
    bf16_stays_near_the_floor(cpu);
}

/// mlx's own bf16 run differs from exact arithmetic as well: that is the yardstick.
pub fn bf16_stays_near_the_floor(backend: fn() -> Box<dyn Backend>) {
    for (case, d) in differences(HostType::Bf16, WeightForm::Bf16, "exact", backend) {
        let floor = compare(&stored(&case, "bf16"), &stored(&case, "exact"));
        println!(
            "{:24} mean |Δ logprob| {:.4} (mlx {:.4}), regret {:.3} nat",
            case.name, d.logprob_mean, floor.logprob_mean, d.regret
        );
        assert!(d.logprob_mean <= 2.0 * floor.logprob_mean, "{}: {d:?}, floor {floor:?}", case.name);
        assert!(d.regret <= 0.2, "{}: {d:?}", case.name);
    }
}

/// What quantization costs, against bf16 on the same weights; printed for the record.
#[test]
fn quantized_logits_stay_near_bf16() {
    for case in Case::all() {
        let bf16 = ours(&case, HostType::Bf16, WeightForm::Bf16, cpu());
        let errors = [WeightForm::Q8, WeightForm::Q4].map(|form| {
            let d = compare(&ours(&case, HostType::Bf16, form, cpu()), &bf16);
            println!(
                "{:24} {form:?}: mean |Δ logprob| {:.4}, max {:.4} of scale, regret {:.3} nat",
                case.name, d.logprob_mean, d.relative_max, d.regret
            );
            d.relative_max
        });
        assert!(errors[0] <= 0.05, "{}: q8 differs by {} of scale", case.name, errors[0]);
        assert!(errors[1] <= 0.5, "{}: q4 differs by {} of scale", case.name, errors[1]);
    }
}
