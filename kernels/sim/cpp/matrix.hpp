// ldmatrix and mma.sync: register fragments of 8x8 matrices, as the PTX tables lay them out.
#pragma once
#include "block.hpp"

namespace cusim {

// Four 8x8 matrices of 16-bit elements; lane 8j+i gives the address of row i of matrix j.
void ldmatrix_x4(uint32_t (&registers)[4], const void* row, bool transposed);
// d = a * b + d for 16x8x16, bf16 in, f32 accumulators; a row-major, b column-major.
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

inline float bf16_value(uint32_t bits) { return cusim_bits<float>(bits << 16); }
inline uint16_t bf16_round(float v) {
    const uint32_t u = cusim_bits<uint32_t>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff; // cvt.rn.bf16 gives the canonical NaN
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

} // namespace cusim
