// Linear layers whose weights are e4m3 with an f32 scale a channel; activations stay bf16.
//
// Half the bytes of bf16: Llama-3.1-8B reads 7.5 GB a step instead of 15.0. Roofline (H200, 4.3 TB/s):
//   shape (n x k)        weights    floor    chain k/16 x 33 cycles
//   qkv     6144 x 4096   25.2 MB    5.9 us    4.8 us
//   o       4096 x 4096   16.8 MB    3.9 us    4.8 us   bound by the chain: 81 % of the floor at best
//   gate_up 28672 x 4096 117.4 MB   27.3 us    4.8 us
//   down    4096 x 14336  58.7 MB   13.7 us   16.8 us   likewise
//   head  128256 x 4096  525.3 MB  122.2 us    4.8 us
// The chain does not shorten when bytes do. Two chains an output would, and would be another law for o and down; a
// model that keeps these two in bf16 loses 0.34 GB of the 7.5 GB saved.
//
// Weights are widened to bf16 between ldmatrix and mma: 9 integer and multiply instructions for 4 weights of a
// lane. Memory brings 18.6 weights a cycle and SM: 1.3 warp instructions a cycle of the four that issue.
// Exact, so the only error against bf16 is the quantization; the order of k is the same.
//
// Why not fp8 tensor cores: they would want e4m3 activations, whose rounding shows in the logits, and their f32
// accumulation keeps fewer bits on Hopper. Why the bytes of 16 k are shuffled at load (linear_fp8.rs): ldmatrix moves
// pairs of bytes, and this way each lane gets just the four weights that its mma fragment holds.
#include "linear.cuh"

template <class S> DEVICE void linear_fp8(const LinearParams& p, unsigned char* smem) {
    u32 rows = *p.rows_live;
    LinearTile t = linear_tile_at(blockIdx.x, (rows + S::BM - 1) / S::BM, (p.out.n + S::BN - 1) / S::BN);
    if (t.exists) linear_block<S>(p, rows, t.m * S::BM, t.n * S::BN, smem);
}

// name, rows and channels of a block, warps along rows and along channels, stages
#define LINEAR_FP8(NAME, BM, BN, WARPS_M, WARPS_N, STAGES)                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS_M* WARPS_N * 32, 2) NAME(const __grid_constant__ LinearParams p) { \
        DYN_SMEM(unsigned char, sm);                                                                                      \
        linear_fp8<LinearShape<E4m3Weights, BM, BN, WARPS_M, WARPS_N, STAGES>>(p, sm);                                    \
    }                                                                                                                     \
    CUSIM_KERNEL(NAME)

LINEAR_FP8(quire_linear_fp8_row16_n32, 16, 32, 1, 2, 20)
LINEAR_FP8(quire_linear_fp8_row16_n64, 16, 64, 1, 4, 16)
LINEAR_FP8(quire_linear_fp8_row16_n128, 16, 128, 1, 4, 9)
LINEAR_FP8(quire_linear_fp8_row64_n64, 64, 64, 1, 4, 8)
LINEAR_FP8(quire_linear_fp8_row64_n128, 64, 128, 1, 4, 6)
LINEAR_FP8(quire_linear_fp8_tile128, 128, 128, 2, 2, 4)
