// Linear layers on sm_90a: TMA brings tiles, wgmma multiplies them; for prefill rates that mma.sync cannot reach.
//
// Roofline (H200: 769-798 TFLOP/s measured on bf16 GEMM, i.e. what power allows of 989). The big shape has
// 128 x 256 outputs a block, two consumer warpgroups of 64 x 256: m64n256k16 takes 128 cycles and reads 2 KB of x
// and 8 KB of w, 80 shared-memory cycles: tensor-bound. A stage (64 k, 48 KB) lasts 1024 tensor cycles, four of
// them cover 3000 cycles of latency; L2 delivers 48 KB in as many cycles, 47 bytes a cycle and SM, near its
// ceiling: sharing w inside a cluster by multicast is the next step, when a GPU is there to weigh it.
// gate_up at 2048 rows: 481 GFLOP, 0.62 ms at 780 TFLOP/s; 16 x 112 tiles on 132 blocks, 13.6 turns.
//
// Decode runs through the same instruction, because whether wgmma rounds like mma.sync is unknown: a weight is
// multiplied by this file for every number of rows, or never. Its row shapes take one warpgroup, 64 rows (wgmma's
// least) and 32 to 128 channels; x comes in boxes of 8 rows, so that one live row costs 8.
//   o and down (n = 4096): 128 blocks of 32 channels, 15 stages of 4 KB in flight on each SM, 1 KB of w for each
//   m64n32k16 of at most 33 cycles: 31 bytes a cycle against the 18.6 that memory delivers.
//
// The law holds as in linear.cuh: one accumulator per output, one wgmma k16 after another, k ascending from
// zero, padded to 64 with TMA's zeros; n of the instruction is a matter of which elements travel together.
//
// One thread produces. full[slot] counts TMA's bytes, empty[slot] one arrival per consumer warp, which comes when
// the wgmma after the slot's has been issued and the slot's own is complete. The big shapes are persistent, so that
// the producer fills the ring for the next tile while this one is stored.
//
// Launched with programmatic overlap, a block asks for its first ring of weights while the kernel before still runs
// (8 MB over the card, 1.9 us at 4.3 TB/s). *rows_live is read before that kernel has ended: what writes it lies at
// least two kernels back. Without the attribute both instructions do nothing.
//
// Dead rows inside a box are read (they exist, with whatever they hold) but a row only ever touches itself.
#include "hopper.cuh"
#include "linear_tiles.cuh"

struct LinearSm90Params {
    TensorMap x; // bf16 {k, rows}, box {64, X_BOX}, 128-byte swizzle
    TensorMap w; // bf16 {k, n}, box {64, BN}, 128-byte swizzle
    const u32* rows_live;
    LinearOutput out;
    u32 k; // a multiple of 8
    u32 padding[5]; // to a multiple of the maps' alignment
};

template <int GROUPS_, int BN_, int X_BOX_, int STAGES_> struct Sm90Shape {
    static constexpr int GROUPS = GROUPS_, BN = BN_, X_BOX = X_BOX_, STAGES = STAGES_; // GROUPS of consumers
    static constexpr int BM = GROUPS * 64, NT = BN / 8;
    static constexpr u32 X_BYTES = BM * LINEAR_KB * 2, W_BYTES = BN * LINEAR_KB * 2, STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr u32 CORNERS = STAGES * STAGE_BYTES; // where the warps' corners begin
    static_assert(BM % X_BOX == 0 && X_BOX % 8 == 0, "boxes are whole swizzle atoms");
};

// A position in the ring that never ends: slot and the parity of its present use.
template <class S> struct Sm90Cursor {
    u32 slot = 0, parity = 0;
    DEVICE void advance() {
        if (++slot == S::STAGES) slot = 0, parity ^= 1;
    }
};

struct Sm90Ring {
    unsigned char* smem;
    u64 *full, *empty;
};

template <class S> DEVICE LinearTile sm90_tile(const LinearSm90Params& p, u32 id, u32 rows) {
    return linear_tile_at(id, (rows + S::BM - 1) / S::BM, (p.out.n + S::BN - 1) / S::BN);
}

template <class S> DEVICE void sm90_ask_w(const LinearSm90Params& p, const Sm90Ring& ring, u32 slot, u32 k, u32 tile_n, u32 boxes) {
    mbar_expect_tx(&ring.full[slot], boxes * S::X_BOX * LINEAR_KB * 2 + S::W_BYTES);
    tma_load_2d(ring.smem + slot * S::STAGE_BYTES + S::X_BYTES, &p.w, &ring.full[slot], (i32)k, (i32)(tile_n * S::BN));
}

template <class S> DEVICE void sm90_ask_x(const LinearSm90Params& p, const Sm90Ring& ring, u32 slot, u32 k, u32 tile_m, u32 boxes) {
    unsigned char* to = ring.smem + slot * S::STAGE_BYTES;
    for (u32 b = 0; b < boxes; b++)
        tma_load_2d(to + b * S::X_BOX * LINEAR_KB * 2, &p.x, &ring.full[slot], (i32)k, (i32)(tile_m * S::BM + b * S::X_BOX));
}

template <class S> DEVICE u32 sm90_boxes(const LinearTile& t, u32 rows) {
    return (min(rows - t.m * S::BM, (u32)S::BM) + S::X_BOX - 1) / S::X_BOX;
}

// One thread: every stage of every tile of this block, as slots become free. Weights depend on no other kernel:
// the first ring of them is asked for before the kernel that makes x has ended.
template <class S> DEVICE void sm90_produce(const LinearSm90Params& p, const Sm90Ring& ring, u32 rows) {
    Sm90Cursor<S> at;
    u32 id = blockIdx.x, early = 0;
    LinearTile t = sm90_tile<S>(p, id, rows);
    for (; t.exists && early < S::STAGES && early * LINEAR_KB < p.k; early++)
        sm90_ask_w<S>(p, ring, early, early * LINEAR_KB, t.n, sm90_boxes<S>(t, rows));
    griddep_wait();
    for (; t.exists; id += gridDim.x, t = sm90_tile<S>(p, id, rows)) {
        u32 boxes = sm90_boxes<S>(t, rows);
        for (u32 k = 0; k < p.k; k += LINEAR_KB, at.advance()) {
            if (early != 0) {
                early--;
            } else {
                mbar_wait(&ring.empty[at.slot], at.parity ^ 1);
                sm90_ask_w<S>(p, ring, at.slot, k, t.n, boxes);
            }
            sm90_ask_x<S>(p, ring, at.slot, k, t.m, boxes);
        }
    }
    griddep_launch(); // all is asked for: the next kernel may begin with its own weights
}

// The chain of one tile for this warpgroup's 64 rows. Two stages are in flight: a slot is given back when the next
// one's products have been issued.
template <class S> DEVICE void sm90_chain(const Sm90Ring& ring, Sm90Cursor<S>& at, u32 group, u32 k, float (&d)[S::BN / 2]) {
    bool first_lane = (threadIdx.x & 31) == 0;
    u32 before = 0;
    for (u32 done = 0; done < k; done += LINEAR_KB) {
        const unsigned char* x = ring.smem + at.slot * S::STAGE_BYTES + group * 64 * LINEAR_KB * 2;
        const unsigned char* w = ring.smem + at.slot * S::STAGE_BYTES + S::X_BYTES;
        mbar_wait(&ring.full[at.slot], at.parity);
        wg_fence();
        UNROLL for (int step = 0; step < LINEAR_KB / 16; step++)
            wgmma_ss<S::BN>(d, smem_desc(x + step * 32, 16, 1024), smem_desc(w + step * 32, 16, 1024), 1);
        wg_commit();
        wg_wait<1>();
        if (done != 0 && first_lane) mbar_arrive(&ring.empty[before]);
        before = at.slot;
        at.advance();
    }
    wg_wait<0>();
    if (first_lane) mbar_arrive(&ring.empty[before]);
}

template <class S> DEVICE void sm90_consume(const LinearSm90Params& p, const Sm90Ring& ring, u32 rows) {
    u32 warp = (threadIdx.x - 128) >> 5, group = warp >> 2;
    unsigned char* corner = ring.smem + S::CORNERS + warp * LinearCorner<S::NT>::BYTES;
    Sm90Cursor<S> at;
    griddep_wait(); // the kernel before may still read what is written here
    for (u32 id = blockIdx.x;; id += gridDim.x) {
        LinearTile t = sm90_tile<S>(p, id, rows);
        if (!t.exists) return;
        float acc[1][S::NT][4] = {};
        sm90_chain<S>(ring, at, group, p.k, reinterpret_cast<float(&)[S::BN / 2]>(acc));
        LinearShare share{t.m * S::BM + warp * 16, t.n * S::BN, rows};
        linear_bias(p.out, share, acc);
        if (linear_is_wide(p.out)) linear_store_wide(p.out, share, acc, corner);
        else linear_store(p.out, share, acc);
    }
}

template <class S> DEVICE void sm90_init(const Sm90Ring& ring) {
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            mbar_init(&ring.full[s], 1);
            mbar_init(&ring.empty[s], S::GROUPS * 4);
        }
        fence_mbar_init();
    }
    __syncthreads();
}

// Two consumer groups hold 128 accumulators a thread: registers move to them from the producer's group.
#define LINEAR_SM90_TILE(NAME, BN, STAGES)                                                             \
    extern "C" __global__ void __launch_bounds__(384, 1) NAME(const __grid_constant__ LinearSm90Params p) { \
        using S = Sm90Shape<2, BN, 64, STAGES>;                                                        \
        DYN_SMEM(unsigned char, sm);                                                                   \
        SHARED_ARRAY(u64, full, STAGES);                                                               \
        SHARED_ARRAY(u64, empty, STAGES);                                                              \
        Sm90Ring ring{sm, full, empty};                                                                \
        sm90_init<S>(ring);                                                                            \
        if (threadIdx.x < 128) {                                                                       \
            setmaxnreg_dec<40>();                                                                      \
            if (threadIdx.x == 0) sm90_produce<S>(p, ring, *p.rows_live);                              \
        } else {                                                                                       \
            setmaxnreg_inc<232>();                                                                     \
            sm90_consume<S>(p, ring, *p.rows_live);                                                    \
        }                                                                                              \
    }                                                                                                  \
    CUSIM_KERNEL(NAME)

LINEAR_SM90_TILE(quire_linear_sm90_tile128, 128, 6)
LINEAR_SM90_TILE(quire_linear_sm90_tile256, 256, 4)

// One consumer group.
#define LINEAR_SM90_ROW(NAME, BN, STAGES, BLOCKS_A_SM)                                                 \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS_A_SM) NAME(const __grid_constant__ LinearSm90Params p) { \
        using S = Sm90Shape<1, BN, 8, STAGES>;                                                         \
        DYN_SMEM(unsigned char, sm);                                                                   \
        SHARED_ARRAY(u64, full, STAGES);                                                               \
        SHARED_ARRAY(u64, empty, STAGES);                                                              \
        Sm90Ring ring{sm, full, empty};                                                                \
        sm90_init<S>(ring);                                                                            \
        if (threadIdx.x == 0) sm90_produce<S>(p, ring, *p.rows_live);                                  \
        if (threadIdx.x >= 128) sm90_consume<S>(p, ring, *p.rows_live);                                \
    }                                                                                                  \
    CUSIM_KERNEL(NAME)

LINEAR_SM90_ROW(quire_linear_sm90_row32, 32, 16, 1)
LINEAR_SM90_ROW(quire_linear_sm90_row64, 64, 6, 2)
LINEAR_SM90_ROW(quire_linear_sm90_row128, 128, 4, 2)
