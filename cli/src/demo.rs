//! The model inside the binary. `build.rs` lists what `assets/demo` held.

use runtime::files::ModelFiles;

include!(concat!(env!("OUT_DIR"), "/demo.rs"));

/// What the API calls it.
pub const NAME: &str = "quire-demo";

/// The demo model; `None` if the source tree had none.
pub fn files() -> Option<ModelFiles> {
    (!FILES.is_empty()).then_some(ModelFiles::Embedded(FILES))
}
