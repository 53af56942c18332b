// Shared memory: one window per block with the dynamic part, a canary, and the static arrays behind it.
//
// Everything is filled with NaN bits (0xFF) before a block starts: memory that nobody wrote shows. The
// canary behind the dynamic part tells of writes beyond it. Beside the window lies the async view: what the
// async proxy (TMA, wgmma) would read. Ordinary stores reach it only through fence_proxy_async.
#pragma once
#include "block.hpp"

namespace cusim {

constexpr uint32_t shared_limit = 227 << 10; // what a block may ask for on sm_90 and sm_100
constexpr uint32_t canary_bytes = 1024;
constexpr uint32_t static_limit = 48 << 10;

// A block's window, aligned to 1024 as the swizzles ask.
class Window {
public:
    explicit Window(uint32_t dynamic_bytes);
    ~Window();
    unsigned char* base;
};

void start_shared(Block& block);
// Looks at the canary and takes note of the bytes used.
void finish_shared(Block& block);

unsigned char* dynamic_shared();
// The array of one declaration site; the same for every thread of the block.
void* static_shared(const void* site, size_t bytes, size_t align);

// The window offset of [p, p + bytes), which must lie inside one allocation of shared memory.
uint32_t shared_offset(const void* p, size_t bytes, const char* what);
void check_shared_range(uint32_t offset, size_t bytes, const char* what);

// The async proxy's bytes of the whole window, made on first use.
unsigned char* async_view();
// fence.proxy.async by this thread; takes effect at the next synchronisation, see publish().
void proxy_fence();
// Makes fenced ordinary stores visible to the async proxy.
void publish(Block& block);
// Ordinary stores to these bytes must have been fenced and published.
void check_published(uint32_t offset, size_t bytes, const char* what);

} // namespace cusim
