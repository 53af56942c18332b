// Fibers: one small stack per CUDA thread, switched by hand.
//
// A switch saves six registers (about 5 ns), where an OS thread would cost microseconds and leave the order
// to the kernel; here the order is the seed's. A fiber never leaves the OS thread that it was made on.
// Other machines than x86-64 take swapcontext: right, but slower.
#pragma once
#include <stddef.h>
#include <memory>

namespace cusim {

// What a switch keeps of one side: the stack pointer, and the sanitizer's idea of that stack.
struct Context {
    void* sp = nullptr;
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
    std::shared_ptr<void> ucontext; // only where there is no hand-written switch
};

// Stacks of one OS thread, kept from block to block.
class Stacks {
public:
    ~Stacks();
    // The lowest address of stack `i`; stacks are made on first use.
    char* at(size_t i);
    static constexpr size_t bytes = 256 << 10;

private:
    struct Chunk;
    static constexpr size_t chunk_stacks = 64;
    char** chunks_ = nullptr;
    size_t count_ = 0;
};

// Prepares a fiber that calls `entry` on the stack at `bottom`; `entry` never returns.
void context_make(Context& context, char* bottom, void (*entry)());
// Leaves `from`, goes on with `to`.
void context_switch(Context& from, Context& to);
// Called first by a fresh fiber, so that the sanitizer knows where it is; `from` is who switched here.
void context_entered(Context& from);

} // namespace cusim
