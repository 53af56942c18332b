// What both attention kernels and the merge share: the work item, the masks, the softmax of a block, the
// law by which tiles merge, and the form of a partial state.
//
// The law. KV is cut at absolute multiples of ATTEND_TILE tokens. Inside a tile an online softmax runs over
// blocks of ATTEND_BLOCK keys in ascending order, in f32, base 2. A tile closes into (m, l, o), o not
// normalised, and tiles merge in ascending order by merge_factors and merge_value: in registers, in shared
// memory or in merge.cu, always these two functions. A block or tile in which a row sees nothing changes no
// bit of that row (f = 1, p = 0; keep = 1, add = 0), so it does not matter which rows share a work item, and
// prefill, chunked prefill, decode, split KV, a shared prefix and a cache hit give the same bits.
// Every operation whose rounding the compiler could change by fusing is spelled out (mul_rn, add_rn, fmaf).
//
// Work. One launch serves a whole step: a list of items, each some rows times one run of keys. Row r of the
// packed tile is (token r / group, query head kv_head * group + r % group), so the heads that share a KV head
// share its bytes. Which keys a row sees is decided by its position alone, for every kind of item.
//
// Partial states: o f32 [slot][head][dim] and (m, l) [slot][head]; an item with n rows that starts at slot s
// writes row i of its t-th state to slot s + t * n + i. Merging a (row, head) then reads whole runs of dim
// floats, and an accumulator fragment writes whole sectors of 32 bytes.
#pragma once
#include "ptx.cuh"

constexpr u32 ATTEND_TILE = 256;
constexpr u32 ATTEND_BLOCK = 64;
constexpr u32 ATTEND_DIRECT = 0xffffffffu; // AttendItem::slot: no partial state, the output itself
constexpr u32 ATTEND_FOLD = 1;             // AttendItem::flags: one state for the run, else one for each tile

struct AttendItem {
    u32 row_list; // first entry in row_list[]: the batch rows of this item
    u32 rows;     // tokens; rows * group is at most what a block holds
    u32 table;    // first page_table entry of the KV that is read
    u32 key_from; // no key before it is read; the first tile is key_from / ATTEND_TILE
    u32 key_end;  // no key at or beyond it is read
    u32 slot;     // first partial slot or ATTEND_DIRECT (which implies folding)
    u32 flags;
    u32 pad;
};

struct AttendArgs {
    const u16* q; // fused rows: q_stride elements from row to row, head h at h * head_dim
    u16* out;
    float* part_o;
    float2* part_ml;
    const AttendItem* items;
    const u32* row_list;
    const u32* positions; // of batch rows
    const u32* page_table;
    const u32* items_live; // how many items count; blocks beyond leave
    u32 q_stride, out_stride;
    u32 heads, group, head_dim;
    u32 window;     // a token sees itself and window - 1 before it; 0: all before it
    u32 page_shift; // log2 of the tokens of a page
    float scale_log2; // positive: the scores' scale times log2(e)
};


DEVICE AttendItem attend_item(const AttendArgs& a) {
    const uint4* from = (const uint4*)(a.items + blockIdx.x);
    uint4 x = from[0], y = from[1];
    return {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
}

DEVICE bool attend_folds(const AttendItem& it) { return it.slot == ATTEND_DIRECT || (it.flags & ATTEND_FOLD) != 0; }

// The two rows r and r + 8 that a lane holds of a 16-row fragment: which keys each sees.
struct AttendView {
    u32 lo[2], len[2];
};

DEVICE AttendView attend_view(const AttendArgs& a, const AttendItem& it, u32 first_row) {
    AttendView v;
    UNROLL for (int h = 0; h < 2; h++) {
        u32 token = (first_row + 8 * h) / a.group;
        v.lo[h] = 0, v.len[h] = 0; // rows that are not there see nothing
        if (token >= it.rows) continue;
        u32 end = a.positions[a.row_list[it.row_list + token]] + 1;
        u32 lo = a.window != 0 && end > a.window ? end - a.window : 0;
        lo = max(lo, it.key_from);
        end = min(end, it.key_end);
        v.lo[h] = lo, v.len[h] = end > lo ? end - lo : 0;
    }
    return v;
}

// Sets the scores of keys that a row does not see to -inf. `s` is 16 rows by 64 keys as mma accumulators lie.
DEVICE void attend_mask(float (&s)[32], const AttendView& v, u32 key0, u32 lane) {
    bool all = true;
    UNROLL for (int h = 0; h < 2; h++) all = all && key0 >= v.lo[h] && key0 + ATTEND_BLOCK <= v.lo[h] + v.len[h];
    if (all) return;
    UNROLL for (int i = 0; i < 32; i++) {
        int h = i >> 1 & 1;
        u32 key = key0 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (key - v.lo[h] >= v.len[h]) s[i] = negative_infinity();
    }
}

// Softmax of two rows over one run of keys; l is the lane's own share until attend_close.
struct AttendSum {
    float m[2], l[2];
};

DEVICE AttendSum attend_empty() { return {{negative_infinity(), negative_infinity()}, {0.0f, 0.0f}}; }

// The next block of a tile: scores become weights, `f` is what the tile's output so far must be scaled by.
DEVICE void attend_soften(float (&s)[32], AttendSum& t, float (&f)[2], float scale_log2) {
    UNROLL for (int h = 0; h < 2; h++) {
        float top = s[2 * h];
        UNROLL for (int i = 0; i < 32; i++)
            if ((i >> 1 & 1) == h) top = fmaxf(top, s[i]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        float m = fmaxf(t.m[h], mul_rn(top, scale_log2));
        float base = m == negative_infinity() ? 0.0f : m; // nothing seen yet: -inf - -inf would be NaN
        f[h] = ex2(add_rn(t.m[h], -base));
        t.m[h] = m;
        float sum = 0.0f;
        UNROLL for (int i = 0; i < 32; i++) {
            if ((i >> 1 & 1) != h) continue;
            s[i] = ex2(fmaf(s[i], scale_log2, -base));
            sum = add_rn(sum, s[i]);
        }
        t.l[h] = add_rn(mul_rn(t.l[h], f[h]), sum);
    }
}

// The weights of keys 16k..16k+15 of a block as the left operand of a matrix product.
DEVICE void attend_weights(u32 (&p)[4], const float (&s)[32], int k) {
    UNROLL for (int j = 0; j < 4; j++) p[j] = pack_bf16(s[k * 8 + j * 2], s[k * 8 + j * 2 + 1]);
}

template <int N> DEVICE void attend_rescale(float (&o)[N], const float (&f)[2]) {
    UNROLL for (int i = 0; i < N; i++) o[i] = mul_rn(o[i], f[i >> 1 & 1]);
}

// Sums the shares of the four lanes of a row; all four get the same bits.
DEVICE void attend_close(AttendSum& t) {
    UNROLL for (int h = 0; h < 2; h++) {
        t.l[h] = add_rn(t.l[h], __shfl_xor_sync(~0u, t.l[h], 1));
        t.l[h] = add_rn(t.l[h], __shfl_xor_sync(~0u, t.l[h], 2));
    }
}

// Merges the next tile (tm, tl) into (m, l); one of the factors is 1.
DEVICE void merge_factors(float& m, float& l, float tm, float tl, float& keep, float& add) {
    bool stays = m >= tm;
    add = !stays ? 1.0f : tm == negative_infinity() ? 0.0f : ex2(add_rn(tm, -m));
    keep = stays ? 1.0f : ex2(add_rn(m, -tm));
    m = stays ? m : tm;
    l = add_rn(mul_rn(l, keep), mul_rn(tl, add));
}
DEVICE float merge_value(float o, float to, float keep, float add) { return add_rn(mul_rn(o, keep), mul_rn(to, add)); }
// The output from the merged state; adding 0 makes -0 (a lone underflow) the same as +0.
DEVICE float merge_result(float o, float inverse) { return add_rn(mul_rn(o, inverse), 0.0f); }

template <int N> DEVICE void attend_fold(float (&o)[N], AttendSum& run, const float (&to)[N], const AttendSum& t) {
    float keep[2], add[2];
    UNROLL for (int h = 0; h < 2; h++) merge_factors(run.m[h], run.l[h], t.m[h], t.l[h], keep[h], add[h]);
    UNROLL for (int i = 0; i < N; i++) o[i] = merge_value(o[i], to[i], keep[i >> 1 & 1], add[i >> 1 & 1]);
}

// Where (packed row, this block's KV head) lives: its token in the item and its query head.
struct AttendPlace {
    u32 token, head;
};
DEVICE AttendPlace attend_place(const AttendArgs& a, u32 row) {
    u32 token = row / a.group;
    return {token, blockIdx.y * a.group + row - token * a.group};
}

// Writes a lane's part of state number `nth` of an item: rows first_row and first_row + 8, columns from col0.
template <int N>
DEVICE void attend_write_state(const AttendArgs& a, const AttendItem& it, u32 nth, u32 first_row, u32 col0, u32 lane,
                           const float (&o)[N], const AttendSum& t) {
    UNROLL for (int h = 0; h < 2; h++) {
        AttendPlace at = attend_place(a, first_row + 8 * h);
        if (at.token >= it.rows) continue;
        u64 state = (u64)(it.slot + nth * it.rows + at.token) * a.heads + at.head;
        float* to = a.part_o + state * a.head_dim;
        UNROLL for (int i = 0; i < N / 4; i++) {
            u32 col = col0 + i * 8 + (lane & 3) * 2;
            if (col < a.head_dim) *(float2*)(to + col) = make_float2(o[i * 4 + h * 2], o[i * 4 + h * 2 + 1]);
        }
        if ((lane & 3) == 0 && col0 == 0) a.part_ml[state] = make_float2(t.m[h], t.l[h]);
    }
}
