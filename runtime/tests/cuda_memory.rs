//! The plan of a GPU's memory: made before anything is taken, exact, and refused with the flag that is in the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::Bytes;
use cusim::{Options, Room, SimDriver};
use expect_test::{Expect, expect};
use kernels::cuda::driver::Arch;
use kernels::cuda::{CudaBackend, CudaOptions};
use kernels::{HostType, KvType, WeightForm};
use quire_runtime::model::{
    KvChoice, LoadOptions, Loaded, MemoryPlan, ModelError, PoolSize, Progress, WeightChoice, load_from,
};

use crate::tiny::Case;

const CASE: &str = "llama-gqa-tied";
const MIB: u64 = 1 << 20;

/// What a load said, and how much was taken of the device by then.
struct Heard {
    room: Arc<Room>,
    free_at_plan: Option<u64>,
    plan: Option<MemoryPlan>,
    read_before_plan: bool,
}

impl Progress for Heard {
    fn advance(&mut self, _done: u64, _total: u64) {
        self.read_before_plan |= self.plan.is_none();
    }
    fn planned(&mut self, plan: &MemoryPlan) {
        self.free_at_plan = Some(self.room.free.load(Ordering::Relaxed));
        self.plan = Some(*plan);
    }
}

fn load(memory_bytes: u64, options: LoadOptions) -> (Result<Loaded, ModelError>, Heard) {
    let case = Case::named(CASE);
    let driver = SimDriver::with_memory(Arch(90), Options::seeded(1), memory_bytes);
    let room = driver.room();
    let mut heard = Heard { room, free_at_plan: None, plan: None, read_before_plan: false };
    let backend = Box::new(CudaBackend::new(Box::new(driver), CudaOptions::default()));
    let loaded = load_from(&case.source(HostType::F32), case.describe(), &options, backend, &mut heard);
    (loaded, heard)
}

fn options(pool: PoolSize) -> LoadOptions {
    let weights = WeightChoice::As(WeightForm::Bf16);
    LoadOptions { weights, pool, step_tokens: 200, ..LoadOptions::default() }
}

/// Weights, keys and values in 8 bits.
fn narrow(pool: PoolSize) -> LoadOptions {
    let weights = WeightChoice::As(WeightForm::E4m3);
    LoadOptions { weights, kv: KvChoice::As(KvType::E4m3), ..options(pool) }
}

#[test]
fn the_plan_comes_before_anything_is_taken_and_is_what_is_taken() {
    let pools = [PoolSize::Fraction(0.9), PoolSize::Pages(100), PoolSize::Bytes(Bytes(3 * MIB))];
    for options in pools.iter().flat_map(|&pool| [options(pool), narrow(pool)]) {
        let (loaded, heard) = load(1024 * MIB, options);
        let (loaded, plan) = (loaded.unwrap_or_else(|e| panic!("{e}")), heard.plan.expect("it was told"));
        assert!(!heard.read_before_plan, "the plan comes before the first weight");
        assert_eq!(heard.free_at_plan, Some(1024 * MIB), "and before the first allocation");
        assert_eq!(loaded.memory, plan);
        let free = heard.room.free.load(Ordering::Relaxed);
        assert_eq!(
            free,
            plan.headroom.unwrap().0 + plan.reserve.0,
            "{options:?}: what is left is what was said"
        );
        // Parts that are stacked are planned apart, each rounded up.
        let spare = heard.room.reserved.load(Ordering::Relaxed);
        assert!(spare < 256 * 100, "{spare} bytes were planned and not used");
    }
}

#[test]
fn no_step_takes_more() {
    let (loaded, heard) = load(1024 * MIB, options(PoolSize::Pages(64)));
    let mut bench = crate::tiny::Bench::new(loaded.unwrap_or_else(|e| panic!("{e}")));
    let free = heard.room.free.load(Ordering::Relaxed);
    bench.logits_at(&[1, 2, 3, 4, 5], &[4]);
    assert_eq!(heard.room.free.load(Ordering::Relaxed), free);
}

#[test]
fn a_plan_in_8_bits_takes_half_for_layers_and_nearly_half_for_a_page() {
    let of = |options| load(1024 * MIB, options).1.plan.expect("it was told");
    let (wide, narrow) = (of(options(PoolSize::Pages(64))), of(narrow(PoolSize::Pages(64))));
    // Heads of 16 dims with an exponent each, in the place of two bytes a dim.
    assert_eq!(narrow.kv_pages.0 * 32, wide.kv_pages.0 * 17);
    assert!(narrow.weights.0 < wide.weights.0 * 3 / 4, "{:?} of {:?}", narrow.weights, wide.weights);
}

fn refused(memory_mib: u64, options: LoadOptions, expected: Expect) {
    let (loaded, heard) = load(memory_mib * MIB, options);
    let Err(error) = loaded else { panic!("it fits into {memory_mib} MiB") };
    expected.assert_eq(&error.to_string());
    assert_eq!(error.kind(), "device");
    assert_eq!(heard.plan, None);
    assert_eq!(heard.room.free.load(Ordering::Relaxed), memory_mib * MIB, "nothing was taken");
}

#[test]
fn what_does_not_fit_is_one_error_that_names_the_flag() {
    refused(
        100,
        options(PoolSize::Fraction(0.9)),
        expect![
            "the GPU has 100.0 MiB free, 277.3 MiB are needed: weights 231.8 KiB, KV pages 52.0 KiB, buffers 21.0 MiB, reserve 256.0 MiB; --device chooses another GPU: on this one the weights alone do not fit"
        ],
    );
    refused(
        270,
        options(PoolSize::Fraction(0.9)),
        expect![
            "the GPU has 270.0 MiB free, 277.3 MiB are needed: weights 231.8 KiB, KV pages 52.0 KiB, buffers 21.0 MiB, reserve 256.0 MiB; --max-num-batched-tokens takes fewer tokens a step: the buffers grow with it"
        ],
    );
    refused(
        600,
        options(PoolSize::Pages(1 << 20)),
        expect![
            "the GPU has 600.0 MiB free, 4.3 GiB are needed: weights 231.8 KiB, KV pages 4.0 GiB, buffers 21.0 MiB, reserve 256.0 MiB; --kv-pages can be 82636 at most"
        ],
    );
    refused(
        600,
        options(PoolSize::Bytes(Bytes(2048 * MIB))),
        expect![
            "the GPU has 600.0 MiB free, 2.3 GiB are needed: weights 231.8 KiB, KV pages 2.0 GiB, buffers 21.0 MiB, reserve 256.0 MiB; --kv-memory can be 322.8 MiB at most"
        ],
    );
    refused(
        600,
        options(PoolSize::Fraction(0.0001)),
        expect![
            "the GPU has 600.0 MiB free, 277.3 MiB are needed: weights 231.8 KiB, KV pages 52.0 KiB, buffers 21.0 MiB, reserve 256.0 MiB; --gpu-memory-utilization must be 0.01 at least"
        ],
    );
}
