// Barriers of a block: __syncthreads over all live threads, and the numbered ones over some of them.
#pragma once
#include "block.hpp"

namespace cusim {

void sync_threads();
// bar.sync id, n: number 0 is __syncthreads' own, `threads` is a multiple of 32.
void named_barrier(int id, uint32_t threads);

} // namespace cusim

static inline void __syncthreads() { cusim::sync_threads(); }
