// The one loop behind every mma.sync linear kernel: out[r][c] = sum over k of x[r][k]*w[c][k] (+ bias[c]).
//
// The law: an output element is ONE chain of mma.m16n8k16 along k, ascending, in one f32 accumulator that
// starts at zero; k is padded with zeros to a multiple of 64. Shapes differ only in which elements share a
// block, so a row has the same bits alone, among 300, in a decode kernel and in a prefill kernel. That is
// why nothing here splits k, and why a block never holds two partial sums of one element.
//
// Shared memory: STAGES slots of BM x-rows and BN w-rows of 64 k. A row's 16-byte chunks are exchanged (below) so that
// cp.async writes and ldmatrix reads touch all 32 banks. Copies run STAGES-1 ahead; fragments run
// one group ahead of the tensor cores, over the stage boundary too, so a chain waits for its own latency only.
//
// Dead rows (>= *rows_live), channels >= n and k beyond the end are zero-filled by the copy, never read.
#pragma once
#include "linear_tiles.cuh"

struct LinearParams {
    const bf16* x;        // [rows][k]
    const void* w;        // [n][k], bf16 or e4m3
    const float* scale;   // e4m3: [n], what a channel is multiplied with; else unused
    const u32* rows_live; // rows of x that count; blocks beyond leave
    LinearOutput out;
    u32 k; // whole 16-byte chunks of w: a multiple of 8 (bf16) or 16 (e4m3)
    u32 padding;
};

// Two forms of weights. Either way the tensor cores see bf16 and k in its order.
struct Bf16Weights {
    static constexpr bool SCALED = false;
    static constexpr u32 CHUNKS = 8; // of 16 bytes in the 64 k of a stage
};
// Widened between ldmatrix and mma. The bytes of each 16 k lie in the order that makes this cheap: lane t of four
// gets one word, bytes 0 and 2 of it are k 2t and 2t+1, bytes 1 and 3 are k 2t+8 and 2t+9 (linear_fp8.rs).
struct E4m3Weights {
    static constexpr bool SCALED = true;
    static constexpr u32 CHUNKS = 4;
};

template <class W_, int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_> struct LinearShape {
    using W = W_;
    static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr int THREADS = WARPS_M * WARPS_N * 32;
    static constexpr int MT = BM / WARPS_M / 16, NT = BN / WARPS_N / 8; // mma tiles of a warp
    static constexpr int UNITS = W::SCALED ? 4 : 2; // of 8 channels by 16 k that one ldmatrix of w brings
    static constexpr int KG = NT < UNITS ? UNITS / NT : 1; // k16 steps of a group
    static constexpr int GROUPS = LINEAR_KB / 16 / KG;
    // The group that begins with the wait for the next stage. At the first, its fragments are asked for long
    // before the chain needs them; with three stages that would leave too few copies in flight.
    static constexpr int WAIT_AT = STAGES > 3 ? 0 : GROUPS - 1;
    static constexpr int PENDING = WAIT_AT == 0 ? STAGES - 3 : STAGES - 2; // younger copies than that stage's
    static constexpr int X_BYTES = BM * LINEAR_KB * 2, STAGE_BYTES = X_BYTES + BN * W::CHUNKS * 16;
    static constexpr int SMEM_BYTES = STAGES * STAGE_BYTES;
    static_assert(BM % (16 * WARPS_M) == 0 && BN % (8 * WARPS_N) == 0, "whole mma tiles");
    static_assert(NT < UNITS ? UNITS % NT == 0 : NT % UNITS == 0, "whole ldmatrix of w");
    static_assert(GROUPS % 2 == 0, "two sets of fragments take turns");
    static_assert(STAGES >= 3, "one stage is read, one lands, one is written");
    static_assert(SMEM_BYTES <= 99 * 1024, "fits the smallest GPU served");
};

// What one lane feeds to KG steps of mma; e4m3 stays narrow until then.
template <class S> struct LinearFragments {
    u32 a[S::KG][S::MT][4];
    u32 b[S::KG][S::NT][S::W::SCALED ? 1 : 2];
};

// Where a block and this thread stand. The lane's shared-memory offsets are found once: whatever the slot,
// m-tile and pass add is a multiple of eight rows, which the swizzle does not see.
struct LinearBlock {
    unsigned char* smem;
    u32 row0, col0; // first row of x and first channel of this block
    u32 rows, n, k;
    u32 warp_m, warp_n; // first row and first channel of this warp inside the block
    u32 read_x, read_w; // this lane's ldmatrix address inside a slot
    u32 write_x, write_w; // where this thread's first 16 bytes land in a slot's x, and in its w
    const bf16* from_x;   // ... and where they come from, at k = 0
    const u8* from_w;
};

// A chunk's place among rows of 128 bytes, or of 64: then two rows share a line of all banks.
template <u32 CHUNKS> DEVICE u32 linear_swizzle(u32 row, u32 chunk) {
    return row * CHUNKS * 16 + ((chunk ^ (CHUNKS == 8 ? row & 7 : row >> 1 & 3)) << 4);
}

// ldmatrix takes four 8x8 matrices, lane i names a row of matrix i/8: here which channel and chunk lane i asks for.
template <class S> DEVICE u32 linear_read_w(u32 warp_n, u32 lane) {
    constexpr u32 C = S::W::CHUNKS;
    u32 row = warp_n + (lane & 7), half = lane >> 3 & 1;
    if (S::W::SCALED && S::KG == 1) return linear_swizzle<C>(row + (lane >> 3) * 8, 0); // 32 channels by 16 k
    if (S::NT == 1) return linear_swizzle<C>(row, lane >> 3);                           // 8 channels, all k of a group
    return linear_swizzle<C>(row + (lane >> 4) * 8, half);                              // 16 channels by two chunks
}

template <class S> DEVICE LinearBlock linear_place(const LinearParams& p, u32 rows, u32 row0, u32 col0, unsigned char* smem) {
    constexpr u32 C = S::W::CHUNKS;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 rx = threadIdx.x / 8, cx = threadIdx.x % 8, rw = threadIdx.x / C, cw = threadIdx.x % C;
    u32 warp_m = warp % S::WARPS_M * (S::MT * 16), warp_n = warp / S::WARPS_M * (S::NT * 8);
    // x: rows 0-7 and 8-15 of k 0-7, then of k 8-15.
    u32 read_x = linear_swizzle<8>(warp_m + (lane & 15), lane >> 4);
    return {smem, row0, col0, rows, p.out.n, p.k, warp_m, warp_n, read_x, S::X_BYTES + linear_read_w<S>(warp_n, lane),
            linear_swizzle<8>(rx, cx), S::X_BYTES + linear_swizzle<C>(rw, cw), p.x + (u64)(row0 + rx) * p.k + cx * 8,
            (const u8*)p.w + (u64)(col0 + rw) * (p.k * C / 4) + cw * 16};
}

// Copies 64 k of ROWS rows from `first`; what lies at `last` and beyond is zero-filled. CHUNKS threads take a row.
template <class S, int ROWS, u32 CHUNKS>
DEVICE void linear_copy_rows(unsigned char* to, const u8* from, u32 first, u32 last, u32 row_bytes, bool k_inside) {
    constexpr u32 PASS = S::THREADS / CHUNKS; // rows that the block's threads copy at once
    UNROLL for (u32 r = 0; r < ROWS; r += PASS) {
        u32 mine = r + threadIdx.x / CHUNKS;
        if (ROWS % PASS != 0 && mine >= ROWS) break;
        cp_async16(to + r * CHUNKS * 16, from + (u64)r * row_bytes, k_inside && first + mine < last);
    }
}

// Starts the copy of stage `kt` into the slot at byte `slot`; nothing but an empty group beyond the last stage.
template <class S> DEVICE void linear_copy(const LinearBlock& b, u32 kt, u32 slot) {
    constexpr u32 C = S::W::CHUNKS, IN_CHUNK = LINEAR_KB / C; // k of a chunk of w
    u32 k0 = kt * LINEAR_KB;
    if (k0 < b.k) {
        unsigned char* to = b.smem + slot;
        bool x_inside = k0 + threadIdx.x % 8 * 8 < b.k, w_inside = k0 + threadIdx.x % C * IN_CHUNK < b.k;
        linear_copy_rows<S, S::BM, 8>(to + b.write_x, (const u8*)(b.from_x + k0), b.row0, b.rows, b.k * 2, x_inside);
        linear_copy_rows<S, S::BN, C>(to + b.write_w, b.from_w + kt * C * 16, b.col0, b.n, b.k * C / 4, w_inside);
    }
    cp_commit();
}

// One ldmatrix of w: UNITS pieces of 8 channels by 16 k, from n-tile `t` on.
template <class S> DEVICE void linear_load_w(LinearFragments<S>& f, const unsigned char* from, int t) {
    constexpr int TILES = S::NT < S::UNITS ? S::NT : S::UNITS;
    u32 q[4];
    ldsm4(q, from + t * 8 * S::W::CHUNKS * 16);
    UNROLL for (int unit = 0; unit < S::UNITS; unit++) {
        int step = unit % S::KG, tile = t + unit / S::KG % TILES;
        if constexpr (S::W::SCALED) {
            f.b[step][tile][0] = q[unit];
        } else {
            f.b[step][tile][0] = q[unit * 2];
            f.b[step][tile][1] = q[unit * 2 + 1];
        }
    }
}

// Fragments of group `g` (KG k16 steps) of the stage in `slot`; a chunk that is g further on is an XOR away.
template <class S> DEVICE void linear_load(LinearFragments<S>& f, const LinearBlock& b, u32 slot, u32 g) {
    constexpr u32 GROUP_BYTES = S::KG * S::W::CHUNKS * 4; // of a row of w
    const unsigned char* stage = b.smem + slot;
    UNROLL for (int s = 0; s < S::KG; s++) {
        UNROLL for (int m = 0; m < S::MT; m++)
            ldsm4(f.a[s][m], stage + ((b.read_x ^ (g * S::KG + s) * 32) + m * 2048));
    }
    UNROLL for (int t = 0; t < S::NT; t += S::UNITS) linear_load_w<S>(f, stage + (b.read_w ^ g * GROUP_BYTES), t);
}

// The chain's next KG links, for every element of the warp.
template <class S> DEVICE void linear_mma(float (&acc)[S::MT][S::NT][4], const LinearFragments<S>& f) {
    UNROLL for (int s = 0; s < S::KG; s++) {
        UNROLL for (int t = 0; t < S::NT; t++) {
            u32 low = f.b[s][t][0], high;
            if constexpr (S::W::SCALED) {
                high = e4m3x2_to_bf16x2(low);
                low = e4m3x2_to_bf16x2(low << 8);
            } else {
                high = f.b[s][t][1];
            }
            UNROLL for (int m = 0; m < S::MT; m++) mma16816(acc[m][t], f.a[s][m], low, high);
        }
    }
}

template <class S> DEVICE void linear_chain(const LinearBlock& b, float (&acc)[S::MT][S::NT][4]) {
    u32 stages = (b.k + LINEAR_KB - 1) / LINEAR_KB;
    // Not unrolled: a block that runs for microseconds should not wait for its code to arrive.
#pragma unroll 1
    for (u32 s = 0; s < S::STAGES - 1; s++) linear_copy<S>(b, s, s * S::STAGE_BYTES);
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
    if constexpr (S::W::SCALED) linear_scale(p.scale, p.out.n, share, acc);
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
