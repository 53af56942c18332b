// TMA: a thread asks for a box of a tensor, which arrives in shared memory and at an mbarrier.
#pragma once
#include "tensor_map.hpp"

namespace cusim {

// `at`: the box's first element, innermost first; elements outside of the tensor arrive as zeros.
void tma_load(void* to, const void* map, void* barrier, const int32_t* at, int rank);

} // namespace cusim
