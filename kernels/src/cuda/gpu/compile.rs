//! NVRTC: a source into machine code for the present device, where the library is at hand.

use std::ffi::{CStr, CString, c_char};

use cudarc::nvrtc::sys as rtc;

use super::GpuError;
use crate::cuda::source::Unit;

/// True if libnvrtc is there.
pub(super) fn is_present() -> bool {
    // SAFETY: opens and closes the library.
    unsafe { rtc::is_culib_present() }
}

/// Machine code of `unit` for `target` (`sm_90a`). NVRTC must be present.
pub(super) fn compile(unit: &Unit, target: &str) -> Result<Vec<u8>, GpuError> {
    let source = CString::new(unit.source()).expect("sources hold no zero byte");
    let name = CString::new(format!("{}.cu", unit.name)).expect("names hold no zero byte");
    let program = Program::new(&source, &name)?;
    let target_option = CString::new(format!("--gpu-architecture={target}")).expect("no zero byte");
    // 177: constants of an inlined header that a unit does not use.
    let quiet = c"--diag-suppress=177".as_ptr();
    let options = [target_option.as_ptr(), c"--std=c++17".as_ptr(), c"-default-device".as_ptr(), quiet];
    // SAFETY: the program exists, the options are zero-terminated and live through the call.
    let outcome = unsafe { rtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    if outcome != rtc::nvrtcResult::NVRTC_SUCCESS {
        return Err(GpuError::Compile { unit: unit.name, target: target.into(), log: program.log() });
    }
    program.code()
}

struct Program(rtc::nvrtcProgram);

impl Program {
    fn new(source: &CStr, name: &CStr) -> Result<Self, GpuError> {
        let mut program = std::ptr::null_mut();
        let none = std::ptr::null::<*const c_char>();
        // SAFETY: `program` is writable, the strings are zero-terminated; no headers are given.
        let outcome =
            unsafe { rtc::nvrtcCreateProgram(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none) };
        check("nvrtcCreateProgram", outcome)?;
        Ok(Self(program))
    }

    fn log(&self) -> String {
        let mut len = 0;
        // SAFETY: `len` is writable.
        if unsafe { rtc::nvrtcGetProgramLogSize(self.0, &mut len) } != rtc::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; len];
        // SAFETY: the buffer has the length that was asked for.
        let _ = unsafe { rtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string()
    }

    fn code(&self) -> Result<Vec<u8>, GpuError> {
        let mut len = 0;
        // SAFETY: `len` is writable.
        check("nvrtcGetCUBINSize", unsafe { rtc::nvrtcGetCUBINSize(self.0, &mut len) })?;
        let mut code = vec![0u8; len];
        // SAFETY: the buffer has the length that was asked for.
        check("nvrtcGetCUBIN", unsafe { rtc::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()) })?;
        Ok(code)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { rtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn check(call: &'static str, result: rtc::nvrtcResult) -> Result<(), GpuError> {
    match result {
        rtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        failed => Err(GpuError::Call { call, why: format!("{failed:?}") }),
    }
}
