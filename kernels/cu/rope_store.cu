// What happens to fused [q | k | v] rows before attention, in one pass: norm of each q and k head (where the model
// has it), rotation by position, q back in place, k and v into the page that holds the row's token.
//
// Roofline (H200, 4.3 TB/s), Llama-3.1-8B shape: 12 KB read, 8 KB of q and 4 KB of k and v written for each row;
// 8192 rows in 47 us. The angles (512 bytes a position) are shared by all heads of a row: L1 and L2.
//
// A head is a group of lanes of one warp, eight values (16 bytes) a lane, as many lanes as the next power of two: a
// norm is a butterfly inside the group and the partner of dimension i, i + pairs, is eight shuffles away. Where the
// pairs are no multiple of eight (partial rotary of odd width) partners are read again from L1 instead. Each thread
// loads its two heads before it uses either: 32 bytes in flight, 40 KB an SM (22 KB cover latency). Rotating inside the
// attention kernel would repeat the work for each tile; inside the matrix product it would tie us to one GEMM.
//
// Products and sums are not fused: the formula and its rounding are the CPU's. Nothing depends on the batch.
//
// Limits: head_dim a multiple of 8 up to 256; lanes = head_dim / 8 rounded up to a power of two;
// grid = (rows, heads / (2 * 256 / lanes) rounded up), heads = q + k + v heads; block = 256.
#include "types.cuh"
#include "ptx.cuh"

constexpr u32 ITEMS = 2;  // heads a thread has a part in
constexpr u32 LANE = 8;   // values of a head in one thread

struct RopeStoreParams {
    bf16* qkv;              // [rows][(heads + 2 * kv_heads) * head_dim]
    const u32* rows_live;
    const u32* positions;   // [rows]
    const u32* row_pages;   // [rows]: page of the pool
    const float* angles;    // [position][cos of each pair | sin of each pair]; null = no rotation
    const float* q_norm;    // [head_dim] or null
    const float* k_norm;    // [head_dim] or null
    bf16* kv;               // page 0, K of this layer; e4m3 where the kernel says so
    u64 page_stride;        // in values, from page to page
    u64 v_offset;           // from K to V
    u64 head_stride;        // from KV head to KV head
    u32 heads, kv_heads, head_dim, pairs, page_tokens, lanes;
    float eps;
    u32 pad;
};

// A part of a head: which row, which head, which values.
struct Part {
    u32 row, head, dim;
    bool live;
};

DEVICE u32 all_heads(const RopeStoreParams& p) { return p.heads + 2 * p.kv_heads; }

DEVICE bf16* head_start(const RopeStoreParams& p, const Part& part) {
    return p.qkv + ((u64)part.row * all_heads(p) + part.head) * p.head_dim;
}

DEVICE const float* norm_weight(const RopeStoreParams& p, u32 head) {
    return head < p.heads ? p.q_norm : head < p.heads + p.kv_heads ? p.k_norm : nullptr;
}

DEVICE void widen(const uint4& raw, float (&x)[LANE]) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    UNROLL for (u32 i = 0; i < 4; i++) {
        float2 two = unpack_bf16(words[i]);
        x[2 * i] = two.x;
        x[2 * i + 1] = two.y;
    }
}

DEVICE uint4 narrow(const float (&x)[LANE]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// 1 / rms of the head whose parts lie in a group of lanes; each lane of the warp takes part.
DEVICE float inverse_rms(const RopeStoreParams& p, const float (&x)[LANE]) {
    float sum = 0.0f;
    UNROLL for (u32 i = 0; i < LANE; i++) sum = add_rn(sum, mul_rn(x[i], x[i]));
    for (u32 far = p.lanes / 2; far > 0; far /= 2) sum = add_rn(sum, __shfl_xor_sync(0xffffffffu, sum, far));
    return 1.0f / sqrtf(sum / (float)p.head_dim + p.eps);
}

DEVICE float turn(float mine, float partner, float c, float s, bool first) {
    return first ? add_rn(mul_rn(mine, c), -mul_rn(partner, s)) : add_rn(mul_rn(mine, c), mul_rn(partner, s));
}

// Pairs in whole lanes: the partner's eight values are in another lane of the group.
DEVICE void rotate_lanes(const RopeStoreParams& p, const Part& part, const float* row, float (&x)[LANE]) {
    bool first = part.dim < p.pairs, turns = part.dim < 2 * p.pairs;
    u32 far = p.pairs / LANE, lane = threadIdx.x % 32;
    u32 from = !turns ? lane : first ? lane + far : lane - far;
    float partner[LANE];
    UNROLL for (u32 i = 0; i < LANE; i++) partner[i] = __shfl_sync(0xffffffffu, x[i], from & 31);
    if (!turns || !part.live) return;
    const float* angle = row + (first ? part.dim : part.dim - p.pairs);
    float c[LANE], s[LANE];
    UNROLL for (u32 i = 0; i < LANE; i += 4) {
        float4 a = *(const float4*)(angle + i), b = *(const float4*)(angle + p.pairs + i);
        c[i] = a.x, c[i + 1] = a.y, c[i + 2] = a.z, c[i + 3] = a.w;
        s[i] = b.x, s[i + 1] = b.y, s[i + 2] = b.z, s[i + 3] = b.w;
    }
    UNROLL for (u32 i = 0; i < LANE; i++) x[i] = turn(x[i], partner[i], c[i], s[i], first);
}

// Any number of pairs: partners are read from the row, which nobody of this warp has written yet.
DEVICE void rotate_any(const RopeStoreParams& p, const Part& part, const float* row, const float* weight, float scale,
                       float (&x)[LANE]) {
    const bf16* head = head_start(p, part);
    UNROLL for (u32 i = 0; i < LANE; i++) {
        u32 d = part.dim + i;
        if (!part.live || d >= 2 * p.pairs) continue;
        bool first = d < p.pairs;
        u32 other = first ? d + p.pairs : d - p.pairs, pair = first ? d : other;
        float partner = bf16_to_f32(head[other]);
        if (weight) partner = mul_rn(mul_rn(partner, scale), weight[other]);
        x[i] = turn(x[i], partner, row[pair], row[p.pairs + pair], first);
    }
    __syncwarp();
}

DEVICE bool is_v(const RopeStoreParams& p, u32 head) { return head >= p.heads + p.kv_heads; }

// Where the head of a part of k or v begins in the page of the row's token, in values of the pool.
DEVICE u64 stored_at(const RopeStoreParams& p, const Part& part) {
    u64 base = (u64)p.row_pages[part.row] * p.page_stride + (is_v(p, part.head) ? p.v_offset : 0);
    return base + (u64)((part.head - p.heads) % p.kv_heads) * p.head_stride;
}

// How a pool holds k and v. `pack` is for all lanes of the warp, `put` for live parts; `slot` is the token's in its page.
struct StoreBf16 {
    struct Packed {
        uint4 values;
    };
    DEVICE Packed pack(const RopeStoreParams&, const float (&x)[LANE]) const { return {narrow(x)}; }
    DEVICE void put(const RopeStoreParams& p, const Part& part, u32 slot, const Packed& packed) const {
        st_global16(p.kv + stored_at(p, part) + (u64)slot * p.head_dim + part.dim, packed.values);
    }
};

// e4m3 with an exponent a token and head: a block of a head is [token][head_dim] bytes, then [token] exponents. Each
// 16 dims lie as 0 8 1 9 2 10 ... 7 15, so that ldmatrix hands a lane just the bytes of its fragment (attend_mma.cuh).
// A power of two, because widening then is exact, and of the token alone, because then a page's bytes are too. The
// rounding of 3 significant bits is the same for any scale, so a finer one would gain nothing.
struct StoreE4m3 {
    struct Packed {
        uint2 values;
        u32 exponent;
    };
    DEVICE Packed pack(const RopeStoreParams& p, const float (&x)[LANE]) const {
        u32 top = 0;
        UNROLL for (u32 i = 0; i < LANE; i++) top = max(top, __float_as_uint(x[i]) & 0x7fffffffu);
        for (u32 far = p.lanes / 2; far > 0; far /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, far));
        const u32 exponent = e4m3_run_exponent(top);
        const float inverse = e4m3_run_inverse(exponent);
        u32 words[2] = {0, 0};
        UNROLL for (u32 i = 0; i < LANE; i++) words[i / 4] |= (u32)f32_to_e4m3(mul_rn(x[i], inverse)) << i % 4 * 8;
        // Lanes 2i and 2i + 1 have a half of 16 dims each; they leave with the halves of them interleaved.
        const bool second = threadIdx.x % 2 != 0;
        const u32 mine = words[second ? 1 : 0];
        const u32 other = __shfl_xor_sync(0xffffffffu, words[second ? 0 : 1], 1);
        const u32 low = second ? other : mine, high = second ? mine : other;
        return {make_uint2(zipped(low, high), zipped(low >> 16, high >> 16)), exponent};
    }
    DEVICE void put(const RopeStoreParams& p, const Part& part, u32 slot, const Packed& packed) const {
        e4m3* block = (e4m3*)p.kv + stored_at(p, part);
        *(uint2*)(block + (u64)slot * p.head_dim + part.dim) = packed.values;
        if (part.dim == 0) block[(u64)p.page_tokens * p.head_dim + slot] = (e4m3)packed.exponent;
    }

    // Bytes 0 and 1 of both: a0 b0 a1 b1.
    static DEVICE u32 zipped(u32 a, u32 b) {
        return (a & 0xffu) | (b & 0xffu) << 8 | (a & 0xff00u) << 8 | (b & 0xff00u) << 16;
    }
};

template <class Store>
DEVICE void finish(const RopeStoreParams& p, const Part& part, const uint4& raw, u32 position, const Store& store) {
    float x[LANE];
    widen(raw, x);
    const float* weight = norm_weight(p, part.head);
    float scale = p.q_norm || p.k_norm ? inverse_rms(p, x) : 1.0f;
    if (weight && part.live) {
        UNROLL for (u32 i = 0; i < LANE; i++) x[i] = mul_rn(mul_rn(x[i], scale), weight[part.dim + i]);
    }
    if (p.angles) {
        const float* row = p.angles + (u64)position * 2 * p.pairs;
        Part turns = part;
        turns.live = part.live && part.head < p.heads + p.kv_heads;
        if (p.pairs % LANE == 0) rotate_lanes(p, turns, row, x);
        else rotate_any(p, turns, row, weight, scale, x);
    }
    const typename Store::Packed packed = store.pack(p, x);
    if (!part.live) return;
    if (part.head < p.heads) st_global16(head_start(p, part) + part.dim, narrow(x));
    else store.put(p, part, position % p.page_tokens, packed);
}

template <class Store>
DEVICE void rope_store(const RopeStoreParams& p, const Store& store) {
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    u32 group = threadIdx.x / p.lanes, groups = blockDim.x / p.lanes;
    Part part[ITEMS];
    uint4 raw[ITEMS];
    UNROLL for (u32 i = 0; i < ITEMS; i++) {
        u32 head = (blockIdx.y * ITEMS + i) * groups + group, dim = threadIdx.x % p.lanes * LANE;
        part[i] = Part{row, head, dim, head < all_heads(p) && dim < p.head_dim};
        raw[i] = part[i].live ? *(const uint4*)(head_start(p, part[i]) + dim) : make_uint4(0, 0, 0, 0);
    }
    u32 position = p.positions[row];
    UNROLL for (u32 i = 0; i < ITEMS; i++) finish(p, part[i], raw[i], position, store);
}

extern "C" __global__ void __launch_bounds__(256) quire_rope_store(const __grid_constant__ RopeStoreParams p) {
    rope_store(p, StoreBf16{});
}
CUSIM_KERNEL(quire_rope_store)

// The same into a pool of 8-bit floats: 2 KB instead of 4 KB written for each row of the shape above. head_dim is a
// multiple of 16, and strides count bytes.
extern "C" __global__ void __launch_bounds__(256) quire_rope_store_e4m3(const __grid_constant__ RopeStoreParams p) {
    rope_store(p, StoreE4m3{});
}
CUSIM_KERNEL(quire_rope_store_e4m3)
