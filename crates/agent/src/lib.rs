//! The premises side: connectors, targets, health.

pub mod config;
