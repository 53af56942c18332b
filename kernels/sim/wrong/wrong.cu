// Kernels that are wrong on purpose, one mistake each: the emulator must say so, or show it on some seed.
//
// They are compiled for the emulator only; on a GPU they would hang or give anything.
#include "hopper.cuh"

struct __align__(64) WrongParams {
    TensorMap map;
    const u32* in;
    u32* out;
    u64 pad[6];
};

#define WRONG(name, threads)                                                                                           \
    extern "C" __global__ void __launch_bounds__(threads) wrong_##name(const __grid_constant__ WrongParams p);        \
    CUSIM_KERNEL(wrong_##name)                                                                                         \
    extern "C" __global__ void wrong_##name(const __grid_constant__ WrongParams p)

// ---- who waits for whom ----------------------------------------------------------------------------------------------

WRONG(barrier_of_too_many, 128) {
    if (threadIdx.x < 64) bar_sync(3, 128);
}
WRONG(barrier_counts_differ, 128) { bar_sync(3, threadIdx.x < 64 ? 64 : 128); }
WRONG(barrier_number, 128) { bar_sync(0, 64); }
WRONG(lanes_apart, 32) {
    if (threadIdx.x < 16) p.out[threadIdx.x] = __shfl_xor_sync(~0u, p.in[threadIdx.x], 1);
    else p.out[threadIdx.x] = __ballot_sync(~0u, 1);
}
WRONG(lane_outside_its_mask, 32) { p.out[threadIdx.x] = __ballot_sync(1, 1); }
WRONG(shuffle_from_outside, 32) {
    if (threadIdx.x < 16) p.out[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}
WRONG(lane_that_left, 128) {
    if (threadIdx.x == 31) return;
    p.out[threadIdx.x] = __ballot_sync(~0u, 1);
}

// ---- shared memory -----------------------------------------------------------------------------------------------------

WRONG(reads_poison, 32) {
    DYN_SMEM(u32, dynamic);
    SHARED_ARRAY(u32, fixed, 32);
    p.out[threadIdx.x] = dynamic[threadIdx.x];
    p.out[32 + threadIdx.x] = fixed[threadIdx.x];
    dynamic[threadIdx.x] = fixed[threadIdx.x] = 1; // for the next block to find, if poison were forgotten
}
WRONG(writes_beyond, 32) {
    DYN_SMEM(u32, shared);
    shared[threadIdx.x + 1] = 1;
}
WRONG(copy_misaligned, 32) {
    DYN_SMEM(unsigned char, shared);
    cp_async16(shared + 8, p.in, true);
}
WRONG(copy_source_misaligned, 32) {
    DYN_SMEM(unsigned char, shared);
    cp_async16(shared, p.in + 1, true);
}
WRONG(copy_beyond, 32) {
    DYN_SMEM(unsigned char, shared);
    cp_async16(shared + threadIdx.x * 16, p.in, true);
}
WRONG(fragment_misaligned, 32) {
    DYN_SMEM(unsigned char, shared);
    u32 r[4];
    ldsm4(r, shared + 4);
}
WRONG(fragment_from_outside, 32) {
    u32 r[4];
    ldsm4(r, p.in);
}

// ---- mbarrier and TMA --------------------------------------------------------------------------------------------------

WRONG(mbar_not_made, 32) {
    SHARED_ARRAY(u64, bar, 1);
    mbar_arrive(bar);
}
WRONG(mbar_written_over, 32) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x) return;
    mbar_init(bar, 2);
    *bar = 0;
    mbar_arrive(bar);
}
WRONG(mbar_nobody_comes, 128) { // one arrival short
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x == 0) mbar_init(bar, blockDim.x);
    __syncthreads();
    if (threadIdx.x != 7) mbar_arrive(bar);
    mbar_wait(bar, 0);
}

DEVICE void load_box(const WrongParams& p, u64* bar, u32 bytes, u32 into) {
    DYN_SMEM(unsigned char, shared);
    mbar_init(bar, 1);
    fence_mbar_init();
    mbar_expect_tx(bar, bytes);
    tma_load_2d(shared + into, &p.map, bar, 0, 0);
}
WRONG(tma_unfenced, 32) {
    DYN_SMEM(unsigned char, shared);
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x) return;
    mbar_init(bar, 1);
    mbar_expect_tx(bar, 1024);
    tma_load_2d(shared, &p.map, bar, 0, 0);
    mbar_wait(bar, 0);
}
WRONG(tma_too_few_bytes, 32) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x) return;
    load_box(p, bar, 512, 0);
    mbar_wait(bar, 0);
}
WRONG(tma_too_many_bytes, 128) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x) return;
    load_box(p, bar, 2048, 0);
    mbar_wait(bar, 0);
}
WRONG(tma_misaligned, 32) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x == 0) load_box(p, bar, 1024, 64);
}
WRONG(tma_beyond, 32) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x == 0) load_box(p, bar, 1024, 128);
}
WRONG(tma_not_waited_for, 32) {
    SHARED_ARRAY(u64, bar, 1);
    if (threadIdx.x == 0) load_box(p, bar, 1024, 0);
}

// ---- wgmma -------------------------------------------------------------------------------------------------------------

// A and B of zeros, stored and published as they should be.
DEVICE void store_zeros() {
    DYN_SMEM(u32, shared);
    for (u32 i = threadIdx.x; i < 4096; i += 128) shared[i] = 0;
}
DEVICE void zeros_to_tensor_cores() {
    store_zeros();
    fence_proxy_async();
    __syncthreads();
}
DEVICE void multiply_zeros(float (&d)[32]) {
    DYN_SMEM(unsigned char, shared);
    wgmma64_ss(d, smem_desc(shared, 16, 1024), smem_desc(shared + 8192, 16, 1024), 0);
}

WRONG(wgmma_unfenced, 128) {
    zeros_to_tensor_cores();
    float d[32];
    multiply_zeros(d);
    wg_commit();
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[0]);
}
WRONG(wgmma_read_early, 128) {
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    p.out[threadIdx.x] = __float_as_uint(d[5]);
    wg_wait<0>();
}
WRONG(wgmma_read_one_group_early, 128) {
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    wg_wait<1>();
    p.out[threadIdx.x] = __float_as_uint(d[5]);
    wg_wait<0>();
}
WRONG(wgmma_scaled_early, 128) {
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    d[3] *= 0.5f;
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[3]);
}
WRONG(wgmma_operand_overwritten, 128) {
    DYN_SMEM(u32, shared);
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    if (threadIdx.x == 0) shared[2048] = 5;
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[0]);
}
WRONG(wgmma_operand_refilled, 128) {
    SHARED_ARRAY(u64, bar, 1);
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    if (threadIdx.x == 0) {
        load_box(p, bar, 1024, 0);
        mbar_wait(bar, 0);
    }
    __syncthreads();
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[0]);
}
WRONG(wgmma_store_unpublished, 128) {
    store_zeros();
    __syncthreads();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[0]);
}
WRONG(wgmma_never_waited_for, 128) {
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
}
WRONG(wgmma_three_warps, 128) {
    zeros_to_tensor_cores();
    if (threadIdx.x >= 96) return;
    float d[32];
    wg_fence();
    multiply_zeros(d);
    wg_commit();
    wg_wait<0>();
    p.out[threadIdx.x] = __float_as_uint(d[0]);
}
WRONG(wgmma_descriptor_beyond, 128) {
    DYN_SMEM(unsigned char, shared);
    zeros_to_tensor_cores();
    float d[32];
    wg_fence();
    wgmma64_ss(d, smem_desc(shared, 16, 1024), smem_desc(shared + 12288, 16, 1024), 0);
    wg_commit();
    wg_wait<0>();
}

// ---- races that a schedule must show: out[t] should be in[t ^ 96] ----------------------------------------------------------

WRONG(race_no_barrier, 128) {
    DYN_SMEM(u32, shared);
    shared[threadIdx.x] = p.in[threadIdx.x];
    p.out[threadIdx.x] = shared[threadIdx.x ^ 96];
}
WRONG(race_no_syncwarp, 128) {
    DYN_SMEM(u32, shared);
    shared[threadIdx.x ^ 96 ^ 3] = p.in[threadIdx.x ^ 3]; // its reader is another lane of this warp
    p.out[threadIdx.x] = shared[threadIdx.x ^ 96];
}
WRONG(race_slot_reused, 128) {
    DYN_SMEM(u32, shared);
    const u32 t = threadIdx.x;
    for (u32 round = 0; round < 4; round++) {
        shared[t] = p.in[t] + round;
        __syncthreads();
        if (round == 0) p.out[t] = shared[t ^ 96]; // the barrier that should follow is missing
    }
}
// Thread t copies piece t ^ 96; each reads the first word of its own piece.
DEVICE void copy_piece(const WrongParams& p, u32* to) { cp_async16(to + (threadIdx.x ^ 96) * 4, p.in + threadIdx.x / 4 * 4, true); }
WRONG(race_copy_not_waited_for, 128) {
    DYN_SMEM(u32, shared);
    copy_piece(p, shared);
    cp_commit();
    __syncthreads();
    p.out[threadIdx.x] = shared[threadIdx.x * 4 + threadIdx.x % 4];
}
WRONG(race_copy_wait_too_shallow, 128) {
    DYN_SMEM(u32, shared);
    copy_piece(p, shared);
    cp_commit();
    cp_wait<1>();
    __syncthreads();
    p.out[threadIdx.x] = shared[threadIdx.x * 4 + threadIdx.x % 4];
}
WRONG(race_copy_without_barrier, 128) {
    DYN_SMEM(u32, shared);
    copy_piece(p, shared);
    cp_commit();
    cp_wait<0>();
    p.out[threadIdx.x] = shared[threadIdx.x * 4 + threadIdx.x % 4];
}
// The refill may land before a slower warp has read: a barrier between the two is missing.
WRONG(race_refill, 128) {
    DYN_SMEM(u32, shared);
    copy_piece(p, shared);
    cp_commit();
    cp_wait<0>();
    __syncthreads();
    p.out[threadIdx.x] = shared[threadIdx.x * 4 + threadIdx.x % 4];
    cp_async16(shared + (threadIdx.x ^ 96) * 4, p.in + 128, true);
    cp_commit();
    cp_wait<0>();
    __syncthreads();
}
// Waiting for the refill behind a barrier is not enough: it may land as soon as it is asked for.
WRONG(race_refill_asked_for_early, 128) {
    DYN_SMEM(u32, shared);
    copy_piece(p, shared);
    cp_commit();
    cp_wait<0>();
    __syncthreads();
    cp_async16(shared + (threadIdx.x ^ 96) * 4, p.in + 128, true);
    cp_commit();
    p.out[threadIdx.x] = shared[threadIdx.x * 4 + threadIdx.x % 4];
    __syncthreads();
    cp_wait<0>();
    __syncthreads();
}
// The last warp is twenty steps ahead of the first when it writes what that one has still to read.
WRONG(race_far_ahead, 128) {
    DYN_SMEM(u32, shared);
    const u32 t = threadIdx.x;
    shared[t] = p.in[t];
    __syncthreads();
    for (u32 step = 0; step < 20; step++) {
        __syncwarp();
        if (step == 2) p.out[t] = shared[t ^ 96];
    }
    shared[t] = 0;
}
WRONG(race_tma_refill, 64) {
    DYN_SMEM(u32, shared);
    SHARED_ARRAY(u64, bars, 2);
    if (threadIdx.x == 0) {
        mbar_init(bars, 1);
        mbar_init(bars + 1, 1);
        fence_mbar_init();
    }
    __syncthreads();
    for (u32 round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            mbar_expect_tx(bars + round, 1024);
            tma_load_2d(shared, &p.map, bars + round, 0, (i32)round * 8); // does not wait for the readers
        }
        if (threadIdx.x >= 32) {
            mbar_wait(bars + round, 0);
            p.out[round * 32 + threadIdx.x - 32] = shared[threadIdx.x - 32];
        }
    }
    if (threadIdx.x == 0) mbar_wait(bars + 1, 0);
}
