//! One WebSocket that carries many flows.

mod reply;
pub mod upgrade;
pub mod ws;
