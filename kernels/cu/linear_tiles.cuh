// What all linear kernels share: the walk over tiles, and how accumulators leave as rows of the output.
//
// An accumulator array is acc[MT][NT][4] in the layout of mma16816's c, which is also wgmma's: tile (m, t)
// of a warp holds, in lane l, rows m*16 + l/4 and +8, channels t*8 + 2*(l%4) and +1.
#pragma once
#include "ptx.cuh"

struct LinearOutput {
    void* data;        // [rows][stride]
    const float* bias; // [n] or null
    u32 n;             // channels
    u32 stride;        // elements between rows
    u32 is_f32;        // 1: f32, 0: bf16
    u32 padding;
};

// A warp's share of the output.
struct LinearShare {
    u32 row, col; // its first row and channel
    u32 rows;     // live rows of the whole batch
};

struct LinearTile {
    u32 m, n; // tile coordinates
    bool exists;
};

constexpr int LINEAR_KB = 64;    // k of one pipeline stage: 128 bytes, the swizzle's line
constexpr u32 LINEAR_BAND = 8;   // row tiles that share a sweep over n, for L2
constexpr int LINEAR_PIECE = 8;  // n-tiles of one staged store: 64 channels, 128 bytes a row

// Tile `id` of a walk in bands of 8 row tiles, rows fastest. Only live tiles are counted.
DEVICE LinearTile linear_tile_at(u32 id, u32 tiles_m, u32 tiles_n) {
    u32 first = id / (LINEAR_BAND * tiles_n) * LINEAR_BAND;
    if (first >= tiles_m) return {0, 0, false};
    u32 height = tiles_m - first < LINEAR_BAND ? tiles_m - first : LINEAR_BAND, inside = id - first * tiles_n;
    return {first + inside % height, inside / height, inside < height * tiles_n};
}

DEVICE void linear_store1(const LinearOutput& o, u32 row, u32 col, float v) {
    u64 at = (u64)row * o.stride + col;
    if (o.is_f32) ((float*)o.data)[at] = v;
    else ((bf16*)o.data)[at] = f32_to_bf16(v);
}

// Two neighbouring channels of one row; `col` is even.
DEVICE void linear_store2(const LinearOutput& o, u32 row, u32 col, float v0, float v1) {
    u64 at = (u64)row * o.stride + col;
    if ((o.stride & 1) != 0 || col + 1 >= o.n) {
        if (col < o.n) linear_store1(o, row, col, v0);
        if (col + 1 < o.n) linear_store1(o, row, col + 1, v1);
    } else if (o.is_f32) {
        *(float2*)((float*)o.data + at) = make_float2(v0, v1);
    } else {
        *(u32*)((bf16*)o.data + at) = pack_bf16(v0, v1);
    }
}

// By channel, as weights of 8 bits need.
template <int MT, int NT> DEVICE void linear_scale(const float* scale, u32 n, const LinearShare& s, float (&acc)[MT][NT][4]) {
    UNROLL for (int t = 0; t < NT; t++) {
        u32 col = s.col + t * 8 + (threadIdx.x & 3) * 2;
        float s0 = col < n ? scale[col] : 0.f, s1 = col + 1 < n ? scale[col + 1] : 0.f;
        UNROLL for (int m = 0; m < MT; m++) {
            acc[m][t][0] = mul_rn(acc[m][t][0], s0); acc[m][t][1] = mul_rn(acc[m][t][1], s1);
            acc[m][t][2] = mul_rn(acc[m][t][2], s0); acc[m][t][3] = mul_rn(acc[m][t][3], s1);
        }
    }
}

template <int MT, int NT> DEVICE void linear_bias(const LinearOutput& o, const LinearShare& s, float (&acc)[MT][NT][4]) {
    if (o.bias == nullptr) return;
    UNROLL for (int t = 0; t < NT; t++) {
        u32 col = s.col + t * 8 + (threadIdx.x & 3) * 2;
        float b0 = col < o.n ? o.bias[col] : 0.f, b1 = col + 1 < o.n ? o.bias[col + 1] : 0.f;
        UNROLL for (int m = 0; m < MT; m++) {
            acc[m][t][0] = add_rn(acc[m][t][0], b0); acc[m][t][1] = add_rn(acc[m][t][1], b1);
            acc[m][t][2] = add_rn(acc[m][t][2], b0); acc[m][t][3] = add_rn(acc[m][t][3], b1);
        }
    }
}

// Straight from the accumulators: right for a few rows, and for f32, whose quads fill whole 32-byte sectors.
template <int MT, int NT> DEVICE void linear_store(const LinearOutput& o, const LinearShare& s, const float (&acc)[MT][NT][4]) {
    u32 lane = threadIdx.x & 31;
    UNROLL for (int m = 0; m < MT; m++) {
        u32 row = s.row + m * 16 + (lane >> 2);
        UNROLL for (int t = 0; t < NT; t++) {
            u32 col = s.col + t * 8 + (lane & 3) * 2;
            if (row < s.rows) linear_store2(o, row, col, acc[m][t][0], acc[m][t][1]);
            if (row + 8 < s.rows) linear_store2(o, row + 8, col, acc[m][t][2], acc[m][t][3]);
        }
    }
}

// Whether rows can leave in aligned pieces of 16 bytes.
DEVICE bool linear_is_wide(const LinearOutput& o) { return !o.is_f32 && ((o.n | o.stride) & 7) == 0; }

// Shared memory in which a warp of NT n-tiles stages 16 rows; the 16 bytes more than a row spread quads over all banks.
template <int NT> struct LinearCorner {
    static constexpr int TILES = NT < LINEAR_PIECE ? NT : LINEAR_PIECE;
    static constexpr u32 PITCH = TILES * 16 + 16, BYTES = 16 * PITCH;
    static_assert(NT % TILES == 0, "whole pieces");
};

// bf16 through this warp's corner of shared memory, so that a row leaves in 16-byte pieces.
template <int MT, int NT>
DEVICE void linear_store_wide(const LinearOutput& o, const LinearShare& s, const float (&acc)[MT][NT][4], unsigned char* corner) {
    constexpr int TILES = LinearCorner<NT>::TILES;
    constexpr u32 PITCH = LinearCorner<NT>::PITCH;
    u32 lane = threadIdx.x & 31;
    UNROLL for (int m = 0; m < MT; m++) {
        UNROLL for (int first = 0; first < NT; first += TILES) {
            UNROLL for (int t = 0; t < TILES; t++) {
                u32* at = (u32*)(corner + (lane >> 2) * PITCH + t * 16 + (lane & 3) * 4);
                at[0] = pack_bf16(acc[m][first + t][0], acc[m][first + t][1]);
                at[8 * PITCH / 4] = pack_bf16(acc[m][first + t][2], acc[m][first + t][3]);
            }
            __syncwarp();
            UNROLL for (u32 i = lane; i < 16 * TILES; i += 32) {
                u32 r = i / TILES, c = i % TILES, row = s.row + m * 16 + r, col = s.col + (first + c) * 8;
                if (row < s.rows && col < o.n)
                    st_global16((bf16*)o.data + (u64)row * o.stride + col, *(const uint4*)(corner + r * PITCH + c * 16));
            }
            __syncwarp();
        }
    }
}
