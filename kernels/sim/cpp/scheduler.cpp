// The scheduler: which thread of a block runs next.
//
// A block is run warp by warp in rounds. Seed 0 goes round in order, one step a warp; seed 1 goes backwards
// and lets a warp run as far as it can; any other seed shuffles the warps of each round, leaves some out and
// lets the others run for a random number of steps, so that a warp may be many steps ahead of its
// neighbour: that is what makes a missing barrier visible. When nothing can move, a copy under way must
// land; when there is none either, that is a deadlock, reported with who waits where.
#include "scheduler.hpp"
#include "async.hpp"
#include "shared.hpp"
#include "wgmma.hpp"
#include <algorithm>
#include <stdarg.h>
#include <stdio.h>

namespace cusim {

thread_local Block* active = nullptr;

namespace {
struct OutsideOfFibers {}; // a fault while the scheduler itself lets a copy land
} // namespace

void CopyQueue::clear() {
    open.clear();
    landed.clear();
    groups.clear();
}

void Counters::add(const Counters& other) {
    blocks += other.blocks;
    switches += other.switches;
    collectives += other.collectives;
    barriers += other.barriers;
    async_copies += other.async_copies;
    matrix_ops += other.matrix_ops;
    shared_bytes = std::max(shared_bytes, other.shared_bytes);
}

void suspend() {
    Fiber& fiber = self();
    context_switch(fiber.context, block().scheduler);
}

void wait(const Wait& why) {
    Fiber& fiber = self();
    fiber.wait = why;
    fiber.state = State::waiting;
    suspend();
}

void wake(Fiber& fiber) {
    if (fiber.state == State::waiting) fiber.state = State::ready;
}

void fault(const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    int used = vsnprintf(text, sizeof text - 200, format, args);
    va_end(args);
    used = std::min<int>(used, sizeof text - 201);
    Block& b = block();
    const uint3 i = b.index;
    used += snprintf(text + used, 100, " (block %u,%u,%u", i.x, i.y, i.z);
    if (b.current) {
        const uint3 t = b.current->tid;
        used += snprintf(text + used, 90, " thread %u,%u,%u", t.x, t.y, t.z);
    }
    snprintf(text + used, 5, ")");
    b.fault = text;
    b.failed = true;
    if (!b.current) throw OutsideOfFibers{};
    context_switch(self().context, b.scheduler);
    __builtin_unreachable();
}

// Where every fiber begins and ends.
static void fiber_main() {
    context_entered(block().scheduler);
    block().entry(block().params);
    Fiber& fiber = self();
    wgmma_check_exit();
    fiber.state = State::done;
    block().live--;
    suspend();
    __builtin_unreachable();
}

static void prepare(Block& b) {
    b.threads = b.dim.x * b.dim.y * b.dim.z;
    b.live = b.threads;
    b.at_barrier = 0;
    b.mbarriers.clear();
    b.async.clear();
    for (NamedBarrier& barrier : b.named) barrier = NamedBarrier();
    b.fault.clear();
    b.failed = false;
    b.fibers.resize(b.threads);
    const uint32_t warps = (b.threads + 31) / 32;
    b.meetings.resize(warps * 32);
    for (Meeting& meeting : b.meetings) meeting.arrived = 0;
    for (uint32_t i = 0; i < b.threads; i++) {
        Fiber& fiber = b.fibers[i];
        fiber.state = State::ready;
        fiber.index = i;
        fiber.lane = i & 31;
        fiber.warp = i >> 5;
        fiber.tid = {i % b.dim.x, i / b.dim.x % b.dim.y, i / (b.dim.x * b.dim.y)};
        fiber.copies.clear();
        wgmma_reset(fiber);
        context_make(fiber.context, b.stacks->at(i), fiber_main);
    }
    b.lane_order.resize(32);
    for (uint32_t i = 0; i < 32; i++) b.lane_order[i] = b.order == Order::backward ? 31 - i : i;
    if (b.order == Order::random)
        for (uint32_t i = 32; i > 1; i--) std::swap(b.lane_order[i - 1], b.lane_order[b.random.below(i)]);
}

static bool runnable(Fiber& fiber) {
    if (fiber.state == State::ready) return true;
    if (fiber.state == State::done || !fiber.wait.ready || !fiber.wait.ready(fiber.wait)) return false;
    fiber.state = State::ready;
    return true;
}

// Each thread of the warp that can run goes on to its next stop. Says whether any did.
static bool step_warp(Block& b, uint32_t warp) {
    bool moved = false;
    for (uint32_t lane : b.lane_order) {
        const uint32_t i = warp * 32 + lane;
        if (i >= b.threads || !runnable(b.fibers[i])) continue;
        moved = true;
        b.current = &b.fibers[i];
        b.counters.switches++;
        context_switch(b.scheduler, b.current->context);
        b.current = nullptr;
        if (b.failed) return true;
        release_if_all_arrived(b);
    }
    return moved;
}

static bool burst(Block& b, uint32_t warp, uint32_t steps) {
    bool moved = false;
    while (steps-- && !b.failed && step_warp(b, warp)) moved = true;
    return moved;
}

static uint32_t burst_length(Block& b) {
    if (b.order == Order::forward) return 1;
    if (b.order == Order::backward) return UINT32_MAX;
    const uint32_t span = 1u << b.random.below(7);
    return 1 + b.random.below(span);
}

static bool round(Block& b, std::vector<uint32_t>& warps, bool leave_out) {
    if (b.order == Order::random)
        for (uint32_t i = (uint32_t)warps.size(); i > 1; i--) std::swap(warps[i - 1], warps[b.random.below(i)]);
    bool moved = false;
    for (uint32_t warp : warps) {
        if (leave_out && b.random.chance(3)) continue;
        moved |= burst(b, warp, burst_length(b));
        if (b.failed) break;
    }
    return moved;
}

// A fault found by the scheduler itself, outside of any fiber.
static void report_deadlock(Block& b) {
    std::string text = "deadlock: ";
    char line[200];
    struct Group { Wait wait; uint32_t first, count; };
    std::vector<Group> groups;
    for (Fiber& f : b.fibers) {
        if (f.state != State::waiting) continue;
        auto same = [&](Group& g) {
            return g.wait.what == f.wait.what && g.wait.detail[0] == f.wait.detail[0] && g.wait.detail[1] == f.wait.detail[1];
        };
        auto at = std::find_if(groups.begin(), groups.end(), same);
        if (at == groups.end()) groups.push_back({f.wait, f.index, 1});
        else at->count++;
    }
    for (size_t i = 0; i < groups.size() && i < 8; i++) {
        const Group& g = groups[i];
        snprintf(line, sizeof line, "%s%u threads (first %u) at %s", i ? "; " : "", g.count, g.first, g.wait.what);
        text += line;
        snprintf(line, sizeof line, g.wait.format, (unsigned long long)g.wait.detail[0], (unsigned long long)g.wait.detail[1]);
        text += line;
    }
    snprintf(line, sizeof line, "; %u of %u threads live (block %u,%u,%u)", b.live, b.threads, b.index.x, b.index.y, b.index.z);
    b.fault = text + line;
    b.failed = true;
}

// What must not be left when all threads have returned.
static void check_end(Block& b) {
    if (!b.async.empty()) fault("the block ended with %zu TMA loads under way", b.async.size());
    wgmma_check_block(b);
}

constexpr uint64_t step_limit = 1ull << 31; // about a minute: a loop that polls, not a kernel

static void schedule(Block& b) {
    std::vector<uint32_t> warps((b.threads + 31) / 32);
    for (uint32_t i = 0; i < warps.size(); i++)
        warps[i] = b.order == Order::backward ? (uint32_t)warps.size() - 1 - i : i;
    while (b.live && !b.failed) {
        bool moved = round(b, warps, b.order == Order::random);
        if (b.failed) break;
        if (!moved && b.order == Order::random) moved = round(b, warps, false);
        if (b.failed || !b.live) break;
        moved |= land_some(b, !moved);
        if (!moved) report_deadlock(b);
        if (b.counters.switches > step_limit) fault("no end after %llu steps", (unsigned long long)step_limit);
    }
}

void run(Block& b) {
    active = &b;
    prepare(b);
    try {
        schedule(b);
        if (!b.failed) check_end(b);
    } catch (const OutsideOfFibers&) {
    }
    finish_shared(b);
    b.counters.blocks++;
    active = nullptr;
}

} // namespace cusim
