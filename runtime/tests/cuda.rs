//! The CUDA backend's host code and kernels under the emulator, held to what the CPU backend is held to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::prefix_groups::SharingRule;
use kernels::cuda::{CudaBackend, CudaOptions, Determinism};
use kernels::{Backend, HostType, KvType, WeightForm};
use proptest::prelude::*;
use quire_runtime::model::KvChoice;

use crate::hit_miss::{hit_equals_miss, plans};
use crate::oracle_mlx::bf16_stays_near_the_floor;
use crate::tiny::{Bench, Case, Chunk, Seq, compare, cpu, reference};

fn emulated(arch: u32, seed: u64) -> Box<dyn Backend> {
    let driver = SimDriver::new(Arch(arch), Options { seed, threads: 2 });
    let options = CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() };
    Box::new(CudaBackend::new(Box::new(driver), options))
}

const FP8_KV: KvChoice = KvChoice::As(KvType::E4m3);

fn bench(case: &str, arch: u32, options: CudaOptions) -> (Bench, Arc<AtomicU64>) {
    bench_with(case, arch, options, WeightForm::Bf16, KvChoice::Auto)
}

fn bench_with(
    case: &str,
    arch: u32,
    options: CudaOptions,
    form: WeightForm,
    kv: KvChoice,
) -> (Bench, Arc<AtomicU64>) {
    let driver = SimDriver::new(Arch(arch), Options { seed: 6, threads: 2 });
    let replays = driver.replays();
    let backend = Box::new(CudaBackend::new(Box::new(driver), options));
    let loaded = Case::named(case).load_with_kv(HostType::Bf16, form, kv, 16, backend);
    (Bench::new(loaded), replays)
}

/// Steps of several sequences, one token each; the bits of all logits.
fn decode(bench: &mut Bench, seqs: &mut [Seq], steps: u32) -> Vec<u32> {
    let mut bits = Vec::new();
    for step in 0..steps {
        let tokens: Vec<[u32; 1]> = (0..seqs.len() as u32).map(|i| [(step * 31 + i * 7) % 97]).collect();
        let chunk = |(seq, tokens)| Chunk { seq, tokens, wanted: vec![0] };
        let mut chunks: Vec<Chunk<'_>> =
            seqs.iter_mut().zip(&tokens).map(|(s, t)| chunk((s, &t[..]))).collect();
        bits.extend(bench.step(&mut chunks).iter().flatten().map(|x| x.to_bits()));
    }
    bits
}

#[test]
fn a_replayed_step_gives_the_bits_of_one_that_was_launched() {
    let both = [(WeightForm::Bf16, KvChoice::Auto), (WeightForm::E4m3, FP8_KV)];
    for (arch, held) in [80, 90].into_iter().flat_map(|arch| both.iter().map(move |held| (arch, held))) {
        let run = |graphs: bool| {
            let options = CudaOptions { graphs, ..CudaOptions::default() };
            let (form, kv) = *held;
            let (mut bench, replays) = bench_with("llama-gqa-tied", arch, options, form, kv);
            let mut seqs = vec![Seq::default(); 3];
            let bits = decode(&mut bench, &mut seqs, 5);
            seqs.truncate(2); // another bucket
            let more = decode(&mut bench, &mut seqs, 4);
            ([bits, more].concat(), replays.load(Ordering::Relaxed))
        };
        let ((eager, none), (replayed, some)) = (run(false), run(true));
        assert_eq!(none, 0);
        assert_eq!(some, 4 + 3, "all but the first step of each bucket");
        assert!(eager == replayed, "sm_{arch}");
    }
}

/// Two shapes of layers whose states have to be merged at different positions: a window of the upper layer
/// reaches over a tile's end for some steps only.
#[test]
fn a_recording_merges_what_its_own_step_had_no_need_to() {
    for arch in [80, 90] {
        let run = |graphs: bool| {
            let options = CudaOptions { graphs, ..CudaOptions::default() };
            let (mut bench, replays) = bench("qwen2-upper-window", arch, options);
            let prompt: Vec<u32> = (0..300).map(|t| t * 17 % 103).collect();
            let mut seqs = [Seq::default(), Seq::default()];
            // The first needs a merge in its full layers from the start, the second crosses into a second tile,
            // with its window as well, once the step is recorded.
            for (seq, len) in seqs.iter_mut().zip([300, 250]) {
                bench.step(&mut [Chunk { seq, tokens: &prompt[..len], wanted: vec![] }]);
            }
            (decode(&mut bench, &mut seqs, 14), replays.load(Ordering::Relaxed))
        };
        let ((eager, _), (replayed, count)) = (run(false), run(true));
        assert_eq!(count, 13);
        assert!(eager == replayed, "sm_{arch}");
    }
}

#[test]
fn a_shared_prefix_read_once_gives_the_bits_of_one_read_by_each() {
    let rule = SharingRule::Thresholds { tokens_min: 256, rows_min: 2 };
    for (arch, kv) in [(80, KvChoice::Auto), (90, KvChoice::Auto), (80, FP8_KV), (90, FP8_KV)] {
        let run = |sharing: Option<SharingRule>| {
            let options = CudaOptions { sharing, ..CudaOptions::default() };
            let (mut bench, _) = bench_with("llama-long", arch, options, WeightForm::Bf16, kv);
            let prompt: Vec<u32> = (0..530).map(|t| t * 13 % 101).collect();
            let mut first = Seq::default();
            bench.step(&mut [Chunk { seq: &mut first, tokens: &prompt, wanted: vec![] }]);
            // Two that share two tiles, one that shares one, one that shares none; what follows is their own.
            let fork = |pages: usize| Seq { pages: first.pages[..pages].to_vec(), len: pages as u32 * 16 };
            let mut seqs = vec![fork(33), fork(33), fork(20), fork(8)];
            decode(&mut bench, &mut seqs, 3)
        };
        assert!(run(Some(rule)) == run(None), "sm_{arch}, {kv:?}");
    }
}

/// As an A100 is driven: mma.sync and cp.async.
fn ampere() -> Box<dyn Backend> {
    emulated(80, 3)
}

/// As an H200 is driven: wgmma and bulk tensor copies.
fn hopper() -> Box<dyn Backend> {
    emulated(90, 4)
}

#[test]
fn bf16_logits_of_every_family_stay_near_the_floor_on_an_emulated_ampere() {
    bf16_stays_near_the_floor(ampere);
}

#[test]
fn bf16_logits_of_every_family_stay_near_the_floor_on_an_emulated_hopper() {
    bf16_stays_near_the_floor(hopper);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_a_sequence_gives_the_bits_of_one_step_on_an_emulated_device(
        mut plan in plans(),
        is_hopper in any::<bool>(),
    ) {
        plan.form = WeightForm::Bf16;
        hit_equals_miss(&plan, if is_hopper { hopper } else { ampere });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_a_sequence_gives_the_same_bits_with_weights_and_pages_of_8_bits(
        mut plan in plans(),
        is_hopper in any::<bool>(),
        narrow_weights in any::<bool>(),
    ) {
        plan.form = if narrow_weights { WeightForm::E4m3 } else { WeightForm::Bf16 };
        plan.kv = FP8_KV;
        hit_equals_miss(&plan, if is_hopper { hopper } else { ampere });
    }
}

/// Logits of a case's whole prompt at some positions.
fn logits(case: &Case, form: WeightForm, kv: KvChoice, backend: Box<dyn Backend>) -> Vec<Vec<f32>> {
    let mut bench = Bench::new(case.load_with_kv(HostType::Bf16, form, kv, 16, backend));
    bench.poison();
    let n = case.tokens;
    bench.logits_at(&case.prompt(), &[0, n / 3, 2 * n / 3, n - 2, n - 1])
}

/// What 8 bits cost, against bf16 on the same device; printed for the record. The weights of these models are random,
/// which is the worst that rounding can meet: no direction matters more than another. Measured, of the largest logit: weights
/// 0.033 to 0.109, pages 0.021 to 0.060; mean |Δ logprob| 0.04 to 0.06 and 0.02 to 0.04, with tied embeddings, whose logits
/// are larger, 0.42 and 0.22 at most. The limits leave half as much again.
#[test]
fn logits_with_8_bits_stay_near_bf16() {
    for case in Case::all().into_iter().filter(|case| case.tokens <= 100) {
        let bf16 = logits(&case, WeightForm::Bf16, KvChoice::Auto, ampere());
        let with = |form, kv| compare(&logits(&case, form, kv, ampere()), &bf16);
        let (weights, pages) = (with(WeightForm::E4m3, KvChoice::Auto), with(WeightForm::Bf16, FP8_KV));
        println!(
            "{:24} fp8 weights: mean |Δ logprob| {:.4}, max {:.4} of scale; fp8 KV: {:.4}, {:.4}",
            case.name, weights.logprob_mean, weights.relative_max, pages.logprob_mean, pages.relative_max
        );
        assert!(weights.relative_max <= 0.165, "{}: weights {weights:?}", case.name);
        assert!(pages.relative_max <= 0.09, "{}: pages {pages:?}", case.name);
        assert!(weights.logprob_mean <= 0.63 && pages.logprob_mean <= 0.33, "{}", case.name);
        assert!(pages.logprob_mean > 0.0 && weights.logprob_mean > 0.0, "something was rounded");
    }
}

/// The same weights in f64: what is left is what bf16 leaves. Measured: 0.0045 to 0.0078 of the largest logit, 0.9 to 1.1
/// times what bf16 weights leave.
#[test]
fn logits_with_8_bits_are_those_of_exact_arithmetic_on_the_same_8_bits() {
    for name in ["llama-gqa-tied", "qwen3-gqa", "phi3-window"] {
        let case = Case::named(name);
        let exact = |form, kv| logits(&case, form, kv, reference());
        for backend in [ampere, hopper] {
            let ours = logits(&case, WeightForm::E4m3, KvChoice::Auto, backend());
            let floor = compare(
                &logits(&case, WeightForm::Bf16, KvChoice::Auto, backend()),
                &exact(WeightForm::Bf16, KvChoice::As(KvType::Bf16)),
            );
            let error = compare(&ours, &exact(WeightForm::E4m3, KvChoice::As(KvType::Bf16)));
            println!(
                "{name:16} {:.5} of scale from exact, bf16 {:.5}",
                error.relative_max, floor.relative_max
            );
            assert!(error.relative_max <= 1.6 * floor.relative_max, "{name}: {error:?}, floor {floor:?}");
        }
    }
}

#[test]
fn pages_and_weights_of_8_bits_are_named_and_counted_as_such() {
    let case = Case::named("llama-gqa-tied");
    let load = |form, kv| case.load_with_kv(HostType::Bf16, form, kv, 16, ampere());
    let (wide, narrow) = (load(WeightForm::Bf16, KvChoice::Auto), load(WeightForm::E4m3, FP8_KV));
    assert_ne!(wide.layout, narrow.layout, "no tier mixes them");
    assert_ne!(wide.digest, narrow.digest);
    let pages_alone = load(WeightForm::Bf16, FP8_KV);
    assert_eq!(pages_alone.digest, wide.digest);
    assert_eq!(pages_alone.layout, narrow.layout);
    // 16 dims and an exponent instead of 16 times two bytes.
    assert_eq!(narrow.kv.page_bytes() * 32, wide.kv.page_bytes() * 17);
    let d = &wide.model.description;
    let (qkv, linears) = (d.heads * 16 + 2 * d.kv_heads * 16, d.layers.len());
    let outputs = linears * (qkv + d.hidden + 2 * d.intermediate + d.hidden);
    let inputs = linears * (qkv * d.hidden + d.hidden * d.heads * 16 + 3 * d.hidden * d.intermediate);
    let saved = wide.backend.weight_bytes() - narrow.backend.weight_bytes();
    assert_eq!(saved as usize, inputs - 4 * outputs, "a byte a weight less, four a channel more");
}

#[test]
fn what_a_backend_cannot_hold_is_refused_by_name_before_weights_are_read() {
    let refusal = |form, kv, backend: Box<dyn Backend>| {
        use quire_runtime::model::{LoadOptions, WeightChoice, load_from};
        let case = Case::named("llama-gqa-tied");
        let options = LoadOptions { weights: WeightChoice::As(form), kv, ..LoadOptions::default() };
        let mut read = 0;
        let source = case.source(HostType::Bf16);
        let told = load_from(&source, case.describe(), &options, backend, &mut |done, _| read = done);
        assert_eq!(read, 0);
        told.err().expect("a refusal").to_string()
    };
    let auto = KvChoice::Auto;
    assert_eq!(
        refusal(WeightForm::E4m3, auto, cpu()),
        "weights in fp8 are not supported by the cpu backend: q8 takes as many bytes and is more exact"
    );
    assert_eq!(
        refusal(WeightForm::Bf16, FP8_KV, cpu()),
        "keys and values in fp8 are not supported by the cpu backend: bfloat16 is what its kernels read"
    );
    assert_eq!(
        refusal(WeightForm::Q8, auto, ampere()),
        "weights in q8 are not supported by the cuda backend: a GPU holds them in bfloat16 or fp8"
    );
    assert_eq!(
        refusal(WeightForm::Bf16, KvChoice::As(KvType::F32), hopper()),
        "keys and values in float32 are not supported by the cuda backend: a GPU holds them in bfloat16 or fp8"
    );
}
