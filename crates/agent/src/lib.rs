//! The premises side: connectors, targets, health.
