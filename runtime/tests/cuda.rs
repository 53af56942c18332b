//! The CUDA backend's host code and kernels under the emulator, held to what the CPU backend is held to.

use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::{CudaBackend, CudaOptions, Determinism};
use kernels::{Backend, WeightForm};
use proptest::prelude::*;

use crate::hit_miss::{hit_equals_miss, plans};
use crate::oracle_mlx::bf16_stays_near_the_floor;

fn emulated(arch: u32, seed: u64) -> Box<dyn Backend> {
    let driver = SimDriver::new(Arch(arch), Options { seed, threads: 2 });
    let options = CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() };
    Box::new(CudaBackend::new(Box::new(driver), options))
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
