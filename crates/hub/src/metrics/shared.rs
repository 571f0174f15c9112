//! The text of all metrics for strangers, who ask as often as they like and read as slowly.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Instant;

use bytes::Bytes;
use nowconnect_link::metrics::Format;
use nowconnect_proto::bucket::Bucket;
use parking_lot::Mutex;

/// How often in a second it is written; whoever asks meanwhile gets the last one.
const PER_SEC: NonZeroU32 = NonZeroU32::MIN.saturating_add(3);

/// What strangers were told last.
pub(super) struct Shared {
    start: Instant,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    writes: Bucket,
    /// By [`Format`].
    texts: [Option<Bytes>; 2],
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: Mutex::default(),
        }
    }
}

impl Shared {
    /// What `write` writes, or wrote a moment ago.
    pub(super) fn text(
        &self,
        format: Format,
        write: impl FnOnce() -> Result<String, fmt::Error>,
    ) -> Result<Bytes, fmt::Error> {
        let mut last = self.last.lock();
        let may_write = last.writes.take(self.start.elapsed(), PER_SEC).is_ok();
        let text = &mut last.texts[format as usize];
        match text {
            Some(text) if !may_write => Ok(text.clone()),
            _ => Ok(text.insert(write()?.into()).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_gets_one_text() {
        let shared = Shared::default();
        let mut written = 0;
        for _ in 0..100 {
            for format in [Format::Prometheus, Format::OpenMetrics] {
                let text = shared.text(format, || {
                    written += 1;
                    Ok(written.to_string())
                });
                assert!(text.is_ok_and(|text| !text.is_empty()));
            }
        }
        let most = 4 * (2 + shared.start.elapsed().as_secs()) + 2;
        assert!((4..=most).contains(&written), "{written} of {most}");
    }
}
