//! What operating systems do each in their own way; one file or directory per system, the same names in both.

#[cfg(unix)]
#[path = "platform/unix.rs"]
mod system;
#[cfg(windows)]
#[path = "platform/windows.rs"]
mod system;

pub(crate) use system::*;

/// What whoever supervises the process asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// To end gracefully.
    Stop,
    /// To read the configuration again.
    Reload,
}
