// wgmma: four warps multiply 64 rows; operands in shared memory by descriptor, or A in registers.
//
// Each warp works alone on its 16 rows, when its 32 lanes have arrived: warps of a group may be apart, so a
// missing barrier between stores and wgmma shows. Between issue and wait the accumulator registers hold
// NaN, the operands must not change, and what is accumulated lies beside; the results land at the wait
// that covers the group. Ordinary stores to operands must have passed fence_proxy_async.
#pragma once
#include "block.hpp"

namespace cusim {

enum class Major : uint8_t { k, mn };

struct WgmmaOperands {
    const uint32_t* a; // registers of A, or null: then a_descriptor
    uint64_t a_descriptor, b_descriptor;
    Major b_major;
};

uint64_t wgmma_descriptor(const void* p, uint32_t leading_bytes, uint32_t stride_bytes);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t left);
// d[n/2] per lane, m64 x n x k16; `accumulate` false: d is not read.
void wgmma_issue(float* d, uint32_t n, const WgmmaOperands& operands, bool accumulate);

// For the scheduler.
void wgmma_reset(Fiber& fiber);
void wgmma_check_exit();
void wgmma_check_block(Block& block);

} // namespace cusim
