// Barriers of a block: see barrier.hpp.
#include "barrier.hpp"
#include "copies.hpp"
#include "scheduler.hpp"
#include "shared.hpp"

namespace cusim {

static const char sync_name[] = "__syncthreads";
static const char named_name[] = "bar_sync";

void release_if_all_arrived(Block& b) {
    if (b.at_barrier == 0 || b.at_barrier != b.live) return;
    b.at_barrier = 0;
    b.counters.barriers++;
    publish(b);
    for (Fiber& fiber : b.fibers)
        if (fiber.state == State::waiting && fiber.wait.what == sync_name) wake(fiber);
}

void sync_threads() {
    land_waited();
    block().at_barrier++;
    wait({sync_name, "", {0, 0}, nullptr});
}

void named_barrier(int id, uint32_t threads) {
    Block& b = block();
    if (id < 1 || id > 15) fault("bar_sync: barrier %d; 0 is __syncthreads' own and there are 16", id);
    if (threads == 0 || threads % 32) fault("bar_sync: %u threads is no multiple of 32", threads);
    land_waited();
    NamedBarrier& barrier = b.named[id];
    if (barrier.arrived == 0) barrier.expected = threads;
    else if (barrier.expected != threads) fault("bar_sync %d: %u threads here, %u elsewhere", id, threads, barrier.expected);
    if (++barrier.arrived < threads) {
        wait({named_name, " %llu (passed %llu times)", {(uint64_t)id, barrier.generation}, nullptr});
        return;
    }
    const uint64_t generation = barrier.generation++;
    barrier.arrived = 0;
    b.counters.barriers++;
    publish(b);
    for (Fiber& fiber : b.fibers)
        if (fiber.state == State::waiting && fiber.wait.what == named_name && fiber.wait.detail[0] == (uint64_t)id &&
            fiber.wait.detail[1] == generation)
            wake(fiber);
}

} // namespace cusim
