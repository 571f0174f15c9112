//! One WebSocket that carries many flows.

pub mod ws;
