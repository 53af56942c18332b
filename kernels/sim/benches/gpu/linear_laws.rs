//! Products: near f64, near the library's, the same bits in every plan, and untouched by blocks of zeros.

use base::SplitMix;
use half::bf16;
use kernels::cuda::driver::{DevicePtr, Driver, Launch, Swizzle, TensorMapSpec};
use kernels::cuda::linear_fp8::Fp8Weights;
use kernels::cuda::linear_plan::{self, LinearBoxes, LinearFamily, LinearPlan};
use kernels::cuda::params::linear::{LinearOutput, LinearParams, LinearSm90Params};
use kernels::cuda::{CudaOptions, Determinism};
use kernels::{Backend, Precision, WeightForm, e4m3};

use crate::bench::{
    Device, begin_rows, bits, narrow, normal, plain_pool, relative, strict, vector, weight_of,
};
use crate::report::Report;

/// Operands, bf16, row-major.
#[derive(Clone)]
struct Product {
    x: Vec<bf16>,
    w: Vec<bf16>,
    bias: Vec<f32>,
    rows: usize,
    n: usize,
    k: usize,
}

impl Product {
    fn new(rows: usize, n: usize, k: usize) -> Self {
        let rng = &mut SplitMix::new((rows * 31 + n * 7 + k) as u64);
        let [x, w] = [rows * k, n * k].map(|len| narrow(&normal(rng, len)));
        let bias: Vec<f32> = narrow(&normal(rng, n)).iter().map(|b| b.to_f32()).collect();
        Self { x, w, bias, rows, n, k }
    }

    /// In the form that e4m3 kernels read.
    fn fp8(&self) -> Fp8Weights {
        let wide: Vec<f32> = self.w.iter().map(|w| w.to_f32()).collect();
        Fp8Weights::quantize(&wide, self.k)
    }

    /// As they are multiplied.
    fn weights(&self, family: LinearFamily) -> Vec<f64> {
        if family != LinearFamily::Fp8 {
            return self.w.iter().map(|w| w.to_f64()).collect();
        }
        let Fp8Weights { bytes, scales } = self.fp8();
        let one = |i: usize| {
            let (row, at) = (i / self.k, i % self.k);
            f64::from(e4m3::value(bytes[row * self.k + e4m3::place(at)])) * f64::from(scales[row])
        };
        (0..self.w.len()).map(one).collect()
    }

    fn in_f64(&self, family: LinearFamily) -> Vec<f32> {
        let rows = self.x.chunks(self.k).take(self.rows);
        let weights = self.weights(family);
        let dot = |x: &[bf16], w: &[f64]| x.iter().zip(w).map(|(a, b)| a.to_f64() * b).sum::<f64>() as f32;
        rows.flat_map(|x| weights.chunks(self.k).map(move |w| dot(x, w))).collect()
    }

    /// By the backend's choice of kernel, or by the library.
    fn by(&self, device: &Device, determinism: Determinism, biased: bool, out: Precision) -> Vec<f32> {
        let mut b = device.backend(CudaOptions { determinism, ..strict() });
        plain_pool(&mut b, &mut SplitMix::new(1), self.rows);
        let w = weight_of(&mut b, &self.w, WeightForm::Bf16, self.n, self.k);
        let bias = biased.then(|| vector(&mut b, &self.bias));
        let x = b.buffer(self.rows, self.k, Precision::Half).expect("device memory");
        let wide: Vec<f32> = self.x.iter().map(|v| v.to_f32()).collect();
        b.write(x, self.rows, &wide);
        let y = b.buffer(self.rows, self.n, out).expect("device memory");
        begin_rows(&mut b, self.rows);
        b.linear(x, w, bias, y);
        b.read(y)
    }
}

pub fn run(device: &Device, report: &mut Report) {
    report.attempt("library near strict", |report| library(device, report));
    let hopper = device.info().arch.is_hopper();
    for family in [LinearFamily::Mma, LinearFamily::Wgmma, LinearFamily::Fp8] {
        if family == LinearFamily::Wgmma && !hopper {
            continue;
        }
        let driver = device.driver();
        report.attempt(&format!("plans of {family:?}"), |report| plans(&*driver, device, family, report));
        report.attempt(&format!("zeros of {family:?}"), |report| zeros(&*driver, family, report));
    }
}

fn library(device: &Device, report: &mut Report) {
    let shapes: &[(usize, usize, usize)] = if device.is_small() {
        &[(5, 40, 128)]
    } else {
        &[(1, 6144, 4096), (17, 4096, 1024), (64, 1024, 4096), (300, 2048, 2048)]
    };
    for &(rows, n, k) in shapes {
        let product = Product::new(rows, n, k);
        for biased in [false, true] {
            for out in [Precision::Half, Precision::Full] {
                let strict = product.by(device, Determinism::Strict, biased, out);
                let fast = product.by(device, Determinism::Fast, biased, out);
                let error = relative(&fast, &strict);
                let found = format!("{rows} x {n} x {k}, bias {biased}, {out:?}: {error:.2e}");
                report.check("library near strict", &found, error < 2e-2);
            }
        }
    }
}

/// A row's bits: in every plan, and alone, among 17, 64 and 300.
fn plans(driver: &dyn Driver, device: &Device, family: LinearFamily, report: &mut Report) {
    let (n, k) = if device.is_small() { (72, 320) } else { (1000, 2048) };
    let whole = Product::new(300, n, k);
    let operands = Operands::new(driver, &whole, family);
    let reference = operands.run(driver, &linear_plan::all_plans(family, 300, n as u32, 132)[0], 300);
    let error = relative(&reference, &whole.in_f64(family));
    report.check("product near f64", &format!("{family:?}: {error:.2e}"), error < 1e-4);
    for rows in [1, 17, 64, 300] {
        for plan in linear_plan::all_plans(family, rows, n as u32, 132) {
            let got = operands.run(driver, &plan, rows);
            let same = bits(&got) == bits(&reference[..got.len()]);
            report.check("plans agree", &format!("{} on {rows} rows", plan.kernel), same);
        }
    }
}

/// Blocks of zeros behind the last, in x or in w, change no bit: the law that masked blocks rest on.
fn zeros(driver: &dyn Driver, family: LinearFamily, report: &mut Report) {
    const SHORT: usize = 128;
    let short = Product::new(40, 72, SHORT);
    let longer = |zero_x: bool| {
        let mut long = Product::new(40, 72, 4 * SHORT);
        for (matrix, from, is_zero) in [(&mut long.x, &short.x, zero_x), (&mut long.w, &short.w, !zero_x)] {
            for (row, own) in matrix.chunks_mut(4 * SHORT).zip(from.chunks(SHORT)) {
                row[..SHORT].copy_from_slice(own);
                if is_zero {
                    row[SHORT..].fill(bf16::ZERO);
                }
            }
        }
        long
    };
    // Longer rows of e4m3 weights have another scale, unless what is added are zeros.
    let in_x = (family != LinearFamily::Fp8).then(|| ("x", longer(true)));
    for (what, long) in in_x.into_iter().chain([("w", longer(false))]) {
        let [short, long] = [&short, &long].map(|of| Operands::new(driver, of, family));
        for plan in linear_plan::all_plans(family, 40, 72, 132) {
            let same = bits(&short.run(driver, &plan, 40)) == bits(&long.run(driver, &plan, 40));
            report.check("zeros change nothing", &format!("{} zeros in {what}", plan.kernel), same);
        }
    }
}

/// A product on the device.
struct Operands {
    x: DevicePtr,
    w: DevicePtr,
    /// Of e4m3.
    scales: DevicePtr,
    out: DevicePtr,
    live: DevicePtr,
    rows: usize,
    n: usize,
    k: usize,
}

impl Operands {
    fn new(driver: &dyn Driver, of: &Product, family: LinearFamily) -> Self {
        let put = |bytes: &[u8]| {
            let at = driver.alloc(bytes.len(), "a product").expect("device memory");
            driver.upload(at, bytes);
            at
        };
        let (w, scales) = match family {
            LinearFamily::Fp8 => {
                let Fp8Weights { bytes, scales } = of.fp8();
                (put(&bytes), put(bytemuck::cast_slice(&scales)))
            }
            _ => (put(bytemuck::cast_slice(&of.w)), DevicePtr::NULL),
        };
        Self {
            x: put(bytemuck::cast_slice(&of.x)),
            w,
            scales,
            out: put(&vec![0xff; of.rows * of.n * 4]),
            live: put(&0u32.to_le_bytes()),
            rows: of.rows,
            n: of.n,
            k: of.k,
        }
    }

    /// f32 outputs of the first `rows` rows.
    fn run(&self, driver: &dyn Driver, plan: &LinearPlan, rows: u32) -> Vec<f32> {
        driver.upload(self.live, &rows.to_le_bytes());
        driver.upload(self.out, &vec![0xff; self.rows * self.n * 4]);
        let (n, k, rows_live) = (self.n as u32, self.k as u32, self.live);
        let (data, bias) = (self.out, DevicePtr::NULL);
        let out = LinearOutput { data, bias, n, stride: n, is_f32: 1, padding: 0 };
        let launch = |params: &[u8]| {
            let LinearPlan { kernel, grid, block, smem, .. } = *plan;
            driver.launch(&Launch { kernel, grid, block, smem, params });
        };
        match plan.boxes {
            None => {
                let (x, w, scale) = (self.x, self.w, self.scales);
                let params = LinearParams { x, w, scale, rows_live, out, k, padding: 0 };
                launch(bytemuck::bytes_of(&params));
            }
            Some(LinearBoxes { x_rows, w_rows }) => {
                let (x, w) =
                    (self.map(driver, self.x, self.rows, x_rows), self.map(driver, self.w, self.n, w_rows));
                launch(bytemuck::bytes_of(&LinearSm90Params { x, w, rows_live, out, k, padding: [0; 5] }));
            }
        }
        let mut got = vec![0.0f32; rows as usize * self.n];
        driver.download(self.out, bytemuck::cast_slice_mut(&mut got));
        got
    }

    fn map(
        &self,
        driver: &dyn Driver,
        base: DevicePtr,
        rows: usize,
        tile: u32,
    ) -> kernels::cuda::driver::TensorMap {
        driver.tensor_map(&TensorMapSpec {
            base,
            dims: [self.k as u64, rows as u64, 1, 1],
            strides: [self.k as u64 * 2, 0, 0],
            boxes: [64, tile, 1, 1],
            rank: 2,
            swizzle: Swizzle::Bytes128,
        })
    }
}
