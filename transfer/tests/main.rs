//! Claims about the tiers' bytes, on real files.

mod common;
mod crash;
mod journal;
mod keystore;
mod nvme;
mod object;
