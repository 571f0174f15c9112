//! Hostile peers at every door: what each is told, what the operator sees, and that everybody else is
//! served as before.
//!
//! Every module begins with the list of its cases. A case is a test of its own; the list says what the
//! peer gets and which metric or log event tells of it, and `docs/security-cases.md` is made of all lists.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod agent_side;
mod clients;
mod doors;
mod files;
mod frames;
mod ingress;
mod jwks;
mod jwt;
mod list;
mod mesh;
mod registry;
mod scene;
#[path = "../../../hub/tests/mesh/stranger.rs"]
mod stranger;
mod upgrade;
mod v1;
