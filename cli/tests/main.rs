//! What a user sees of the binary, by running it.

mod architecture;
mod binary;
mod config;
mod doctor;
mod golden;
mod replay;
mod route;
mod rpc;
mod server;
mod tiers;
