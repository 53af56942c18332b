// wgmma: see wgmma.hpp.
#include "wgmma.hpp"
#include "matrix.hpp"
#include "shared.hpp"
#include "warp.hpp"
#include <algorithm>

namespace cusim {

namespace {

constexpr uint32_t max_n = 256;
constexpr uint32_t poison = 0x7fbadbad; // a signalling NaN: any arithmetic on it changes its bits

enum class Stage : uint8_t { issue, wait };

struct Tile {
    uint16_t values[max_n][16]; // [row of A or column of B][k]
};

// Registers that a wgmma under way owns.
struct Accumulator {
    float* d;
    uint32_t registers;
    float values[max_n / 2];
    uint64_t group; // the last group that adds to it
};

struct Pending {
    uint64_t group, hash;
    uint64_t a_descriptor, b_descriptor;
    uint32_t n;
    bool a_shared;
    Major b_major;
};

struct Issue {
    float* d;
    Accumulator* accumulator;
    const WgmmaOperands* operands;
    bool accumulate;
    uint64_t hash;
};

} // namespace

struct WgmmaQueue {
    bool fenced = false;
    uint64_t group = 0, done = 0; // the open group; groups below `done` have been waited for
    uint64_t issued = 0;          // how many this lane has issued, and of what, for the comparison of warps
    uint64_t trace = 0;
    std::vector<std::unique_ptr<Accumulator>> accumulators;
    std::vector<Pending> pending;
};

static WgmmaQueue& queue() {
    Fiber& fiber = self();
    if (!fiber.wgmma) fiber.wgmma = std::make_shared<WgmmaQueue>();
    return *fiber.wgmma;
}

uint64_t wgmma_descriptor(const void* p, uint32_t leading_bytes, uint32_t stride_bytes) {
    const uint32_t offset = shared_offset(p, 16, "wgmma descriptor");
    if (offset & 15) fault("wgmma descriptor: address is not aligned to 16");
    return (uint64_t)((offset & 0x3ffff) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 | 1ull << 62;
}

// One 16-byte piece of an operand in the 128-byte swizzle: eight elements along its contiguous dimension.
static void read_piece(uint32_t address, Stage stage, uint16_t (&out)[8]) {
    address ^= (address >> 7 & 7) << 4;
    check_shared_range(address, 16, "wgmma operand");
    if (stage == Stage::issue) check_published(address, 16, "wgmma");
    memcpy(out, block().shared + address, 16);
}

// K-major: rows of 128 bytes, eight rows an atom, atoms `stride` apart. MN-major: for each k a line of 64
// elements, eight lines an atom; `leading` between atoms along MN, `stride` along k.
static void read_tile(Stage stage, uint64_t descriptor, Major major, uint32_t first, uint32_t rows, Tile& tile) {
    const uint32_t base = (uint32_t)(descriptor & 0x3fff) << 4;
    const uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3fff) << 4, stride = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    uint16_t piece[8];
    if (major == Major::k) {
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t half = 0; half < 2; half++) {
                const uint32_t row = first + r;
                read_piece(base + row / 8 * stride + row % 8 * 128 + half * 16, stage, piece);
                std::copy(piece, piece + 8, tile.values[r] + half * 8);
            }
        return;
    }
    for (uint32_t k = 0; k < 16; k++)
        for (uint32_t r = 0; r < rows; r += 8) {
            const uint32_t row = first + r;
            read_piece(base + row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128, stage, piece);
            for (uint32_t i = 0; i < 8; i++) tile.values[r + i][k] = piece[i];
        }
}

static uint64_t hash_tile(uint64_t hash, const Tile& tile, uint32_t rows) {
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < 16; k += 4) {
            uint64_t word;
            memcpy(&word, &tile.values[r][k], 8);
            hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
            hash ^= hash >> 29;
        }
    return hash;
}

static uint32_t first_row_of_warp() { return self().warp % 4 * 16; }

// A from the registers of 32 lanes: the layout of mma.m16n8k16.
static void gather_a(Issue** lanes, Tile& a) {
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane >> 2, t = (lane & 3) * 2;
        for (int r = 0; r < 4; r++)
            for (int half = 0; half < 2; half++)
                a.values[g + 8 * (r & 1)][t + half + 8 * (r >> 1)] = (uint16_t)(lanes[lane]->operands->a[r] >> (16 * half));
    }
}

// Along k, then one addition to what was there: the tensor core's order inside a step is its own.
static void multiply_row(const uint16_t (&a)[16], const float (*b)[max_n], uint32_t n, float* sums) {
    std::fill(sums, sums + n, 0.0f);
    for (int k = 0; k < 16; k++) {
        const float factor = bf16_value(a[k]);
        const float* line = b[k];
        for (uint32_t c = 0; c < n; c++) sums[c] += factor * line[c];
    }
}

static void accumulate_row(Issue** lanes, uint32_t row, const float* sums, uint32_t n) {
    for (uint32_t c = 0; c < n; c++) {
        Issue& issue = *lanes[(row & 7) * 4 + (c & 7) / 2];
        float& value = issue.accumulator->values[c / 8 * 4 + (row >> 3) * 2 + (c & 1)];
        value = issue.accumulate ? value + sums[c] : sums[c];
    }
}

static void multiply_warp(Issue** lanes, uint32_t n) {
    static thread_local Tile a, b;
    static thread_local float columns[16][max_n];
    const WgmmaOperands& operands = *lanes[0]->operands;
    uint64_t hash = 1;
    if (operands.a) {
        gather_a(lanes, a);
    } else {
        read_tile(Stage::issue, operands.a_descriptor, Major::k, first_row_of_warp(), 16, a);
        hash = hash_tile(hash, a, 16);
    }
    read_tile(Stage::issue, operands.b_descriptor, operands.b_major, 0, n, b);
    hash = hash_tile(hash, b, n);
    for (uint32_t c = 0; c < n; c++)
        for (int k = 0; k < 16; k++) columns[k][c] = bf16_value(b.values[c][k]);
    float sums[max_n];
    for (uint32_t row = 0; row < 16; row++) {
        multiply_row(a.values[row], columns, n, sums);
        accumulate_row(lanes, row, sums, n);
    }
    lanes[0]->hash = hash;
    block().counters.matrix_ops++;
}

static Accumulator& accumulator_of(WgmmaQueue& q, float* d, uint32_t registers) {
    for (auto& held : q.accumulators)
        if (held->d == d) return *held;
    q.accumulators.push_back(std::make_unique<Accumulator>());
    Accumulator& fresh = *q.accumulators.back();
    fresh.d = d;
    fresh.registers = registers;
    std::copy(d, d + registers, fresh.values);
    std::fill(d, d + registers, __uint_as_float(poison));
    return fresh;
}

static void check_untouched(const Accumulator& held) {
    for (uint32_t i = 0; i < held.registers; i++)
        if (__float_as_uint(held.d[i]) != poison) fault("accumulator register %u was written while a wgmma is under way", i);
}

void wgmma_issue(float* d, uint32_t n, const WgmmaOperands& operands, bool accumulate) {
    WgmmaQueue& q = queue();
    if (!q.fenced) fault("wgmma without wg_fence since the last wg_wait");
    Accumulator& held = accumulator_of(q, d, n / 2);
    if (held.registers != n / 2) fault("wgmma: n %u into an accumulator of n %u", n, held.registers * 2);
    check_untouched(held);
    held.group = q.group;
    Issue issue{d, &held, &operands, accumulate, 0};
    collective(~0u, "wgmma", n, issue, [n](Issue** lanes) {
        for (int lane = 1; lane < 32; lane++) {
            const WgmmaOperands &x = *lanes[0]->operands, &y = *lanes[lane]->operands;
            if (x.b_descriptor != y.b_descriptor || x.a_descriptor != y.a_descriptor || lanes[0]->accumulate != lanes[lane]->accumulate)
                fault("wgmma: lanes of a warp differ in descriptor or scale");
        }
        multiply_warp(lanes, n);
    });
    q.issued++;
    q.trace = (q.trace ^ operands.b_descriptor ^ operands.a_descriptor << 7 ^ n) * 0x9E3779B97F4A7C15ull;
    if (self().lane == 0)
        q.pending.push_back({q.group, issue.hash, operands.a_descriptor, operands.b_descriptor, n, !operands.a, operands.b_major});
}

void wgmma_fence() { queue().fenced = true; }

void wgmma_commit() {
    WgmmaQueue& q = queue();
    q.group++;
}

static void check_operands(const Pending& p) {
    static thread_local Tile tile;
    uint64_t hash = 1;
    if (p.a_shared) {
        read_tile(Stage::wait, p.a_descriptor, Major::k, first_row_of_warp(), 16, tile);
        hash = hash_tile(hash, tile, 16);
    }
    read_tile(Stage::wait, p.b_descriptor, p.b_major, 0, p.n, tile);
    if (hash_tile(hash, tile, p.n) != p.hash) fault("wgmma operand in shared memory was overwritten before the wait");
}

static void deliver(Accumulator& held) {
    check_untouched(held);
    std::copy(held.values, held.values + held.registers, held.d);
}

void wgmma_wait(uint32_t left) {
    WgmmaQueue& q = queue();
    const uint64_t done = q.group > left ? q.group - left : 0;
    q.fenced = false; // what landed is in registers again, which the thread may write
    for (const Pending& p : q.pending)
        if (p.group < done) check_operands(p);
    std::erase_if(q.pending, [done](const Pending& p) { return p.group < done; });
    for (auto& held : q.accumulators)
        if (held->group < done) deliver(*held);
    std::erase_if(q.accumulators, [done](const auto& held) { return held->group < done; });
}

void wgmma_reset(Fiber& fiber) { fiber.wgmma.reset(); }

void wgmma_check_exit() {
    const Fiber& fiber = self();
    if (fiber.wgmma && !fiber.wgmma->accumulators.empty()) fault("the thread ends with a wgmma under way");
}

void wgmma_check_block(Block& b) {
    for (uint32_t i = 0; i + 127 < b.threads; i += 128)
        for (uint32_t lane = 1; lane < 128; lane++) {
            const auto &x = b.fibers[i].wgmma, &y = b.fibers[i + lane].wgmma;
            if ((x ? x->trace : 0) != (y ? y->trace : 0)) fault("wgmma: the warps of warpgroup %u issued different ones", i / 128);
        }
}

} // namespace cusim
