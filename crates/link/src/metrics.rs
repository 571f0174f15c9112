//! The tools with which hub and agent register their metrics and serve them as text.

mod exposition;
mod vector;

pub use exposition::Format;
pub use vector::{BoundedNames, Catalog, OTHER, SecondsCounter, SecondsGauge, Vector};
