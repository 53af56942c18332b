// What the four sampling kernels share: the arithmetic of kernels/src/exp.rs and sample/vector.rs to the bit, the
// order of tokens as one integer, the edits of a row, and what a row keeps between the launches.
//
// Everything that decides a token is an integer or an unfused float operation in the CPU's order. Masses are whole
// multiples of 2^-34 and are summed as u64, so neither the number of blocks nor the order of atomics matters; sums of
// up to 2^18 of them are below 2^53, hence exact as the doubles that the CPU holds.
#pragma once
#include "types.cuh"
#include "ptx.cuh"

constexpr u32 SUB = 512;                          // logits that one warp takes at a time
constexpr u32 SUBS_MAX = 512;                     // of a row: vocabularies below 2^18
constexpr u32 WARP_SUBS = 2;                      // of a warp
constexpr u32 SLICE_SUBS = 8 * WARP_SUBS;         // of a block: 8192 logits
constexpr u32 THREADS = 256;
constexpr u32 EACH = SUB / 32;                    // logits a lane holds
constexpr u32 ID_BITS = 18;
constexpr u32 ID_MAX = (1u << ID_BITS) - 1;
constexpr u32 BINS = 1024;                        // of depth; what lies in the last has no mass
constexpr float BINS_A_NAT = 42.0f;               // 1023 bins end at 24.357; masses end at 35 ln 2 = 24.26
constexpr u32 LIST_MAX = 4096;                    // candidates kept in a list
constexpr u32 TOP_MAX = 20;                       // reported alternatives
constexpr u32 ALL = 0xffffffffu;                  // every lane
#define LARGEST __uint_as_float(0x7f7fffffu)

#ifdef CUSIM
#define ONE_BY_ONE
#else
#define ONE_BY_ONE _Pragma("unroll 1")            // long bodies: copies of them cost registers, not time
#endif

constexpr u32 REPORT = 1, FORCED = 2;             // SampleRow::flags
constexpr u32 BANNED = 1, BIASED = 2, SEEN = 4;   // SampleEdit::flags

struct SampleRow {
    u64 seed, position;
    double repetition_inverse;                      // 1 / repetition
    float temperature, temperature_inverse;         // 1 / temperature; 0 and 0 = greedy
    float top_p, floor;                             // floor: depth that min-p allows, infinite = any
    float repetition, frequency, presence;
    u32 top_k, edits_from, edits, forced, top, flags;
    u32 pad;
};

struct SampleEdit {                               // of a row: by ascending token, each token once
    u32 token, flags;
    float bias;
    u32 in_output;
};

struct SampleOut {
    u32 token, rank;
    float logprob;
    u32 top;
    u32 top_tokens[TOP_MAX];
    float top_logprobs[TOP_MAX];
};

// What a row keeps between the launches; nothing has to be cleared beforehand.
struct SampleScratch {
    u64 raw_best[SUBS_MAX];                         // likeliest of each sub-block before the edits
    u64 best[SUBS_MAX];                             // and after them
    u64 masses[SUBS_MAX];                           // mass of what is surely kept
    u64 exps[SUBS_MAX];                             // sum of e^(x - raw maximum), multiples of 2^-45
    u64 bin_masses[BINS];
    u64 list[LIST_MAX];                             // candidates: rank keys, in any order
    u64 base_mass, total;                           // mass below bin `from`; mass of all that top-k and min-p keep
    u32 bin_counts[BINS];
    u32 listed, from, to, need;                     // candidates are in bins from..to; need of them are in the top k
};

static_assert(sizeof(SampleScratch) == 61472, "params/sample.rs allocates it");

struct SampleParams {
    float* logits;                                  // [rows][stride]; edited
    const SampleRow* rows;
    const SampleEdit* edits;
    float* undo;                                    // [edits]: logits as they were
    SampleScratch* scratch;                         // [rows]
    SampleOut* out;                                 // [rows]
    const u32* rows_live;
    u32 vocab, stride;                              // stride: a multiple of 4, at least vocab
};

DEVICE u32 subs_of(const SampleParams& p) { return (p.vocab + SUB - 1) / SUB; }

// NaN counts as -inf and +inf as the largest float.
DEVICE float sane(float x) {
    float most = fminf(x, LARGEST);
    return x == x ? most : negative_infinity();
}

// ---- order: likelier is larger, and of equals the smaller id is; -0 equals +0

DEVICE u64 rank_key(float x, u32 id) {
    u32 bits = __float_as_uint(add_rn(x, 0.0f));
    u32 ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    return (u64)ordered << ID_BITS | (ID_MAX - id);
}
DEVICE u32 key_id(u64 key) { return ID_MAX - ((u32)key & ID_MAX); }
DEVICE float key_logit(u64 key) {
    u32 ordered = (u32)(key >> ID_BITS);
    return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000u : 0xffffffffu));
}

// ---- weights and masses

// exp of exp.rs for x <= 0.
DEVICE float exp_down(float x) {
    const float ROUND = 12582912.0f;
    float shifted = add_rn(mul_rn(x, 1.44269504f), ROUND);
    float n = add_rn(shifted, -ROUND);
    float r = add_rn(add_rn(x, -mul_rn(n, 0.6933594f)), -mul_rn(n, -2.1219444e-4f));
    float p = 1.9875691e-4f;
    p = add_rn(mul_rn(p, r), 1.3981999e-3f);
    p = add_rn(mul_rn(p, r), 8.333452e-3f);
    p = add_rn(mul_rn(p, r), 4.1665796e-2f);
    p = add_rn(mul_rn(p, r), 0.16666665f);
    p = add_rn(mul_rn(p, r), 0.5f);
    float e = add_rn(add_rn(mul_rn(p, mul_rn(r, r)), r), 1.0f);
    u32 power = (__float_as_uint(shifted) - __float_as_uint(ROUND) + 127) << 23;
    return x < -87.33f ? 0.0f : mul_rn(e, __uint_as_float(power));
}

// Half to even; x below 2^53.
DEVICE u64 to_whole(float x) {
#ifdef CUSIM
    return (u64)llrintf(x);
#else
    return __float2ull_rn(x);
#endif
}

// How a row turns logits into masses.
struct Law {
    float max, temperature, inverse, floor;
    // (max - x) / temperature. A quotient in five operations instead of a dozen with a call for odd operands: two
    // corrections of (max - x) * inverse, the second of which rounds as division does wherever nothing underflows or
    // overflows; there (differences below 2^-100 or above 2^100) the mass is 1 or 0 whatever the last bit, or the
    // depth is NaN, which is not alive.
    DEVICE float depth(float x) const {
        float below = add_rn(max, -x), q = mul_rn(below, inverse);
        q = __fmaf_rn(__fmaf_rn(-q, temperature, below), inverse, q);
        q = __fmaf_rn(__fmaf_rn(-q, temperature, below), inverse, q);
        return x == negative_infinity() ? positive_infinity() : q;
    }
    DEVICE u64 mass(float depth) const { return to_whole(mul_rn(exp_down(-depth), 17179869184.0f)); }
    // Before temperature, in multiples of 2^-45; logits that an edit raised above the raw maximum count as the maximum.
    DEVICE u64 raw(float x) const {
        float above = add_rn(x, -max);
        if (x == negative_infinity()) return 0;
        return to_whole(mul_rn(exp_down(above < 0.0f ? above : 0.0f), 35184372088832.0f));
    }
};

DEVICE Law law_of(const SampleRow& r, u64 best) {
    return Law{key_logit(best), r.temperature, r.temperature_inverse, r.floor};
}
DEVICE Law raw_law(u64 raw_best) { return Law{key_logit(raw_best), 1.0f, 1.0f, 0.0f}; }

// Bin of a depth, still as a float: monotone, and the token can have a mass where it is below BINS - 1.
DEVICE float bin_of(float depth) { return mul_rn(depth, BINS_A_NAT); }

DEVICE bool alive(const Law& law, float depth) {
    return bin_of(depth) < (float)(BINS - 1) && depth <= law.floor;
}

// ---- kinds of rows

DEVICE bool is_forced(const SampleRow& r) { return r.flags & FORCED; }
DEVICE bool is_random(const SampleRow& r) { return r.temperature > 0.0f && !is_forced(r); }
DEVICE bool limits(const SampleRow& r, u32 vocab) { return r.top_k > 0 && r.top_k < vocab; }
DEVICE bool cuts(const SampleRow& r) { return r.top_p < 1.0f; }
DEVICE bool is_filtered(const SampleRow& r, u32 vocab) {
    return is_random(r) && (limits(r, vocab) || cuts(r));
}

// ---- logits of a sub-block, sixteen a lane

DEVICE u32 id_of(u32 sub, u32 i) { return sub * SUB + (i / 4 * 32 + threadIdx.x % 32) * 4 + i % 4; }

DEVICE void read_sub(const float* row, u32 sub, u32 vocab, float (&x)[EACH]) {
    UNROLL for (u32 i = 0; i < EACH; i += 4) {
        u32 id = id_of(sub, i);
        float4 v = make_float4(quiet_nan(), quiet_nan(), quiet_nan(), quiet_nan());
        if (id < vocab) v = *(const float4*)(row + id);
        x[i] = sane(v.x);
        x[i + 1] = sane(id + 1 < vocab ? v.y : quiet_nan());
        x[i + 2] = sane(id + 2 < vocab ? v.z : quiet_nan());
        x[i + 3] = sane(id + 3 < vocab ? v.w : quiet_nan());
    }
}

DEVICE u64 warp_most(u64 x) {
    UNROLL for (u32 far = 16; far > 0; far /= 2) {
        u64 other = __shfl_xor_sync(ALL, x, far);
        x = other > x ? other : x;
    }
    return x;
}

DEVICE u64 warp_total(u64 x) {
    UNROLL for (u32 far = 16; far > 0; far /= 2) x += __shfl_xor_sync(ALL, x, far);
    return x;
}

// ---- edits

struct EditRange { u32 from, to; };

// First edit of the row at or above a token.
DEVICE u32 edit_at(const SampleParams& p, const SampleRow& r, u32 token) {
    u32 from = r.edits_from, to = r.edits_from + r.edits;
    while (from < to) {
        u32 mid = (from + to) / 2;
        if (p.edits[mid].token < token) from = mid + 1;
        else to = mid;
    }
    return from;
}

DEVICE EditRange edits_of(const SampleParams& p, const SampleRow& r, u32 sub) {
    if (r.edits == 0) return EditRange{0, 0};
    u32 end = (sub + 1) * SUB < p.vocab ? (sub + 1) * SUB : p.vocab;
    return EditRange{edit_at(p, r, sub * SUB), edit_at(p, r, end)};
}

// ---- sums over a block of 256 threads

// Largest over all threads.
DEVICE u64 block_most(u64 mine, u64* parts) {
    u64 most = warp_most(mine);
    __syncthreads();  // parts may still be read from before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    return warp_most(parts[threadIdx.x % 8]);
}

DEVICE u64 block_total(u64 mine, u64* parts) {
    u64 total = warp_total(mine);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = total;
    __syncthreads();
    return warp_total(threadIdx.x % 32 < 8 ? parts[threadIdx.x % 32] : 0);
}

struct Reach {
    u32 at;
    u64 before;  // sum of the weights ahead of `at`
};

// The first of 1024 weights at which the running sum reaches a target > 0; at = 1024 and the sum of all if none does.
// `parts` holds 10 words.
template <class Weight>
DEVICE Reach first_reaching(u64 target, u64* parts, Weight weight) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 w[4], sum = 0;
    UNROLL for (u32 i = 0; i < 4; i++) sum += w[i] = weight(threadIdx.x * 4 + i);
    u64 before = sum;
    UNROLL for (u32 far = 1; far < 32; far *= 2) {
        u64 other = __shfl_up_sync(ALL, before, far);
        if (lane >= far) before += other;
    }
    __syncthreads();
    if (lane == 31) parts[warp] = before;
    if (threadIdx.x == 0) parts[9] = 1024;
    __syncthreads();
    before -= sum;
    u64 all = 0;
    UNROLL for (u32 i = 0; i < 8; i++) {
        if (i < warp) before += parts[i];
        all += parts[i];
    }
    if (all < target) return Reach{1024, all};
    UNROLL for (u32 i = 0; i < 4; i++) {
        if (before < target && before + w[i] >= target) parts[8] = before, parts[9] = threadIdx.x * 4 + i;
        before += w[i];
    }
    __syncthreads();
    return Reach{(u32)parts[9], parts[8]};
}

// A share of a whole sum, as the CPU rounds it, up to the next whole number: at least 1, at most the sum.
DEVICE u64 share(float part, u64 sum) {
    double wanted = (double)part * (double)sum;
    return wanted <= 1.0 ? 1 : wanted >= (double)sum ? sum : (u64)ceil(wanted);
}

// The maximum of a row from the likeliest of its sub-blocks.
DEVICE u64 row_best(const u64* bests, u32 subs, u64* parts) {
    u64 mine = 0;
    ONE_BY_ONE for (u32 i = threadIdx.x; i < subs; i += THREADS) mine = max(mine, bests[i]);
    return block_most(mine, parts);
}
