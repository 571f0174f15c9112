//! A whole hub in this process: real ports, real tokens, real tunnels.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod admin;
mod agent;
mod dpop;
mod drain;
mod flows;
mod judged;
mod reload;
mod rig;
mod surface;
mod tls;
mod tunnels;
