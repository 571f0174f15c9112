//! Times as answers tell them: in milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds to the microsecond.
pub(super) fn ms(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_micros() as f64 / 1e3)
}
