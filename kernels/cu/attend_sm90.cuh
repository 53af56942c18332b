// Attention for Hopper: TMA brings keys and values, wgmma multiplies, one warpgroup loads while others compute.
// head_dim 64 and 128; what attend.cuh says of work items and of the law holds here unchanged.
//
// Roofline. Decode at dim 128 reads 512 bytes a token and KV head: 32 x 4k tokens, 8 heads: 537 MB, 125 us at
// 4.3 TB/s. Latency (about 1 us) times bandwidth is 36 KB a multiprocessor; in flight are
//     _x1: 6 slots of 64 keys (16 KB, K or V) a block, two blocks a multiprocessor     192 KB
//     _x2: 12 slots, one block                                                         192 KB
// and a multiprocessor's share of the bandwidth, 64 keys in 0.9 us, leaves one warpgroup 1,600 cycles for what
// takes it about 1,050 (512 of wgmma on 64 rows, mostly padding in decode; that costs nothing here).
// Prefill does 4 * 64 * 64 * 128 flops a warpgroup and block: 512 cycles of tensor cores against about 300 issue
// slots of softmax (256 of them exponentials), so two warpgroups can keep the tensor cores busy if their
// phases alternate: a warpgroup hands (P V of this block, Q K^T of the next) to the tensor cores in one go, only
// in its turn, and softens while the other's turn runs. What the law costs over one running accumulator is a
// second one (64 registers) and a fold every 256 keys, about 50 operations a block.
// Registers a thread at dim 128: tile 64 + run 64 + scores 32 + weights 16 + about 45; hence 232 or 240 for
// consumers by setmaxnreg, 24 for the producer, and blocks of 64 keys: 128 would need 48 more.
//
// Shared memory, all in the 128-byte swizzle: slots [dim half][64 keys][64 dims] as TMA writes them, then q
// [warpgroup][dim half][64 rows][64 dims], which the output reuses on its way out, then mbarriers. A slot is one
// box of (64 dims, page_tokens) for each page and dim half; pages outside of the item's run are asked for
// beyond the pool and arrive as zeros, without traffic. Dead slots inside a live page can hold anything: their
// scores are masked, and their values are overwritten with zeros before P V sees them, for 0 * NaN is NaN.
//
// Pages of e4m3 (rope_store.cu) take another way into the slots, and nothing else differs: TMA brings bytes to stages,
// half as long and as many as bf16 has slots, and the warpgroup that only asked before widens them into half as
// many slots. wgmma wants both operands of one type, and queries of 8 bits would show. Widening 64 keys of
// 128 dims is about 130 instructions a warp, K and V together 260 issue slots of each scheduler, beside 1,024 cycles
// of wgmma for as many keys. Exponents come as plain loads, a block of keys before they are needed.
//
// Not persistent: blocks are long (a tile is 2 us) and the plan sorts them longest first.
// Limits: 64 * WGS query heads a KV head. The cycles above are estimates, not measurements.
#pragma once
#include "attend.cuh"
#include "hopper.cuh"

struct AttendSm90Params {
    TensorMap map; // the whole pool: (dim, token of page, (layer, K/V, head), page); box (64, page_tokens, 1, 1)
    AttendArgs a;
    u32 block_base; // third coordinate of K of head 0 in this layer
    u32 kv_heads;   // from K to V of a head
    u32 pages;      // of the pool: the first page that is not there
    u32 pad[3];     // to a multiple of the map's alignment
};

// Of pages of e4m3.
struct AttendSm90E4m3Params {
    AttendSm90Params at;   // map: of bytes in pairs, (dim, token of page, (layer, K/V, head), page), box (D, page_tokens, 1, 1)
    const u8* exponents;   // of page 0, layer 0, K, head 0
    u64 page_bytes, block_bytes;
    u64 pad[5];
};

enum class WgPages { bf16, e4m3 };

template <WgPages PAGES_, int D_, int WGS_> struct WgShape {
    static constexpr bool NARROW = PAGES_ == WgPages::e4m3;
    static constexpr int D = D_, WGS = WGS_, HALVES = D / 64;
    static constexpr int HALF = 64 * 128, SLOT = HALVES * HALF; // bytes; q of a warpgroup is as large as a slot
    static constexpr int ROOM = D == 128 ? 6 * WGS : WGS == 1 ? 12 : 16; // slots that there is memory for
    static constexpr int SLOTS = NARROW ? ROOM / 2 : ROOM, STAGES = NARROW ? ROOM : 0, STAGE = SLOT / 2;
    static constexpr int STAGED = SLOTS * SLOT, Q = STAGED + STAGES * STAGE;
    static constexpr int BARS = Q + WGS * SLOT, SMEM = BARS + 512;
    static constexpr int THREADS = 128 * (WGS + 1);
    // Registers of a thread: two consumers or one, and who feeds them, share 512 or 256 a lane.
    static constexpr int FEEDS = NARROW ? 56 : 24;
    static constexpr int COMPUTES = WGS == 1 ? 256 - FEEDS : (504 - FEEDS) / 2;
    static_assert((2 * SLOTS + 2 + 2 * STAGES) * 8 <= 512 && SMEM <= 227 * 1024, "fits");
};

struct WgBarriers {
    u64 *full, *empty, *turn, *staged, *widened;
};
template <class S> DEVICE WgBarriers wg_barriers(unsigned char* sm) {
    u64 *first = (u64*)(sm + S::BARS), *turn = first + 2 * S::SLOTS, *staged = turn + 2;
    return {first, first + S::SLOTS, turn, staged, staged + S::STAGES};
}

struct WgRing {
    u32 slot, phase;
};
DEVICE void wg_advance_by(WgRing& ring, u32 slots) {
    if (++ring.slot == slots) ring.slot = 0, ring.phase ^= 1;
}
template <class S> DEVICE void wg_advance(WgRing& ring) { wg_advance_by(ring, S::SLOTS); }

// ---- producer: one warp, a lane for each box of a slot -------------------------------------------------------------

DEVICE u32 wg_page(const AttendSm90Params& p, const AttendItem& it, u32 index) {
    bool inside = index >= it.key_from >> p.a.page_shift && index <= (it.key_end - 1) >> p.a.page_shift;
    return inside ? p.a.page_table[it.table + index] : p.pages;
}

template <class S> DEVICE void wg_produce(const AttendSm90Params& p, const AttendItem& it, unsigned char* sm) {
    const WgBarriers bars = wg_barriers<S>(sm);
    const u32 lane = threadIdx.x & 31, half = lane % S::HALVES, nth = lane / S::HALVES, shift = p.a.page_shift;
    const bool loads = nth < ATTEND_BLOCK >> shift;
    const u32 offset = half * S::HALF + (nth << shift) * 128;
    WgRing ring = {0, 0};
    u32 key = it.key_from / ATTEND_BLOCK * ATTEND_BLOCK;
    u32 page = wg_page(p, it, (key >> shift) + nth);
    for (; key < it.key_end; key += ATTEND_BLOCK) {
        u32 next = wg_page(p, it, ((key + ATTEND_BLOCK) >> shift) + nth); // known before its slot is free
        for (u32 values = 0; values < 2; values++) {
            mbar_wait(bars.empty + ring.slot, ring.phase ^ 1);
            if (lane == 0) mbar_expect_tx(bars.full + ring.slot, S::SLOT);
            __syncwarp();
            if (loads)
                tma_load_4d(sm + ring.slot * S::SLOT + offset, &p.map, bars.full + ring.slot, half * 64, 0,
                            p.block_base + values * p.kv_heads + blockIdx.y, page);
            wg_advance<S>(ring);
        }
        page = next;
    }
}

// ---- widener: a warpgroup between stages of e4m3 and slots of bf16 ---------------------------------------------------

// Stages are asked for by its first warp, in the order in which slots are filled: K, V, K, V, ...
template <class S> struct WgStages {
    const AttendSm90E4m3Params& p;
    const AttendItem& it;
    unsigned char* sm;
    WgBarriers bars;
    u32 lane, key, values; // of the next stage
    WgRing ring;

    DEVICE void ask() {
        if (key >= it.key_end) return;
        const u32 shift = p.at.a.page_shift;
        mbar_wait(bars.widened + ring.slot, ring.phase ^ 1);
        if (lane == 0) mbar_expect_tx(bars.staged + ring.slot, S::STAGE);
        __syncwarp();
        if (lane < ATTEND_BLOCK >> shift)
            tma_load_4d(sm + S::STAGED + ring.slot * S::STAGE + (lane << shift) * S::D, &p.at.map, bars.staged + ring.slot, 0, 0,
                        p.at.block_base + values * p.at.kv_heads + blockIdx.y, wg_page(p.at, it, (key >> shift) + lane));
        wg_advance_by(ring, S::STAGES);
        key += values * ATTEND_BLOCK;
        values ^= 1;
    }
};

// A thread widens a piece of 16 dims of D / 32 neighbouring rows. Their exponents, a byte each: of keys outside of the
// item's run 0, which makes zeros of whatever lies there.
template <class S>
DEVICE u32 wg_exponents(const AttendSm90E4m3Params& p, const AttendItem& it, u32 key0, u32 values, u32 thread) {
    constexpr u32 ROWS = S::D / 32;
    const u32 key = key0 + thread / (S::D / 16) * ROWS, shift = p.at.a.page_shift;
    if (key + ROWS <= it.key_from || key >= it.key_end) return 0;
    const u64 block = (u64)(p.at.block_base + values * p.at.kv_heads + blockIdx.y) * p.block_bytes;
    const u8* from = p.exponents + p.at.a.page_table[it.table + (key >> shift)] * p.page_bytes + block + (key & ((1u << shift) - 1));
    u32 packed = ROWS == 4 ? *(const u32*)from : *(const u16*)from;
    UNROLL for (u32 i = 0; i < ROWS; i++)
        if (key + i - it.key_from >= it.key_end - it.key_from) packed &= ~(0xffu << i * 8);
    return packed;
}

template <class S> DEVICE void wg_widen(unsigned char* to, const unsigned char* from, u32 exponents, u32 thread) {
    constexpr u32 ROWS = S::D / 32, CHUNKS = S::D / 16;
    const u32 first = thread / CHUNKS * ROWS, chunk = thread % CHUNKS, piece = chunk * 2 & 7;
    const u32 odd = thread >> 2 & 1; // neighbours write to other banks
    to += (chunk >> 2) * S::HALF;
#pragma unroll 2
    for (u32 i = 0; i < ROWS; i++) {
        u32 row = first + i, by = (exponents >> i * 8 & 0xffu) * 0x00800080u;
        uint4 v = *(const uint4*)(from + row * S::D + chunk * 16);
        uint4 low = make_uint4(e4m3x2_scaled(v.x << 8, by), e4m3x2_scaled(v.y << 8, by), e4m3x2_scaled(v.z << 8, by),
                               e4m3x2_scaled(v.w << 8, by));
        uint4 high = make_uint4(e4m3x2_scaled(v.x, by), e4m3x2_scaled(v.y, by), e4m3x2_scaled(v.z, by), e4m3x2_scaled(v.w, by));
        unsigned char* line = to + row * 128;
        *(uint4*)(line + (((piece + odd) ^ row) & 7) * 16) = odd ? high : low;
        *(uint4*)(line + (((piece + 1 - odd) ^ row) & 7) * 16) = odd ? low : high;
    }
}

template <class S> DEVICE void wg_feed(const AttendSm90E4m3Params& p, const AttendItem& it, unsigned char* sm) {
    const WgBarriers bars = wg_barriers<S>(sm);
    const u32 thread = threadIdx.x % 128, lane = thread % 32;
    u32 key = it.key_from / ATTEND_BLOCK * ATTEND_BLOCK;
    WgStages<S> stages = {p, it, sm, bars, lane, key, 0, {0, 0}};
    WgRing ring = {0, 0}, stage = {0, 0};
    if (thread < 32) {
#pragma unroll 1
        for (int i = 0; i < S::STAGES - 1; i++) stages.ask();
    }
    u32 next[2] = {wg_exponents<S>(p, it, key, 0, thread), wg_exponents<S>(p, it, key, 1, thread)};
    for (; key < it.key_end; key += ATTEND_BLOCK) {
        const u32 mine[2] = {next[0], next[1]};
        UNROLL for (u32 values = 0; values < 2; values++) next[values] = wg_exponents<S>(p, it, key + ATTEND_BLOCK, values, thread);
#pragma unroll 1
        for (u32 values = 0; values < 2; values++) {
            if (thread < 32) stages.ask();
            mbar_wait(bars.staged + stage.slot, stage.phase);
            mbar_wait(bars.empty + ring.slot, ring.phase ^ 1);
            wg_widen<S>(sm + ring.slot * S::SLOT, sm + S::STAGED + stage.slot * S::STAGE, values == 0 ? mine[0] : mine[1], thread);
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) mbar_arrive(bars.full + ring.slot), mbar_arrive(bars.widened + stage.slot);
            wg_advance<S>(ring);
            wg_advance_by(stage, S::STAGES);
        }
    }
}

// ---- consumers: a warpgroup for 64 packed rows ---------------------------------------------------------------------

template <class S> struct WgConsumer {
    const AttendSm90Params& p;
    const AttendItem& it;
    unsigned char* sm;
    unsigned char* q; // of this warpgroup
    WgBarriers bars;
    u32 group, thread, lane, turns; // warpgroup; turns: 0 when it is alone, else how many were taken, plus 1
    WgRing ring;

    // Slots come as K, V, K, V, ...
    DEVICE unsigned char* landed(const WgRing& r) const {
        mbar_wait(bars.full + r.slot, r.phase);
        return sm + r.slot * S::SLOT;
    }
    DEVICE void release(u32 slot) const {
        if (lane == 0) mbar_arrive(bars.empty + slot);
    }
    DEVICE void meet() const { bar_sync(1 + group, 128); }

    // The tensor cores are asked in turns: warpgroup 0, 1, 0, 1, ...
    DEVICE void await_turn() const {
        if (turns != 0) mbar_wait(bars.turn + group, (turns - 1 + (group ^ 1)) & 1);
    }
    DEVICE void pass_turn() {
        if (turns == 0) return;
        if (lane == 0) mbar_arrive(bars.turn + (group ^ 1));
        turns++;
    }
};

template <class S> DEVICE void wg_load_q(const WgConsumer<S>& c) {
    UNROLL for (int i = 0; i < S::D / 16; i++) { // 64 rows of D / 8 chunks, 128 threads
        u32 at = c.thread + i * 128, row = at / (S::D / 8), chunk = at % (S::D / 8);
        AttendPlace from = attend_place(c.p.a, c.group * 64 + row);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (from.token < c.it.rows) {
            u64 batch_row = c.p.a.row_list[c.it.row_list + from.token];
            v = *(const uint4*)(c.p.a.q + batch_row * c.p.a.q_stride + from.head * S::D + chunk * 8);
        }
        *(uint4*)(c.q + (chunk >> 3) * S::HALF + row * 128 + (((chunk ^ row) & 7) << 4)) = v;
    }
    fence_proxy_async();
    c.meet();
}

// s = q * K^T, asynchronously.
template <class S> DEVICE void wg_scores(float (&s)[32], const unsigned char* q, const unsigned char* keys) {
    UNROLL for (int k = 0; k < S::D / 16; k++) {
        u32 at = k / 4 * S::HALF + k % 4 * 32;
        wgmma_ss<64>(s, smem_desc(q + at, 16, 1024), smem_desc(keys + at, 16, 1024), k > 0);
    }
}

// o (+)= weights * V, asynchronously.
template <class S>
DEVICE void wg_values(float (&o)[S::D / 2], const u32 (&w)[4][4], const unsigned char* values, bool fresh) {
    UNROLL for (int k = 0; k < 4; k++)
        wgmma_rs_tb<S::D>(o, w[k], smem_desc(values + k * 2048, S::HALF, 1024), k > 0 || !fresh);
}

// Overwrites the values of keys outside of the item's run; what was widened has zeros there.
template <class S> DEVICE void wg_clear_dead(const WgConsumer<S>& c, unsigned char* values, u32 key0) {
    if (S::NARROW) return;
    if (key0 >= c.it.key_from && key0 + ATTEND_BLOCK <= c.it.key_end) return;
    for (u32 i = c.thread; i < S::SLOT / 16; i += 128) {
        u32 key = key0 + (i >> 3) % 64;
        if (key < c.it.key_from || key >= c.it.key_end) *(uint4*)(values + i * 16) = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    c.meet();
}

// The output by way of shared memory, so that rows leave in pieces of 16 bytes, whole sectors side by side.
template <class S> DEVICE void wg_write(const WgConsumer<S>& c, const float (&o)[S::D / 2], const AttendSum& run) {
    const u32 warp_row = (c.thread >> 5) * 16;
    c.meet(); // all four warps are done with q
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = warp_row + (c.lane >> 2) + 8 * h;
        float inverse = 1.0f / run.l[h];
        UNROLL for (int i = 0; i < S::D / 8; i++) {
            float x = merge_result(o[i * 4 + h * 2], inverse), y = merge_result(o[i * 4 + h * 2 + 1], inverse);
            *(u32*)(c.q + (i >> 3) * S::HALF + row * 128 + (((i ^ row) & 7) << 4) + (c.lane & 3) * 4) = pack_bf16(x, y);
        }
    }
    __syncwarp();
    UNROLL for (int i = 0; i < S::D / 16; i++) { // 16 rows of D / 8 chunks, 32 lanes
        u32 at = c.lane + i * 32, row = warp_row + at / (S::D / 8), chunk = at % (S::D / 8);
        AttendPlace to = attend_place(c.p.a, c.group * 64 + row);
        if (to.token >= c.it.rows) continue;
        u64 batch_row = c.p.a.row_list[c.it.row_list + to.token];
        uint4 v = *(const uint4*)(c.q + (chunk >> 3) * S::HALF + row * 128 + (((chunk ^ row) & 7) << 4));
        *(uint4*)(c.p.a.out + batch_row * c.p.a.out_stride + to.head * S::D + chunk * 8) = v;
    }
}

// What a warpgroup computes with.
template <class S> struct WgState {
    float s[32], o[S::D / 2], run_o[S::D / 2]; // scores, the open tile, the folded run
    AttendSum t, run;
    AttendView view;
    u32 first_row, nth; // this lane's first packed row; states written
    bool fresh, folds;  // the open tile has no block yet; the run is folded
};

// The open tile is complete: folds it, or writes it.
template <class S> DEVICE void wg_close(const WgConsumer<S>& c, WgState<S>& x) {
    attend_close(x.t);
    if (x.folds) attend_fold(x.run_o, x.run, x.o, x.t);
    else attend_write_state(c.p.a, c.it, x.nth++, x.first_row, 0, c.lane, x.o, x.t);
    x.t = attend_empty();
}

// Takes the scores of the block at `key`, which stand in x.s, into the open tile; starts those of the next
// block, unless this is the last, and waits for them.
template <class S, bool LAST> DEVICE void wg_block(WgConsumer<S>& c, WgState<S>& x, u32 key) {
    float f[2];
    u32 w[4][4];
    attend_mask(x.s, x.view, key, c.lane);
    attend_soften(x.s, x.t, f, c.p.a.scale_log2);
    if (!x.fresh) attend_rescale(x.o, f);
    UNROLL for (int k = 0; k < 4; k++) attend_weights(w[k], x.s, k);

    const u32 value_slot = c.ring.slot;
    unsigned char* values = c.landed(c.ring);
    wg_clear_dead<S>(c, values, key);
    wg_advance<S>(c.ring);
    const unsigned char* keys = LAST ? c.q : c.landed(c.ring);
    c.await_turn();
    wg_fence();
    wg_values<S>(x.o, w, values, x.fresh);
    wg_commit();
    if (!LAST) {
        wg_scores<S>(x.s, c.q, keys);
        wg_commit();
    }
    c.pass_turn();
    wg_wait<LAST ? 0 : 1>();
    c.release(value_slot);
    x.fresh = LAST || (key + ATTEND_BLOCK) % ATTEND_TILE == 0;
    if (x.fresh) wg_close<S>(c, x); // while the tensor cores work on the next scores
    if (LAST) return;
    wg_wait<0>();
    c.release(c.ring.slot);
    wg_advance<S>(c.ring);
}

template <class S> DEVICE void wg_consume(WgConsumer<S>& c) {
    WgState<S> x;
    x.first_row = c.group * 64 + (c.thread >> 5) * 16 + (c.lane >> 2);
    x.view = attend_view(c.p.a, c.it, x.first_row);
    x.folds = attend_folds(c.it), x.fresh = true, x.nth = 0;
    x.t = attend_empty(), x.run = attend_empty();
    UNROLL for (int i = 0; i < S::D / 2; i++) x.run_o[i] = 0.0f;
    wg_load_q<S>(c);

    const unsigned char* keys = c.landed(c.ring);
    wg_fence();
    wg_scores<S>(x.s, c.q, keys);
    wg_commit();
    wg_wait<0>();
    c.release(c.ring.slot);
    wg_advance<S>(c.ring);
    u32 key = c.it.key_from / ATTEND_BLOCK * ATTEND_BLOCK;
    for (; key + ATTEND_BLOCK < c.it.key_end; key += ATTEND_BLOCK) wg_block<S, false>(c, x, key);
    wg_block<S, true>(c, x, key);
    if (c.it.slot == ATTEND_DIRECT) wg_write<S>(c, x.run_o, x.run);
    else if (x.folds) attend_write_state(c.p.a, c.it, 0, x.first_row, 0, c.lane, x.run_o, x.run);
}

DEVICE const AttendSm90Params& wg_common(const AttendSm90Params& p) { return p; }
DEVICE const AttendSm90Params& wg_common(const AttendSm90E4m3Params& p) { return p.at; }

template <WgPages PAGES, int D, int WGS, class Params> DEVICE void attend_sm90(const Params& all) {
    using S = WgShape<PAGES, D, WGS>;
    DYN_SMEM(unsigned char, sm);
    const AttendSm90Params& p = wg_common(all);
    griddep_wait(); // items, rows of q and pages come from kernels before this one
    griddep_launch();
    if (blockIdx.x >= *p.a.items_live) return;
    const AttendItem it = attend_item(p.a);
    const WgBarriers bars = wg_barriers<S>(sm);
    const u32 consumers = WGS == 2 && it.rows * p.a.group > 64 ? 2 : 1;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < S::SLOTS; i++) {
            mbar_init(bars.full + i, S::NARROW ? 4 : 1);
            mbar_init(bars.empty + i, 4 * consumers); // a lane of each warp
        }
        for (int i = 0; i < S::STAGES; i++) {
            mbar_init(bars.staged + i, 1);
            mbar_init(bars.widened + i, 4);
        }
        mbar_init(bars.turn, 4);
        mbar_init(bars.turn + 1, 4);
        fence_mbar_init();
    }
    __syncthreads();
    const u32 group = threadIdx.x / 128;
    if (group == WGS) {
        setmaxnreg_dec<S::FEEDS>();
        if constexpr (S::NARROW) wg_feed<S>(all, it, sm);
        else if (threadIdx.x / 32 == WGS * 4) wg_produce<S>(p, it, sm);
    } else {
        setmaxnreg_inc<S::COMPUTES>();
        if (group >= consumers) return;
        WgConsumer<S> c = {p, it, sm, sm + S::Q + group * S::SLOT, bars, group, threadIdx.x % 128, threadIdx.x % 32,
                           consumers - 1, {0, 0}};
        wg_consume<S>(c);
    }
}

// grid (items, KV heads), block 128 * (WGS + 1), dynamic shared memory WgShape::SMEM; an item: 64 * WGS packed rows
#define ATTEND_SM90(NAME, PAGES, Params, dim, wgs, blocks)                                                             \
    extern "C" __global__ void __launch_bounds__(128 * (wgs + 1), blocks) NAME(const __grid_constant__ Params p) {     \
        attend_sm90<WgPages::PAGES, dim, wgs>(p);                                                                      \
    }                                                                                                                  \
    CUSIM_KERNEL(NAME)
