// The one loop behind every mma.sync linear kernel: out[r][c] = sum over k of x[r][k]*w[c][k] (+ bias[c]).
//
// The law: an output element is ONE chain of mma.m16n8k16 along k, ascending, in one f32 accumulator that
// starts at zero; k is padded with zeros to a multiple of 64. Shapes differ only in which elements share a
// block, so a row has the same bits alone, among 300, in a decode kernel and in a prefill kernel. That is
// why nothing here splits k, and why a block never holds two partial sums of one element.
//
// Shared memory: STAGES slots of BM x-rows and BN w-rows, 64 k (128 bytes) each, 16-byte chunk c of row r at
// c ^ (r & 7): cp.async writes and ldmatrix reads touch all 32 banks. Copies run STAGES-1 ahead; fragments run
// one group ahead of the tensor cores, over the stage boundary too, so a chain waits for its own latency only.
//
// Dead rows (>= *rows_live), channels >= n and k beyond the end are zero-filled by the copy, never read.
#pragma once
#include "linear_tiles.cuh"

struct LinearParams {
    const bf16* x;        // [rows][k]
    const bf16* w;        // [n][k]
    const u32* rows_live; // rows of x that count; blocks beyond leave
    LinearOutput out;
    u32 k; // a multiple of 8
    u32 padding;
};

template <int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_> struct LinearShape {
    static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr int THREADS = WARPS_M * WARPS_N * 32;
    static constexpr int MT = BM / WARPS_M / 16, NT = BN / WARPS_N / 8; // mma tiles of a warp
    static constexpr int KG = NT == 1 ? 2 : 1;                          // k16 steps that one ldmatrix of w covers
    static constexpr int GROUPS = LINEAR_KB / 16 / KG;
    // The group that begins with the wait for the next stage. At the first, its fragments are asked for long
    // before the chain needs them; with three stages that would leave too few copies in flight.
    static constexpr int WAIT_AT = STAGES > 3 ? 0 : GROUPS - 1;
    static constexpr int PENDING = WAIT_AT == 0 ? STAGES - 3 : STAGES - 2; // younger copies than that stage's
    static constexpr int STAGE_BYTES = (BM + BN) * LINEAR_KB * 2;
    static constexpr int SMEM_BYTES = STAGES * STAGE_BYTES;
    static_assert(BM % (16 * WARPS_M) == 0 && BN % (8 * WARPS_N) == 0, "whole mma tiles");
    static_assert(NT == 1 || NT % 2 == 0, "w fragments come in pairs");
    static_assert(STAGES >= 3, "one stage is read, one lands, one is written");
    static_assert(SMEM_BYTES <= 99 * 1024, "fits the smallest GPU served");
};

// What one lane feeds to KG steps of mma.
template <class S> struct LinearFragments {
    u32 a[S::KG][S::MT][4];
    u32 b[S::KG][S::NT][2];
};

// Where a block and this thread stand. The lane's shared-memory offsets are found once: whatever the slot,
// m-tile and pass add is a multiple of 1024 bytes or an immediate, which the swizzle does not see.
struct LinearBlock {
    unsigned char* smem;
    u32 row0, col0; // first row of x and first channel of this block
    u32 rows, n, k;
    u32 warp_m, warp_n; // first row and first channel of this warp inside the block
    u32 read_x, read_w; // this lane's ldmatrix address inside a slot
    u32 write;          // where this thread's first 16 bytes land inside a slot
    const bf16 *from_x, *from_w; // ... and where they come from, at k = 0
};

DEVICE u32 linear_swizzle(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

template <class S> DEVICE LinearBlock linear_place(const LinearParams& p, u32 rows, u32 row0, u32 col0, unsigned char* smem) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, r = threadIdx.x >> 3, chunk = threadIdx.x & 7;
    u32 warp_m = warp % S::WARPS_M * (S::MT * 16), warp_n = warp / S::WARPS_M * (S::NT * 8);
    // ldmatrix takes four 8x8 matrices, lane i names a row of matrix i/8. x: rows 0-7, 8-15 of k 0-7, then k 8-15.
    u32 read_x = linear_swizzle(warp_m + (lane & 15), lane >> 4);
    // w: 8 channels by 32 k for one n-tile; else channels 0-7 by 16 k, then channels 8-15.
    u32 read_w = S::NT == 1 ? linear_swizzle(warp_n + (lane & 7), lane >> 3)
                            : linear_swizzle(warp_n + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
    return {smem, row0, col0, rows, p.out.n, p.k, warp_m, warp_n, read_x, S::BM * 128 + read_w, linear_swizzle(r, chunk),
            p.x + (u64)(row0 + r) * p.k + chunk * 8, p.w + (u64)(col0 + r) * p.k + chunk * 8};
}

// Copies 64 k of rows `first..last` (or channels) of a matrix; what lies beyond is zero-filled.
template <class S, int ROWS> DEVICE void linear_copy_rows(unsigned char* to, const bf16* from, u32 first, u32 last, u32 k, bool k_inside) {
    constexpr u32 PASS = S::THREADS / 8; // rows that the block's threads copy at once, 8 threads a row
    UNROLL for (u32 r = 0; r < ROWS; r += PASS) {
        u32 mine = r + (threadIdx.x >> 3);
        if (ROWS % PASS != 0 && mine >= ROWS) break;
        cp_async16(to + r * 128, from + (u64)r * k, k_inside && first + mine < last);
    }
}

// Starts the copy of stage `kt` into the slot at byte `slot`; nothing but an empty group beyond the last stage.
template <class S> DEVICE void linear_copy(const LinearBlock& b, u32 kt, u32 slot) {
    u32 k0 = kt * LINEAR_KB;
    if (k0 < b.k) {
        unsigned char* to = b.smem + slot + b.write;
        bool k_inside = k0 + (threadIdx.x & 7) * 8 < b.k;
        linear_copy_rows<S, S::BM>(to, b.from_x + k0, b.row0, b.rows, b.k, k_inside);
        linear_copy_rows<S, S::BN>(to + S::BM * 128, b.from_w + k0, b.col0, b.n, b.k, k_inside);
    }
    cp_commit();
}

// Fragments of group `g` (KG k16 steps) of the stage in `slot`. Chunk 2g of a row is g*32 bytes away by XOR.
template <class S> DEVICE void linear_load(LinearFragments<S>& f, const LinearBlock& b, u32 slot, u32 g) {
    const unsigned char* stage = b.smem + slot;
    UNROLL for (int s = 0; s < S::KG; s++) {
        UNROLL for (int m = 0; m < S::MT; m++)
            ldsm4(f.a[s][m], stage + ((b.read_x ^ (g * S::KG + s) * 32) + m * 2048));
    }
    u32 q[4];
    UNROLL for (int t = 0; t < S::NT; t += 2) {
        ldsm4(q, stage + ((b.read_w ^ g * S::KG * 32) + t * 1024));
        f.b[0][t][0] = q[0]; f.b[0][t][1] = q[1];
        u32(&second)[2] = S::NT == 1 ? f.b[S::KG - 1][0] : f.b[0][(t + 1) % S::NT];
        second[0] = q[2]; second[1] = q[3];
    }
}

// The chain's next KG links, for every element of the warp.
template <class S> DEVICE void linear_mma(float (&acc)[S::MT][S::NT][4], const LinearFragments<S>& f) {
    UNROLL for (int s = 0; s < S::KG; s++)
        UNROLL for (int m = 0; m < S::MT; m++)
            UNROLL for (int t = 0; t < S::NT; t++) mma16816(acc[m][t], f.a[s][m], f.b[s][t][0], f.b[s][t][1]);
}

template <class S> DEVICE void linear_chain(const LinearBlock& b, float (&acc)[S::MT][S::NT][4]) {
    u32 stages = (b.k + LINEAR_KB - 1) / LINEAR_KB;
    UNROLL for (int s = 0; s < S::STAGES - 1; s++) linear_copy<S>(b, s, s * S::STAGE_BYTES);
    cp_wait<S::STAGES - 2>();
    __syncthreads();
    LinearFragments<S> f[2];
    linear_load<S>(f[0], b, 0, 0);
    u32 here = 0, behind = (S::STAGES - 1) * S::STAGE_BYTES; // slot being read; slot read before it, free to write
    for (u32 kt = 0; kt < stages; kt++) {
        u32 next = here + S::STAGE_BYTES == S::SMEM_BYTES ? 0 : here + S::STAGE_BYTES;
        UNROLL for (int g = 0; g < S::GROUPS; g++) {
            if (g == S::WAIT_AT) { // stage kt+1 has landed, for all; and nobody reads `behind` any more
                cp_wait<S::PENDING>();
                __syncthreads();
            }
            linear_load<S>(f[(g + 1) & 1], b, g == S::GROUPS - 1 ? next : here, (g + 1) % S::GROUPS);
            if (g == 0) linear_copy<S>(b, kt + S::STAGES - 1, behind);
            linear_mma<S>(acc, f[g & 1]);
        }
        behind = here;
        here = next;
    }
    cp_wait<0>(); // only empty groups are left
}

// One block's share of the product: rows from row0, channels from col0.
template <class S> DEVICE void linear_block(const LinearParams& p, u32 rows, u32 row0, u32 col0, unsigned char* smem) {
    LinearBlock b = linear_place<S>(p, rows, row0, col0, smem);
    float acc[S::MT][S::NT][4] = {};
    linear_chain<S>(b, acc);
    LinearShare share{row0 + b.warp_m, col0 + b.warp_n, rows};
    linear_bias(p.out, share, acc);
    if (S::NT >= 4 && linear_is_wide(p.out)) {
        __syncthreads(); // others may still read the last stage
        constexpr u32 CORNER = LinearCorner<S::NT>::BYTES;
        static_assert(S::WARPS_M * S::WARPS_N * CORNER <= S::SMEM_BYTES, "corners fit the ring");
        linear_store_wide(p.out, share, acc, smem + (threadIdx.x >> 5) * CORNER);
    } else {
        linear_store(p.out, share, acc);
    }
}
