//! The premises side: connectors, targets, health.

pub mod agent;
pub mod config;
mod credential;
pub mod failure;
mod fleet;
pub mod flows;
pub mod health;
mod keeper;
mod leaving;
pub mod metrics;
pub mod probe;
pub mod proof;
mod proxy_header;
mod renewal;
mod round;
mod standing;
mod surroundings;
pub mod targets;
mod token;
mod tunnel;
mod uplink;

pub use agent::{Agent, StartError};
