// mbarrier: see mbarrier.hpp.
#include "mbarrier.hpp"
#include "copies.hpp"
#include "shared.hpp"

namespace cusim {

static constexpr uint64_t mark = 0x6d62617272696572ull; // "mbarrier"

static Mbarrier* find(uint32_t offset) {
    for (Mbarrier& m : block().mbarriers)
        if (m.offset == offset) return &m;
    return nullptr;
}

static Mbarrier& at_address(const void* at, const char* what) {
    const uint32_t offset = shared_offset(at, 8, what);
    Mbarrier* m = find(offset);
    if (!m) fault("%s: no mbarrier was initialised at byte %u", what, offset);
    if (*static_cast<const uint64_t*>(at) != mark + offset) fault("%s: the mbarrier at byte %u was written over", what, offset);
    return *m;
}

static void complete_if_done(Mbarrier& m) {
    if (m.pending || m.tx > 0) return;
    if (m.tx < 0) fault("mbarrier at byte %u: %lld more bytes arrived than were expected", m.offset, (long long)-m.tx);
    m.parity ^= 1;
    m.pending = m.count;
    publish(block());
}

static void arrive(Mbarrier& m) {
    if (!m.pending) fault("mbarrier at byte %u: more arrivals than its count %u", m.offset, m.count);
    m.pending--;
    complete_if_done(m);
}

void mbarrier_init(void* at, uint32_t arrivals) {
    if ((uintptr_t)at & 7) fault("mbarrier.init: address is not aligned to 8");
    const uint32_t offset = shared_offset(at, 8, "mbarrier.init");
    if (arrivals == 0 || arrivals >= 1u << 20) fault("mbarrier.init: count %u", arrivals);
    *static_cast<uint64_t*>(at) = mark + offset;
    const Mbarrier fresh{offset, arrivals, arrivals, 0, 0, false};
    if (Mbarrier* old = find(offset)) *old = fresh;
    else block().mbarriers.push_back(fresh);
}

void mbarrier_fence_init() {
    for (Mbarrier& m : block().mbarriers) m.fenced = true;
}

void mbarrier_arrive(void* at) {
    land_waited();
    arrive(at_address(at, "mbarrier.arrive"));
}

void mbarrier_arrive_expect(void* at, uint32_t bytes) {
    land_waited();
    Mbarrier& m = at_address(at, "mbarrier.arrive.expect_tx");
    if (!m.pending) fault("mbarrier at byte %u: more arrivals than its count %u", m.offset, m.count);
    m.tx += bytes;
    arrive(m);
}

void mbarrier_wait_parity(void* at, uint32_t parity) {
    const Mbarrier& m = at_address(at, "mbarrier.try_wait");
    if (m.parity != (parity & 1)) return;
    auto ready = [](const Wait& w) {
        const Mbarrier* m = find((uint32_t)w.detail[0]);
        return m && m->parity != w.detail[1];
    };
    wait({"the mbarrier", " at byte %llu, for parity %llu", {m.offset, parity & 1}, ready});
}

uint32_t mbarrier_for_copy(const void* at) {
    Mbarrier& m = at_address(at, "TMA load");
    if (!m.fenced) fault("TMA load: the mbarrier at byte %u was initialised without fence_mbar_init", m.offset);
    return m.offset;
}

void mbarrier_complete_bytes(uint32_t offset, uint32_t bytes) {
    Mbarrier* m = find(offset);
    m->tx -= bytes;
    if (m->pending == 0) complete_if_done(*m);
}

} // namespace cusim
