//! Spans on their way to a collector, as OTLP over HTTP with protobuf has them.
//!
//! Whoever carries traffic only puts a span into a bounded queue. A thread of its own makes messages of
//! them and posts these, so that no collector, however slow, takes time from a flow; what does not
//! fit is dropped and counted. docs/adr/0016-spans.md says why this is not
//! the SDK.

mod exporter;
mod message;
mod otlp;
mod outage;
mod queue;
mod sampler;

pub use exporter::{Exporter, StartError};
pub use message::Process;
