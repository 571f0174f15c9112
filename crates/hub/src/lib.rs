//! The cloud side: listeners, admission, routing, tunnels.

pub mod auth;
pub mod metrics;
