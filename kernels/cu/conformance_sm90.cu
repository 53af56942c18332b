// Each wrapper of hopper.cuh alone, writing down what it saw; see conformance.cu.
#include "conformance.cuh"
#include "hopper.cuh"

#define CONFORM(name, threads)                                                                                         \
    extern "C" __global__ void __launch_bounds__(threads, 1) quire_conform_##name(const __grid_constant__ ConformanceParams p)

// ---- barriers ----------------------------------------------------------------------------------------------------------

// Two pairs of warps meet at two numbered barriers, three rounds, and read what the other warp of the pair wrote.
CONFORM(bar_sync, 128) {
    DYN_SMEM(u32, shared);
    const u32 t = threadIdx.x, pair = t / 64;
    Seen seen = conform_seen(p, 3);
    UNROLL for (u32 round = 0; round < 3; round++) {
        shared[t] = p.in[t] + round;
        bar_sync(1 + pair, 64);
        seen.word(shared[t ^ 32]);
        bar_sync(1 + pair, 64);
    }
}
CUSIM_KERNEL(quire_conform_bar_sync)

// A ring of two stages: warp 0 fills, warp 1 reads; five rounds, so that each parity is waited for twice.
CONFORM(mbar_ring, 64) {
    DYN_SMEM(u32, shared);
    SHARED_ARRAY(u64, bars, 4);
    u64 *full = bars, *empty = bars + 2;
    if (threadIdx.x == 0) {
        UNROLL for (u32 s = 0; s < 2; s++) {
            mbar_init(full + s, 32);
            mbar_init(empty + s, 32);
        }
        fence_mbar_init();
    }
    __syncthreads();
    const u32 lane = conform_lane();
    UNROLL for (u32 round = 0; round < 5; round++) {
        const u32 s = round & 1, parity = round >> 1 & 1;
        if (threadIdx.x < 32) {
            mbar_wait(empty + s, parity ^ 1); // the first pass of a fresh barrier
            shared[s * 32 + lane] = p.in[round * 32 + lane];
            mbar_arrive(full + s);
        } else {
            mbar_wait(full + s, parity);
            p.out[round * 32 + lane] = shared[s * 32 + (31 - lane)];
            mbar_arrive(empty + s);
        }
    }
}
CUSIM_KERNEL(quire_conform_mbar_ring)

// ---- TMA ---------------------------------------------------------------------------------------------------------------

// in[0]: bytes of a box; in[1..5]: its coordinates. The box as it lies in shared memory.
template <int rank>
DEVICE void conform_tma(const ConformanceParams& p) {
    DYN_SMEM(unsigned char, shared);
    SHARED_ARRAY(u64, bar, 1);
    const TensorMap* map = (const TensorMap*)p.map;
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        fence_mbar_init();
        mbar_expect_tx(bar, p.in[0]);
        const i32* c = (const i32*)p.in + 1;
        if (rank == 2) tma_load_2d(shared, map, bar, c[0], c[1]);
        if (rank == 3) tma_load_3d(shared, map, bar, c[0], c[1], c[2]);
        if (rank == 4) tma_load_4d(shared, map, bar, c[0], c[1], c[2], c[3]);
    }
    __syncthreads();
    mbar_wait(bar, 0);
    for (u32 i = threadIdx.x; i < p.in[0] / 4; i += 32) p.out[i] = ((const u32*)shared)[i];
}
CONFORM(tma_2d, 32) { conform_tma<2>(p); }
CUSIM_KERNEL(quire_conform_tma_2d)
CONFORM(tma_3d, 32) { conform_tma<3>(p); }
CUSIM_KERNEL(quire_conform_tma_3d)
CONFORM(tma_4d, 32) { conform_tma<4>(p); }
CUSIM_KERNEL(quire_conform_tma_4d)

// Two boxes on one barrier, twice through one buffer: tx-counts and parities together.
CONFORM(tma_phases, 64) {
    DYN_SMEM(unsigned char, shared);
    SHARED_ARRAY(u64, bars, 2);
    const TensorMap* map = (const TensorMap*)p.map;
    if (threadIdx.x == 0) {
        mbar_init(bars, 1);
        mbar_init(bars + 1, 32);
        fence_mbar_init();
    }
    __syncthreads();
    const u32 bytes = p.in[0], lane = conform_lane();
    UNROLL for (u32 round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            mbar_wait(bars + 1, round ^ 1);
            mbar_expect_tx(bars, 2 * bytes);
            tma_load_2d(shared, map, bars, 0, (i32)(round * 16));
            tma_load_2d(shared + bytes, map, bars, 0, (i32)(round * 16 + 8));
        }
        if (threadIdx.x >= 32) {
            mbar_wait(bars, round);
            for (u32 i = lane; i < bytes / 2; i += 32) p.out[round * bytes / 2 + i] = ((const u32*)shared)[i];
            mbar_arrive(bars + 1);
        }
    }
}
CUSIM_KERNEL(quire_conform_tma_phases)

// ---- wgmma -------------------------------------------------------------------------------------------------------------

// 64 k values of `rows` rows, from row-major words, K-major in the 128-byte swizzle.
DEVICE void conform_store_k_major(unsigned char* to, const u32* from, u32 rows) {
    for (u32 i = threadIdx.x; i < rows * 32; i += 128) {
        const u32 row = i / 32, byte = i % 32 * 4;
        *(u32*)(to + row * 128 + (byte ^ (row & 7) << 4)) = from[i];
    }
}

// 16 lines (k) of `columns` values, MN-major: 64 columns to a line of an atom, atoms of 64 columns 2048 bytes apart.
DEVICE void conform_store_mn_major(unsigned char* to, const u32* from, u32 columns) {
    for (u32 i = threadIdx.x; i < columns / 2 * 16; i += 128) {
        const u32 k = i / (columns / 2), column = i % (columns / 2) * 2, byte = column % 64 * 2;
        *(u32*)(to + column / 64 * 2048 + k * 128 + (byte ^ (k & 7) << 4)) = from[i];
    }
}

template <int N>
DEVICE void conform_show(const ConformanceParams& p, const float (&d)[N / 2]) {
    Seen seen = conform_seen(p, N / 2);
    UNROLL for (int i = 0; i < N / 2; i++) seen.value(d[i]);
}

// A[64][64] and B[N][64], four steps of k.
template <int N>
DEVICE void conform_wgmma_ss(const ConformanceParams& p) {
    DYN_SMEM(unsigned char, shared);
    unsigned char *a = shared, *b = shared + 8192;
    conform_store_k_major(a, p.in, 64);
    conform_store_k_major(b, p.in + 64 * 32, N);
    fence_proxy_async();
    __syncthreads();
    float d[N / 2];
    wg_fence();
    UNROLL for (int k = 0; k < 4; k++) wgmma_ss<N>(d, smem_desc(a + k * 32, 16, 1024), smem_desc(b + k * 32, 16, 1024), k > 0);
    wg_commit();
    wg_wait<0>();
    conform_show<N>(p, d);
}
CONFORM(wgmma_ss_n32, 128) { conform_wgmma_ss<32>(p); }
CUSIM_KERNEL(quire_conform_wgmma_ss_n32)
CONFORM(wgmma_ss_n64, 128) { conform_wgmma_ss<64>(p); }
CUSIM_KERNEL(quire_conform_wgmma_ss_n64)
CONFORM(wgmma_ss_n128, 128) { conform_wgmma_ss<128>(p); }
CUSIM_KERNEL(quire_conform_wgmma_ss_n128)
CONFORM(wgmma_ss_n256, 128) { conform_wgmma_ss<256>(p); }
CUSIM_KERNEL(quire_conform_wgmma_ss_n256)

// A[64][16] from registers, B[16][N] MN-major, added to what the input says.
template <int N>
DEVICE void conform_wgmma_rs_tb(const ConformanceParams& p) {
    DYN_SMEM(unsigned char, shared);
    conform_store_mn_major(shared, p.in + 128 * 4, N);
    fence_proxy_async();
    __syncthreads();
    u32 a[4];
    UNROLL for (u32 i = 0; i < 4; i++) a[i] = p.in[threadIdx.x * 4 + i];
    float d[N / 2];
    UNROLL for (int i = 0; i < N / 2; i++) d[i] = (float)(i % 7) - 3.0f;
    wg_fence();
    wgmma_rs_tb<N>(d, a, smem_desc(shared, 2048, 1024), 1);
    wg_commit();
    wg_wait<0>();
    conform_show<N>(p, d);
}
CONFORM(wgmma_rs_tb_n64, 128) { conform_wgmma_rs_tb<64>(p); }
CUSIM_KERNEL(quire_conform_wgmma_rs_tb_n64)
CONFORM(wgmma_rs_tb_n128, 128) { conform_wgmma_rs_tb<128>(p); }
CUSIM_KERNEL(quire_conform_wgmma_rs_tb_n128)
CONFORM(wgmma_rs_tb_n256, 128) { conform_wgmma_rs_tb<256>(p); }
CUSIM_KERNEL(quire_conform_wgmma_rs_tb_n256)

// Two groups under way with accumulators of their own; the first is read while the second may still run.
CONFORM(wgmma_groups, 128) {
    DYN_SMEM(unsigned char, shared);
    unsigned char *a = shared, *b = shared + 8192;
    conform_store_k_major(a, p.in, 64);
    conform_store_k_major(b, p.in + 64 * 32, 64);
    fence_proxy_async();
    __syncthreads();
    float first[32], second[32];
    wg_fence();
    wgmma64_ss(first, smem_desc(a, 16, 1024), smem_desc(b, 16, 1024), 0);
    wg_commit();
    wg_fence();
    wgmma64_ss(second, smem_desc(a + 32, 16, 1024), smem_desc(b + 64, 16, 1024), 0);
    wg_commit();
    Seen seen = conform_seen(p, 64);
    wg_wait<1>();
    UNROLL for (int i = 0; i < 32; i++) seen.value(first[i]);
    wg_wait<0>();
    UNROLL for (int i = 0; i < 32; i++) seen.value(second[i]);
}
CUSIM_KERNEL(quire_conform_wgmma_groups)

// ---- registers and launches --------------------------------------------------------------------------------------------

// Nothing to see but that both warpgroups and both ends of a dependent launch come through.
CONFORM(no_ops, 256) {
    griddep_wait();
    u32 v;
    if (threadIdx.x < 128) {
        setmaxnreg_dec<24>();
        v = p.in[threadIdx.x];
    } else {
        setmaxnreg_inc<240>();
        v = ~p.in[threadIdx.x];
    }
    griddep_launch();
    conform_seen(p, 1).word(v);
}
CUSIM_KERNEL(quire_conform_no_ops)
