// What a kernel source sees in place of the CUDA compiler: the language, the block it runs in, and the
// emulated instructions that ptx.cuh and hopper.cuh call.
//
// The build puts this in front of each kernels/cu/*.cu and the file itself into a namespace of its own, so
// that helpers of the same name in two files stay apart, as they do with nvcc.
#pragma once
#include "barrier.hpp"
#include "block.hpp"
#include "copies.hpp"
#include "language.hpp"
#include "matrix.hpp"
#include "mbarrier.hpp"
#include "registry.hpp"
#include "shared.hpp"
#include "tma.hpp"
#include "warp.hpp"
#include "wgmma.hpp"

#define threadIdx (cusim::self().tid)
#define blockIdx (cusim::block().index)
#define blockDim (cusim::block().dim)
#define gridDim (cusim::block().grid)

namespace cusim {
// Vector accesses of global memory, which must be aligned.
inline uint4 load16(const void* p) {
    if ((uintptr_t)p & 15) fault("load of 16 bytes from an address that is not aligned");
    return *static_cast<const uint4*>(p);
}
inline void store16(void* p, uint4 v) {
    if ((uintptr_t)p & 15) fault("store of 16 bytes to an address that is not aligned");
    *static_cast<uint4*>(p) = v;
}
} // namespace cusim
