//! What a seed changes, and what it must not: races show on some of the suite's seeds, right kernels give the same
//! bits on all, and a launch is a function of its seed.

use cusim::conformance::{Case, cases};
use cusim::{Options, launch};

use super::wrong::Wrong;
use crate::support::SEEDS;

/// Whether any of the suite's seeds gives something else than `want`.
fn shows(kernel: &str, threads: u32, want: impl Fn(&[u32]) -> Vec<u32>) -> bool {
    SEEDS.iter().any(|seed| {
        let mut wrong = Wrong::new();
        let out = wrong.run(kernel, threads, *seed);
        let want = want(wrong.input());
        out[..want.len()] != want
    })
}

#[test]
fn a_missing_barrier_shows() {
    let swapped = |input: &[u32]| (0..128).map(|t| input[t ^ 96]).collect::<Vec<u32>>();
    for kernel in ["race_no_barrier", "race_no_syncwarp", "race_slot_reused", "race_far_ahead"] {
        assert!(shows(kernel, 128, swapped), "{kernel}");
    }
}

#[test]
fn a_copy_read_too_early_shows() {
    let pieces = |input: &[u32]| (0..128).map(|t| input[(t ^ 96) / 4 * 4 + t % 4]).collect::<Vec<u32>>();
    let kernels = [
        "race_copy_not_waited_for",
        "race_copy_wait_too_shallow",
        "race_copy_without_barrier",
        "race_refill",
        "race_refill_asked_for_early",
    ];
    for kernel in kernels {
        assert!(shows(kernel, 128, pieces), "{kernel}");
    }
}

#[test]
fn a_refill_by_tma_that_does_not_wait_shows() {
    let lines = |input: &[u32]| [&input[..32], &input[256..288]].concat();
    assert!(shows("race_tma_refill", 64, lines));
}

#[test]
fn a_launch_is_a_function_of_its_seed() {
    for seed in SEEDS {
        let stats = || {
            let mut wrong = Wrong::new();
            let stats = wrong.launch("race_slot_reused", 128, &Options::seeded(seed)).expect("no fault");
            (stats, wrong.out().to_vec())
        };
        assert_eq!(stats(), stats(), "seed {seed}");
    }
}

#[test]
fn bits_and_counters_do_not_depend_on_os_threads() {
    let many = |case: &Case, threads: u32, seed: u64| {
        // Blocks of the value kernels are independent: the same launch on one and on several OS threads.
        let input = case.input.clone();
        let mut output = vec![u32::MAX; case.output_words];
        let params = case.params([0; 16], input.as_ptr() as u64, output.as_mut_ptr() as u64);
        let options = Options { seed, threads };
        let stats = launch(case.kernel, case.grid, case.block, 0, &params, &options).expect("no fault");
        (stats, output)
    };
    for case in cases().iter().filter(|case| case.grid[0] > 1) {
        for seed in SEEDS {
            assert_eq!(many(case, 1, seed), many(case, 4, seed), "{}", case.name);
        }
    }
}

#[test]
fn a_fault_is_the_same_on_several_os_threads() {
    let mut wrong = Wrong::new();
    let params = wrong.params();
    let fault = |threads: u32| {
        let options = Options { seed: 0, threads };
        launch("wrong_barrier_number", [8, 1, 1], [128, 1, 1], 0, &params, &options).expect_err("a fault")
    };
    for _ in 0..20 {
        assert_eq!(fault(1), fault(4));
    }
}
