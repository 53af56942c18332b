// wgmma in PTX, bf16 with f32 accumulators, for n = 32 (K-major only), 64, 128 and 256; included by hopper.cuh for the GPU only.
//
// The assembler wants every accumulator register by name, hence the lists. Scale of d is a predicate (0: d is
// not read); a and b are neither negated nor scaled. In the last two numbers, 1 means MN-major.
#pragma once

#define WGMMA_8(at) "+f"(d[at]), "+f"(d[at + 1]), "+f"(d[at + 2]), "+f"(d[at + 3]), "+f"(d[at + 4]), "+f"(d[at + 5]), "+f"(d[at + 6]), "+f"(d[at + 7])
#define WGMMA_16(at) WGMMA_8(at), WGMMA_8(at + 8)
#define WGMMA_32(at) WGMMA_8(at), WGMMA_8(at + 8), WGMMA_8(at + 16), WGMMA_8(at + 24)
#define WGMMA_64(at) WGMMA_32(at), WGMMA_32(at + 32)
#define WGMMA_128(at) WGMMA_64(at), WGMMA_64(at + 64)
#define WGMMA_NAMES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_32 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_96 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <int N>
DEVICE void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, int accumulate);
template <int N>
DEVICE void wgmma_rs_tb(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate);

template <>
DEVICE void wgmma_ss<32>(float (&d)[16], u64 a, u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, scale, 1, 1, 0, 0;}"
                 : WGMMA_16(0)
                 : "l"(a), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_ss<64>(float (&d)[32], u64 a, u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_NAMES_0 "}, %32, %33, scale, 1, 1, 0, 0;}"
                 : WGMMA_32(0)
                 : "l"(a), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_rs_tb<64>(float (&d)[32], const u32 (&a)[4], u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_NAMES_0 "}, {%32, %33, %34, %35}, %36, scale, 1, 1, 1;}"
                 : WGMMA_32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_ss<128>(float (&d)[64], u64 a, u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_0 ", " WGMMA_NAMES_32 "}, %64, %65, scale, 1, 1, 0, 0;}"
                 : WGMMA_64(0)
                 : "l"(a), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_rs_tb<128>(float (&d)[64], const u32 (&a)[4], u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_0 ", " WGMMA_NAMES_32 "}, {%64, %65, %66, %67}, %68, scale, 1, 1, 1;}"
                 : WGMMA_64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_ss<256>(float (&d)[128], u64 a, u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64 ", " WGMMA_NAMES_96 "}, %128, %129, scale, 1, 1, 0, 0;}"
                 : WGMMA_128(0)
                 : "l"(a), "l"(b), "r"(accumulate));
}

template <>
DEVICE void wgmma_rs_tb<256>(float (&d)[128], const u32 (&a)[4], u64 b, int accumulate) {
    asm volatile("{.reg .pred scale; setp.ne.b32 scale, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WGMMA_NAMES_0 ", " WGMMA_NAMES_32 ", " WGMMA_NAMES_64 ", " WGMMA_NAMES_96 "}, {%128, %129, %130, %131}, %132, scale, 1, 1, 1;}"
                 : WGMMA_128(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef WGMMA_8
#undef WGMMA_16
#undef WGMMA_32
#undef WGMMA_64
#undef WGMMA_128
#undef WGMMA_NAMES_0
#undef WGMMA_NAMES_32
#undef WGMMA_NAMES_64
#undef WGMMA_NAMES_96
