// The state of one thread block in flight, and what its threads may ask of the scheduler.
//
// One OS thread runs one block at a time, one fiber of it at a time; between two switches a fiber has the
// block for itself, so nothing here is locked.
#pragma once
#include "fiber.hpp"
#include "language.hpp"
#include "tensor_map.hpp"
#include <string>
#include <vector>

namespace cusim {

// A generator for schedules; never for data.
struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t)(state >> 33);
    }
    uint32_t below(uint32_t n) { return (uint32_t)((uint64_t)(next() & 0x7fffffff) * n >> 31); }
    bool chance(uint32_t of_eight) { return below(8) < of_eight; }
};

// How a seed orders things: 0 as written, 1 backwards and as greedy as possible, others at random.
enum class Order : uint8_t { forward, backward, random };

// A cp.async of one thread: `fill` bytes of `from`, then zeros, up to `bytes`.
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    uint32_t bytes, fill;
};

// cp.async of one thread: the open group, the committed ones, and what waits for the next barrier.
struct CopyQueue {
    std::vector<Copy> open, landed;
    std::vector<std::vector<Copy>> groups;
    void clear();
};

struct WgmmaQueue;

// Why a fiber does not run.
struct Wait {
    const char* what = nullptr;   // for the report of a deadlock
    const char* format = nullptr; // of the details, two numbers
    uint64_t detail[2] = {0, 0};
    bool (*ready)(const Wait&) = nullptr; // asked by the scheduler; none: whoever completes it says so
};

enum class State : uint8_t { ready, waiting, done };

struct Fiber {
    Context context;
    State state;
    uint32_t index, lane, warp;
    uint3 tid;
    Wait wait;
    CopyQueue copies;
    std::shared_ptr<WgmmaQueue> wgmma; // made on first use
    bool proxy_fenced = false;
};

// Lanes that have arrived at a warp-wide operation, with their records.
struct Meeting {
    uint32_t mask = 0, arrived = 0;
    const char* name = nullptr;
    uint64_t key = 0;
    void* records[32];
};

struct NamedBarrier {
    uint32_t expected = 0, arrived = 0;
    uint64_t generation = 0;
};

struct Mbarrier {
    uint32_t offset;
    uint32_t count, pending;
    int64_t tx;
    uint32_t parity;
    bool fenced;
};

// A TMA load under way.
struct AsyncCopy {
    TensorMap map;
    int32_t at[5];
    uint32_t to, barrier;
};

struct StaticArray {
    const void* site;
    uint32_t offset, bytes;
};

struct Counters {
    uint64_t blocks = 0, switches = 0, collectives = 0, barriers = 0, async_copies = 0, matrix_ops = 0;
    uint64_t shared_bytes = 0; // the most that one block used, static arrays included
    void add(const Counters& other);
};

struct Block {
    uint3 index, grid, dim;
    uint32_t threads = 0, live = 0, at_barrier = 0;
    std::vector<Fiber> fibers;
    std::vector<Meeting> meetings; // [warp][lowest lane of the mask]
    Fiber* current = nullptr;
    Context scheduler;

    Order order = Order::forward;
    Random random{0};
    std::vector<uint32_t> lane_order;

    unsigned char* shared = nullptr; // window: dynamic part, canary, static arrays
    uint32_t dynamic_bytes = 0, window_bytes = 0, static_end = 0;
    std::vector<StaticArray> statics;
    std::vector<unsigned char> async_view; // what TMA and wgmma see; filled by TMA and proxy fences
    bool async_view_used = false, publish_pending = false;

    NamedBarrier named[16];
    std::vector<Mbarrier> mbarriers;
    std::vector<AsyncCopy> async;

    bool failed = false;
    std::string fault;
    Counters counters;
    Stacks* stacks = nullptr;

    void (*entry)(const void*) = nullptr;
    const void* params = nullptr;
};

extern thread_local Block* active;
inline Block& block() { return *active; }
inline Fiber& self() { return *active->current; }

// Runs the active block to its end or to its first fault.
void run(Block& block);

// Gives the turn away; `self()` must already say why it does not run.
void suspend();
// Waits until somebody sets the fiber ready again, or until `wait.ready` holds.
void wait(const Wait& wait);
void wake(Fiber& fiber);

// Ends the block with a message that says where; the fiber is left as it is.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

} // namespace cusim
