// Attention by mma.sync over pages of e4m3; attend_mma.cuh says how. Half the bytes of bf16: 258 bytes a token and KV
// head at dim 128, exponents among them. 32 sequences of 4k tokens and 8 KV heads are 270 MB, 63 us at 4.3 TB/s. In
// decode a warp spends 1.1 instructions more on 4 values than with bf16 (a shift, a mask and a multiply-add for two, against
// half as many ldmatrix), which at half of the bytes is no bound: the estimate says so, no measurement does.
#include "attend_mma.cuh"

ATTEND_MMA(quire_attend_mma_e4m3_d64, E4m3Pages, 64, 128)
ATTEND_MMA(quire_attend_mma_e4m3_d128, E4m3Pages, 128, 128)
ATTEND_MMA(quire_attend_mma_e4m3_d256, E4m3Pages, 256, 256)
