// Sampling, the end: one block a row orders the few tokens at the filters' border, draws, and reports.
//
// Arithmetic (H200): 64 blocks on 132 SMs, so latency counts, not bandwidth. A typical filtered row (top-k 50,
// top-p 0.9) has 60 candidates: two selections of at most five digits, about 0.6 us a digit, then two scans and one
// sub-block: about 5 us. Temperature alone: two scans, 2 us. A report reads the sub-blocks that reach the token (rank)
// and one more for each reported alternative: 1 us each, on one warp.
//
// A selection finds, digit by digit from the top, the rank key at which the candidates' count (top-k) or mass (top-p)
// reaches a target. The obvious other, sorting the candidates, needs a bound on their number; this needs none: where
// the list of 4096 overflowed (flat rows), the same code walks the row itself, slower and with the same result. Whole
// warps on one digit add up before they touch shared memory, so a row of equal logits is no worse than another.
//
// The draw is inverse-CDF in the order of ids, first over sub-blocks, then within one; sums are whole numbers, so the
// token is that of one running sum over the row. If rounding puts the target at the whole mass, the last token with
// a mass is drawn, as on the CPU.
//
// Logprobs: the sum of exponentials is one of multiples of 2^-45 (each within 2^-46, 4e-9 of the whole for any
// vocabulary), where the CPU adds doubles; both then take a logarithm in double and round to f32. They agree within
// 1e-6 relative, and but for a rounding tie to the bit.
//
// grid = rows, block = 256. Forced rows (prompt logprobs) report their token and draw nothing.
#include "sample.cuh"

constexpr u32 DIGIT_BITS = 10, DIGITS = 1 << DIGIT_BITS;

// A row at its draw.
struct Draw {
    const SampleParams& p;
    const SampleRow& r;
    SampleScratch& s;
    const float* logits;
    Law law;
    u64* parts;
};

// ---- candidates

struct Candidates {
    const u64* list;
    const float* logits;
    Law law;
    u32 count;       // of the list, or the vocabulary where that overflowed
    bool listed;
    float from, to;  // bins, where the row itself is walked

    // Rank key of candidate i, 0 if it is none.
    DEVICE u64 key(u32 i) const {
        if (i >= count) return 0;
        if (listed) return list[i];
        float x = sane(logits[i]), depth = law.depth(x), bin = bin_of(depth);
        return alive(law, depth) && bin >= from && bin < to ? rank_key(x, i) : 0;
    }
    DEVICE u64 mass(u64 key) const { return law.mass(law.depth(key_logit(key))); }
};

DEVICE Candidates candidates(const Draw& d) {
    bool listed = d.s.listed <= LIST_MAX;
    return Candidates{d.s.list, d.logits, d.law, listed ? d.s.listed : d.p.vocab, listed, (float)d.s.from,
                      (float)(d.s.to + 1)};
}

// Adds weights to their digits; every lane of the warp takes part, with weight 0 if it has none.
DEVICE void add_weights(u64* weights, u32* counts, u32 digit, u64 weight) {
    u32 mine = weight != 0, some = __ballot_sync(ALL, mine);
    if (!some) return;
    u32 lead = (u32)__ffs((int)some) - 1, shared = __shfl_sync(ALL, digit, (int)lead);
    if (__any_sync(ALL, mine && digit != shared)) {
        if (mine) atomicAdd(weights + digit, weight), atomicAdd(counts + digit, 1u);
        return;
    }
    u64 sum = warp_total(weight);
    if (threadIdx.x % 32 == 0) atomicAdd(weights + shared, sum), atomicAdd(counts + shared, (u32)__popc(some));
}

// The largest rank key at which candidates from there upwards (none below `least`) reach a target weight. Masses of 0
// weigh nothing: tokens without a mass are never drawn.
template <class Weight>
DEVICE u64 select(const Candidates& c, u64 least, u64 target, u64* parts, u64* weights, u32* counts, Weight weight) {
    u64 prefix = 0;
    for (u32 shift = 4 * DIGIT_BITS;; shift -= DIGIT_BITS) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < DIGITS; i += THREADS) weights[i] = counts[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i - threadIdx.x < c.count; i += THREADS) {
            u64 key = c.key(i);
            bool counts_here = key && key >= least && key >> shift >> DIGIT_BITS == prefix;
            // Digits from the top: the likeliest have the smallest.
            u32 digit = DIGITS - 1 - ((u32)(key >> shift) & (DIGITS - 1));
            add_weights(weights, counts, digit, counts_here ? weight(key) : 0);
        }
        __syncthreads();
        Reach reach = first_reaching(target, parts, [&](u32 i) { return weights[i]; });
        if (reach.at == DIGITS) return least;  // all of them
        prefix = prefix << DIGIT_BITS | (DIGITS - 1 - reach.at);
        target -= reach.before;
        // The rest of the digits would name the one candidate left, or all of the digit's are wanted.
        if (shift == 0 || counts[reach.at] == 1 || weights[reach.at] == target) return max(least, prefix << shift);
    }
}

// The rank key of the last token that top-k and top-p keep.
DEVICE u64 threshold(const Draw& d, const Candidates& c, u64* weights, u32* counts) {
    u64 least = 0, total = d.s.total;
    if (d.s.need) {
        least = select(c, 0, d.s.need, d.parts, weights, counts, [](u64) { return (u64)1; });
        if (!cuts(d.r)) return least;
        u64 kept = 0;
        for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
            u64 key = c.key(i);
            if (key && key >= least) kept += c.mass(key);
        }
        total = d.s.base_mass + block_total(kept, d.parts);
    }
    if (!cuts(d.r)) return least;
    u64 target = share(d.r.top_p, total) - d.s.base_mass;
    return select(c, least, target, d.parts, weights, counts, [&](u64 key) { return c.mass(key); });
}

// ---- the draw

// Uniform in [0, 1) with 53 bits: the first words of Philox-4x32-10 at (position, lane 0).
DEVICE double uniform(u64 seed, u64 position) {
    u32 c0 = (u32)position, c1 = (u32)(position >> 32), c2 = 0, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    for (u32 i = 0; i < 10; i++) {
        u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0, c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1, c3 = (u32)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (double)(((u64)c0 << 32 | c1) >> 11) * (1.0 / 9007199254740992.0);
}

// What is kept: tokens in bins below `end` whose rank key is at least `least`. A selection may stop at a key between
// two candidates, so the key alone would let in what lies in a later bin.
struct Kept {
    u64 least;
    float end;
};

// Mass of a token that is kept, else 0.
DEVICE u64 kept_mass(const Draw& d, const Kept& kept, u32 id) {
    if (id >= d.p.vocab) return 0;
    float x = sane(d.logits[id]), depth = d.law.depth(x);
    bool stays = alive(d.law, depth) && bin_of(depth) < kept.end && rank_key(x, id) >= kept.least;
    return stays ? d.law.mass(depth) : 0;
}

// The first token at which the running sum by id exceeds a uniform share of the kept mass.
DEVICE u32 inverse_cdf(const Draw& d, const Kept& kept, const u64* masses) {
    u32 subs = subs_of(d.p);
    u64 mine = 0;
    for (u32 i = threadIdx.x; i < subs; i += THREADS) mine += masses[i];
    u64 total = block_total(mine, d.parts);
    double point = uniform(d.r.seed, d.r.position) * (double)total;
    u64 target = point >= (double)total ? total : (u64)floor(point) + 1;  // a whole sum exceeds it from here on
    Reach sub = first_reaching(target, d.parts, [&](u32 i) { return i < subs ? masses[i] : 0; });
    target -= sub.before;
    auto mass = [&](u32 i) { return i < SUB ? kept_mass(d, kept, sub.at * SUB + i) : 0; };
    Reach token = first_reaching(target, d.parts, mass);
    return sub.at * SUB + token.at;
}

DEVICE u32 draw_filtered(const Draw& d, u64* masses) {
    SHARED_ARRAY(u64, weights, DIGITS);
    SHARED_ARRAY(u32, counts, DIGITS);
    Candidates c = candidates(d);
    u64 least = threshold(d, c, weights, counts);
    __syncthreads();
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
        u64 key = c.key(i);
        if (key && key >= least) atomicAdd(masses + key_id(key) / SUB, c.mass(key));
    }
    __syncthreads();
    return inverse_cdf(d, Kept{least, c.to}, masses);
}

DEVICE u32 draw_token(const Draw& d, u64 best) {
    SHARED_ARRAY(u64, masses, SUBS_MAX);
    if (is_forced(d.r)) return d.r.forced;
    if (!is_random(d.r) || d.law.max == negative_infinity()) return key_id(best);
    for (u32 i = threadIdx.x; i < subs_of(d.p); i += THREADS) masses[i] = d.s.masses[i];
    __syncthreads();
    return is_filtered(d.r, d.p.vocab) ? draw_filtered(d, masses) : inverse_cdf(d, Kept{0, (float)BINS}, masses);
}

// ---- the report, of the logits before the edits

// The logit of a token as it was.
DEVICE float raw_logit(const Draw& d, u32 id) {
    if (id >= d.p.vocab) return negative_infinity();
    u32 e = d.r.edits ? edit_at(d.p, d.r, id) : 0, end = d.r.edits_from + d.r.edits;
    bool changed = d.r.edits && e < end && d.p.edits[e].token == id;
    return changed ? d.p.undo[e] : sane(d.logits[id]);
}

// What edits changed of a sum over tokens: f(logit as it was) - f(logit now).
template <class F>
DEVICE u64 undone(const Draw& d, F f) {
    u64 sum = 0;
    for (u32 e = d.r.edits_from + threadIdx.x; e < d.r.edits_from + d.r.edits; e += THREADS) {
        u32 id = d.p.edits[e].token;
        if (id < d.p.vocab) sum += f(d.p.undo[e], id) - f(sane(d.logits[id]), id);
    }
    return sum;
}

DEVICE float log_sum(const Draw& d, u64 raw_best) {
    Law raw = raw_law(raw_best);
    if (raw.max == negative_infinity()) return 0.0f;
    u64 mine = undone(d, [&](float x, u32) { return raw.raw(x); });
    for (u32 i = threadIdx.x; i < subs_of(d.p); i += THREADS) mine += d.s.exps[i];
    double sum = (double)block_total(mine, d.parts) * (1.0 / 35184372088832.0);
    return (float)((double)raw.max + log(sum));
}

// Tokens that are likelier than one, and one.
DEVICE u32 rank_of(const Draw& d, u32 token, float x) {
    u64 key = rank_key(x, min(token, ID_MAX));
    auto likelier = [&](float y, u32 id) { return (u64)(rank_key(y, id) > key); };
    u64 mine = undone(d, likelier);
    u32 lane = threadIdx.x % 32;
    ONE_BY_ONE for (u32 sub = threadIdx.x / 32; sub < subs_of(d.p); sub += THREADS / 32) {
        if (d.s.best[sub] <= key) continue;  // nothing there is likelier
        u32 end = min((sub + 1) * SUB, d.p.vocab);
        for (u32 id = sub * SUB + lane; id < end; id += 32) mine += likelier(sane(d.logits[id]), id);
    }
    return (u32)block_total(mine, d.parts) + 1;
}

// The likeliest token of a sub-block below a rank key, by one warp.
DEVICE u64 next_best(const Draw& d, u32 sub, u64 below) {
    EditRange edits = edits_of(d.p, d.r, sub);
    u64 best = 0;
    for (u32 id = sub * SUB + threadIdx.x % 32; id < min((sub + 1) * SUB, d.p.vocab); id += 32) {
        u64 key = rank_key(edits.from < edits.to ? raw_logit(d, id) : sane(d.logits[id]), id);
        if (key < below && key > best) best = key;
    }
    return warp_most(best);
}

// The likeliest tokens, best first, none at -inf: the best of the sub-blocks' bests, again and again. One warp.
DEVICE u32 top_list(const Draw& d, float lse, SampleOut& out) {
    u32 lane = threadIdx.x, subs = subs_of(d.p), n = 0;
    u64 best[SUBS_MAX / 32];
    UNROLL for (u32 i = 0; i < SUBS_MAX / 32; i++) best[i] = i * 32 + lane < subs ? d.s.raw_best[i * 32 + lane] : 0;
    for (; n < d.r.top; n++) {
        u64 most = 0;
        UNROLL for (u32 i = 0; i < SUBS_MAX / 32; i++) most = best[i] > most ? best[i] : most;
        most = warp_most(most);
        float x = key_logit(most);
        if (most == 0 || x == negative_infinity()) break;
        u32 sub = key_id(most) / SUB;
        if (lane == 0) out.top_tokens[n] = key_id(most), out.top_logprobs[n] = x - lse;
        u64 next = next_best(d, sub, most);
        UNROLL for (u32 i = 0; i < SUBS_MAX / 32; i++) {
            if (i * 32 + lane == sub) best[i] = next;
        }
    }
    return n;
}

DEVICE void report(const Draw& d, u32 token, SampleOut& out) {
    float lse = log_sum(d, row_best(d.s.raw_best, subs_of(d.p), d.parts));
    float x = raw_logit(d, token);
    u32 rank = rank_of(d, token, x);
    u32 top = threadIdx.x < 32 ? top_list(d, lse, out) : 0;
    if (threadIdx.x == 0) out.rank = rank, out.logprob = x - lse, out.top = top;
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_sample_draw(const __grid_constant__ SampleParams p) {
    SHARED_ARRAY(u64, parts, 10);
    u32 row = blockIdx.x;
    if (row >= *p.rows_live) return;
    const SampleRow& r = p.rows[row];
    SampleScratch& s = p.scratch[row];
    u64 best = row_best(s.best, subs_of(p), parts);
    Draw d{p, r, s, p.logits + (u64)row * p.stride, law_of(r, best), parts};
    u32 token = draw_token(d, best);
    SampleOut& out = p.out[row];
    if (threadIdx.x == 0) out.token = token, out.rank = 0, out.logprob = 0.0f, out.top = 0;
    if (r.flags & REPORT) report(d, token, out);
}
CUSIM_KERNEL(quire_sample_draw)
