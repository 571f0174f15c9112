//! The tools with which hub and agent register their metrics and serve them as text.

mod exposition;
mod traces;
mod vector;

pub use exposition::Format;
pub use traces::{TraceMetrics, TraceTally};
pub use vector::{BoundedNames, Catalog, OTHER, SecondsCounter, SecondsGauge, Vector};
