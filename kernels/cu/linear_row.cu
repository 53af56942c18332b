// Linear layers for a decode batch: 1 to 64 rows, every weight read once, bound by memory.
//
// Roofline (H200, 4.3 TB/s = 18.6 bytes per cycle and SM at 1.755 GHz; bf16 weights, Llama-3.1-8B):
//   shape (n x k)        weights    floor     chain k/16 x 33 cycles   blocks (width)
//   qkv     6144 x 4096   50.3 MB   11.7 us    4.8 us                   192 (32)
//   o       4096 x 4096   33.6 MB    7.8 us    4.8 us                   128 (32)
//   gate_up 28672 x 4096 234.9 MB   54.6 us    4.8 us                   224 (128)
//   down    4096 x 14336 117.4 MB   27.3 us   16.8 us                   128 (32)
//   head  128256 x 4096 1050.7 MB  244.3 us    4.8 us                  1002 (128), four waves
// The chain is latency: one warp's chain eats 8 channels x 16 k x 2 bytes = 256 bytes in 33 cycles, 7.75 bytes
// a cycle. Four chains an SM give 31 bytes a cycle against the 18.6 that memory delivers, so a narrow panel
// (32 channels, 4 warps, one chain each) keeps memory busy although k is never split, and 128 of 132 SMs have
// one. Bytes in flight: 15 stages x 4 KB an SM (narrow), 2 blocks x 4 x 16 KB (wide); 4.3 TB/s over 0.8 us of
// latency asks for 26 KB.
// Per stage of 64 k a narrow block takes max(4 x 33 cycles, barrier + issue): about 150 cycles for 4 KB, 27
// bytes a cycle, 1.45 times what memory gives.
//
// Why mma for one row, 15 of 16 rows of the tile zero: the tensor cores would idle anyway, the chain is the
// one prefill uses (the law), and CUDA cores would have to convert every weight to f32 (2 more instructions
// for each product). Why no split-K: its partial sums would depend on the shape of the grid. Why x comes
// through the ring and not once for all: 16 rows x 14336 do not fit beside the weights.
//
// Limits: x comes out of L2 once per panel: rows/32 of the weights' bytes for a narrow panel. At 16 rows that
// is half as much again through L2 (6.5 TB/s, its ceiling), at 64 rows twice as much; linear_plan.rs weighs
// it and takes wider panels. A cluster that shares x by multicast would remove it (sm_90).
#include "linear.cuh"

// Rows beyond BM run as further blocks in y, so that a kernel is right for any number of rows.
template <class S> DEVICE void linear_row(const LinearParams& p, unsigned char* smem) {
    u32 rows = *p.rows_live, row0 = blockIdx.y * S::BM;
    if (row0 < rows) linear_block<S>(p, rows, row0, blockIdx.x * S::BN, smem);
}

// name, rows of a block, channels of a block, warps (each has all rows and its share of the channels), stages
#define LINEAR_ROW(NAME, BM, BN, WARPS, STAGES)                                                                \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) NAME(const __grid_constant__ LinearParams p) { \
        DYN_SMEM(unsigned char, sm);                                                                           \
        linear_row<LinearShape<Bf16Weights, BM, BN, 1, WARPS, STAGES>>(p, sm);                                              \
    }                                                                                                          \
    CUSIM_KERNEL(NAME)

LINEAR_ROW(quire_linear_row16_n32, 16, 32, 4, 16)
LINEAR_ROW(quire_linear_row16_n64, 16, 64, 4, 9)
LINEAR_ROW(quire_linear_row16_n128, 16, 128, 8, 5)
LINEAR_ROW(quire_linear_row32_n32, 32, 32, 4, 12)
LINEAR_ROW(quire_linear_row32_n64, 32, 64, 4, 8)
LINEAR_ROW(quire_linear_row32_n128, 32, 128, 8, 4)
LINEAR_ROW(quire_linear_row64_n32, 64, 32, 4, 8)
LINEAR_ROW(quire_linear_row64_n64, 64, 64, 4, 6)
LINEAR_ROW(quire_linear_row64_n128, 64, 128, 8, 4)
