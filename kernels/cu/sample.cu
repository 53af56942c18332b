// Sampling, the passes over the vocabulary: scan (edits and maxima), mass (masses or their histogram), split (what is
// surely kept, what may be). The draw itself is in sample_draw.cu. The four launches give bit for bit the token of
// kernels/src/sample.rs.
//
// Roofline (H200): 64 rows of 128,256 f32 are 32.8 MB, 7.6 us from memory at 4.3 TB/s and about 5 us from L2 (60 MB),
// where the rows still lie after the first pass. Instructions at 132 x 128 lanes x 1.755 GHz, 64 rows: scan 8 a logit,
// 2.2 us, behind its bytes; mass 45 (8 for the quotient, 20 for the exponential, the rest rounding and counting),
// 12.5 us where all logits lie within 24 nats of the likeliest, less where a warp's do not; split 14, 4 us, so its
// bytes count (the exponential runs only for kept tokens). Sums: greedy 8 us, temperature alone 8 + 11 + 2, filtered
// 8 + 12.5 + 5 + about 5 for the draw. The exponential's unfused polynomial is the price of the CPU's bits. Rows that
// want less leave a launch at once.
//
// The unit is a sub-block of 512 logits in the registers of one warp, four 16-byte loads in flight a lane; a block has
// sixteen, so 64 rows are 1024 blocks, all resident. No cluster and no cooperative launch: the maximum, the histogram
// and the list pass between launches through 60 KB a row, which also runs on sm_80. The obvious others: sorting 128k
// (logit, id) pairs moves the row eight times; one block a row leaves a decode step of one row on one SM for 5 us a
// pass; thresholds found by bisection on the mass need a dozen passes and are not the CPU's set.
//
// Histogram bins are depths below the maximum (1/42 nat): monotone in the logit, so a filter's border lies in one bin,
// and only that bin's tokens have to be ordered. Counts and masses are integers, so atomics lose nothing.
//
// Limits: vocabulary below 2^18, row stride a multiple of 4, finite temperature; edits by ascending token, one a token.
// grid = (vocab / 8192 rounded up, rows), block = 256.
#include "sample.cuh"

// The likeliest of a sub-block.
DEVICE u64 sub_best(u32 sub, const float (&x)[EACH]) {
    float most = x[0];
    u32 at = 0;
    UNROLL for (u32 i = 1; i < EACH; i++) {
        if (x[i] > most) most = x[i], at = i;
    }
    return warp_most(rank_key(most, id_of(sub, at)));
}

// x / repetition is a product in double with the inverse, rounded once more: within 2^-52 of a quotient that is never
// nearer than 2^-49 to where the rounding turns, so the same float (subnormal ones aside).
DEVICE float edited(const SampleRow& r, const SampleEdit& e, float x) {
    if (e.flags & BANNED) x = negative_infinity();
    if (e.flags & BIASED) x = sane(add_rn(x, e.bias));
    if (e.flags & SEEN) {
        x = x > 0.0f ? (float)((double)x * r.repetition_inverse) : mul_rn(x, r.repetition);
        if (e.in_output) x = add_rn(add_rn(x, -mul_rn(r.frequency, (float)e.in_output)), -r.presence);
        x = sane(x);
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_sample_scan(const __grid_constant__ SampleParams p) {
    u32 row = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= *p.rows_live) return;
    const SampleRow& r = p.rows[row];
    SampleScratch& s = p.scratch[row];
    float* logits = p.logits + (u64)row * p.stride;
    if (blockIdx.x == 0 && is_filtered(r, p.vocab)) {
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) s.bin_masses[i] = 0, s.bin_counts[i] = 0;
        if (threadIdx.x == 0) s.listed = 0;
    }
    ONE_BY_ONE for (u32 i = 0; i < WARP_SUBS; i++) {
        u32 sub = blockIdx.x * SLICE_SUBS + threadIdx.x / 32 * WARP_SUBS + i;
        if (sub >= subs_of(p)) return;
        float x[EACH];
        read_sub(logits, sub, p.vocab, x);
        u64 best = sub_best(sub, x);
        if (lane == 0) s.raw_best[sub] = best;
        EditRange edits = edits_of(p, r, sub);
        if (edits.from < edits.to) {
            __syncwarp();  // the sub-block has been read
            for (u32 e = edits.from + lane; e < edits.to; e += 32) {
                float* at = logits + p.edits[e].token;
                p.undo[e] = sane(*at);
                *at = edited(r, p.edits[e], p.undo[e]);
            }
            __syncwarp();  // the edits are written
            read_sub(logits, sub, p.vocab, x);
            best = sub_best(sub, x);
        }
        if (lane == 0) s.best[sub] = best;
    }
}
CUSIM_KERNEL(quire_sample_scan)

// Counts and masses of a block's tokens by bin; masses in two halves, since shared memory adds 32 bits at once:
// 8192 tokens times 17 bits.
struct Histogram {
    u32 *counts, *low, *high;
};

DEVICE void count_sub(const Law& law, bool limited, bool cut, const float (&x)[EACH], const Histogram& h) {
    UNROLL for (u32 i = 0; i < EACH; i++) {
        float depth = law.depth(x[i]);
        if (!alive(law, depth)) continue;
        u32 bin = (u32)bin_of(depth);
        if (limited) atomicAdd(h.counts + bin, 1u);
        if (!cut) continue;
        u64 mass = law.mass(depth);
        atomicAdd(h.low + bin, (u32)mass & 0x1ffffu);
        atomicAdd(h.high + bin, (u32)(mass >> 17));
    }
}

DEVICE void clear(const Histogram& h) {
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) h.counts[i] = h.low[i] = h.high[i] = 0;
    __syncthreads();
}

DEVICE void add_to_row(const Histogram& h, SampleScratch& s) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
        u64 mass = ((u64)h.high[i] << 17) + h.low[i];
        if (h.counts[i]) atomicAdd(s.bin_counts + i, h.counts[i]);
        if (mass) atomicAdd(s.bin_masses + i, mass);
    }
}

// Mass of what min-p keeps of a sub-block.
DEVICE u64 sub_mass(const Law& law, const float (&x)[EACH]) {
    u64 sum = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) {
        float depth = law.depth(x[i]);
        if (alive(law, depth)) sum += law.mass(depth);
    }
    return warp_total(sum);
}

DEVICE u64 sub_exps(const Law& law, const float (&x)[EACH]) {
    u64 sum = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) sum += law.raw(x[i]);
    return warp_total(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_sample_mass(const __grid_constant__ SampleParams p) {
    SHARED_ARRAY(u64, parts, 10);
    SHARED_ARRAY(u32, counts, BINS);
    SHARED_ARRAY(u32, low, BINS);
    SHARED_ARRAY(u32, high, BINS);
    u32 row = blockIdx.y;
    if (row >= *p.rows_live) return;
    const SampleRow& r = p.rows[row];
    SampleScratch& s = p.scratch[row];
    bool filtered = is_filtered(r, p.vocab), report = r.flags & REPORT, limited = limits(r, p.vocab);
    if (!is_random(r) && !report) return;
    Histogram h{counts, low, high};
    Law law = law_of(r, row_best(s.best, subs_of(p), parts));
    Law raw = raw_law(report ? row_best(s.raw_best, subs_of(p), parts) : 0);
    if (filtered) clear(h);
    ONE_BY_ONE for (u32 i = 0; i < WARP_SUBS; i++) {
        u32 sub = blockIdx.x * SLICE_SUBS + threadIdx.x / 32 * WARP_SUBS + i;
        if (sub >= subs_of(p)) break;
        float x[EACH];
        read_sub(p.logits + (u64)row * p.stride, sub, p.vocab, x);
        if (filtered) count_sub(law, limited, cuts(r), x, h);
        if (is_random(r) && !filtered) {
            u64 sum = sub_mass(law, x);
            if (threadIdx.x % 32 == 0) s.masses[sub] = sum;
        }
        if (report) {
            u64 sum = sub_exps(raw, x);
            if (threadIdx.x % 32 == 0) s.exps[sub] = sum;
        }
    }
    if (filtered) add_to_row(h, s);
}
CUSIM_KERNEL(quire_sample_mass)

// Which bins are surely kept (below `from`) and which may be (`from..=to`).
struct Border {
    u32 from, to, need;     // need: tokens of the bins from..=to that belong to the top k; 0 = top-k cuts nothing
    u64 base_mass, total;   // total: mass of everything alive where top-k cuts nothing
};

// Sum of f(bin) over bins below an end.
template <class Weight>
DEVICE u64 sum_below(u32 end, u64* parts, Weight weight) {
    u64 mine = 0;
    UNROLL for (u32 i = 0; i < BINS / THREADS; i++) {
        u32 bin = i * THREADS + threadIdx.x;
        mine += bin < end ? weight(bin) : 0;
    }
    return block_total(mine, parts);
}

DEVICE Border border_of(const SampleScratch& s, const SampleRow& r, u32 vocab, u64* parts) {
    auto count = [&](u32 bin) { return (u64)s.bin_counts[bin]; };
    auto mass = [&](u32 bin) { return s.bin_masses[bin]; };
    Reach k{BINS, 0};
    if (limits(r, vocab)) k = first_reaching(r.top_k, parts, count);
    bool limited = k.at < BINS;
    Border b{limited ? k.at : BINS - 1, limited ? k.at : BINS - 2, 0, 0, 0};
    if (cuts(r)) {
        // top-p takes its share of what top-k keeps: at least the bins ahead of the k-th token's.
        b.total = sum_below(limited ? k.at : BINS, parts, mass);
        Reach share_ends = first_reaching(share(r.top_p, b.total), parts, mass);
        b.from = limited ? min(share_ends.at, k.at) : share_ends.at;
        b.to = limited ? k.at : share_ends.at;
        b.base_mass = sum_below(b.from, parts, mass);
    }
    if (limited) b.need = r.top_k - (u32)sum_below(b.from, parts, count);
    return b;
}

// Lists the candidates of a sub-block and gives the mass of what is surely kept. Which logits those are is decided
// without a branch; the few that are get read again.
DEVICE u64 split_sub(const Law& law, const Border& b, u32 sub, const float* row, const float (&x)[EACH],
                     SampleScratch& s) {
    u32 sure = 0, maybe = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) {
        float depth = law.depth(x[i]), bin = bin_of(depth);
        bool below = bin < (float)b.from, inside = bin < (float)(b.to + 1), lives = alive(law, depth);
        sure |= (u32)(lives && below) << i;
        maybe |= (u32)(lives && inside && !below) << i;
    }
    u64 sum = 0;
    for (; sure; sure &= sure - 1) sum += law.mass(law.depth(sane(row[id_of(sub, (u32)__ffs((int)sure) - 1)])));
    for (; maybe; maybe &= maybe - 1) {
        u32 id = id_of(sub, (u32)__ffs((int)maybe) - 1), at = atomicAdd(&s.listed, 1u);
        if (at < LIST_MAX) s.list[at] = rank_key(sane(row[id]), id);
    }
    return warp_total(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_sample_split(const __grid_constant__ SampleParams p) {
    SHARED_ARRAY(u64, parts, 10);
    u32 row = blockIdx.y;
    if (row >= *p.rows_live) return;
    const SampleRow& r = p.rows[row];
    SampleScratch& s = p.scratch[row];
    if (!is_filtered(r, p.vocab)) return;
    Law law = law_of(r, row_best(s.best, subs_of(p), parts));
    if (law.max == negative_infinity()) return;  // nothing alive: the draw gives token 0
    Border b = border_of(s, r, p.vocab, parts);
    const float* logits = p.logits + (u64)row * p.stride;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        s.from = b.from, s.to = b.to, s.need = b.need;
        s.base_mass = b.base_mass, s.total = b.total;
    }
    ONE_BY_ONE for (u32 i = 0; i < WARP_SUBS; i++) {
        u32 sub = blockIdx.x * SLICE_SUBS + threadIdx.x / 32 * WARP_SUBS + i;
        if (sub >= subs_of(p)) break;
        float x[EACH];
        read_sub(logits, sub, p.vocab, x);
        u64 sure = split_sub(law, b, sub, logits, x, s);
        if (threadIdx.x % 32 == 0) s.masses[sub] = sure;
    }
}
CUSIM_KERNEL(quire_sample_split)
