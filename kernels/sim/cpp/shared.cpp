// Shared memory: see shared.hpp.
#include "shared.hpp"
#include <algorithm>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cusim {

static constexpr unsigned char canary = 0xA5;

static uint32_t round_up(size_t v, size_t to) { return (uint32_t)((v + to - 1) / to * to); }

static uint32_t static_begin(uint32_t dynamic_bytes) { return round_up(dynamic_bytes + canary_bytes, 1024); }

static uint32_t window_size(uint32_t dynamic_bytes) { return static_begin(dynamic_bytes) + static_limit; }

Window::Window(uint32_t dynamic_bytes) {
    base = static_cast<unsigned char*>(aligned_alloc(1024, window_size(dynamic_bytes)));
    if (!base) abort();
}

Window::~Window() { free(base); }

void start_shared(Block& b) {
    b.window_bytes = window_size(b.dynamic_bytes);
    const uint32_t statics = static_begin(b.dynamic_bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(b.shared, b.window_bytes);
#endif
    memset(b.shared, 0xFF, b.dynamic_bytes);
    memset(b.shared + b.dynamic_bytes, canary, statics - b.dynamic_bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(b.shared + b.dynamic_bytes, b.window_bytes - b.dynamic_bytes);
#endif
    b.static_end = statics;
    b.statics.clear();
    b.async_view_used = false;
    b.publish_pending = false;
}

void finish_shared(Block& b) {
    const uint32_t statics = static_begin(b.dynamic_bytes);
    const uint64_t used = b.dynamic_bytes + (b.static_end - statics);
    b.counters.shared_bytes = std::max(b.counters.shared_bytes, used);
#if !defined(__SANITIZE_ADDRESS__)
    if (b.failed) return;
    for (uint32_t i = b.dynamic_bytes; i < statics; i++) {
        if (b.shared[i] == canary) continue;
        b.fault = "write beyond dynamic shared memory: " + std::to_string(b.dynamic_bytes) + " bytes, written at " +
                  std::to_string(i) + " (block " + std::to_string(b.index.x) + "," + std::to_string(b.index.y) + "," +
                  std::to_string(b.index.z) + ")";
        b.failed = true;
        return;
    }
#endif
}

unsigned char* dynamic_shared() { return block().shared; }

void* static_shared(const void* site, size_t bytes, size_t align) {
    Block& b = block();
    for (const StaticArray& a : b.statics)
        if (a.site == site) return b.shared + a.offset;
    const uint32_t offset = round_up(b.static_end, std::max<size_t>(align, 16));
    if (offset + bytes + 16 > b.window_bytes) fault("static shared memory exceeds %u bytes", static_limit);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(b.shared + offset, bytes);
#endif
    memset(b.shared + offset, 0xFF, bytes);
    b.statics.push_back({site, offset, (uint32_t)bytes});
    b.static_end = offset + (uint32_t)bytes + 16; // the gap keeps neighbours apart
    return b.shared + offset;
}

void check_shared_range(uint32_t offset, size_t bytes, const char* what) {
    Block& b = block();
    if (offset + bytes <= b.dynamic_bytes) return;
    for (const StaticArray& a : b.statics)
        if (offset >= a.offset && offset + bytes <= a.offset + a.bytes) return;
    fault("%s outside of shared memory: bytes %u..%zu, dynamic part has %u", what, offset, offset + bytes, b.dynamic_bytes);
}

uint32_t shared_offset(const void* p, size_t bytes, const char* what) {
    Block& b = block();
    const unsigned char* at = static_cast<const unsigned char*>(p);
    if (at < b.shared || at >= b.shared + b.window_bytes) fault("%s: the address is not in shared memory", what);
    const uint32_t offset = (uint32_t)(at - b.shared);
    check_shared_range(offset, bytes, what);
    return offset;
}

void proxy_fence() { block().publish_pending = true; }

unsigned char* async_view() {
    Block& b = block();
    if (!b.async_view_used) b.async_view.assign(b.window_bytes, 0xFF);
    b.async_view_used = true;
    return b.async_view.data();
}

void publish(Block& b) {
    if (!b.publish_pending) return;
    b.publish_pending = false;
    unsigned char* view = async_view();
#if defined(__SANITIZE_ADDRESS__)
    memcpy(view, b.shared, b.dynamic_bytes);
    for (const StaticArray& a : b.statics) memcpy(view + a.offset, b.shared + a.offset, a.bytes);
#else
    memcpy(view, b.shared, b.static_end);
#endif
}

void check_published(uint32_t offset, size_t bytes, const char* what) {
    if (memcmp(async_view() + offset, block().shared + offset, bytes) != 0)
        fault("%s reads bytes %u..%zu written by ordinary stores without fence_proxy_async", what, offset, offset + bytes);
}

} // namespace cusim
