//! Layered YAML and environment configuration with located problems.
//!
//! A program writes one *reader* per section: a function that takes a [`Table`] and asks for each
//! key once, with its type, default and bounds. That function is the schema. Run over a
//! [`Source`] ([`load`]) it yields the validated configuration, the effective values and every
//! problem at once, each with file, line, column and key or with the environment variable at fault;
//! run over nothing ([`describe`]) it yields the list of keys for documentation and its tests.
//!
//! Layers, later ones win: defaults in the reader, the file (with `${VAR}` replaced), documented
//! environment variables ([`Alias`]), `NOWCONNECT__SECTION__KEY` for any key.

mod effective;
mod exposure;
mod field;
mod fixed;
mod key_spec;
mod keys;
mod load;
mod logging;
mod node;
mod overlay;
mod problem;
mod reader;
mod regular;
mod rule;
mod secret;
mod source;
mod suggest;
mod table;
mod traces;
mod value;
mod watcher;
mod yaml;

pub use effective::{Effective, Shown};
pub use exposure::{Holds, exposure};
pub use field::Field;
pub use fixed::Fixed;
pub use key_spec::KeySpec;
pub use load::{Document, Loaded, describe, load};
pub use logging::{LogFormat, LogLevel};
pub use overlay::{Alias, loosely};
pub use problem::{Problem, Problems, Severity};
pub use regular::open_file;
pub use secret::{Secret, mask_url};
pub use source::{Env, Source};
pub use suggest::closest;
pub use table::Table;
pub use traces::{Headers, Sampler, TRACES_ALIASES, TracesConfig, read_traces};
pub use value::{NAME, Number, Value, is_name};
pub use watcher::Watcher;
