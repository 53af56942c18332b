// TMA: see tma.hpp.
#include "tma.hpp"
#include "async.hpp"
#include "mbarrier.hpp"
#include "shared.hpp"
#include <algorithm>

namespace cusim {

static uint32_t box_bytes(const TensorMap& map) {
    uint32_t bytes = map.element_bytes;
    for (int d = 0; d < map.rank; d++) bytes *= map.box[d];
    return bytes;
}

void tma_load(void* to, const void* map, void* barrier, const int32_t* at, int rank) {
    if ((uintptr_t)map & 63) fault("TMA load: the tensor map is not aligned to 64");
    AsyncCopy copy{};
    memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.magic != tensor_map_magic) fault("TMA load: not a tensor map");
    if (copy.map.rank != rank) fault("TMA load: %d coordinates for a map of rank %u", rank, copy.map.rank);
    if ((uintptr_t)to & 127) fault("TMA load: destination is not aligned to 128");
    copy.to = shared_offset(to, box_bytes(copy.map), "TMA load");
    copy.barrier = mbarrier_for_copy(barrier);
    std::copy(at, at + rank, copy.at);
    start_async(copy);
}

// The address of an element, or null outside of the tensor.
static const unsigned char* element(const TensorMap& map, const int64_t* at) {
    uint64_t offset = 0;
    for (int d = 0; d < map.rank; d++) {
        if ((uint64_t)at[d] >= map.dims[d]) return nullptr; // negative ones too
        offset += (uint64_t)at[d] * (d ? map.strides[d - 1] : map.element_bytes);
    }
    return reinterpret_cast<const unsigned char*>(map.base) + offset;
}

// One innermost line of the box goes to `to`, in pieces of 16 bytes, which is what the swizzle moves.
static void land_line(const AsyncCopy& copy, const int64_t* first, uint32_t to) {
    const TensorMap& map = copy.map;
    const uint32_t bytes = map.box[0] * map.element_bytes, per_piece = 16u / map.element_bytes;
    unsigned char* view = async_view();
    unsigned char* shared = block().shared;
    for (uint32_t piece = 0; piece < bytes / 16; piece++) {
        unsigned char data[16] = {};
        for (uint32_t e = 0; e < per_piece; e++) {
            int64_t at[5];
            std::copy(first, first + map.rank, at);
            at[0] += piece * per_piece + e;
            const unsigned char* source = element(map, at);
            if (source) memcpy(data + e * map.element_bytes, source, map.element_bytes);
        }
        uint32_t address = to + piece * 16;
        if (map.swizzle == 128) address ^= (address >> 7 & 7) << 4;
        memcpy(shared + address, data, 16);
        memcpy(view + address, data, 16);
    }
}

void land_tensor(const AsyncCopy& copy) {
    const TensorMap& map = copy.map;
    const uint32_t line = map.box[0] * map.element_bytes;
    const uint32_t total = box_bytes(map);
    for (uint32_t i = 0; i < total / line; i++) {
        int64_t at[5] = {copy.at[0]};
        uint32_t rest = i;
        for (int d = 1; d < map.rank; d++) {
            at[d] = (int64_t)copy.at[d] + rest % map.box[d];
            rest /= map.box[d];
        }
        land_line(copy, at, copy.to + i * line);
    }
    mbarrier_complete_bytes(copy.barrier, total);
}

} // namespace cusim
