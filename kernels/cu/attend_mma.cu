// Attention by mma.sync over pages of bf16; attend_mma.cuh says how.
#include "attend_mma.cuh"

ATTEND_MMA(quire_attend_mma_d64, Bf16Pages, 64, 128)
ATTEND_MMA(quire_attend_mma_d128, Bf16Pages, 128, 128)
ATTEND_MMA(quire_attend_mma_d256, Bf16Pages, 256, 256)
