// Operations of a warp: the lanes of a mask meet, the last to arrive works for all of them.
//
// Lanes that meet under one mask must be at the same operation; anything else is a divergent collective
// and a fault. Lanes that have left the kernel still count when a mask names them, which is stricter than
// the hardware: such a meeting ends as a deadlock.
#pragma once
#include "block.hpp"
#include "copies.hpp"

namespace cusim {

// Registers this lane. The last of the mask gets the meeting and must call `part`; the others get null
// when the last one has done so.
Meeting* meet(uint32_t mask, const char* name, uint64_t key, void* record);
void part(Meeting& meeting);

// Runs `op(records)` once over the records of all lanes of `mask`; records[lane] is null outside of it.
template <class Record, class Op>
inline void collective(uint32_t mask, const char* name, uint64_t key, Record& mine, Op op) {
    Meeting* meeting = meet(mask, name, key, &mine);
    if (!meeting) return;
    Record* records[32];
    for (int lane = 0; lane < 32; lane++)
        records[lane] = mask >> lane & 1 ? static_cast<Record*>(meeting->records[lane]) : nullptr;
    part(*meeting);
    op(records);
}

template <class T>
struct Shuffle {
    T in, out;
    uint32_t from;
};

// Every lane reads the value of lane `from`.
template <class T>
inline T shuffle(uint32_t mask, T value, uint32_t from, const char* name) {
    Shuffle<T> record{value, value, from};
    collective(mask, name, sizeof(T), record, [&](Shuffle<T>** records) {
        for (int lane = 0; lane < 32; lane++) {
            if (!records[lane]) continue;
            Shuffle<T>* source = records[records[lane]->from & 31];
            if (!source) fault("%s reads lane %u, which takes no part", name, records[lane]->from);
            records[lane]->out = source->in;
        }
    });
    return record.out;
}

uint32_t ballot(uint32_t mask, bool predicate);
uint32_t match_any(uint32_t mask, uint64_t value);

} // namespace cusim

static inline void __syncwarp(unsigned mask = ~0u) {
    cusim::land_waited();
    int nothing = 0;
    cusim::collective(mask, "__syncwarp", 0, nothing, [](int**) {});
    cusim::publish_at_sync();
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    const unsigned lane = cusim::self().lane, segment = lane & ~(unsigned)(width - 1);
    return cusim::shuffle(mask, value, segment | ((unsigned)from & (width - 1)), "__shfl_sync");
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned lane = cusim::self().lane, end = (lane & ~(unsigned)(width - 1)) + width, from = lane ^ (unsigned)bits;
    return cusim::shuffle(mask, value, from < end ? from : lane, "__shfl_xor_sync");
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = cusim::self().lane, end = (lane & ~(unsigned)(width - 1)) + width;
    return cusim::shuffle(mask, value, lane + by < end ? lane + by : lane, "__shfl_down_sync");
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = cusim::self().lane, segment = lane & ~(unsigned)(width - 1);
    return cusim::shuffle(mask, value, lane >= segment + by ? lane - by : lane, "__shfl_up_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return cusim::ballot(mask, predicate != 0); }
static inline int __any_sync(unsigned mask, int predicate) { return cusim::ballot(mask, predicate != 0) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return cusim::ballot(mask, predicate != 0) == mask; }
template <class T>
static inline unsigned __match_any_sync(unsigned mask, T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return cusim::match_any(mask, bits);
}
