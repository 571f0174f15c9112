//! What this process has in memory, keys, tokens and payload, stays there.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Set to anything, it lets the process be dumped and debugged.
const ALLOW: &str = "NOWCONNECT_ALLOW_DEBUGGING";

/// Turns core dumps off, and lets nobody but root attach to this process or read its memory and
/// environment, not even other processes of the same user.
pub(crate) fn keep_memory_private() {
    if std::env::var_os(ALLOW).is_some_and(|value| !value.is_empty()) {
        tracing::warn!(
            event = "memory_exposed",
            reason = ALLOW,
            hint = "core dumps and debuggers show keys and payload: unset it in production"
        );
        return;
    }
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Where cores go to a pipe the limit does not count; the kernel dumps none then by the second.
    let undumpable = setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = undumpable {
        tracing::warn!(event = "memory_exposed", reason = %error);
    }
}
