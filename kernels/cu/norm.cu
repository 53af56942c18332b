// Root-mean-square norms of the f32 residual stream, alone or with the addition of a block's output.
//
// Roofline (H200, 4.3 TB/s), bytes for each column: rmsnorm 4 in + 2 out, add_rmsnorm 4 + 2 in, 4 + 2 out; 8192 x
// 4096 takes 47 us and 94 us. The weights (4 bytes a column) are read again by each row, from L1 and L2.
//
// One block a row, sixteen values a thread, and the block is as wide as the row asks (64 threads for 1024
// columns, 1024 for 16384): the row is read once and waits in registers while its sum is made. Warps on a row
// (a warp for each) would need 128 values a lane at 4096 columns and leave a decode step on a few SMs; a
// persistent block with the weights in registers saves only L1 traffic. At 64 bytes in flight a thread and
// 1280 threads an SM, three times what latency x bandwidth asks is under way.
//
// The order of a sum is a function of the columns alone: sixteen values in a thread, a butterfly in a warp, a
// butterfly over warps. Products and sums are not fused and square root and quotient are the exact ones, so the
// emulator gives the same bits.
//
// Limits: columns a multiple of 8, up to 16384; block = norm threads (see params/norm.rs), grid = rows.
#include "types.cuh"
#include "ptx.cuh"

constexpr u32 QUADS = 4;  // float4 a thread

struct RmsNormParams {
    const float* x;        // [rows][cols]
    const float* weight;   // [cols]
    bf16* out;             // [rows][cols]
    const u32* rows_live;
    float eps;
    u32 cols;
};

struct AddRmsNormParams {
    float* residual;       // [rows][cols], updated
    const bf16* delta;     // [rows][cols]
    const float* weight;   // [cols]
    bf16* out;             // [rows][cols]
    const u32* rows_live;
    float eps;
    u32 cols;
};

// First column of a thread's quad: neighbours read neighbouring 16 bytes.
DEVICE u32 column(u32 quad) { return (quad * blockDim.x + threadIdx.x) * 4; }

DEVICE float square_sum(const float4& v) {
    float low = add_rn(mul_rn(v.x, v.x), mul_rn(v.y, v.y));
    return add_rn(low, add_rn(mul_rn(v.z, v.z), mul_rn(v.w, v.w)));
}

// Sum over the block, the same bits in every thread.
DEVICE float block_sum(float mine) {
    SHARED_ARRAY(float, parts, 32);
    float sum = warp_sum(mine);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f);
}

// Scales a row that waits in registers and writes it.
DEVICE void write_normed(const float4 (&v)[QUADS], const float* weight, bf16* out, float eps, u32 cols) {
    float sum = 0.0f;
    UNROLL for (u32 i = 0; i < QUADS; i++) sum = add_rn(sum, square_sum(v[i]));
    float mean = block_sum(sum) / (float)cols;
    float scale = 1.0f / sqrtf(mean + eps);
    UNROLL for (u32 i = 0; i < QUADS; i++) {
        u32 c = column(i);
        if (c >= cols) continue;
        float4 w = *(const float4*)(weight + c);
        uint2 packed;
        packed.x = pack_bf16(mul_rn(mul_rn(v[i].x, scale), w.x), mul_rn(mul_rn(v[i].y, scale), w.y));
        packed.y = pack_bf16(mul_rn(mul_rn(v[i].z, scale), w.z), mul_rn(mul_rn(v[i].w, scale), w.w));
        *(uint2*)(out + c) = packed;
    }
}

extern "C" __global__ void __launch_bounds__(1024) quire_rmsnorm(const __grid_constant__ RmsNormParams p) {
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    const float* x = p.x + (u64)row * p.cols;
    float4 v[QUADS];
    UNROLL for (u32 i = 0; i < QUADS; i++) {
        u32 c = column(i);
        v[i] = c < p.cols ? *(const float4*)(x + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    write_normed(v, p.weight, p.out + (u64)row * p.cols, p.eps, p.cols);
}
CUSIM_KERNEL(quire_rmsnorm)

extern "C" __global__ void __launch_bounds__(1024) quire_add_rmsnorm(const __grid_constant__ AddRmsNormParams p) {
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    float* x = p.residual + (u64)row * p.cols;
    const bf16* delta = p.delta + (u64)row * p.cols;
    float4 v[QUADS];
    uint2 d[QUADS];
    UNROLL for (u32 i = 0; i < QUADS; i++) {
        u32 c = column(i);
        v[i] = c < p.cols ? *(const float4*)(x + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        d[i] = c < p.cols ? *(const uint2*)(delta + c) : make_uint2(0, 0);
    }
    UNROLL for (u32 i = 0; i < QUADS; i++) {
        float2 low = unpack_bf16(d[i].x), high = unpack_bf16(d[i].y);
        v[i] = make_float4(v[i].x + low.x, v[i].y + low.y, v[i].z + high.x, v[i].w + high.y);
        u32 c = column(i);
        if (c < p.cols) *(float4*)(x + c) = v[i];
    }
    write_normed(v, p.weight, p.out + (u64)row * p.cols, p.eps, p.cols);
}
CUSIM_KERNEL(quire_add_rmsnorm)
