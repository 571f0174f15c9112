//! One WebSocket that carries many flows.

pub mod budget;
mod carried;
pub mod counters;
pub mod dial;
pub mod endpoint;
pub mod flows;
#[doc(hidden)]
pub mod fuzzing;
mod handshakes;
pub mod meter;
pub mod metrics;
mod outgoing;
pub mod pool;
pub mod quiet;
mod read_size;
pub mod relayed;
mod reply;
mod scratch;
pub mod session;
pub mod shards;
pub mod stream;
pub mod tasks;
pub mod tls;
pub mod trace;
pub mod upgrade;
pub mod web_client;
pub mod wire;
pub mod ws;
