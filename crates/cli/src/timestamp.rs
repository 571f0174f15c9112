//! The time as lines of the log and of the audit trail tell it.

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

/// The time as lines tell it.
pub(crate) fn now() -> String {
    let mut time = String::with_capacity(32);
    push_time(&mut time);
    time
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn push_time(line: &mut String) {
    let _ = SystemTime.format_time(&mut Writer::new(line));
}
