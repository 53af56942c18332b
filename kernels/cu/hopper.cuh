// The instructions of sm_90a: mbarrier, TMA, wgmma, programmatic dependent launch; emulated under CUSIM.
//
// Tiles in shared memory use the 128-byte swizzle: 16-byte piece c of line r lies at piece c ^ (r & 7), lines of
// 128 bytes, base aligned to 1024. TMA writes it, wgmma reads it, ordinary code applies it by hand.
#pragma once
#include "ptx.cuh"

// An opaque CUtensorMap; a member of the parameter struct, never copied to the stack.
struct __align__(64) TensorMap {
    u64 opaque[16];
};

// ---- mbarrier ------------------------------------------------------------------------------------------------------

// By one thread, before fence_mbar_init and a barrier of the block.
DEVICE void mbar_init(u64* bar, u32 arrivals) {
#ifdef CUSIM
    cusim::mbarrier_init(bar, arrivals);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
#endif
}

DEVICE void mbar_arrive(u64* bar) {
#ifdef CUSIM
    cusim::mbarrier_arrive(bar);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
#endif
}

// Arrives once and lets the phase wait for this many bytes of TMA as well.
DEVICE void mbar_expect_tx(u64* bar, u32 bytes) {
#ifdef CUSIM
    cusim::mbarrier_arrive_expect(bar, bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
#endif
}

// Until the phase of this parity is complete: phases count 0, 1, 0, 1, …; parity 1 of a fresh barrier passes.
DEVICE void mbar_wait(u64* bar, u32 parity) {
#ifdef CUSIM
    cusim::mbarrier_wait_parity(bar, parity);
#else
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(bar)), "r"(parity)
                 : "memory");
#endif
}

DEVICE void fence_mbar_init() {
#ifdef CUSIM
    cusim::mbarrier_fence_init();
#else
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// By every thread that stored to shared memory, before the barrier after which TMA or wgmma reads it.
DEVICE void fence_proxy_async() {
#ifdef CUSIM
    cusim::proxy_fence();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A barrier of `threads` threads (a multiple of 32); `id` 1 to 15.
DEVICE void bar_sync(u32 id, u32 threads) {
#ifdef CUSIM
    cusim::named_barrier(id, threads);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- TMA -----------------------------------------------------------------------------------------------------------

// One thread asks; the box whose first element is (c0 innermost, c1, …) arrives at `to` (128-byte aligned) and
// its bytes at `bar`. Elements outside of the tensor arrive as zeros and count as bytes.
DEVICE void tma_load_2d(void* to, const TensorMap* map, u64* bar, i32 c0, i32 c1) {
#ifdef CUSIM
    const i32 at[2] = {c0, c1};
    cusim::tma_load(to, map, bar, at, 2);
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1)
                 : "memory");
#endif
}

DEVICE void tma_load_3d(void* to, const TensorMap* map, u64* bar, i32 c0, i32 c1, i32 c2) {
#ifdef CUSIM
    const i32 at[3] = {c0, c1, c2};
    cusim::tma_load(to, map, bar, at, 3);
#else
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
#endif
}

DEVICE void tma_load_4d(void* to, const TensorMap* map, u64* bar, i32 c0, i32 c1, i32 c2, i32 c3) {
#ifdef CUSIM
    const i32 at[4] = {c0, c1, c2, c3};
    cusim::tma_load(to, map, bar, at, 4);
#else
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
#endif
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

// An operand in the 128-byte swizzle. K-major (as K^T of attention, or A): `stride` bytes from eight rows to the
// next eight, `leading` unused (16); a step of 16 along k is +32 bytes of `p`. MN-major (as V): `leading` bytes from
// 64 columns to the next 64, `stride` from eight k to the next eight.
DEVICE u64 smem_desc(const void* p, u32 leading, u32 stride) {
#ifdef CUSIM
    return cusim::wgmma_descriptor(p, leading, stride);
#else
    return (u64)((shared_address(p) & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
#endif
}

// Before the first wgmma of each group: registers written so far are seen by it.
DEVICE void wg_fence() {
#ifdef CUSIM
    cusim::wgmma_fence();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

DEVICE void wg_commit() {
#ifdef CUSIM
    cusim::wgmma_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most N groups are under way; only then may their accumulators be read and their operands be written.
template <int N>
DEVICE void wg_wait() {
#ifdef CUSIM
    cusim::wgmma_wait(N);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}

#ifdef CUSIM
template <int N>
DEVICE void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, int accumulate) {
    cusim::wgmma_issue(d, N, {nullptr, a, b, cusim::Major::k}, accumulate != 0);
}
template <int N>
DEVICE void wgmma_rs_tb(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate) {
    cusim::wgmma_issue(d, N, {a, 0, b, cusim::Major::mn}, accumulate != 0);
}
#else
#include "wgmma.cuh"
#endif

// d[32] (+)= A[64][16] B[64][16]^T, both K-major in shared memory.
// Lane l of warp w holds, in d[4i + 2r + c], row 16w + 8r + l/4, column 8i + 2*(l%4) + c.
DEVICE void wgmma64_ss(float (&d)[32], u64 a, u64 b, int accumulate) { wgmma_ss<64>(d, a, b, accumulate); }

// d[64] (+)= A B with A[64][16] in registers (the layout of mma16816's a, rows 16w + …) and B[16][128] MN-major.
DEVICE void wgmma128_rs_tb(float (&d)[64], const u32 (&a)[4], u64 b, int accumulate) { wgmma_rs_tb<128>(d, a, b, accumulate); }

// ---- warps and launches --------------------------------------------------------------------------------------------

// Registers per thread of this warpgroup, a multiple of 8.
template <int N>
DEVICE void setmaxnreg_inc() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifndef CUSIM
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

template <int N>
DEVICE void setmaxnreg_dec() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifndef CUSIM
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// Until the grids that this one may overlap with have finished writing; before the first read of their results.
DEVICE void griddep_wait() {
#ifndef CUSIM
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next grid may start once every block has said so or ended.
DEVICE void griddep_launch() {
#ifndef CUSIM
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
