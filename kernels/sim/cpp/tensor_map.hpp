// The emulated CUtensorMap: 128 opaque bytes for kernels, these fields for the emulator. The Rust side
// (src/tensor_map.rs) writes them, after the checks that cuTensorMapEncodeTiled would make.
#pragma once
#include <stdint.h>

namespace cusim {

struct alignas(64) TensorMap {
    uint64_t base;       // address of element 0
    uint64_t dims[5];    // elements, innermost first
    uint64_t strides[4]; // bytes, of dims[1..]
    uint16_t box[5];     // elements
    uint8_t rank;
    uint8_t element_bytes;
    uint32_t swizzle; // bytes of the pattern: 0 or 128
    uint32_t magic;
    uint8_t unused[28];
};
static_assert(sizeof(TensorMap) == 128);
constexpr uint32_t tensor_map_magic = 0x50414d54;

} // namespace cusim
