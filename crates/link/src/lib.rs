//! One WebSocket that carries many flows.

pub mod metrics;
mod reply;
pub mod upgrade;
pub mod ws;
