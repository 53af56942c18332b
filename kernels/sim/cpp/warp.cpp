// Operations of a warp: see warp.hpp.
#include "warp.hpp"

namespace cusim {

Meeting* meet(uint32_t mask, const char* name, uint64_t key, void* record) {
    Block& b = block();
    Fiber& fiber = self();
    if (!(mask >> fiber.lane & 1)) fault("%s: lane %u is not in its own mask %08x", name, fiber.lane, mask);
    Meeting& meeting = b.meetings[fiber.warp * 32 + (uint32_t)__builtin_ctz(mask)];
    if (meeting.arrived == 0) {
        meeting.mask = mask;
        meeting.name = name;
        meeting.key = key;
    } else if (meeting.mask != mask || meeting.name != name || meeting.key != key) {
        fault("divergent collective: %s with mask %08x, where lanes of the warp stand at %s with mask %08x", name, mask, meeting.name,
              meeting.mask);
    }
    if (meeting.arrived >> fiber.lane & 1) fault("%s: lane %u arrived twice", name, fiber.lane);
    meeting.arrived |= 1u << fiber.lane;
    meeting.records[fiber.lane] = record;
    if (meeting.arrived == mask) return &meeting;
    wait({name, " of mask %llx, warp %llu", {mask, fiber.warp}, nullptr});
    return nullptr;
}

void part(Meeting& meeting) {
    Block& b = block();
    const uint32_t first = self().warp * 32, own = self().lane;
    for (uint32_t lane = 0; lane < 32; lane++)
        if ((meeting.mask >> lane & 1) && lane != own) wake(b.fibers[first + lane]);
    meeting.arrived = 0;
    b.counters.collectives++;
}

uint32_t ballot(uint32_t mask, bool predicate) {
    struct Record { bool in; uint32_t out; } record{predicate, 0};
    collective(mask, "__ballot_sync", 0, record, [](Record** records) {
        uint32_t bits = 0;
        for (int lane = 0; lane < 32; lane++) bits |= (uint32_t)(records[lane] && records[lane]->in) << lane;
        for (int lane = 0; lane < 32; lane++)
            if (records[lane]) records[lane]->out = bits;
    });
    return record.out;
}

uint32_t match_any(uint32_t mask, uint64_t value) {
    struct Record { uint64_t in; uint32_t out; } record{value, 0};
    collective(mask, "__match_any_sync", 0, record, [](Record** records) {
        for (int lane = 0; lane < 32; lane++)
            for (int other = 0; records[lane] && other < 32; other++)
                records[lane]->out |= (uint32_t)(records[other] && records[other]->in == records[lane]->in) << other;
    });
    return record.out;
}

} // namespace cusim
