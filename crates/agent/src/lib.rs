//! The premises side: connectors, targets, health.

pub mod config;
pub mod health;
pub mod metrics;
