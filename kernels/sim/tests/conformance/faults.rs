//! What is undefined on a GPU is an error here, with text that says where. The kernels are in wrong/wrong.cu.

use cusim::{Fault, Options, Swizzle, TensorMapSpec, TensorMapSpecError, launch};
use expect_test::{Expect, expect};

use super::wrong::Wrong;

/// A line for each kernel: what the emulator says of it.
fn check(kernels: &[&str], threads: u32, want: Expect) {
    let said = |kernel: &&str| match Wrong::new().launch(kernel, threads, &Options::seeded(0)) {
        Err(Fault::Block { what, .. }) => format!("{kernel}: {what}"),
        other => panic!("{kernel}: {other:?}"),
    };
    want.assert_eq(&kernels.iter().map(said).collect::<Vec<String>>().join("\n"));
}

#[test]
fn a_deadlock_says_who_waits_where() {
    let kernels = ["barrier_of_too_many", "mbar_nobody_comes", "lane_that_left", "tma_too_many_bytes"];
    check(
        &kernels,
        128,
        expect![[r#"
        barrier_of_too_many: deadlock: 64 threads (first 0) at bar_sync 3 (passed 0 times); 64 of 128 threads live (block 0,0,0)
        mbar_nobody_comes: deadlock: 128 threads (first 0) at the mbarrier at byte 17408, for parity 0; 128 of 128 threads live (block 0,0,0)
        lane_that_left: deadlock: 31 threads (first 0) at __ballot_sync of mask ffffffff, warp 0; 31 of 128 threads live (block 0,0,0)
        tma_too_many_bytes: deadlock: 1 threads (first 0) at the mbarrier at byte 17408, for parity 0; 1 of 128 threads live (block 0,0,0)"#]],
    );
}

#[test]
fn barriers_are_counted_alike() {
    let kernels = ["barrier_counts_differ", "barrier_number"];
    check(
        &kernels,
        128,
        expect![[r#"
        barrier_counts_differ: deadlock: 64 threads (first 64) at bar_sync 3 (passed 1 times); 64 of 128 threads live (block 0,0,0)
        barrier_number: bar_sync: barrier 0; 0 is __syncthreads' own and there are 16 (block 0,0,0 thread 0,0,0)"#]],
    );
}

#[test]
fn lanes_of_a_collective_stand_together() {
    let kernels = ["lanes_apart", "lane_outside_its_mask", "shuffle_from_outside"];
    check(
        &kernels,
        32,
        expect![[r#"
        lanes_apart: divergent collective: __ballot_sync with mask ffffffff, where lanes of the warp stand at __shfl_xor_sync with mask ffffffff (block 0,0,0 thread 16,0,0)
        lane_outside_its_mask: __ballot_sync: lane 1 is not in its own mask 00000001 (block 0,0,0 thread 1,0,0)
        shuffle_from_outside: __shfl_sync reads lane 20, which takes no part (block 0,0,0 thread 15,0,0)"#]],
    );
}

#[test]
fn shared_memory_has_bounds_and_alignment() {
    let kernels = [
        "copy_misaligned",
        "copy_source_misaligned",
        "copy_beyond",
        "fragment_misaligned",
        "fragment_from_outside",
    ];
    check(
        &kernels,
        32,
        expect![[r#"
        copy_misaligned: cp.async of 16 bytes: destination is not aligned (block 0,0,0 thread 0,0,0)
        copy_source_misaligned: cp.async of 16 bytes: source is not aligned (block 0,0,0 thread 0,0,0)
        copy_beyond: cp.async outside of shared memory: bytes 256..272, dynamic part has 256 (block 0,0,0 thread 16,0,0)
        fragment_misaligned: ldmatrix: row address is not aligned to 16 (block 0,0,0 thread 0,0,0)
        fragment_from_outside: ldmatrix: the address is not in shared memory (block 0,0,0 thread 0,0,0)"#]],
    );
}

/// ASan ends the process at the write itself.
#[cfg(not(cusim_sanitize = "address"))]
#[test]
fn a_write_beyond_shared_memory_is_found_at_the_end() {
    check(
        &["writes_beyond"],
        32,
        expect!["writes_beyond: write beyond dynamic shared memory: 128 bytes, written at 128 (block 0,0,0)"],
    );
}

#[test]
fn mbarriers_and_tma_are_used_in_order() {
    let kernels = [
        "mbar_not_made",
        "mbar_written_over",
        "tma_unfenced",
        "tma_too_few_bytes",
        "tma_misaligned",
        "tma_beyond",
        "tma_not_waited_for",
    ];
    check(
        &kernels,
        32,
        expect![[r#"
        mbar_not_made: mbarrier.arrive: no mbarrier was initialised at byte 17408 (block 0,0,0 thread 0,0,0)
        mbar_written_over: mbarrier.arrive: the mbarrier at byte 17408 was written over (block 0,0,0 thread 0,0,0)
        tma_unfenced: TMA load: the mbarrier at byte 17408 was initialised without fence_mbar_init (block 0,0,0 thread 0,0,0)
        tma_too_few_bytes: mbarrier at byte 17408: 512 more bytes arrived than were expected (block 0,0,0)
        tma_misaligned: TMA load: destination is not aligned to 128 (block 0,0,0 thread 0,0,0)
        tma_beyond: TMA load outside of shared memory: bytes 128..1152, dynamic part has 1024 (block 0,0,0 thread 0,0,0)
        tma_not_waited_for: the block ended with 1 TMA loads under way (block 0,0,0)"#]],
    );
}

#[test]
fn wgmma_is_used_in_order() {
    let kernels = [
        "wgmma_unfenced",
        "wgmma_scaled_early",
        "wgmma_operand_overwritten",
        "wgmma_operand_refilled",
        "wgmma_store_unpublished",
        "wgmma_never_waited_for",
        "wgmma_three_warps",
        "wgmma_descriptor_beyond",
    ];
    check(
        &kernels,
        128,
        expect![[r#"
        wgmma_unfenced: wgmma without wg_fence since the last wg_wait (block 0,0,0 thread 0,0,0)
        wgmma_scaled_early: accumulator register 3 was written while a wgmma is under way (block 0,0,0 thread 31,0,0)
        wgmma_operand_overwritten: wgmma operand in shared memory was overwritten before the wait (block 0,0,0 thread 0,0,0)
        wgmma_operand_refilled: wgmma operand in shared memory was overwritten before the wait (block 0,0,0 thread 0,0,0)
        wgmma_store_unpublished: wgmma reads bytes 0..16 written by ordinary stores without fence_proxy_async (block 0,0,0 thread 31,0,0)
        wgmma_never_waited_for: the thread ends with a wgmma under way (block 0,0,0 thread 31,0,0)
        wgmma_three_warps: wgmma: the warps of warpgroup 0 issued different ones (block 0,0,0)
        wgmma_descriptor_beyond: wgmma operand outside of shared memory: bytes 16384..16400, dynamic part has 16384 (block 0,0,0 thread 31,0,0)"#]],
    );
}

#[test]
fn accumulators_are_poison_until_the_wait() {
    for kernel in ["wgmma_read_early", "wgmma_read_one_group_early"] {
        for seed in [0, 1, 5] {
            let out = Wrong::new().run(kernel, 128, seed);
            assert!(out[..128].iter().all(|w| f32::from_bits(*w).is_nan()), "{kernel}");
        }
    }
}

#[test]
fn memory_starts_as_nan_in_every_block() {
    let mut wrong = Wrong::new();
    let params = wrong.params();
    for seed in [0, 1, 5] {
        // Both blocks write where the other reads.
        let options = Options::seeded(seed);
        launch("wrong_reads_poison", [2, 1, 1], [32, 1, 1], 128, &params, &options).expect("no fault");
        assert!(wrong.out()[..64].iter().all(|w| *w == u32::MAX));
    }
}

#[test]
fn a_fault_leaves_the_next_launch_alone() {
    for _ in 0..3 {
        for kernel in ["lanes_apart", "copy_beyond", "mbar_not_made"] {
            Wrong::new().launch(kernel, 32, &Options::seeded(3)).expect_err(kernel);
        }
        Wrong::new().run("race_no_barrier", 128, 3);
    }
}

#[test]
fn a_launch_is_refused_before_it_begins() {
    let params = Wrong::new().params();
    let refused = |name: &str, grid: [u32; 3], block: [u32; 3], smem: u32, params: &[u8]| match launch(
        name,
        grid,
        block,
        smem,
        params,
        &Options::default(),
    ) {
        Err(Fault::Refused { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let one = [1, 1, 1];
    let lines = [
        refused("quire_nothing", one, one, 0, &params),
        refused("wrong_reads_poison", one, one, 0, &params[..64]),
        refused("wrong_reads_poison", one, [1025, 1, 1], 0, &params),
        refused("wrong_reads_poison", [1, 70_000, 1], one, 0, &params),
        refused("wrong_reads_poison", one, one, 228 << 10, &params),
    ];
    expect![[r#"
        no kernel is called quire_nothing
        64 bytes of parameters, the kernel's struct has 192
        a block of 1025x1x1 threads
        a grid of 1x70000x1 blocks
        233472 bytes of dynamic shared memory, the limit is 232448"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn tensor_maps_keep_the_drivers_rules() {
    let good = TensorMapSpec {
        base: 4096,
        element_bytes: 2,
        dims: vec![128, 16, 6],
        strides: vec![256, 4096],
        tile: vec![64, 16, 1],
        swizzle: Swizzle::Bytes128,
    };
    assert!(good.encode().is_ok());
    let bad = |change: fn(&mut TensorMapSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec.encode().expect_err("refused")
    };
    assert_eq!(bad(|s| s.dims.push(1)), TensorMapSpecError::Rank(4));
    assert_eq!(bad(|s| s.element_bytes = 3), TensorMapSpecError::Element(3));
    assert_eq!(bad(|s| s.base = 8), TensorMapSpecError::Base(8));
    assert_eq!(bad(|s| s.dims[1] = 0), TensorMapSpecError::Dimension { at: 1, elements: 0 });
    assert_eq!(bad(|s| s.strides[0] = 24), TensorMapSpecError::Stride { at: 0, bytes: 24 });
    assert_eq!(bad(|s| s.tile[1] = 257), TensorMapSpecError::Box { at: 1, elements: 257 });
    assert_eq!(bad(|s| s.tile[0] = 128), TensorMapSpecError::Line { bytes: 256 });
}
