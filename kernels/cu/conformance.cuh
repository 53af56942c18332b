// The one parameter struct of all conformance kernels, and how they show what they saw.
#pragma once
#include "types.cuh"

struct __align__(64) ConformanceParams {
    u64 map[16];   // a TensorMap where the kernel takes one
    const u32* in; // as many words as the kernel's case says
    u32* out;      // every word of it is written
    u64 pad[6];
};

DEVICE u32 conform_lane() { return threadIdx.x & 31; }

// A thread's words of the output, one after the other.
struct Seen {
    u32* at;
    DEVICE void word(u32 v) { *at++ = v; }
    DEVICE void value(float v) { word(__float_as_uint(v)); }
};
DEVICE Seen conform_seen(const ConformanceParams& p, u32 words) {
    return {p.out + (size_t)(blockIdx.x * blockDim.x + threadIdx.x) * words};
}
