// TMA loads under way: see async.hpp.
#include "async.hpp"
#include <algorithm>

namespace cusim {

void start_async(const AsyncCopy& copy) {
    Block& b = block();
    b.counters.async_copies++;
    if (b.order == Order::random && b.random.chance(2)) land_tensor(copy);
    else b.async.push_back(copy);
}

// Forward: all that were started in this round. Backward: only when nothing else can move. Otherwise some.
static size_t how_many(Block& b, bool must) {
    const size_t n = b.async.size();
    switch (b.order) {
    case Order::forward: return n;
    case Order::backward: return must ? n : 0;
    case Order::random: break;
    }
    if (!must && !b.random.chance(3)) return 0;
    return 1 + b.random.below((uint32_t)n);
}

bool land_some(Block& b, bool must) {
    if (b.async.empty()) return false;
    const size_t take = how_many(b, must);
    for (size_t i = 0; i < take; i++) {
        if (b.order == Order::random) std::swap(b.async[b.random.below((uint32_t)b.async.size())], b.async.back());
        else if (b.order == Order::forward) std::rotate(b.async.begin(), b.async.begin() + 1, b.async.end());
        const AsyncCopy copy = b.async.back();
        b.async.pop_back();
        land_tensor(copy);
    }
    return take > 0;
}

} // namespace cusim
