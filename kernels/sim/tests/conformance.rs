//! The emulator itself: each wrapper alone, against the plain meaning of its PTX table.

#[test]
fn kernels_register_themselves() {
    for name in cusim::kernel_names() {
        assert!(cusim::params_bytes(&name).is_some_and(|bytes| bytes > 0), "{name}");
    }
}
