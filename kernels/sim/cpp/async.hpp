// TMA loads under way: when they land is the seed's choice, from at once to as late as possible.
#pragma once
#include "block.hpp"

namespace cusim {

// Starts a load (or lands it at once).
void start_async(const AsyncCopy& copy);
// Lets some loads land; at least one if `must` and there is one. Says whether any did.
bool land_some(Block& block, bool must);
// Carries one out: tma.cpp.
void land_tensor(const AsyncCopy& copy);

} // namespace cusim
