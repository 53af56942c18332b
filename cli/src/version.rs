//! What this binary is: version, commit, target. All known at build time.

/// `0.1.0 (1a2b3c4d5e6f)`; the first line of every start, and of `--version`.
pub const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("QUIRE_COMMIT"), ")");

/// As [`SHORT`], with what the compiler was allowed to use. The kernels choose their own instructions at
/// run time (`quire doctor` shows which), whatever stands here.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("QUIRE_COMMIT"),
    ")\ntarget: ",
    env!("QUIRE_TARGET"),
    "\ntarget features: ",
    env!("QUIRE_TARGET_FEATURES")
);

pub const NUMBER: &str = env!("CARGO_PKG_VERSION");
pub const COMMIT: &str = env!("QUIRE_COMMIT");
