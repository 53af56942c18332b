// mbarrier: arrivals and expected bytes complete a phase; waiting is for the parity of a phase.
//
// The state lives beside shared memory; the barrier's eight bytes hold a mark, so that using one that was
// never initialised, or that something wrote over, is a fault.
#pragma once
#include "block.hpp"

namespace cusim {

void mbarrier_init(void* at, uint32_t arrivals);
void mbarrier_fence_init();
void mbarrier_arrive(void* at);
void mbarrier_arrive_expect(void* at, uint32_t bytes);
// Returns when the phase with this parity has completed.
void mbarrier_wait_parity(void* at, uint32_t parity);

// For TMA: the barrier at a window offset, fenced; bytes that arrived.
uint32_t mbarrier_for_copy(const void* at);
void mbarrier_complete_bytes(uint32_t offset, uint32_t bytes);

} // namespace cusim
