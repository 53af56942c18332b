//! From text to the names under which replicas know its blocks.

pub mod foreign;
pub mod prompt;
pub mod roots;
