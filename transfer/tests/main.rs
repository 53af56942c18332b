//! Claims about the tiers' bytes, on real files.

mod common;
mod journal;
mod nvme;
