// cp.async: copies that the issuing thread waits for by group.
//
// When a copy lands is the seed's choice between two extremes: at once (it then runs over what other warps
// still read, if a barrier before it is missing) or at the barrier after the wait (it is then missing to
// whoever reads without waiting, or without a barrier). A thread that reads its own copies right after
// the wait would be right on hardware; here it must pass a barrier or __syncwarp first.
#pragma once
#include "block.hpp"

namespace cusim {

void cp_async(void* to, const void* from, uint32_t bytes, uint32_t fill);
void cp_commit_group();
void cp_wait_group(uint32_t left);
// Copies whose group was waited for arrive; called on the way into every barrier.
void land_waited();
// Fenced stores become visible to the async proxy; called on the way out of every synchronisation.
void publish_at_sync();

} // namespace cusim
