// ldmatrix and mma.sync: see matrix.hpp.
#include "matrix.hpp"
#include "shared.hpp"
#include "warp.hpp"

namespace cusim {

namespace {
struct Load {
    const void* row;
    uint32_t* registers;
};
struct Multiply {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};
} // namespace

void ldmatrix_x4(uint32_t (&registers)[4], const void* row, bool transposed) {
    if ((uintptr_t)row & 15) fault("ldmatrix: row address is not aligned to 16");
    shared_offset(row, 16, "ldmatrix");
    Load load{row, registers};
    collective(~0u, transposed ? "ldmatrix.trans" : "ldmatrix", 0, load, [transposed](Load** lanes) {
        for (int lane = 0; lane < 32; lane++)
            for (int j = 0; j < 4; j++) {
                const int outer = lane >> 2, inner = (lane & 3) * 2;
                auto element = [&](int r, int c) { return (uint32_t)static_cast<const uint16_t*>(lanes[j * 8 + r]->row)[c]; };
                const uint32_t low = transposed ? element(inner, outer) : element(outer, inner);
                const uint32_t high = transposed ? element(inner + 1, outer) : element(outer, inner + 1);
                lanes[lane]->registers[j] = low | high << 16;
            }
    });
    block().counters.matrix_ops++;
}

// The tensor core adds the sixteen products in an order of its own; here they are added along k.
static void multiply(Multiply** lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane >> 2, t = (lane & 3) * 2;
        for (int half = 0; half < 2; half++) {
            auto pick = [&](uint32_t word) { return bf16_value(half ? word >> 16 : word & 0xffff); };
            for (int r = 0; r < 4; r++) a[g + 8 * (r & 1)][t + half + 8 * (r >> 1)] = pick(lanes[lane]->a[r]);
            for (int r = 0; r < 2; r++) b[t + half + 8 * r][g] = pick(lanes[lane]->b[r]);
        }
    }
    float sums[16][8] = {};
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) sums[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) lanes[lane]->d[i] += sums[(lane >> 2) + 8 * (i >> 1)][(lane & 3) * 2 + (i & 1)];
}

void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Multiply record{d, a, {b0, b1}};
    collective(~0u, "mma.m16n8k16", 0, record, multiply);
    block().counters.matrix_ops++;
}

} // namespace cusim
