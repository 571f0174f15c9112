//! The cloud side: listeners, admission, routing, tunnels.

pub mod metrics;
