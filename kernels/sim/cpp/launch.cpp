// A launch: the blocks of a grid, in the order of the seed, on one or several OS threads. The C interface
// that src/launch.rs calls.
//
// Blocks do not interleave on one OS thread; a grid whose blocks wait for each other would deadlock here,
// as it may on a GPU. Bits must not depend on the number of threads: a block's schedule comes from the
// seed and the block's number alone.
#include "block.hpp"
#include "registry.hpp"
#include "shared.hpp"
#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <stdio.h>
#include <stdlib.h>
#include <thread>

namespace cusim {
namespace {

struct Grid {
    uint3 grid, dim;
    uint32_t shared_bytes;
    uint64_t seed;
    const Kernel* kernel;
    const void* params;
    std::vector<uint32_t> order;

    std::atomic<size_t> next{0};
    std::mutex lock; // of what follows
    Counters counters;
    size_t failed_at = SIZE_MAX;
    std::string fault;
};

Order order_of(uint64_t seed) { return seed == 0 ? Order::forward : seed == 1 ? Order::backward : Order::random; }

void order_blocks(Grid& g) {
    g.order.resize((size_t)g.grid.x * g.grid.y * g.grid.z);
    std::iota(g.order.begin(), g.order.end(), 0);
    if (g.seed == 1) std::reverse(g.order.begin(), g.order.end());
    Random random{g.seed};
    if (g.seed > 1)
        for (size_t i = g.order.size(); i > 1; i--) std::swap(g.order[i - 1], g.order[random.below((uint32_t)i)]);
}

Stacks& stacks_of_thread() {
    static thread_local Stacks stacks;
    return stacks;
}

void note(Grid& g, size_t at, const Block& b) {
    std::lock_guard<std::mutex> hold(g.lock);
    g.counters.add(b.counters);
    if (!b.failed || at >= g.failed_at) return;
    g.failed_at = at;
    g.fault = b.fault;
    g.next = g.order.size(); // no further blocks
}

void work(Grid& g) {
    Window window(g.shared_bytes);
    Block b;
    b.grid = g.grid;
    b.dim = g.dim;
    b.stacks = &stacks_of_thread();
    b.shared = window.base;
    b.dynamic_bytes = g.shared_bytes;
    b.entry = g.kernel->call;
    b.params = g.params;
    b.order = order_of(g.seed);
    for (size_t at; (at = g.next++) < g.order.size();) {
        const uint32_t i = g.order[at];
        b.index = {i % g.grid.x, i / g.grid.x % g.grid.y, i / (g.grid.x * g.grid.y)};
        b.random = {(g.seed + i) * 0x9E3779B97F4A7C15ull};
        b.counters = Counters();
        start_shared(b);
        run(b);
        note(g, at, b);
        if (b.failed) break;
    }
}

void run_grid(Grid& g, uint32_t threads) {
    const size_t used = std::min<size_t>(std::max(threads, 1u), g.order.size());
    if (used <= 1) return work(g);
    std::vector<std::thread> helpers;
    for (size_t i = 1; i < used; i++) helpers.emplace_back([&g] { work(g); });
    work(g);
    for (std::thread& helper : helpers) helper.join();
}

// Empty when the launch may go ahead; the limits are a GPU's.
std::string refusal(const Grid& g, const char* name, size_t params_bytes) {
    if (!g.kernel) return std::string("no kernel is called ") + name;
    char text[200] = "";
    const uint64_t threads = (uint64_t)g.dim.x * g.dim.y * g.dim.z;
    if (params_bytes != g.kernel->params_bytes)
        snprintf(text, sizeof text, "%zu bytes of parameters, the kernel's struct has %zu", params_bytes, g.kernel->params_bytes);
    else if (threads == 0 || threads > 1024 || g.dim.z > 64)
        snprintf(text, sizeof text, "a block of %ux%ux%u threads", g.dim.x, g.dim.y, g.dim.z);
    else if (!g.grid.x || !g.grid.y || !g.grid.z || g.grid.y > 65535 || g.grid.z > 65535 || g.grid.x > 0x7fffffff)
        snprintf(text, sizeof text, "a grid of %ux%ux%u blocks", g.grid.x, g.grid.y, g.grid.z);
    else if (g.shared_bytes > shared_limit)
        snprintf(text, sizeof text, "%u bytes of dynamic shared memory, the limit is %u", g.shared_bytes, shared_limit);
    return text;
}

} // namespace
} // namespace cusim

extern "C" {

struct CusimLaunch {
    const char* kernel;
    const void* params;
    uint64_t params_bytes;
    uint32_t grid[3], block[3];
    uint32_t shared_bytes, threads;
    uint64_t seed;
};

// 0: done. 1: a fault in a block. 2: refused. The text is cut to `text_bytes` with its closing zero.
int cusim_launch(const CusimLaunch* launch, cusim::Counters* counters, char* text, size_t text_bytes) {
    using namespace cusim;
    Grid g;
    g.grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
    g.dim = {launch->block[0], launch->block[1], launch->block[2]};
    g.shared_bytes = launch->shared_bytes;
    g.seed = launch->seed;
    g.kernel = find_kernel(launch->kernel);
    const std::string refused = refusal(g, launch->kernel, launch->params_bytes);
    if (!refused.empty()) {
        snprintf(text, text_bytes, "%s", refused.c_str());
        return 2;
    }
    // A copy with the struct's own alignment: tensor maps want 64 bytes, the caller's slice promises none.
    std::unique_ptr<void, void (*)(void*)> params(aligned_alloc(128, (launch->params_bytes + 127) / 128 * 128), free);
    memcpy(params.get(), launch->params, launch->params_bytes);
    g.params = params.get();
    order_blocks(g);
    run_grid(g, launch->threads);
    *counters = g.counters;
    if (g.failed_at == SIZE_MAX) return 0;
    snprintf(text, text_bytes, "%s", g.fault.c_str());
    return 1;
}

uint64_t cusim_kernel_count() { return cusim::kernel_count(); }
const char* cusim_kernel_name(uint64_t i) { return cusim::kernel_at(i).name; }
uint64_t cusim_kernel_params_bytes(uint64_t i) { return cusim::kernel_at(i).params_bytes; }
}
