// Every architecture instruction of sm_80 and later that kernels use, once: PTX on the GPU, the emulator's call or
// plain arithmetic under CUSIM. kernels/cu/conformance.cu runs each alone, so that a GPU and the emulator can
// be compared word for word.
//
// Approximate instructions (ex2, lg2, rsqrt) are the only ones whose bits differ between the two.
#pragma once
#include "types.cuh"

DEVICE float positive_infinity() { return __uint_as_float(0x7f800000u); }
DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }
DEVICE float quiet_nan() { return __uint_as_float(0x7fffffffu); }

// ---- bf16 ----------------------------------------------------------------------------------------------------------

DEVICE float bf16_to_f32(bf16 v) { return __uint_as_float((u32)v << 16); }

// Two values of a word: x is the lower half.
DEVICE float2 unpack_bf16(u32 v) { return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)); }

// Rounds to nearest, ties to even; any NaN becomes 0x7fff.
DEVICE bf16 f32_to_bf16(float v) {
#ifdef CUSIM
    return cusim::bf16_round(v);
#else
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
#endif
}

DEVICE u32 pack_bf16(float low, float high) {
#ifdef CUSIM
    return cusim::bf16_round(low) | (u32)cusim::bf16_round(high) << 16;
#else
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// 2^v within 2 ulp; subnormals count as zero.
DEVICE float ex2(float v) {
#ifdef CUSIM
    return exp2f(v);
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
#endif
}

DEVICE float lg2(float v) {
#ifdef CUSIM
    return log2f(v);
#else
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
#endif
}

DEVICE float rsqrt_approx(float v) {
#ifdef CUSIM
    return 1.0f / sqrtf(v);
#else
    float r;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
#endif
}

// Never fused into a multiply-add: for formulas whose bits the CPU backend repeats.
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }

// ---- global memory -------------------------------------------------------------------------------------------------

// Sixteen aligned bytes that this kernel reads once and nobody writes meanwhile.
DEVICE uint4 ld_global_nc16(const void* p) {
#ifdef CUSIM
    return cusim::load16(p);
#else
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
#endif
}

// Sixteen aligned bytes as memory holds them now: never from L1, never from registers.
DEVICE uint4 ld_volatile16(const void* p) {
#ifdef CUSIM
    return cusim::load16(p);
#else
    uint4 r;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
#endif
}

DEVICE void st_global16(void* p, uint4 v) {
#ifdef CUSIM
    cusim::store16(p, v);
#else
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#endif
}

// ---- shared memory -------------------------------------------------------------------------------------------------

#ifndef CUSIM
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
#endif

// Copies sixteen bytes without registers; with `wanted` false zeros arrive and `from` is not read.
DEVICE void cp_async16(void* to, const void* from, bool wanted) {
#ifdef CUSIM
    cusim::cp_async(to, from, 16, wanted ? 16 : 0);
#else
    const u32 bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
#endif
}

DEVICE void cp_commit() {
#ifdef CUSIM
    cusim::cp_commit_group();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most N groups of this thread are under way; other threads see the data after a barrier.
template <int N>
DEVICE void cp_wait() {
#ifdef CUSIM
    cusim::cp_wait_group(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- matrices ------------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements: lane 8j+i names row i of matrix j; r[j] holds two elements of it,
// row lane/4, columns 2*(lane%4) and the next. ldsm4t: the same of the transposed matrices.
DEVICE void ldsm4(u32 (&r)[4], const void* row) {
#ifdef CUSIM
    cusim::ldmatrix_x4(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

DEVICE void ldsm4t(u32 (&r)[4], const void* row) {
#ifdef CUSIM
    cusim::ldmatrix_x4(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// c += a * b for 16x8x16 bf16: with g = lane/4 and t = 2*(lane%4),
//   a: rows g, g+8, g, g+8; columns t, t, t+8, t+8   b: rows t, t+8; column g   c: rows g, g, g+8, g+8; columns t, t+1
DEVICE void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef CUSIM
    cusim::mma_bf16_16816(c, a, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- warps ---------------------------------------------------------------------------------------------------------

// All 32 lanes get the same bits: a butterfly adds equal pairs in every lane, and addition commutes.
DEVICE float warp_sum(float v) {
    UNROLL for (int apart = 16; apart; apart >>= 1) v = __fadd_rn(v, __shfl_xor_sync(~0u, v, apart));
    return v;
}

// NaN counts as missing, as with fmaxf.
DEVICE float warp_max(float v) {
    UNROLL for (int apart = 16; apart; apart >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, apart));
    return v;
}

// ---- e4m3 ----------------------------------------------------------------------------------------------------------

// Exact: four exponent bits at f32's place, and the difference of the biases as a power of two.
DEVICE float e4m3_to_f32(e4m3 v) {
    const u32 magnitude = v & 0x7fu;
    const float scaled = __fmul_rn(__uint_as_float(magnitude << 20), __uint_as_float((120u + 127u) << 23));
    const u32 bits = magnitude == 0x7fu ? 0x7fffffffu : __float_as_uint(scaled);
    return __uint_as_float(bits | (u32)(v & 0x80u) << 24);
}

// Rounds to nearest, ties to even; beyond 448 becomes 448, NaN stays NaN (0x7f), as cvt.rn.satfinite does.
DEVICE e4m3 f32_to_e4m3(float v) {
    const u32 bits = __float_as_uint(v), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7f;
    if (magnitude >= 0x43e80000u) return (e4m3)(sign | 0x7eu); // 464 and more: all that is nearer to 480
    if (magnitude < 0x3c800000u) { // below 2^-6: steps of 2^-9, found by adding a number with that step
        const float stepped = __fadd_rn(__uint_as_float(magnitude), 16384.0f);
        return (e4m3)(sign | (__float_as_uint(stepped) - 0x46800000u));
    }
    const u32 rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
    return (e4m3)(sign | ((rounded >> 20) - (120u << 3)));
}

// Bytes 1 and 3 of `v` as two bf16, times the bf16 in that half of `scale`: the bits at bf16's place are 2^-120 of the
// value. Exact for powers of two while the product is no subnormal. There is no NaN: 0x7f becomes 480; a scale of
// infinity makes all but zeros infinite, and zeros NaN.
DEVICE u32 e4m3x2_scaled(u32 v, u32 scale) {
    const u32 shrunk = (v & 0x7f007f00u) >> 4 | (v & 0x80008000u);
#ifdef CUSIM
    const float2 f = unpack_bf16(shrunk), s = unpack_bf16(scale);
    return pack_bf16(f.x * s.x, f.y * s.y);
#else
    u32 r; // plus -0, which keeps the sign of zero
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(shrunk), "r"(scale), "r"(0x80008000u));
    return r;
#endif
}

// The same as they are, for weights: times 2^120.
DEVICE u32 e4m3x2_to_bf16x2(u32 v) { return e4m3x2_scaled(v, 0x7b807b80u); }

// A run of values that share a power of two, by the largest magnitude among them (as f32 bits, which order as
// magnitudes do, NaN on top). The answer is the exponent field of what widens the run again (e4m3x2_scaled), so that
// the largest value comes to lie in (224, 448]. 255, infinity, marks a run that is not finite.
DEVICE u32 e4m3_run_exponent(u32 top) {
    if (top >= 0x7f800000u) return 255;
    const u32 field = ((top + 0x1fffffu) >> 23) + 112u; // a significand above 1.75 takes the next power
    return min(max(field, 147u), 254u);                 // 2^-100 to 2^7: smaller runs lose bits, larger ones saturate
}
// What values of such a run are multiplied with before they are rounded.
DEVICE float e4m3_run_inverse(u32 exponent) { return __uint_as_float((374u - exponent) << 23); }
