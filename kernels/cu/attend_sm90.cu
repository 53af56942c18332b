// Attention for Hopper over pages of bf16; attend_sm90.cuh says how.
#include "attend_sm90.cuh"

ATTEND_SM90(quire_attend_sm90_d64_x1, bf16, AttendSm90Params, 64, 1, 2)
ATTEND_SM90(quire_attend_sm90_d64_x2, bf16, AttendSm90Params, 64, 2, 1)
ATTEND_SM90(quire_attend_sm90_d128_x1, bf16, AttendSm90Params, 128, 1, 2)
ATTEND_SM90(quire_attend_sm90_d128_x2, bf16, AttendSm90Params, 128, 2, 1)
