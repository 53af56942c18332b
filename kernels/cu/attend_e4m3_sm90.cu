// Attention for Hopper over pages of e4m3; attend_sm90.cuh says how. Half the bytes of bf16: 258 a token and KV head at
// dim 128, exponents among them. 32 sequences of 4k tokens and 8 KV heads are 270 MB, 63 us at 4.3 TB/s; in flight
// are 96 KB a multiprocessor. A multiprocessor's share of that bandwidth is 64 keys in 0.5 us or 900 cycles, in which it
// widens for 260 and multiplies for 512 on mostly padding: decode may be bound by that instead. An estimate.
#include "attend_sm90.cuh"

ATTEND_SM90(quire_attend_e4m3_sm90_d64_x1, e4m3, AttendSm90E4m3Params, 64, 1, 2)
ATTEND_SM90(quire_attend_e4m3_sm90_d64_x2, e4m3, AttendSm90E4m3Params, 64, 2, 1)
ATTEND_SM90(quire_attend_e4m3_sm90_d128_x1, e4m3, AttendSm90E4m3Params, 128, 1, 2)
ATTEND_SM90(quire_attend_e4m3_sm90_d128_x2, e4m3, AttendSm90E4m3Params, 128, 2, 1)
