//! Spans that wait to be sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nowconnect_link::metrics::TraceTally;
use nowconnect_link::trace::{Collector, Span};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::sampler::Sampling;

/// Spans that may wait; each has about a kilobyte. More are dropped.
pub(crate) const MOST: usize = 4096;
/// Spans in one request.
pub(crate) const BATCH: usize = 512;
/// How long a span waits for company.
const DELAY: Duration = Duration::from_secs(1);

/// Takes spans without ever waiting, and gives them out in batches.
#[derive(Debug)]
pub(crate) struct Queue {
    sampling: Sampling,
    tally: Arc<TraceTally>,
    spans: Mutex<Vec<Span>>,
    /// There is one; then there is a batch. Told once each, not for every span.
    some: Notify,
    enough: Notify,
}

impl Queue {
    pub(crate) fn new(sampling: Sampling, tally: Arc<TraceTally>) -> Self {
        Self {
            sampling,
            tally,
            spans: Mutex::default(),
            some: Notify::new(),
            enough: Notify::new(),
        }
    }

    /// Waits until there is something worth a request.
    pub(crate) async fn ready(&self) {
        while self.spans.lock().is_empty() {
            self.some.notified().await;
        }
        let enough = async {
            while self.spans.lock().len() < BATCH {
                self.enough.notified().await;
            }
        };
        // Either will do.
        let _ = tokio::time::timeout(DELAY, enough).await;
    }

    /// Up to a batch of those that wait, the oldest first.
    pub(crate) fn batch(&self) -> Vec<Span> {
        let mut spans = self.spans.lock();
        if spans.len() <= BATCH {
            return std::mem::take(&mut spans);
        }
        let rest = spans.split_off(BATCH);
        std::mem::replace(&mut spans, rest)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.spans.lock().len()
    }
}

impl Collector for Queue {
    fn wants(&self, trace_id: &[u8; 16], followed: bool) -> bool {
        self.sampling.wants(trace_id, followed)
    }

    fn take(&self, span: Span) {
        let len = {
            let mut spans = self.spans.lock();
            if spans.len() >= MOST {
                drop(spans);
                self.tally.queue_full.fetch_add(1, Ordering::Relaxed);
                return;
            }
            spans.push(span);
            spans.len()
        };
        match len {
            1 => self.some.notify_one(),
            BATCH => self.enough.notify_one(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nowconnect_link::trace::{Kind, Tracer};

    use super::*;

    fn fill(queue: &Arc<Queue>, spans: usize) {
        let tracer = Tracer::new(queue.clone());
        for _ in 0..spans {
            drop(tracer.begin("flow", Kind::Server));
        }
    }

    async fn is_ready(queue: &Queue) -> bool {
        tokio::select! {
            biased;
            () = queue.ready() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let queue = Arc::new(Queue::new(Sampling::all(), Arc::default()));
        assert!(!is_ready(&queue).await);
        fill(&queue, BATCH - 1);
        assert!(!is_ready(&queue).await, "more may come in a moment");
        fill(&queue, MOST - BATCH + 4);
        assert!(is_ready(&queue).await);
        assert_eq!(queue.len(), MOST);
        assert_eq!(queue.tally.queue_full.load(Ordering::Relaxed), 3);
        let oldest = queue.spans.lock()[0].context;
        let batch = queue.batch();
        assert_eq!((batch.len(), queue.len()), (BATCH, MOST - BATCH));
        assert_eq!(batch[0].context, oldest);
    }
}
