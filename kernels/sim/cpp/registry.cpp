// The kernels of this build: see registry.hpp.
#include "registry.hpp"
#include <string.h>
#include <vector>

namespace cusim {

// Filled by static constructors, before main; read only afterwards.
static std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

int register_kernel(const Kernel& kernel) {
    kernels().push_back(kernel);
    return 0;
}

const Kernel* find_kernel(const char* name) {
    for (const Kernel& kernel : kernels())
        if (strcmp(kernel.name, name) == 0) return &kernel;
    return nullptr;
}

size_t kernel_count() { return kernels().size(); }
const Kernel& kernel_at(size_t i) { return kernels()[i]; }

} // namespace cusim
