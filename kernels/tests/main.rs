//! The backends held against the f64 reference and against the law of this crate: one body per claim, run
//! on the reference and on the CPU backend at every instruction set of this machine and several thread
//! counts.

mod attention;
mod chain;
mod cubins;
mod linear;
mod pages;
mod results;
mod rope;
mod rows;
mod sampling;
mod support;
