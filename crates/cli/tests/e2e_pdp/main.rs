//! An external policy decision point, asked about every flow.

mod answers;
mod crowd;
mod explain;
mod owner;
mod site;
