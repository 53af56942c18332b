// Fibers: see fiber.hpp.
#include "fiber.hpp"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(CUSIM_UCONTEXT)
#define CUSIM_PORTABLE_SWITCH 1
#include <ucontext.h>
#endif

namespace cusim {

// Guard page, then the stack: an overflow is a fault at once instead of a neighbour's wrong result.
static constexpr size_t guard_bytes = 4096;

char* Stacks::at(size_t i) {
    const size_t stride = bytes + guard_bytes;
    while (i >= count_ * chunk_stacks) {
        void* p = mmap(nullptr, stride * chunk_stacks, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) abort();
        for (size_t s = 0; s < chunk_stacks; s++) mprotect((char*)p + s * stride, guard_bytes, PROT_NONE);
        chunks_ = (char**)realloc(chunks_, (count_ + 1) * sizeof *chunks_);
        chunks_[count_++] = (char*)p;
    }
    return chunks_[i / chunk_stacks] + i % chunk_stacks * stride + guard_bytes;
}

Stacks::~Stacks() {
    for (size_t c = 0; c < count_; c++) munmap(chunks_[c], (bytes + guard_bytes) * chunk_stacks);
    free(chunks_);
}

#ifdef CUSIM_PORTABLE_SWITCH

static ucontext_t& machine(Context& context) {
    if (!context.ucontext) context.ucontext = std::make_shared<ucontext_t>();
    return *static_cast<ucontext_t*>(context.ucontext.get());
}

static void prepare(Context& context, char* bottom, void (*entry)()) {
    ucontext_t& u = machine(context);
    getcontext(&u);
    u.uc_stack.ss_sp = bottom;
    u.uc_stack.ss_size = Stacks::bytes;
    u.uc_link = nullptr;
    makecontext(&u, entry, 0);
}

static void swap(Context& from, Context& to) { swapcontext(&machine(from), &machine(to)); }

#else

extern "C" void cusim_switch(void** save, void* load);
// System V: rbx, rbp, r12-r15 belong to the caller; the rest is the compiler's to save around the call.
asm(R"(
.text
.globl cusim_switch
.type cusim_switch,@function
cusim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cusim_switch,.-cusim_switch
)");

static void prepare(Context& context, char* bottom, void (*entry)()) {
    void** top = reinterpret_cast<void**>(bottom + Stacks::bytes);
    *--top = nullptr; // keeps the stack aligned to 16 at entry, as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.sp = top;
}

static void swap(Context& from, Context& to) { cusim_switch(&from.sp, to.sp); }

#endif

void context_make(Context& context, char* bottom, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom, Stacks::bytes); // an abandoned fiber left its red zones
#endif
    context.fake_stack = nullptr;
    context.bottom = bottom;
    context.size = Stacks::bytes;
    prepare(context, bottom, entry);
}

void context_switch(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
    swap(from, to);
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
    swap(from, to);
#endif
}

void context_entered([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

} // namespace cusim
