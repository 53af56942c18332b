// Whole pages: copied inside the pool, moved to and from a contiguous staging buffer, zeroed, and verified to be zero.
//
// Roofline (H200, 4.3 TB/s read + write): a copy moves each byte twice, 10 GiB of zeros or of verified pages take
// 2.5 ms. Nothing is computed.
//
// Work is cut into chunks of 16 KB: 256 threads, four 16-byte accesses each, all four loads issued before the first
// use. A grid of 8 blocks an SM walks the chunks, so 128 KB are in flight on each SM (22 KB would cover latency)
// whatever the number and size of pages; a block for each page would leave SMs idle when a request frees three pages.
// The driver's own copies need one call for each page and direction; a list of 1280 pages is one launch here.
//
// Verification is its own launch and its loads are volatile: they cannot be served by what the zeroing launch left in
// L1 or in registers, they read the coherence point of the device (L2 and the memory behind it), which any later
// reader and any copy engine reads too. It counts nonzero words, so that a report can say how bad it is.
//
// Limits: page bytes a multiple of 16, up to 2^32 chunks in all; destinations of a copy are no sources of the same
// launch; block = 256. `counts` must be zero before the verify launch.
#include "types.cuh"
#include "ptx.cuh"

constexpr u32 THREADS = 256;
constexpr u32 FLIGHT = 4;                          // accesses in flight a thread
constexpr u32 CHUNK = THREADS * FLIGHT;            // in units of 16 bytes

struct PageCopyParams {
    u8* pool;
    const u32* pairs;      // [count][from, to]
    u64 page_bytes;
    u32 count;
    u32 pad;
};

struct PageZeroParams {
    u8* pool;
    const u32* pages;      // [count]
    u64 page_bytes;
    u32 count;
    u32 pad;
};

struct PageVerifyParams {
    const u8* pool;
    const u32* pages;      // [count]
    u32* counts;           // [count]: nonzero 4-byte words
    u64 page_bytes;
    u32 count;
    u32 pad;
};

struct PageStageParams {
    u8* pool;
    const u32* pages;      // [count]
    u8* staging;           // [count][page_bytes]
    u64 page_bytes;
    u32 count;
    u32 pad;
};

// Calls body(page index, byte offset of this thread's first unit, units of the page from there) for each chunk.
template <class Body>
DEVICE void each_chunk(u64 page_bytes, u32 count, Body body) {
    u32 units = (u32)(page_bytes / 16), chunks = (units + CHUNK - 1) / CHUNK;
    u64 all = (u64)chunks * count;
    for (u64 i = blockIdx.x; i < all; i += gridDim.x) {
        u32 page = (u32)(i / chunks), first = (u32)(i % chunks) * CHUNK + threadIdx.x;
        body(page, (u64)first * 16, first < units ? units - first : 0u);
    }
}

// Unit f of a thread lies f * THREADS units further on.
DEVICE bool inside(u32 f, u32 left) { return f * THREADS < left; }

DEVICE void copy_chunk(u8* to, const u8* from, u32 left) {
    uint4 v[FLIGHT];
    UNROLL for (u32 f = 0; f < FLIGHT; f++) {
        if (inside(f, left)) v[f] = ld_global_nc16(from + f * THREADS * 16);
    }
    UNROLL for (u32 f = 0; f < FLIGHT; f++) {
        if (inside(f, left)) st_global16(to + f * THREADS * 16, v[f]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_page_copy(const __grid_constant__ PageCopyParams p) {
    each_chunk(p.page_bytes, p.count, [&](u32 i, u64 at, u32 left) {
        copy_chunk(p.pool + p.pairs[2 * i + 1] * p.page_bytes + at, p.pool + p.pairs[2 * i] * p.page_bytes + at, left);
    });
}
CUSIM_KERNEL(quire_page_copy)

extern "C" __global__ void __launch_bounds__(THREADS) quire_page_gather(const __grid_constant__ PageStageParams p) {
    each_chunk(p.page_bytes, p.count, [&](u32 i, u64 at, u32 left) {
        copy_chunk(p.staging + i * p.page_bytes + at, p.pool + p.pages[i] * p.page_bytes + at, left);
    });
}
CUSIM_KERNEL(quire_page_gather)

extern "C" __global__ void __launch_bounds__(THREADS) quire_page_scatter(const __grid_constant__ PageStageParams p) {
    each_chunk(p.page_bytes, p.count, [&](u32 i, u64 at, u32 left) {
        copy_chunk(p.pool + p.pages[i] * p.page_bytes + at, p.staging + i * p.page_bytes + at, left);
    });
}
CUSIM_KERNEL(quire_page_scatter)

extern "C" __global__ void __launch_bounds__(THREADS) quire_page_zero(const __grid_constant__ PageZeroParams p) {
    each_chunk(p.page_bytes, p.count, [&](u32 i, u64 at, u32 left) {
        u8* to = p.pool + p.pages[i] * p.page_bytes + at;
        UNROLL for (u32 f = 0; f < FLIGHT; f++) {
            if (inside(f, left)) st_global16(to + f * THREADS * 16, make_uint4(0, 0, 0, 0));
        }
    });
}
CUSIM_KERNEL(quire_page_zero)

DEVICE u32 nonzero_words(const uint4& v) {
    return (v.x != 0) + (v.y != 0) + (v.z != 0) + (v.w != 0);
}

extern "C" __global__ void __launch_bounds__(THREADS) quire_page_verify(const __grid_constant__ PageVerifyParams p) {
    each_chunk(p.page_bytes, p.count, [&](u32 i, u64 at, u32 left) {
        const u8* from = p.pool + p.pages[i] * p.page_bytes + at;
        uint4 v[FLIGHT];
        UNROLL for (u32 f = 0; f < FLIGHT; f++) {
            v[f] = inside(f, left) ? ld_volatile16(from + f * THREADS * 16) : make_uint4(0, 0, 0, 0);
        }
        u32 found = 0;
        UNROLL for (u32 f = 0; f < FLIGHT; f++) found += nonzero_words(v[f]);
        if (found) atomicAdd(p.counts + i, found);  // rare: pages are zero
    });
}
CUSIM_KERNEL(quire_page_verify)
