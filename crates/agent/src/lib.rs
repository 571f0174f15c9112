//! The premises side: connectors, targets, health.

pub mod agent;
pub mod config;
mod connector;
pub mod failure;
pub mod flows;
pub mod health;
pub mod metrics;
mod round;
pub mod targets;
pub mod token;
mod tunnel;
pub mod uplink;

pub use agent::{Agent, StartError};
