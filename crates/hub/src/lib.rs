//! The cloud side: listeners, admission, routing, tunnels.

pub mod admin;
pub mod auth;
pub mod config;
mod flow_trace;
pub mod forward;
mod forwarded;
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;
pub mod listener;
pub mod mesh;
pub mod metrics;
pub mod pdp;
mod policy;
pub mod probe;
pub mod probes;
pub mod registry;
pub mod router;
mod server;
mod strict_json;
mod token_file;
mod token_id;
pub mod tunnels;
