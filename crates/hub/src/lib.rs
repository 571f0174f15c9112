//! The cloud side: listeners, admission, routing, tunnels.

pub mod auth;
pub mod config;
pub mod metrics;
pub mod policy;
pub mod registry;
