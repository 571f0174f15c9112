//! NowConnect's wire format and flow rules: no I/O, no clock, no async.
//!
//! Everything here takes frames, bytes and a `now` and returns frames, bytes and decisions, so the
//! same code runs in production, under property tests, under a fuzzer and in simulation.

pub mod backoff;
pub mod bucket;
mod byte_queue;
mod close;
pub mod flow;
pub mod frame;
pub mod hello;
mod ids;
mod json;
pub mod json_v1;
pub mod keepalive;
pub mod mesh_hello;
pub mod relay;
mod trace;

pub use close::Reason;
pub use flow::Flow;

pub use frame::Frame;
pub use ids::{Cid, FlowId, Secret};
pub use json::JsonError;
pub use trace::TraceContext;
