// The gated activation on fused rows: out = silu(gate) * up, where silu(g) = g / (1 + e^-g).
//
// Roofline (H200, 4.3 TB/s): 6 bytes an output, 8192 x 14336 in 164 us. About 16 instructions an output (one
// ex2, an exact quotient) are 64 us of issue at 132 x 128 lanes, hidden behind the bytes; an approximate quotient
// would save none of the time and the equality with the emulator.
//
// One thread makes eight outputs from two 16-byte loads and ends: no loop, so a decode step of one row still spreads
// over seven SMs, and a prefill is 57 thousand blocks with 64 KB in flight on each SM. Fusing into the matrix
// product's epilogue would save the round trip of gate and up; the product is the library's, hence not here.
//
// Limits: columns a multiple of 8; grid = (rows, columns / 2048 rounded up), block = 256.
#include "types.cuh"
#include "ptx.cuh"

struct SiluMulParams {
  const bf16* gate_up;   // [rows][gate cols | up cols]
  bf16* out;             // [rows][cols]
  const u32* rows_live;
  u32 cols;
  u32 pad;
};

DEVICE float silu_mul(float g, float u) {
  float e = ex2(mul_rn(g, -1.44269504088896341f));  // +inf far below zero: the quotient is then -0
  return mul_rn(g / add_rn(1.0f, e), u);
}

DEVICE u32 silu_mul2(u32 gate, u32 up) {
  float2 g = unpack_bf16(gate), u = unpack_bf16(up);
  return pack_bf16(silu_mul(g.x, u.x), silu_mul(g.y, u.y));
}

extern "C" __global__ void __launch_bounds__(256) quire_silu_mul(const __grid_constant__ SiluMulParams p) {
  u32 row = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (row >= *p.rows_live || c >= p.cols) return;
  const bf16* from = p.gate_up + (u64)row * p.cols * 2 + c;
  uint4 g = ld_global_nc16(from), u = ld_global_nc16(from + p.cols);
  uint4 out = make_uint4(silu_mul2(g.x, u.x), silu_mul2(g.y, u.y), silu_mul2(g.z, u.z), silu_mul2(g.w, u.w));
  st_global16(p.out + (u64)row * p.cols + c, out);
}
CUSIM_KERNEL(quire_silu_mul)
