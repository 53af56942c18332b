// Types and conventions shared by all kernels.
//
// Sources here include nothing but each other: nvcc, NVRTC (which has no C headers) and g++ under CUSIM (the
// emulator of kernels/sim, put in front by its build) read the same text. A kernel takes exactly one
// plain struct by value, pointers and 8-byte members first, padding written out, so that the repr(C) mirror in
// kernels/src/cuda/params has the same bytes:
//
//     extern "C" __global__ void __launch_bounds__(128) quire_name(const __grid_constant__ NameParams p) { … }
//     CUSIM_KERNEL(quire_name)
//
// Shared memory is DYN_SMEM(type, name) for the dynamic part, at most once a kernel, aligned to 1024, and
// SHARED_ARRAY(type, name, count) for static arrays; a bare __shared__ would escape the emulator's poison
// and bounds, and does not compile there.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef u16 bf16; // the bits; arithmetic is in f32
typedef u8 e4m3;  // the bits of an 8-bit float: 4 exponent, 3 mantissa, no infinity, NaN 0x7f

// Small helpers of kernels.
#define DEVICE __device__ __forceinline__

#ifdef CUSIM
#define UNROLL
#define DYN_SMEM(type, name) type* name = reinterpret_cast<type*>(cusim::dynamic_shared())
#define SHARED_ARRAY(type, name, count)                                                                                \
    static const char name##_site = 0;                                                                                 \
    type(&name)[count] = *static_cast<type(*)[count]>(cusim::static_shared(&name##_site, sizeof(type) * (count), alignof(type)))
#else
#define UNROLL _Pragma("unroll")
extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[]; // once a file: its kernels may name it apart
#define DYN_SMEM(type, name) type* name = reinterpret_cast<type*>(dynamic_shared_bytes)
#define SHARED_ARRAY(type, name, count) __shared__ type name[count]
#define CUSIM_KERNEL(name)
#endif
