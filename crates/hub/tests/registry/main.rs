//! The registry: one set of rules for a hub alone and for hubs that share a real Redis, and what
//! happens when that Redis does not do as it should.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod conformance;
mod faults;
mod places;
mod sharing;
mod side;
