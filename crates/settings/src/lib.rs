//! Layered YAML and environment configuration with located problems.
