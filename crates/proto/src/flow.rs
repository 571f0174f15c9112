//! One end of a flow.
