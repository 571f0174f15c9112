//! Hubs that link with each other, in one process, over real sockets.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod changes;
mod doors;
mod identity;
mod ingress;
mod life;
mod member;
mod proof;
mod questions;
mod rollback;
mod stranger;
