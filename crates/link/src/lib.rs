//! One WebSocket that carries many flows.
