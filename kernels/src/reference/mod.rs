//! The reference backend (f64).
