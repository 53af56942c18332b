// Rows by index: the embedding of a step's tokens, and the rows that a later op wants.
//
// Roofline (H200, 4.3 TB/s): embed moves 2 bytes in and 4 out for each column, 8192 x 4096 in 47 us; gathers
// read and write each byte once (64 rows x 4096 f32 in 0.5 us, so a launch is all they cost).
//
// One block a row, 16-byte loads, no shared memory: rows are independent and the index is one broadcast load.
// A gather is not fused into its producer or its consumer because both are matrix products that want dense rows.
//
// Limits: columns in whole 16-byte vectors (bf16: multiples of 8, f32: of 4), rows 16-byte aligned. Indices are
// trusted: the host has checked tokens against the vocabulary and rows against the batch.
#include "types.cuh"
#include "ptx.cuh"

struct EmbedParams {
    const bf16* table;     // [vocab][cols]
    const u32* tokens;     // [rows]
    const u32* rows_live;
    float* out;            // [rows][cols]
    u32 cols;
    u32 pad;
};

extern "C" __global__ void __launch_bounds__(256) quire_embed(const __grid_constant__ EmbedParams p) {
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    const bf16* from = p.table + (u64)p.tokens[row] * p.cols;
    float* to = p.out + (u64)row * p.cols;
    for (u32 c = threadIdx.x * 8; c < p.cols; c += blockDim.x * 8) {
        uint4 v = ld_global_nc16(from + c);
        float2 a = unpack_bf16(v.x), b = unpack_bf16(v.y), d = unpack_bf16(v.z), e = unpack_bf16(v.w);
        *(float4*)(to + c) = make_float4(a.x, a.y, b.x, b.y);
        *(float4*)(to + c + 4) = make_float4(d.x, d.y, e.x, e.y);
    }
}
CUSIM_KERNEL(quire_embed)

template <class T>
struct GatherParams {
    const T* x;            // [any][cols]
    const u32* rows;       // [wanted]: row of x
    const u32* rows_live;  // rows wanted
    T* out;                // [wanted][cols]
    u32 cols;
    u32 pad;
};

template <class T>
DEVICE void gather_row(const GatherParams<T>& p) {
    constexpr u32 LANE = 16 / sizeof(T);
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    const T* from = p.x + (u64)p.rows[row] * p.cols;
    T* to = p.out + (u64)row * p.cols;
    for (u32 c = threadIdx.x * LANE; c < p.cols; c += blockDim.x * LANE) st_global16(to + c, ld_global_nc16(from + c));
}

typedef GatherParams<float> GatherF32Params;
typedef GatherParams<bf16> GatherBf16Params;

extern "C" __global__ void __launch_bounds__(256) quire_gather_f32(const __grid_constant__ GatherF32Params p) {
    gather_row(p);
}
CUSIM_KERNEL(quire_gather_f32)

extern "C" __global__ void __launch_bounds__(256) quire_gather_bf16(const __grid_constant__ GatherBf16Params p) {
    gather_row(p);
}
CUSIM_KERNEL(quire_gather_bf16)
