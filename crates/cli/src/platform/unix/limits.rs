//! The limit on open files, which is the limit on connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one; every flow needs a file descriptor.
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        tracing::warn!(event = "open_files_limited", limit = ?current, error = %error);
    }
}

/// How many files this process may have open at most; `None`: as many as it likes.
pub(crate) fn most_open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}
