//! Unix: signals, systemd, limits, permission bits.

#[path = "unix/files.rs"]
pub(crate) mod files;
#[path = "unix/limits.rs"]
mod limits;
#[path = "unix/memory.rs"]
mod memory;
#[path = "unix/signals.rs"]
mod signals;
#[path = "unix/sockets.rs"]
mod sockets;
#[path = "unix/systemd.rs"]
pub(crate) mod supervisor;

use std::io::{Stdout, stdout};

pub(crate) use limits::{most_open_files, raise_open_files};
pub(crate) use memory::keep_memory_private;
pub(crate) use signals::Signals;
pub(crate) use sockets::inherited_sockets;

/// Where the log goes.
pub(crate) fn log_output() -> Stdout {
    stdout()
}

/// Columns of the terminal that is standard output.
pub(crate) fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}
