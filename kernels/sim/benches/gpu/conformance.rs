//! Each instruction wrapper alone, on the device and on the emulator, word for word.

use cusim::{Options, conformance};
use kernels::cuda::Driver;
use kernels::cuda::driver::{Arch, DevicePtr, Launch, Swizzle, TensorMapSpec};

use crate::bench::Device;
use crate::report::Report;

pub fn run(device: &Device, report: &mut Report) {
    let arch = device.info().arch;
    for case in conformance::cases() {
        if case.sm > arch.0 || (case.sm == 90 && !Arch::is_hopper(arch)) {
            continue;
        }
        report.attempt(&format!("conformance {}", case.name), |report| {
            let emulated = case.emulate(&Options::seeded(2)).unwrap_or_else(|e| panic!("{e}"));
            let compared = case.compare(&on_device(&*device.driver(), &case), &emulated);
            let found = compared.as_ref().err().map_or("as emulated", String::as_str);
            report.check(&format!("conformance {}", case.name), found, compared.is_ok());
        });
    }
}

fn on_device(driver: &dyn Driver, case: &conformance::Case) -> Vec<u32> {
    let alloc = |words: usize| driver.alloc(words.max(1) * 4, "conformance").expect("device memory");
    let (input, output) = (alloc(case.input.len()), alloc(case.output_words));
    if !case.input.is_empty() {
        driver.upload(input, bytemuck::cast_slice(&case.input));
    }
    driver.upload(output, &vec![0xff; case.output_words * 4]);
    let map = case.tensor_at(input.0).map_or([0; 16], |spec| driver.tensor_map(&described(&spec)).0);
    let params = case.params(map, input.0, output.0);
    let (grid, block, smem) = (case.grid, case.block[0], case.shared_bytes);
    driver.launch(&Launch { kernel: case.kernel, grid, block, smem, params: &params });
    let mut found = vec![0u32; case.output_words];
    driver.download(output, bytemuck::cast_slice_mut(&mut found));
    found
}

fn described(spec: &cusim::TensorMapSpec) -> TensorMapSpec {
    let rank = spec.dims.len();
    let fill = |of: &[u64], i: usize, or: u64| of.get(i).copied().unwrap_or(or);
    TensorMapSpec {
        base: DevicePtr(spec.base),
        dims: std::array::from_fn(|i| fill(&spec.dims, i, 1)),
        strides: std::array::from_fn(|i| fill(&spec.strides, i, 0)),
        boxes: std::array::from_fn(|i| spec.tile.get(i).copied().unwrap_or(1)),
        rank: rank as u32,
        swizzle: match spec.swizzle {
            cusim::Swizzle::None => Swizzle::None,
            cusim::Swizzle::Bytes128 => Swizzle::Bytes128,
        },
    }
}
