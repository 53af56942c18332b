//! The CUDA backend's host code and kernels under the emulator, held to what the CPU backend is held to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::prefix_groups::SharingRule;
use kernels::cuda::{CudaBackend, CudaOptions, Determinism};
use kernels::{Backend, HostType, WeightForm};
use proptest::prelude::*;

use crate::hit_miss::{hit_equals_miss, plans};
use crate::oracle_mlx::bf16_stays_near_the_floor;
use crate::tiny::{Bench, Case, Chunk, Seq};

fn emulated(arch: u32, seed: u64) -> Box<dyn Backend> {
    let driver = SimDriver::new(Arch(arch), Options { seed, threads: 2 });
    let options = CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() };
    Box::new(CudaBackend::new(Box::new(driver), options))
}

fn bench(case: &str, arch: u32, options: CudaOptions) -> (Bench, Arc<AtomicU64>) {
    let driver = SimDriver::new(Arch(arch), Options { seed: 6, threads: 2 });
    let replays = driver.replays();
    let backend = Box::new(CudaBackend::new(Box::new(driver), options));
    let loaded = Case::named(case).load(HostType::Bf16, WeightForm::Bf16, 16, backend);
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
    for arch in [80, 90] {
        let run = |graphs: bool| {
            let (mut bench, replays) =
                bench("llama-gqa-tied", arch, CudaOptions { graphs, ..CudaOptions::default() });
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
    for arch in [80, 90] {
        let run = |sharing: Option<SharingRule>| {
            let (mut bench, _) = bench("llama-long", arch, CudaOptions { sharing, ..CudaOptions::default() });
            let prompt: Vec<u32> = (0..530).map(|t| t * 13 % 101).collect();
            let mut first = Seq::default();
            bench.step(&mut [Chunk { seq: &mut first, tokens: &prompt, wanted: vec![] }]);
            // Two that share two tiles, one that shares one, one that shares none; what follows is their own.
            let fork = |pages: usize| Seq { pages: first.pages[..pages].to_vec(), len: pages as u32 * 16 };
            let mut seqs = vec![fork(33), fork(33), fork(20), fork(8)];
            decode(&mut bench, &mut seqs, 3)
        };
        assert!(run(Some(rule)) == run(None), "sm_{arch}");
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
