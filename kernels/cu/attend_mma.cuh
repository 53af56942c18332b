// Attention by mma.sync and cp.async, for every GPU since sm_80 and every head_dim that is a multiple of 8.
//
// Roofline: decode reads 4 * head_dim bytes of KV a token and KV head, whatever the rows: 32 sequences of 4k at
// 8 KV heads and dim 128 are 537 MB, 125 us at 4.3 TB/s. Prefill does 4 * dim flops a (row, key): mma.sync
// reaches about 60 % of the tensor cores of sm_80, less of sm_90, which has attend_sm90.cu.
//
// A block is four teams over one item and KV head. How they share it depends on the rows:
// * wide (more than 16 packed rows): team w has rows 16w..16w+15, all read the same keys. The tile and the
//   folded run both live in registers (64 + 64 a thread at dim 128).
// * deep (decode): all teams have the same 16 rows, team w takes tiles w, w + 4, ... and closes them; the
//   folded run lives in shared memory and the teams fold into it in turn, as the law asks. Nobody idles, and
//   each team streams on its own: SLOTS - 1 slots of 16 keys ahead, 48 KB a block at dim 128, where latency
//   times bandwidth asks for about 11 KB a multiprocessor of an A100.
// Both run the same score, softmax and value code on 16-key groups, so they give the same bits.
// Above dim 128 a team is two warps with half of the output columns each: one warp would need 128 + 128
// accumulators. Each computes all scores, half again as many flops; such models are few.
//
// Slots hold K or V in rows of DP elements, 16-byte chunk c of row r at c ^ (r & 7). Keys outside the item's
// run, columns beyond head_dim and rows that do not exist are zero-filled by the copy and never read: 0 * NaN
// of a dead slot would be NaN.
//
// Pages are bf16, or e4m3 with an exponent a token (rope_store.cu), in two units that share this file. e4m3 stays
// narrow up to the fragments and is widened there, exactly, so the bits are those of bf16 pages with the same values: one
// ldmatrix brings 16 keys by 32 dims of K as they are multiplied, or of V, of which a lane gets two dims of two
// keys in a word. Slots are twice as many and half as long: the same bytes are in flight.
//
// Limits: at most 64 query heads a KV head; with e4m3, head_dim a multiple of 16.
#pragma once
#include "attend.cuh"
#include "hopper.cuh" // bar_sync

struct AttendMmaParams {
    AttendArgs a;
    const u8* kv; // of this layer; K of a token at page * page_stride + head * head_stride + token * head_dim
    u64 page_stride, value_offset, head_stride; // in elements
};

struct Bf16Pages {
    static constexpr int BYTES = 2, EXPONENT = 0; // of an element, and of a token beside them
};
struct E4m3Pages {
    static constexpr int BYTES = 1, EXPONENT = 1;
};

template <class Pages, int DP_> struct MmaShape {
    static constexpr bool NARROW = Pages::EXPONENT != 0;
    static constexpr int DP = DP_, SPLIT = DP > 128 ? 2 : 1, DH = DP / SPLIT;
    static constexpr int TEAM = 32 * SPLIT, THREADS = 4 * TEAM;
    static constexpr int ROW = DP * 2, CHUNKS = DP / 8; // of q
    static constexpr int ELEMENT = Pages::BYTES, KEY = DP * ELEMENT, KEY_CHUNKS = KEY / 16, IN_CHUNK = 16 / ELEMENT;
    static constexpr int SLOTS = (DP > 128 ? 2 : 4) * (NARROW ? 2 : 1), SLOT = 64 * (KEY + Pages::EXPONENT);
    static constexpr int Q = SLOTS * SLOT, SUMS = Q + 64 * ROW; // after Q: (m, l) [SPLIT][16]
    static constexpr int RUN = Q + 16 * ROW; // deep: the folded run, f32 [16][DP], behind 16 rows of Q
    static constexpr int SMEM = SUMS + 256;
    static_assert(SMEM <= 99 * 1024, "fits the smallest GPU served");
};

DEVICE u32 swizzled(u32 row, u32 chunk, u32 row_bytes) { return row * row_bytes + ((chunk ^ (row & 7)) << 4); }
// The same for keys and values in a slot. Two rows of 64 bytes share a line of all banks.
template <class S> DEVICE u32 key_at(u32 row, u32 chunk) {
    return S::KEY == 64 ? row * 64 + ((chunk ^ (row >> 1 & 3)) << 4) : swizzled(row, chunk, S::KEY);
}
// Floats of the folded run: the lanes of a fragment touch all banks.
DEVICE u32 run_index(u32 row, u32 col, u32 dp) { return row * dp + (col ^ ((row & 7) << 3)); }

struct MmaTeam {
    u32 id, half, lane, thread; // team, half of the columns, lane, thread among those that share a stream
};

// The keys of one item as a stream of slots: K of a block, V of it, K of the next; SK keys a slot, and their exponents.
template <class S, int SK> struct MmaStream {
    static constexpr int PARTS = ATTEND_BLOCK / SK; // slots of the K of a block
    static constexpr bool DEEP = SK == 16;
    static constexpr int SHARERS = DEEP ? S::TEAM : S::THREADS, BYTES = S::SLOT / 64 * SK;
    const AttendMmaParams& p;
    const AttendItem& it;
    const u8* kv; // of this KV head
    unsigned char* slots;
    MmaTeam team;
    u32 key, part, fill, take; // what is copied next: block and part; slots to fill and to take

    DEVICE MmaStream(const AttendMmaParams& p, const AttendItem& it, unsigned char* sm, const MmaTeam& team, u32 first)
        : p(p), it(it), kv(p.kv + blockIdx.y * p.head_stride * S::ELEMENT), slots(sm + (DEEP ? team.id * S::SLOTS * BYTES : 0)),
          team(team), key(first), part(0), fill(0), take(0) {
        UNROLL for (int i = 0; i < S::SLOTS - 1; i++) copy();
    }

    // Where the elements of key `k` lie; `offset` is 0 or the distance to its values.
    DEVICE const u8* key_in_page(u32 k, u64 offset) const {
        u32 page = p.a.page_table[it.table + (k >> p.a.page_shift)], token = k & ((1u << p.a.page_shift) - 1);
        return kv + (page * p.page_stride + offset + token * p.a.head_dim) * S::ELEMENT;
    }

    // Exponents of the 16 keys from `k`, which lie in one page behind its head_dim bytes a token.
    DEVICE void copy_exponents(unsigned char* to, u32 k, u64 offset) {
        bool live = k + 16 > it.key_from && k < it.key_end;
        const u8* from = kv;
        if (live) {
            u32 token = k & ((1u << p.a.page_shift) - 1);
            from = key_in_page(k - token, offset) + ((u64)p.a.head_dim << p.a.page_shift) + token;
        }
        cp_async16(to, from, live);
    }

    DEVICE void copy() {
        if (key < it.key_end) {
            u32 first = key + part % PARTS * SK;
            u64 offset = part < PARTS ? 0 : p.value_offset;
            unsigned char* to = slots + fill * BYTES;
            // Four at a time: all eight addresses at once would spill beside the accumulators.
            _Pragma("unroll 4") for (int i = 0; i < SK * S::KEY_CHUNKS / SHARERS; i++) {
                u32 at = team.thread + i * SHARERS, row = at / S::KEY_CHUNKS, chunk = at % S::KEY_CHUNKS;
                u32 k = first + row;
                bool live = k >= it.key_from && k < it.key_end && chunk * S::IN_CHUNK < p.a.head_dim;
                const u8* from = kv;
                if (live) from = key_in_page(k, offset) + chunk * 16;
                cp_async16(to + key_at<S>(row, chunk), from, live);
            }
            if (S::NARROW && team.thread < SK / 16)
                copy_exponents(to + SK * S::KEY + team.thread * 16, first + team.thread * 16, offset);
        }
        cp_commit();
        fill = fill + 1 == S::SLOTS ? 0 : fill + 1;
        if (++part < 2 * PARTS) return;
        part = 0;
        key += ATTEND_BLOCK;
        if (DEEP && key % ATTEND_TILE == 0) key += 3 * ATTEND_TILE; // the other teams' tiles
    }

    DEVICE void meet() {
        if (!DEEP) __syncthreads();
        else if (S::SPLIT == 1) __syncwarp();
        else bar_sync(1 + team.id, S::TEAM);
    }

    // The next slot, landed; the one taken before it is filled again.
    DEVICE const unsigned char* next() {
        cp_wait<S::SLOTS - 2>();
        meet();
        copy();
        const unsigned char* slot = slots + take * BYTES;
        take = take + 1 == S::SLOTS ? 0 : take + 1;
        return slot;
    }
};

// c += q * K of the 16-key groups of a slot.
template <class S, int GROUPS>
DEVICE void mma_keys(float (&c)[GROUPS][2][4], const unsigned char* q, const unsigned char* keys, u32 lane) {
    UNROLL for (int k = 0; k < S::DP / 16; k++) {
        u32 a[4], b[4];
        ldsm4(a, q + swizzled(lane & 15, k * 2 + (lane >> 4), S::ROW));
        UNROLL for (int j = 0; j < GROUPS; j++) {
            ldsm4(b, keys + key_at<S>(j * 16 + (lane & 7) + (lane >> 4) * 8, k * 2 + (lane >> 3 & 1)));
            mma16816(c[j][0], a, b[0], b[1]);
            mma16816(c[j][1], a, b[2], b[3]);
        }
    }
}

// The same of e4m3: two steps along k an ldmatrix; a lane holds key lane / 4 of each eight.
template <class S, int GROUPS>
DEVICE void mma_narrow_keys(float (&c)[GROUPS][2][4], const unsigned char* q, const unsigned char* keys, u32 lane) {
    const unsigned char* exponents = keys + GROUPS * 16 * S::KEY;
    u32 scale[GROUPS][2];
    UNROLL for (int i = 0; i < GROUPS * 2; i++) scale[i >> 1][i & 1] = exponents[i * 8 + (lane >> 2)] * 0x00800080u;
    UNROLL for (int k = 0; k < S::DP / 16; k += 2) {
        u32 a[2][4], b[4];
        UNROLL for (int i = 0; i < 2; i++) ldsm4(a[i], q + swizzled(lane & 15, (k + i) * 2 + (lane >> 4), S::ROW));
        UNROLL for (int j = 0; j < GROUPS; j++) {
            ldsm4(b, keys + key_at<S>(j * 16 + (lane & 15), k + (lane >> 4)));
            UNROLL for (int i = 0; i < 4; i++) {
                u32 by = scale[j][i & 1];
                mma16816(c[j][i & 1], a[i >> 1], e4m3x2_scaled(b[i] << 8, by), e4m3x2_scaled(b[i], by));
            }
        }
    }
}

// s[16-key group j] = q * K of GROUPS groups that lie in one slot.
template <class S, int GROUPS>
DEVICE void mma_scores(float* s, const unsigned char* q, const unsigned char* keys, u32 lane) {
    float c[GROUPS][2][4];
    UNROLL for (int j = 0; j < GROUPS; j++)
        UNROLL for (int i = 0; i < 8; i++) c[j][i >> 2][i & 3] = 0.0f;
    if constexpr (S::NARROW) mma_narrow_keys<S>(c, q, keys, lane);
    else mma_keys<S>(c, q, keys, lane);
    UNROLL for (int j = 0; j < GROUPS; j++)
        UNROLL for (int i = 0; i < 8; i++) s[j * 8 + i] = c[j][i >> 2][i & 3];
}

// o += weights * V for the 16 keys at `values`, the team's columns from col0.
template <class S>
DEVICE void mma_values(float (&o)[S::DH / 2], const u32 (&w)[4], const unsigned char* values, u32 col0, u32 lane) {
    UNROLL for (int d = 0; d < S::DH / 16; d++) {
        u32 b[4];
        ldsm4t(b, values + key_at<S>((lane & 7) + (lane >> 3 & 1) * 8, col0 / 8 + d * 2 + (lane >> 4)));
        UNROLL for (int n = 0; n < 2; n++) {
            float(&c)[4] = *(float(*)[4])(o + d * 8 + n * 4);
            mma16816(c, w, b[n * 2], b[n * 2 + 1]);
        }
    }
}

// The exponents of keys 2t, 2t+1 (of 16) as the halves of a scale; dead ones are 0, for theirs may be infinity.
DEVICE u32 mma_value_scale(const AttendItem& it, const unsigned char* exponents, u32 key, u32 at) {
    u32 live = it.key_end - it.key_from, first = key + at - it.key_from;
    u32 low = first < live ? exponents[at] : 0u, high = first + 1 < live ? exponents[at + 1] : 0u;
    return low << 7 | high << 23;
}

// e4m3: 32 columns an ldmatrix; of a word, the even bytes are columns 0-7 of 16, the odd ones 8-15.
template <class S>
DEVICE void mma_narrow_values(float (&o)[S::DH / 2], const u32 (&w)[4], const unsigned char* values, const u32 (&scale)[2],
                              u32 col0, u32 lane) {
    UNROLL for (int d = 0; d < S::DH / 32; d++) {
        u32 b[4];
        ldsm4t(b, values + key_at<S>(lane & 15, col0 / 16 + d * 2 + (lane >> 4)));
        UNROLL for (int n = 0; n < 4; n++) {
            float(&c)[4] = *(float(*)[4])(o + d * 16 + n * 4);
            u32 low = b[n & 2], high = b[(n & 2) + 1], shift = n & 1 ? 0 : 8;
            mma16816(c, w, e4m3x2_scaled(low << shift, scale[0]), e4m3x2_scaled(high << shift, scale[1]));
        }
    }
}

// One block of keys into the tile (o, t).
template <class S, int SK>
DEVICE void mma_block(MmaStream<S, SK>& stream, const unsigned char* q, const AttendView& view, u32 key0, bool live,
                  float (&o)[S::DH / 2], AttendSum& t) {
    constexpr int PARTS = ATTEND_BLOCK / SK;
    const u32 lane = stream.team.lane;
    float s[32];
    u32 w[4][4];
    UNROLL for (int i = 0; i < PARTS; i++) {
        const unsigned char* keys = stream.next();
        if (live) mma_scores<S, SK / 16>(s + i * SK / 2, q, keys, lane);
    }
    if (live) {
        float f[2];
        attend_mask(s, view, key0, lane);
        attend_soften(s, t, f, stream.p.a.scale_log2);
        attend_rescale(o, f);
        UNROLL for (int k = 0; k < 4; k++) attend_weights(w[k], s, k);
    }
    UNROLL for (int i = 0; i < PARTS; i++) {
        const unsigned char* values = stream.next();
        if (!live) continue;
        UNROLL for (int j = 0; j < SK / 16; j++) {
            const unsigned char* group = values + j * 16 * S::KEY;
            const u32 col0 = stream.team.half * S::DH;
            if constexpr (S::NARROW) {
                const unsigned char* exponents = values + SK * S::KEY + j * 16;
                const u32 key = key0 + i * SK + j * 16, at = (lane & 3) * 2;
                const u32 scale[2] = {mma_value_scale(stream.it, exponents, key, at),
                                      mma_value_scale(stream.it, exponents, key, at + 8)};
                mma_narrow_values<S>(o, w[i * SK / 16 + j], group, scale, col0, lane);
            } else {
                mma_values<S>(o, w[i * SK / 16 + j], group, col0, lane);
            }
        }
    }
}

// The keys of a tile that an item reads; the tile then stands closed in (o, t).
template <class S, int SK>
DEVICE void mma_tile(MmaStream<S, SK>& stream, const unsigned char* q, const AttendView& view, u32 from, u32 end,
                     bool live, float (&o)[S::DH / 2], AttendSum& t) {
    t = attend_empty();
    UNROLL for (int i = 0; i < S::DH / 2; i++) o[i] = 0.0f;
    for (u32 key = from; key < end; key += ATTEND_BLOCK) mma_block<S, SK>(stream, q, view, key, live, o, t);
    attend_close(t);
}

// Packed rows of q, zeros where there is none.
template <class S> DEVICE void mma_load_q(const AttendMmaParams& p, const AttendItem& it, unsigned char* q, u32 rows) {
    for (u32 i = threadIdx.x; i < rows * S::CHUNKS; i += S::THREADS) {
        u32 row = i / S::CHUNKS, chunk = i % S::CHUNKS;
        AttendPlace at = attend_place(p.a, row);
        bool live = at.token < it.rows && chunk * 8 < p.a.head_dim;
        const u16* from = p.a.q;
        if (live) from += (u64)p.a.row_list[it.row_list + at.token] * p.a.q_stride + at.head * p.a.head_dim + chunk * 8;
        cp_async16(q + swizzled(row, chunk, S::ROW), from, live);
    }
    cp_commit();
}

template <class S>
DEVICE void mma_write_wide(const AttendMmaParams& p, const AttendItem& it, u32 first_row, const MmaTeam& team,
                           const float (&o)[S::DH / 2], const AttendSum& run) {
    UNROLL for (int h = 0; h < 2; h++) {
        AttendPlace at = attend_place(p.a, first_row + 8 * h);
        if (at.token >= it.rows) continue;
        u16* to = p.a.out + (u64)p.a.row_list[it.row_list + at.token] * p.a.out_stride + at.head * p.a.head_dim;
        float inverse = 1.0f / run.l[h];
        UNROLL for (int i = 0; i < S::DH / 8; i++) {
            u32 col = team.half * S::DH + i * 8 + (team.lane & 3) * 2;
            float x = merge_result(o[i * 4 + h * 2], inverse), y = merge_result(o[i * 4 + h * 2 + 1], inverse);
            if (col < p.a.head_dim) *(u32*)(to + col) = pack_bf16(x, y);
        }
    }
}

// FOLDS is a template parameter because the folded run costs registers that the other kind needs elsewhere.
template <class S, bool FOLDS>
DEVICE void mma_wide(const AttendMmaParams& p, const AttendItem& it, unsigned char* sm, const MmaTeam& team) {
    mma_load_q<S>(p, it, sm + S::Q, 64);
    const u32 first_row = team.id * 16 + (team.lane >> 2), end = it.key_end;
    const bool live = team.id * 16 < it.rows * p.a.group;
    u32 key = it.key_from / ATTEND_BLOCK * ATTEND_BLOCK, nth = 0;
    MmaTeam all = team;
    all.thread = threadIdx.x;
    MmaStream<S, 64> stream(p, it, sm, all, key); // its first wait covers q, which was asked for before
    const AttendView view = attend_view(p.a, it, first_row);
    float o[S::DH / 2], run_o[S::DH / 2];
    AttendSum t, run = attend_empty();
    UNROLL for (int i = 0; i < S::DH / 2; i++) run_o[i] = 0.0f;
    while (key < end) {
        u32 stop = min(end, (key / ATTEND_TILE + 1) * ATTEND_TILE);
        mma_tile<S, 64>(stream, sm + S::Q + team.id * 16 * S::ROW, view, key, stop, live, o, t);
        if (FOLDS) attend_fold(run_o, run, o, t);
        else attend_write_state(p.a, it, nth, first_row, team.half * S::DH, team.lane, o, t);
        key = stop, nth++;
    }
    cp_wait<0>();
    if (!FOLDS) return;
    if (it.slot == ATTEND_DIRECT) mma_write_wide<S>(p, it, first_row, team, run_o, run);
    else attend_write_state(p.a, it, 0, first_row, team.half * S::DH, team.lane, run_o, run);
}

// Folds a team's closed tile into the run in shared memory; the teams take turns.
template <class S>
DEVICE void mma_fold_shared(unsigned char* sm, const MmaTeam& team, const float (&o)[S::DH / 2], const AttendSum& t) {
    float* run = (float*)(sm + S::RUN);
    float2* sums = (float2*)(sm + S::SUMS) + team.half * 16; // each half of a team keeps its own
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = (team.lane >> 2) + 8 * h;
        float2 was = sums[row];
        float keep, add;
        merge_factors(was.x, was.y, t.m[h], t.l[h], keep, add);
        __syncwarp(); // the four lanes of the row have read it
        if ((team.lane & 3) == 0) sums[row] = was;
        UNROLL for (int i = 0; i < S::DH / 8; i++) {
            float2* at = (float2*)(run + run_index(row, team.half * S::DH + i * 8 + (team.lane & 3) * 2, S::DP));
            float2 v = *at;
            v.x = merge_value(v.x, o[i * 4 + h * 2], keep, add);
            v.y = merge_value(v.y, o[i * 4 + h * 2 + 1], keep, add);
            *at = v;
        }
    }
}

// The folded run of a deep item, as output or as its only state: eight columns a thread.
template <class S> DEVICE void mma_write_deep(const AttendMmaParams& p, const AttendItem& it, const unsigned char* sm) {
    const u32 chunks = p.a.head_dim / 8;
    for (u32 i = threadIdx.x; i < it.rows * p.a.group * chunks; i += S::THREADS) {
        u32 row = i / chunks, col = i % chunks * 8;
        AttendPlace at = attend_place(p.a, row);
        const float4* from = (const float4*)((const float*)(sm + S::RUN) + run_index(row, col, S::DP));
        float4 x = from[0], y = from[1];
        float2 sum = ((const float2*)(sm + S::SUMS))[row];
        if (it.slot == ATTEND_DIRECT) {
            float r = 1.0f / sum.y;
            uint4 v = make_uint4(pack_bf16(merge_result(x.x, r), merge_result(x.y, r)),
                                 pack_bf16(merge_result(x.z, r), merge_result(x.w, r)),
                                 pack_bf16(merge_result(y.x, r), merge_result(y.y, r)),
                                 pack_bf16(merge_result(y.z, r), merge_result(y.w, r)));
            u64 to = (u64)p.a.row_list[it.row_list + at.token] * p.a.out_stride + at.head * p.a.head_dim + col;
            *(uint4*)(p.a.out + to) = v;
        } else {
            u64 state = (u64)(it.slot + at.token) * p.a.heads + at.head;
            float4* to = (float4*)(p.a.part_o + state * p.a.head_dim + col);
            to[0] = x, to[1] = y;
            if (col == 0) p.a.part_ml[state] = sum;
        }
    }
}

template <class S>
DEVICE void mma_deep(const AttendMmaParams& p, const AttendItem& it, unsigned char* sm, const MmaTeam& team) {
    mma_load_q<S>(p, it, sm + S::Q, 16);
    const u32 tile0 = it.key_from / ATTEND_TILE, tiles = (it.key_end + ATTEND_TILE - 1) / ATTEND_TILE - tile0;
    const u32 block0 = it.key_from / ATTEND_BLOCK * ATTEND_BLOCK;
    MmaStream<S, 16> stream(p, it, sm, team, team.id == 0 ? block0 : (tile0 + team.id) * ATTEND_TILE);
    const AttendView view = attend_view(p.a, it, team.lane >> 2);
    const bool folds = attend_folds(it);
    for (u32 i = threadIdx.x; i < 16 * S::DP; i += S::THREADS) ((float*)(sm + S::RUN))[i] = 0.0f;
    if (threadIdx.x < 16 * S::SPLIT) ((float2*)(sm + S::SUMS))[threadIdx.x] = make_float2(negative_infinity(), 0.0f);
    cp_wait<S::SLOTS - 1>(); // q, which all threads load for all
    __syncthreads();
    for (u32 round = 0; round < tiles; round += 4) {
        const u32 nth = round + team.id, from = max(block0, (tile0 + nth) * ATTEND_TILE);
        float o[S::DH / 2];
        AttendSum t;
        if (nth < tiles) {
            u32 end = min(it.key_end, (tile0 + nth + 1) * ATTEND_TILE);
            mma_tile<S, 16>(stream, sm + S::Q, view, from, end, true, o, t);
            if (!folds) attend_write_state(p.a, it, nth, team.lane >> 2, team.half * S::DH, team.lane, o, t);
        }
        for (u32 turn = 0; folds && turn < 4; turn++) {
            if (turn == team.id && nth < tiles) mma_fold_shared<S>(sm, team, o, t);
            __syncthreads();
        }
    }
    cp_wait<0>();
    if (folds) mma_write_deep<S>(p, it, sm);
}

template <class Pages, int DP> DEVICE void attend_mma(const AttendMmaParams& p) {
    using S = MmaShape<Pages, DP>;
    DYN_SMEM(unsigned char, sm);
    if (blockIdx.x >= *p.a.items_live) return;
    const AttendItem it = attend_item(p.a);
    const u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const MmaTeam team = {warp / S::SPLIT, warp % S::SPLIT, lane, threadIdx.x % S::TEAM};
    if (it.rows * p.a.group <= 16) mma_deep<S>(p, it, sm, team);
    else if (attend_folds(it)) mma_wide<S, true>(p, it, sm, team);
    else mma_wide<S, false>(p, it, sm, team);
}

// grid (items, KV heads), block MmaShape::THREADS, dynamic shared memory MmaShape::SMEM; an item holds 64 packed rows
#define ATTEND_MMA(NAME, Pages, dp, threads)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads) NAME(const __grid_constant__ AttendMmaParams p) {            \
        static_assert(MmaShape<Pages, dp>::THREADS == threads, "launch bounds");                                       \
        attend_mma<Pages, dp>(p);                                                                                      \
    }                                                                                                                  \
    CUSIM_KERNEL(NAME)
