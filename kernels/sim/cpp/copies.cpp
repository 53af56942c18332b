// cp.async: see copies.hpp.
#include "copies.hpp"
#include "shared.hpp"

namespace cusim {

static void land(const Copy& c) {
    if (c.fill) memcpy(c.to, c.from, c.fill);
    memset(c.to + c.fill, 0, c.bytes - c.fill);
}

static bool lands_at_once(Block& b) {
    if (b.order == Order::random) return b.random.chance(4);
    return b.order == Order::backward;
}

void cp_async(void* to, const void* from, uint32_t bytes, uint32_t fill) {
    Block& b = block();
    if ((uintptr_t)to % bytes) fault("cp.async of %u bytes: destination is not aligned", bytes);
    if (fill && (uintptr_t)from % bytes) fault("cp.async of %u bytes: source is not aligned", bytes);
    shared_offset(to, bytes, "cp.async");
    b.counters.async_copies++;
    const Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, fill};
    if (lands_at_once(b)) land(copy);
    else self().copies.open.push_back(copy);
}

void cp_commit_group() {
    CopyQueue& queue = self().copies;
    queue.groups.push_back(std::move(queue.open));
    queue.open.clear();
}

void cp_wait_group(uint32_t left) {
    CopyQueue& queue = self().copies;
    while (queue.groups.size() > left) {
        for (const Copy& copy : queue.groups.front()) queue.landed.push_back(copy);
        queue.groups.erase(queue.groups.begin());
    }
}

void land_waited() {
    CopyQueue& queue = self().copies;
    for (const Copy& copy : queue.landed) land(copy);
    queue.landed.clear();
}

void publish_at_sync() { publish(block()); }

} // namespace cusim
