//! cuBLASLt: products of bf16 matrices where speed counts more than bits that never change.
//!
//! A product's algorithm is asked for once per shape and kept. Which algorithm that is depends on the
//! number of rows, so the bits of a row may depend on its batch: `--determinism strict` does without.

use std::collections::HashMap;

use cudarc::cublaslt::{result as blas, sys};
use cudarc::driver::sys as cu;

use crate::cuda::driver::{Gemm, OutType};

/// What the library may use besides its operands.
const WORKSPACE: usize = 64 << 20;

/// Everything that decides an algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: u32,
    n: u32,
    k: u32,
    out: OutType,
    has_bias: bool,
}

/// A prepared product.
struct Product {
    desc: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulHeuristicResult_t,
}

pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    stream: cu::CUstream,
    workspace: u64,
    /// Bounded by the buckets of rows times the shapes of a model.
    products: HashMap<Shape, Option<Product>>,
}

impl CublasLt {
    /// `None` where the library is missing or does not start.
    pub fn open(stream: cu::CUstream) -> Option<Self> {
        // SAFETY: opens and closes the library.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let handle = blas::create_handle().ok()?;
        let mut workspace = 0;
        // SAFETY: `workspace` is writable and a context is current.
        let outcome = unsafe { cu::cuMemAlloc_v2(&mut workspace, WORKSPACE) };
        (outcome == cu::CUresult::CUDA_SUCCESS).then(|| Self {
            handle,
            stream,
            workspace,
            products: HashMap::new(),
        })
    }

    pub fn version(&self) -> String {
        // SAFETY: the library is open.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// False if the library has no algorithm for this shape; a product that fails is a failed step.
    pub fn run(&mut self, gemm: &Gemm) -> bool {
        let has_bias = gemm.bias.0 != 0;
        let shape = Shape { rows: gemm.rows, n: gemm.n, k: gemm.k, out: gemm.out_type, has_bias };
        let handle = self.handle;
        let product = self.products.entry(shape).or_insert_with(|| Product::prepare(handle, &shape).ok());
        let Some(product) = product else { return false };
        let outcome = product.run(self.handle, gemm, self.workspace, self.stream);
        outcome.unwrap_or_else(|error| panic!("cublasLtMatmul failed: {error:?}"));
        true
    }
}

impl Product {
    /// Row-major `out[rows][n] = x[rows][k]·w[n][k]ᵀ` is column-major `out(n×rows) = w(k×n)ᵀ · x(k×rows)`.
    fn prepare(handle: sys::cublasLtHandle_t, shape: &Shape) -> Result<Self, blas::CublasError> {
        use sys::cudaDataType_t as T;
        let (rows, n, k) = (u64::from(shape.rows), u64::from(shape.n), u64::from(shape.k));
        let out_type = match shape.out {
            OutType::Bf16 => T::CUDA_R_16BF,
            OutType::F32 => T::CUDA_R_32F,
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = blas::create_matmul_desc(compute, T::CUDA_R_32F)?;
        let transposed: i32 = 1;
        set(desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        if shape.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            let bias_type = T::CUDA_R_16BF;
            set(desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type)?;
            // Some versions look for a pointer before they name an algorithm; any aligned one will do.
            let anywhere: u64 = 256;
            set(desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &anywhere)?;
        }
        let w = blas::create_matrix_layout(T::CUDA_R_16BF, k, n, k as i64)?;
        let x = blas::create_matrix_layout(T::CUDA_R_16BF, k, rows, k as i64)?;
        let out = blas::create_matrix_layout(out_type, n, rows, n as i64)?;
        let preference = blas::create_matmul_pref()?;
        let most = WORKSPACE;
        // SAFETY: every descriptor was just made; the attribute is as large as its type says.
        let algorithm = unsafe {
            blas::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const most).cast(),
                size_of_val(&most),
            )?;
            let found = blas::get_matmul_algo_heuristic(handle, desc, w, x, out, out, preference);
            blas::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Self { desc, w, x, out, algorithm })
    }

    fn run(
        &self,
        handle: sys::cublasLtHandle_t,
        gemm: &Gemm,
        workspace: u64,
        stream: cu::CUstream,
    ) -> Result<(), blas::CublasError> {
        if gemm.bias.0 != 0 {
            let which = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            set(self.desc, which, &gemm.bias.0)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let out = gemm.out.0 as *mut _;
        // SAFETY: operands are device allocations of the shapes that the layouts describe; the stream type
        // of both bindings is the same opaque handle.
        unsafe {
            blas::matmul(
                handle,
                self.desc,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                gemm.w.0 as *const _,
                self.w,
                gemm.x.0 as *const _,
                self.x,
                out as *const _,
                self.out,
                out,
                self.out,
                &raw const self.algorithm.algo,
                workspace as *mut _,
                WORKSPACE,
                stream.cast(),
            )
        }
    }
}

fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    which: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), blas::CublasError> {
    // SAFETY: the descriptor exists and the value is as large as its type says.
    unsafe { blas::set_matmul_desc_attribute(desc, which, (&raw const *value).cast(), size_of::<T>()) }
}
