//! Every kernel of the house, loaded: from a folder of cubins, from the cache, or compiled now.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::path::Path;

use cudarc::driver::sys as cu;

use super::{CubinCache, GpuError, GpuOptions, check, compile, expect};
use crate::cuda::driver::{Arch, DeviceInfo};
use crate::cuda::source::{UNITS, Unit};

/// Where a unit's machine code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The folder of cubins that was given.
    Given,
    Cache,
    Compiled,
}

/// Dynamic shared memory that a kernel has without asking.
const SMEM_FREE: u32 = 48 << 10;

struct Function {
    handle: cu::CUfunction,
    smem: u32,
}

/// Loaded units and the kernels that were used.
pub(super) struct Modules {
    modules: Vec<cu::CUmodule>,
    origins: Vec<(&'static str, Origin)>,
    /// Bounded by the number of kernels.
    functions: RefCell<HashMap<&'static str, Function>>,
}

impl Modules {
    pub fn load(device: &DeviceInfo, options: &GpuOptions) -> Result<Self, GpuError> {
        let mut loaded = Self { modules: Vec::new(), origins: Vec::new(), functions: RefCell::default() };
        let serves = |u: &&Unit| !u.hopper_only || device.arch.is_hopper();
        let wanted = |u: &&Unit| options.with_checks || !u.is_for_checks();
        for unit in UNITS.iter().filter(serves).filter(wanted) {
            let (code, origin) = code_of(unit, device, options)?;
            let mut module = std::ptr::null_mut();
            // SAFETY: the image is a whole cubin and lives through the call.
            let outcome = unsafe { cu::cuModuleLoadData(&mut module, code.as_ptr().cast::<c_void>()) };
            check("cuModuleLoadData", outcome)?;
            loaded.modules.push(module);
            loaded.origins.push((unit.name, origin));
        }
        Ok(loaded)
    }

    pub fn origins(&self) -> &[(&'static str, Origin)] {
        &self.origins
    }

    /// The kernel, allowed to use `smem` bytes of dynamic shared memory.
    pub fn function(&self, kernel: &'static str, smem: u32) -> cu::CUfunction {
        let mut functions = self.functions.borrow_mut();
        let function = functions
            .entry(kernel)
            .or_insert_with(|| Function { handle: self.find(kernel), smem: SMEM_FREE });
        if smem > function.smem {
            let attribute = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let outcome = unsafe { cu::cuFuncSetAttribute(function.handle, attribute, smem as c_int) };
            expect(kernel, outcome);
            function.smem = smem;
        }
        function.handle
    }

    fn find(&self, kernel: &'static str) -> cu::CUfunction {
        let name = CString::new(kernel).expect("names hold no zero byte");
        for &module in &self.modules {
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is loaded, the name zero-terminated.
            let outcome = unsafe { cu::cuModuleGetFunction(&mut function, module, name.as_ptr()) };
            if outcome == cu::CUresult::CUDA_SUCCESS {
                return function;
            }
        }
        panic!("no kernel named {kernel}");
    }
}

fn code_of(unit: &Unit, device: &DeviceInfo, options: &GpuOptions) -> Result<(Vec<u8>, Origin), GpuError> {
    let target = device.arch.target();
    if let Some(code) = options.cubins.as_deref().and_then(|folder| given(unit, device.arch, folder)) {
        return Ok((code, Origin::Given));
    }
    let cache = options.cache.as_deref().map(CubinCache::new);
    if let Some(code) = cache.as_ref().and_then(|cache| cache.get(unit, &target)) {
        return Ok((code, Origin::Cache));
    }
    if !compile::is_present() {
        let why = "NVRTC (libnvrtc.so) was not found".into();
        return Err(GpuError::NoKernels { device: device.name.clone(), target, why });
    }
    let code = compile::compile(unit, &target)?;
    if let Some(cache) = cache {
        // A cache that cannot be written costs the next start some seconds, and nothing else.
        let _unwritable = cache.put(unit, &target, &code);
    }
    Ok((code, Origin::Compiled))
}

/// Machine code runs on its own generation, and there on the same or a later member.
fn given(unit: &Unit, arch: Arch, folder: &Path) -> Option<Vec<u8>> {
    let first = arch.0 / 10 * 10;
    let targets = std::iter::once(arch.target()).chain([Arch(first).target()]);
    targets.map(|t| folder.join(format!("{}.{t}.cubin", unit.name))).find_map(|path| std::fs::read(path).ok())
}
