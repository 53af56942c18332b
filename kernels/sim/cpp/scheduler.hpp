// What the scheduler needs from the block-wide barrier.
#pragma once
#include "block.hpp"

namespace cusim {

// Opens __syncthreads when every live thread stands at it; also when the last one it waited for has left.
void release_if_all_arrived(Block& block);

} // namespace cusim
