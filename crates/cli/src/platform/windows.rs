//! Windows: console events, the service control manager, access control lists.

#[path = "windows/acl.rs"]
pub(crate) mod acl;
#[path = "windows/control.rs"]
mod control;
#[path = "windows/files.rs"]
pub(crate) mod files;
#[path = "windows/service.rs"]
pub(crate) mod service;
#[path = "windows/signals.rs"]
mod signals;

use std::io::{Write, stdout};
use std::net::TcpListener;

pub(crate) use control::supervisor;
pub(crate) use signals::Signals;

/// Where the log goes: a service has no standard output.
pub(crate) fn log_output() -> Box<dyn Write + Send> {
    match control::log() {
        Some(file) => Box::new(file),
        None => Box::new(stdout()),
    }
}

/// The service control manager opens no sockets for services.
pub(crate) fn inherited_sockets() -> anyhow::Result<Vec<(String, TcpListener)>> {
    Ok(Vec::new())
}

/// Sockets are handles, and no limit but memory is set on those.
pub(crate) fn raise_open_files() {}

/// See [`raise_open_files`].
pub(crate) fn most_open_files() -> Option<u64> {
    None
}

/// Windows writes no dump of a process unless an administrator has set that up, and lets only them and
/// the same account read its memory. There is no call that forbids more.
pub(crate) fn keep_memory_private() {}

/// Whoever reads it gets lines as long as they are.
pub(crate) fn terminal_columns() -> Option<usize> {
    None
}
