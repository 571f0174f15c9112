//! The threads that carry traffic.
//!
//! A link, its connection and the sockets of its flows live on one thread, with an event loop of
//! its own: what becomes ready together is handled together, and nothing is handed between
//! cores. Different links use different threads.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::handshakes::Handshakes;

thread_local! {
    static CURRENT: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

/// One thread and how many links live on it.
#[derive(Debug)]
struct Shard {
    runtime: Handle,
    links: Arc<AtomicUsize>,
}

/// All threads that carry traffic; the first is the one that made them.
#[derive(Debug, Clone)]
pub struct Shards {
    shards: Arc<[Shard]>,
    handshakes: Arc<Handshakes>,
    _stop: Option<Arc<DropGuard>>,
}

impl Shards {
    /// The current thread and `count - 1` others, which end when the last clone is dropped. Must be
    /// called within a runtime that runs on the current thread.
    ///
    /// # Errors
    /// A thread or its event loop cannot be had.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let own = Arc::<AtomicUsize>::default();
        CURRENT.set(Some(Arc::clone(&own)));
        let mut shards = vec![Shard {
            runtime: Handle::current(),
            links: own,
        }];
        for _ in 1..count {
            shards.push(Shard::start(stop.clone())?);
        }
        Ok(Self {
            handshakes: Arc::new(Handshakes::new(shards.len())),
            shards: shards.into(),
            _stop: Some(Arc::new(stop.drop_guard())),
        })
    }

    /// Only the current runtime, whatever its kind.
    #[must_use]
    pub fn current() -> Self {
        let shard = Shard {
            runtime: Handle::current(),
            links: Arc::default(),
        };
        Self {
            shards: Arc::new([shard]),
            handshakes: Arc::new(Handshakes::new(1)),
            _stop: None,
        }
    }

    /// How many threads there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// The share of their time that TLS handshakes of strangers get.
    #[must_use]
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// Where the next connection should live: the thread with the fewest links.
    #[must_use]
    pub fn least_loaded(&self) -> &Handle {
        let least = self
            .shards
            .iter()
            .min_by_key(|shard| shard.links.load(Ordering::Relaxed));
        // There is always a first one.
        &least.unwrap_or(&self.shards[0]).runtime
    }
}

impl Shard {
    fn start(stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let links = Arc::<AtomicUsize>::default();
        let own = Arc::clone(&links);
        thread::Builder::new()
            .name("nowconnect-link".into())
            .spawn(move || {
                CURRENT.set(Some(own));
                runtime.block_on(stop.cancelled());
            })?;
        Ok(Self {
            runtime: handle,
            links,
        })
    }
}

/// Counts a link on the thread it was made on, as long as it exists.
#[derive(Debug)]
pub(crate) struct Resident(Option<Arc<AtomicUsize>>);

impl Resident {
    /// Counts on the current thread, if that is one of [`Shards`].
    pub(crate) fn here() -> Self {
        let links = CURRENT.with_borrow(Clone::clone);
        if let Some(links) = &links {
            links.fetch_add(1, Ordering::Relaxed);
        }
        Self(links)
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if let Some(links) = &self.0 {
            links.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_connection_goes_where_the_fewest_links_are() {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let shards = Shards::start(2).expect("threads");
            let first = Resident::here();
            let second = shards.least_loaded().clone();
            assert_ne!(second.id(), Handle::current().id());
            let on_second = second
                .spawn(async { Resident::here() })
                .await
                .expect("task");
            drop(first);
            assert_eq!(shards.least_loaded().id(), Handle::current().id());
            drop(on_second);
        });
    }
}
