// Each wrapper of ptx.cuh alone, writing down what it saw: run on a GPU and on the emulator, word for word.
//
// Nothing here is fast or meant to be. Inputs are chosen so that every order of additions gives the same bits
// (small whole numbers), except for the approximate instructions, which are compared within their error.
// Cases, inputs and the plain meanings are in kernels/sim; no roofline: these kernels carry no load.
#include "conformance.cuh"
#include "ptx.cuh"

#define CONFORM(name, threads)                                                                                         \
    extern "C" __global__ void __launch_bounds__(threads) quire_conform_##name(const __grid_constant__ ConformanceParams p)

// ---- one value per thread --------------------------------------------------------------------------------------------

CONFORM(bf16_round, 256) {
    const float v = __uint_as_float(p.in[blockIdx.x * 256 + threadIdx.x]);
    conform_seen(p, 1).word(f32_to_bf16(v));
}
CUSIM_KERNEL(quire_conform_bf16_round)

CONFORM(bf16_pack, 256) {
    const u32 i = (blockIdx.x * 256 + threadIdx.x) * 2;
    conform_seen(p, 1).word(pack_bf16(__uint_as_float(p.in[i]), __uint_as_float(p.in[i + 1])));
}
CUSIM_KERNEL(quire_conform_bf16_pack)

CONFORM(bf16_unpack, 256) {
    const u32 word = p.in[blockIdx.x * 256 + threadIdx.x];
    const float2 both = unpack_bf16(word);
    Seen seen = conform_seen(p, 3);
    seen.value(both.x);
    seen.value(both.y);
    seen.value(bf16_to_f32((bf16)word));
}
CUSIM_KERNEL(quire_conform_bf16_unpack)

CONFORM(ex2, 256) { conform_seen(p, 1).value(ex2(__uint_as_float(p.in[blockIdx.x * 256 + threadIdx.x]))); }
CUSIM_KERNEL(quire_conform_ex2)

CONFORM(lg2, 256) { conform_seen(p, 1).value(lg2(__uint_as_float(p.in[blockIdx.x * 256 + threadIdx.x]))); }
CUSIM_KERNEL(quire_conform_lg2)

CONFORM(rsqrt, 256) { conform_seen(p, 1).value(rsqrt_approx(__uint_as_float(p.in[blockIdx.x * 256 + threadIdx.x]))); }
CUSIM_KERNEL(quire_conform_rsqrt)

// a * b + c with two roundings, where a compiler would like to fuse.
CONFORM(unfused, 256) {
    const u32* in = p.in + (blockIdx.x * 256 + threadIdx.x) * 3;
    const float a = __uint_as_float(in[0]), b = __uint_as_float(in[1]), c = __uint_as_float(in[2]);
    conform_seen(p, 1).value(add_rn(mul_rn(a, b), c));
}
CUSIM_KERNEL(quire_conform_unfused)

CONFORM(e4m3_decode, 256) { conform_seen(p, 1).value(e4m3_to_f32((e4m3)p.in[threadIdx.x])); }
CUSIM_KERNEL(quire_conform_e4m3_decode)

CONFORM(e4m3_encode, 256) {
    conform_seen(p, 1).word(f32_to_e4m3(__uint_as_float(p.in[blockIdx.x * 256 + threadIdx.x])));
}
CUSIM_KERNEL(quire_conform_e4m3_encode)

CONFORM(e4m3_widen, 256) { conform_seen(p, 1).word(e4m3x2_to_bf16x2(p.in[threadIdx.x])); }
CUSIM_KERNEL(quire_conform_e4m3_widen)

CONFORM(e4m3_scaled, 256) {
    const u32 i = (blockIdx.x * 256 + threadIdx.x) * 2;
    conform_seen(p, 1).word(e4m3x2_scaled(p.in[i], p.in[i + 1]));
}
CUSIM_KERNEL(quire_conform_e4m3_scaled)

// ---- memory ------------------------------------------------------------------------------------------------------------

CONFORM(vector_copy, 64) {
    const u32 i = threadIdx.x * 4;
    st_global16(p.out + i, ld_global_nc16(p.in + (i ^ 4)));
}
CUSIM_KERNEL(quire_conform_vector_copy)

// Three groups of copies, every third copy unwanted; what is there after each wait and a barrier.
CONFORM(cp_async, 64) {
    DYN_SMEM(u32, shared);
    const u32 t = threadIdx.x;
    UNROLL for (u32 group = 0; group < 3; group++) {
        const u32 at = (group * 64 + t) * 4;
        cp_async16(shared + at, p.in + at, (t + group) % 3 != 0);
        cp_commit();
    }
    Seen seen = conform_seen(p, 12);
    cp_wait<2>();
    __syncthreads();
    UNROLL for (u32 i = 0; i < 4; i++) seen.word(shared[(63 - t) * 4 + i]);
    cp_wait<1>();
    __syncthreads();
    UNROLL for (u32 i = 0; i < 4; i++) seen.word(shared[(64 + 63 - t) * 4 + i]);
    cp_wait<0>();
    __syncthreads();
    UNROLL for (u32 i = 0; i < 4; i++) seen.word(shared[(128 + 63 - t) * 4 + i]);
}
CUSIM_KERNEL(quire_conform_cp_async)

// A static array beside the dynamic part: distinct memory, both whole after a barrier.
CONFORM(shared_arrays, 64) {
    DYN_SMEM(u32, dynamic);
    SHARED_ARRAY(u32, first, 64);
    SHARED_ARRAY(u32, second, 64);
    const u32 t = threadIdx.x;
    dynamic[t] = p.in[t];
    first[t] = p.in[t] + 1;
    second[t] = p.in[t] + 2;
    __syncthreads();
    Seen seen = conform_seen(p, 3);
    seen.word(dynamic[63 - t]);
    seen.word(first[63 - t]);
    seen.word(second[63 - t]);
}
CUSIM_KERNEL(quire_conform_shared_arrays)

CONFORM(atomics, 64) {
    SHARED_ARRAY(u32, count, 1);
    u64* wide = (u64*)p.out;
    if (threadIdx.x == 0) {
        count[0] = 0;
        wide[0] = 0;
    }
    __syncthreads();
    atomicAdd(count, p.in[threadIdx.x]);
    atomicAdd(wide, (u64)p.in[threadIdx.x] << 20);
    atomicMax(p.out + 3, p.in[threadIdx.x]); // NaN bits beforehand: the largest word
    __syncthreads();
    if (threadIdx.x == 0) p.out[2] = count[0];
}
CUSIM_KERNEL(quire_conform_atomics)

// ---- warps -------------------------------------------------------------------------------------------------------------

CONFORM(warp_reduce, 64) {
    const float v = __uint_as_float(p.in[threadIdx.x]);
    Seen seen = conform_seen(p, 2);
    seen.value(warp_sum(v));
    seen.value(warp_max(v));
}
CUSIM_KERNEL(quire_conform_warp_reduce)

CONFORM(shuffles, 32) {
    const u32 v = p.in[threadIdx.x], lane = conform_lane();
    const u64 wide = (u64)v << 32 | ~v;
    Seen seen = conform_seen(p, 10);
    seen.word(__shfl_sync(~0u, v, 5));
    seen.word(__shfl_sync(~0u, v, lane * 7));
    seen.word(__shfl_sync(~0u, v, 3, 8));
    seen.word(__shfl_xor_sync(~0u, v, 9));
    seen.word(__shfl_xor_sync(~0u, v, 4, 8));
    seen.word(__shfl_down_sync(~0u, v, 3));
    seen.word(__shfl_down_sync(~0u, v, 3, 8));
    seen.word(__shfl_up_sync(~0u, v, 2));
    seen.word(__shfl_up_sync(~0u, v, 2, 16));
    seen.word((u32)(__shfl_xor_sync(~0u, wide, 1) >> 16));
}
CUSIM_KERNEL(quire_conform_shuffles)

// The halves of a warp vote apart.
CONFORM(votes, 32) {
    const u32 v = p.in[threadIdx.x], half = conform_lane() < 16 ? 0xffffu : 0xffff0000u;
    Seen seen = conform_seen(p, 6);
    seen.word(__ballot_sync(~0u, v & 1));
    seen.word(__ballot_sync(half, v & 2));
    seen.word(__any_sync(half, v & 4));
    seen.word(__all_sync(half, v & 4));
    seen.word(__match_any_sync(half, v & 3));
    seen.word(__popc(v) | __clz((int)v) << 8 | __ffs((int)v) << 16);
}
CUSIM_KERNEL(quire_conform_votes)

// ---- matrices ----------------------------------------------------------------------------------------------------------

// Four 8x8 matrices, rows 48 bytes apart.
template <bool transposed>
DEVICE void conform_ldmatrix(const ConformanceParams& p) {
    DYN_SMEM(u32, shared);
    const u32 lane = conform_lane();
    UNROLL for (u32 i = 0; i < 4; i++) shared[lane * 12 + i] = p.in[lane * 4 + i];
    __syncwarp();
    u32 r[4];
    if (transposed) ldsm4t(r, shared + lane * 12);
    else ldsm4(r, shared + lane * 12);
    Seen seen = conform_seen(p, 4);
    UNROLL for (u32 i = 0; i < 4; i++) seen.word(r[i]);
}
CONFORM(ldsm4, 32) { conform_ldmatrix<false>(p); }
CUSIM_KERNEL(quire_conform_ldsm4)
CONFORM(ldsm4t, 32) { conform_ldmatrix<true>(p); }
CUSIM_KERNEL(quire_conform_ldsm4t)

// Registers straight from the input: 4 of a, 2 of b, 4 of c a lane.
CONFORM(mma, 32) {
    const u32* in = p.in + conform_lane() * 10;
    const u32 a[4] = {in[0], in[1], in[2], in[3]};
    float c[4];
    UNROLL for (u32 i = 0; i < 4; i++) c[i] = __uint_as_float(in[6 + i]);
    mma16816(c, a, in[4], in[5]);
    Seen seen = conform_seen(p, 4);
    UNROLL for (u32 i = 0; i < 4; i++) seen.value(c[i]);
}
CUSIM_KERNEL(quire_conform_mma)
