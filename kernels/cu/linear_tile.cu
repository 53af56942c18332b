// Linear layers for prefill and large batches: square tiles, mma.sync on every architecture.
//
// Roofline (H200): 2*rows*n*k flops; mma.sync is known to see about 0.62 of the tensor rate (wgmma alone sees all,
// linear_sm90.cu). A block of 128 x 128 does 64 flops for each byte it pulls out of L2: 34 bytes a cycle and SM at
// 500 TFLOP/s, about what L2 gives, so expect 350 to 500. Inside: a warp of 64 x 64 reads 4 KB of fragments for 32
// mma, so four warps take 128 shared-memory cycles against 205 tensor cycles per k16; with 64 x 32 warps it would
// be 192, a tie, hence few, fat warps: 128 accumulators a thread, two blocks an SM.
// gate_up at 2048 rows: 481 GFLOP, 0.96 ms at 500 TFLOP/s; 16 x 224 tiles over 264 blocks, 13.6 waves.
//
// Tiles are walked in bands of 8 row tiles (LINEAR_BAND), n inside, so that the 264 resident blocks touch
// 8 row panels and 33 channel panels: 41 MB at k = 4096, inside L2.
//
// Why not one kernel with split-K for the small grids (o at 128 rows has 32 tiles of 128): partial sums would
// break the law. The 64 x 64 shape has four times the blocks and the same bits.
//
// Limits: mma.sync leaves a third of Hopper's tensor rate unused; 128 x 256 would ask a quarter less of L2 but for
// more shared memory than an sm_89 or sm_120 block has. Grids may exceed the live rows: tiles are
// counted from *rows_live, blocks beyond leave.
#include "linear.cuh"

template <class S> DEVICE void linear_tile(const LinearParams& p, unsigned char* smem) {
    u32 rows = *p.rows_live;
    LinearTile t = linear_tile_at(blockIdx.x, (rows + S::BM - 1) / S::BM, (p.out.n + S::BN - 1) / S::BN);
    if (t.exists) linear_block<S>(p, rows, t.m * S::BM, t.n * S::BN, smem);
}

extern "C" __global__ void __launch_bounds__(128, 2) quire_linear_tile64(const __grid_constant__ LinearParams p) {
    DYN_SMEM(unsigned char, sm);
    linear_tile<LinearShape<Bf16Weights, 64, 64, 2, 2, 5>>(p, sm);
}
CUSIM_KERNEL(quire_linear_tile64)

extern "C" __global__ void __launch_bounds__(128, 2) quire_linear_tile128(const __grid_constant__ LinearParams p) {
    DYN_SMEM(unsigned char, sm);
    linear_tile<LinearShape<Bf16Weights, 128, 128, 2, 2, 3>>(p, sm);
}
CUSIM_KERNEL(quire_linear_tile128)
