//! Every kernel of the house, loaded: from a folder of cubins, from the cache, or compiled now.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::path::Path;

use cudarc::driver::sys as cu;

use super::{CubinCache, GpuError, GpuOptions, check, compile};
use crate::cuda::driver::{Arch, DeviceInfo};
use crate::cuda::source::{UNITS, Unit};

/// Where a unit's machine code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The folder of cubins that was given.
    Given,
    /// This binary.
    Embedded,
    Cache,
    Compiled,
}

/// Loaded units and their kernels.
pub(super) struct Modules {
    origins: Vec<(&'static str, Origin)>,
    /// All of them: a kernel that is missing, or that the device has to load, shows at start and not in a step.
    functions: HashMap<String, cu::CUfunction>,
}

impl Modules {
    pub fn load(device: &DeviceInfo, options: &GpuOptions) -> Result<Self, GpuError> {
        let mut loaded = Self { origins: Vec::new(), functions: HashMap::new() };
        let is_hopper = device.arch.is_hopper();
        let wanted =
            |u: &&Unit| if options.with_checks { u.runs_on(is_hopper) } else { u.serves_on(is_hopper) };
        for unit in UNITS.iter().filter(wanted) {
            let (code, origin) = code_of(unit, device, options)?;
            let mut module = std::ptr::null_mut();
            // SAFETY: the image is a whole cubin and lives through the call.
            let outcome = unsafe { cu::cuModuleLoadData(&mut module, code.as_ptr().cast::<c_void>()) };
            check("cuModuleLoadData", outcome)?;
            loaded.add_kernels(module, device.smem_max)?;
            loaded.origins.push((unit.name, origin));
        }
        Ok(loaded)
    }

    pub fn origins(&self) -> &[(&'static str, Origin)] {
        &self.origins
    }

    pub fn function(&self, kernel: &str) -> cu::CUfunction {
        *self.functions.get(kernel).unwrap_or_else(|| panic!("no kernel named {kernel}"))
    }

    /// Loads every kernel of a module and allows it all the shared memory that its own arrays leave.
    fn add_kernels(&mut self, module: cu::CUmodule, smem_max: u32) -> Result<(), GpuError> {
        use cu::CUfunction_attribute as A;
        let mut count = 0;
        // SAFETY: `count` is writable and the module loaded.
        check("cuModuleGetFunctionCount", unsafe { cu::cuModuleGetFunctionCount(&mut count, module) })?;
        let mut functions = vec![std::ptr::null_mut(); count as usize];
        // SAFETY: the list has room for `count` functions.
        let outcome = unsafe { cu::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) };
        check("cuModuleEnumerateFunctions", outcome)?;
        for function in functions {
            let (mut name, mut own) = (std::ptr::null(), 0);
            // SAFETY: `name` is writable; the string belongs to the module.
            check("cuFuncGetName", unsafe { cu::cuFuncGetName(&mut name, function) })?;
            // SAFETY: the function is one of the module's.
            check("cuFuncLoad", unsafe { cu::cuFuncLoad(function) })?;
            let own_bytes = A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            // SAFETY: `own` is writable.
            check("cuFuncGetAttribute", unsafe { cu::cuFuncGetAttribute(&mut own, own_bytes, function) })?;
            let left = smem_max as c_int - own;
            let dynamic = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            check("cuFuncSetAttribute", unsafe { cu::cuFuncSetAttribute(function, dynamic, left) })?;
            // SAFETY: the driver gave a zero-terminated string.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            self.functions.insert(name, function);
        }
        Ok(())
    }
}

fn code_of(unit: &Unit, device: &DeviceInfo, options: &GpuOptions) -> Result<(Vec<u8>, Origin), GpuError> {
    let target = device.arch.target();
    if let Some(folder) = options.cubins.as_deref()
        && let Some(code) = given(unit, device.arch, folder)?
    {
        return Ok((code, Origin::Given));
    }
    if let Some(code) = embedded(unit, device.arch) {
        return Ok((code.to_vec(), Origin::Embedded));
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

/// Machine code that was built in, by file name: see `build.rs`, which takes none of other sources.
const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

fn embedded(unit: &Unit, arch: Arch) -> Option<&'static [u8]> {
    let find = |t: &String| {
        let wanted = unit.file(t);
        EMBEDDED.iter().find(|(name, _)| *name == wanted)
    };
    targets(arch).iter().find_map(find).map(|(_, code)| *code)
}

/// The unit's code in `folder`. A folder that has it for this architecture from other sources is refused by name: a
/// server that quietly compiled them anew would hide that the release and its kernels do not belong together.
fn given(unit: &Unit, arch: Arch, folder: &Path) -> Result<Option<Vec<u8>>, GpuError> {
    let targets = targets(arch);
    let here = targets.iter().find_map(|t| std::fs::read(folder.join(unit.file(t))).ok());
    let is_other = |name: &str| targets.iter().any(|t| name.starts_with(&format!("{}.{t}.", unit.name)));
    match here {
        Some(code) => Ok(Some(code)),
        None => match names(folder)?.into_iter().find(|name| is_other(name)) {
            Some(name) => {
                let (file, wanted) = (folder.join(name), unit.file(&targets[0]));
                Err(GpuError::OtherSources { file, wanted })
            }
            None => Ok(None),
        },
    }
}

fn names(folder: &Path) -> Result<Vec<String>, GpuError> {
    let unreadable = |why| GpuError::Folder { folder: folder.to_owned(), why };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Machine code runs on its own generation, and there on the same or a later member.
fn targets(arch: Arch) -> [String; 2] {
    [arch.target(), Arch(arch.0 / 10 * 10).target()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(arch: u32) -> DeviceInfo {
        let arch = Arch(arch);
        let (name, driver) = ("a card of the future".into(), "99.0".into());
        DeviceInfo { name, arch, sms: 1, l2_bytes: 0, memory_bytes: 0, smem_max: 0, driver }
    }

    #[test]
    fn an_unknown_architecture_without_nvrtc_is_one_clear_error() {
        let options = GpuOptions::default();
        if compile::is_present() {
            return println!("skipped: NVRTC is installed here");
        }
        let refused = code_of(&UNITS[0], &device(990), &options).expect_err("nothing can build this");
        expect_test::expect![[r#"
            a card of the future has architecture sm_990, for which this binary carries no kernels, and they cannot be compiled here: NVRTC (libnvrtc.so) was not found"#]]
        .assert_eq(&refused.to_string());
    }

    #[test]
    fn a_folder_serves_its_own_generation() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |target: &str| {
            std::fs::write(folder.path().join(UNITS[0].file(target)), target).expect("a file");
        };
        let found = |arch: u32| {
            let code = given(&UNITS[0], Arch(arch), folder.path()).expect("of these sources");
            code.map(|c| String::from_utf8(c).unwrap())
        };
        write("sm_80");
        write("sm_90a");
        assert_eq!([80, 86, 89].map(found), [(); 3].map(|()| Some("sm_80".to_owned())));
        assert_eq!(found(90).as_deref(), Some("sm_90a"));
        assert_eq!(found(120), None);
    }

    #[test]
    fn kernels_of_other_sources_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = format!("{}.sm_80.{}.cubin", UNITS[0].name, "0".repeat(32));
        std::fs::write(folder.path().join(&name), "code").expect("a file");
        let refused = given(&UNITS[0], Arch(86), folder.path()).expect_err("other sources");
        let text = refused.to_string();
        assert!(text.contains(&name) && text.contains(&UNITS[0].file("sm_86")), "{text}");
        assert_eq!(given(&UNITS[0], Arch(90), folder.path()).expect("nothing of it is for this one"), None);
        assert_eq!(given(&UNITS[1], Arch(80), folder.path()).expect("another unit"), None);
        std::fs::write(folder.path().join(UNITS[0].file("sm_80")), "code").expect("a file");
        assert!(given(&UNITS[0], Arch(86), folder.path()).expect("the right one is beside it").is_some());
        let missing = given(&UNITS[0], Arch(80), &folder.path().join("nowhere")).expect_err("no such folder");
        assert_eq!(missing.kind(), "folder");
    }

    #[test]
    fn what_is_built_in_was_built_from_these_sources() {
        for &(file, _) in EMBEDDED {
            let of = |unit: &Unit, target: &str| unit.file(target) == file;
            let target = file.split('.').nth(1).expect("UNIT.TARGET.HASH.cubin");
            assert!(UNITS.iter().any(|unit| of(unit, target)), "{file}: built from other sources");
        }
    }
}
