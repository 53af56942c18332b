// The kernels of this build by name, each with the size of its one parameter struct.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace cusim {

struct Kernel {
    const char* name;
    const char* file;
    size_t params_bytes, params_align;
    void (*call)(const void* params);
};

const Kernel* find_kernel(const char* name);
size_t kernel_count();
const Kernel& kernel_at(size_t i);
int register_kernel(const Kernel& kernel);

// `f` is a kernel of one struct by value: the argument of cuLaunchKernel's single parameter.
template <auto f>
struct Entry;
template <class Params, void (*f)(Params)>
struct Entry<f> {
    static void call(const void* params) { f(*static_cast<const Params*>(params)); }
    static int add(const char* name, const char* file) {
        return register_kernel({name, file, sizeof(Params), alignof(Params), call});
    }
};

} // namespace cusim

#define CUSIM_KERNEL(name) [[maybe_unused]] static const int cusim_registered_##name = cusim::Entry<&name>::add(#name, __FILE__);
