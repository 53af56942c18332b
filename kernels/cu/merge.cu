// Merges the partial states of a row, in the order in which its tiles lie, into the bf16 output.
//
// Roofline: a state is head_dim * 4 + 8 bytes read once; split decode of 32k tokens (32 heads, dim 128) has
// 124 states a head, 2 MB, all in L2: under a microsecond of bandwidth. What it costs is latency, because the
// merge is a left fold by law. So a warp takes 32 columns of one (row, head), asks for 32 states at once, and
// works out the factors of all 32 in parallel: a running maximum is exact in any order, so lane i knows
// (keep, add) of state i after a scan, and only two short chains (l and o) are left to run in order.
//
// The obvious other, a tree of merges, is faster for hundreds of states and breaks the law: another split
// would give other bits.
#include "attend.cuh"

struct MergeRow {
    u32 row;   // of the batch
    u32 first; // entry in slots[]
    u32 count;
    u32 pad;
};

struct MergeParams {
    const float* part_o;
    const float2* part_ml;
    const MergeRow* rows;
    const u32* slots; // of each row, ascending by tile
    u16* out;
    const u32* rows_live; // how many merge rows count
    u32 heads, head_dim, out_stride, pad;
};

constexpr int MERGE_BATCH = 32;

// The factors with which state `lane` of a batch merges into everything before it.
DEVICE void merge_scan(float before, float tm, u32 lane, float& keep, float& add, float& after) {
    float upto = fmaxf(before, tm);
    UNROLL for (int d = 1; d < 32; d <<= 1) {
        float other = __shfl_up_sync(~0u, upto, d);
        if ((int)lane >= d) upto = fmaxf(upto, other);
    }
    float m = __shfl_up_sync(~0u, upto, 1), unused = 0.0f;
    if (lane == 0) m = before;
    merge_factors(m, unused, tm, 0.0f, keep, add);
    after = __shfl_sync(~0u, upto, 31);
}

// grid (merge rows, heads), block 32 * ceil(head_dim / 32)
extern "C" __global__ void __launch_bounds__(256) quire_merge(const __grid_constant__ MergeParams p) {
    if (blockIdx.x >= *p.rows_live) return;
    const MergeRow mine = p.rows[blockIdx.x];
    const u32 lane = threadIdx.x & 31, col = threadIdx.x, head = blockIdx.y;
    const bool inside = col < p.head_dim;
    float m = negative_infinity(), l = 0.0f, o = 0.0f;
    for (u32 base = 0; base < mine.count; base += MERGE_BATCH) {
        const u32 n = min(mine.count - base, (u32)MERGE_BATCH);
        const u32 slot = lane < n ? p.slots[mine.first + base + lane] : 0;
        float to[MERGE_BATCH];
        UNROLL for (int i = 0; i < MERGE_BATCH; i++) {
            u64 state = (u64)__shfl_sync(~0u, slot, i) * p.heads + head;
            to[i] = (u32)i < n && inside ? p.part_o[state * p.head_dim + col] : 0.0f;
        }
        float2 ml = make_float2(negative_infinity(), 0.0f); // beyond the last state: keep 1, add 0
        if (lane < n) ml = p.part_ml[(u64)slot * p.heads + head];
        float keep, add;
        merge_scan(m, ml.x, lane, keep, add, m);
        UNROLL for (int i = 0; i < MERGE_BATCH; i++) {
            float k = __shfl_sync(~0u, keep, i), a = __shfl_sync(~0u, add, i), tl = __shfl_sync(~0u, ml.y, i);
            l = add_rn(mul_rn(l, k), mul_rn(tl, a));
            o = merge_value(o, to[i], k, a);
        }
    }
    if (inside) p.out[(u64)mine.row * p.out_stride + head * p.head_dim + col] = f32_to_bf16(merge_result(o, 1.0f / l));
}
CUSIM_KERNEL(quire_merge)
