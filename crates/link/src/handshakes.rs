//! The time that TLS handshakes of strangers may take from flows.
//!
//! A ClientHello costs its sender nothing and us a key exchange and a signature, on a thread that carries
//! flows. So handshakes take their steps one at a time, which bounds what a flow waits for them, and all
//! together get a share of the time; whoever comes faster than that waits for a turn. Addresses take turns,
//! so that one from which thousands come keeps no other waiting.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Handshakes get one part of so many of the time of all threads.
const PARTS: u32 = 8;
/// So much of their share may be saved up while there are none.
const SAVED: Duration = Duration::from_secs(1);
/// Most that one step is taken to cost; what took longer was interrupted by others.
const DEAREST: Duration = Duration::from_millis(10);

/// Gives out turns.
#[derive(Debug)]
pub struct Handshakes {
    threads: u32,
    /// When the steps that were taken are paid for. Whoever holds it has the turn.
    paid: Mutex<Instant>,
    /// Who of an address waits for a turn; the others of that address wait for him. There while there
    /// are handshakes of it, whose number the caller bounds.
    lines: parking_lot::Mutex<HashMap<IpAddr, Arc<Mutex<()>>>>,
}

/// A place in the line of one address, which is gone with its last place.
struct Place<'a> {
    handshakes: &'a Handshakes,
    address: IpAddr,
    line: Arc<Mutex<()>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.handshakes.lines.lock();
        // The map's own, and this one.
        if Arc::strong_count(&self.line) == 2 {
            lines.remove(&self.address);
        }
    }
}

/// What counts as one address: any host of an IPv6 network has as many as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

impl Handshakes {
    /// For so many threads that carry flows, at least one.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: u32::try_from(threads).unwrap_or(u32::MAX).max(1),
            paid: Mutex::new(Instant::now()),
            lines: parking_lot::Mutex::default(),
        }
    }

    /// Completes a `handshake` with `from`, each step of it in its turn. The caller sets the deadline.
    pub async fn run<F: Future>(&self, from: IpAddr, handshake: F) -> F::Output {
        let place = self.line_up(network(from));
        let mut handshake = pin!(handshake);
        loop {
            let first = place.line.lock().await;
            let mut paid = self.paid.lock().await;
            sleep_until(*paid).await;
            let start = std::time::Instant::now();
            let step = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
            let cost = start.elapsed().min(DEAREST) * PARTS / self.threads;
            let now = Instant::now();
            *paid = now.checked_sub(SAVED).unwrap_or(now).max(*paid) + cost;
            drop((paid, first));
            if let Poll::Ready(done) = step {
                return done;
            }
            // The step has left a waker with whatever it waits for.
            let mut woken = false;
            poll_fn(|_| match std::mem::replace(&mut woken, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
        }
    }

    fn line_up(&self, address: IpAddr) -> Place<'_> {
        let line = self.lines.lock().entry(address).or_default().clone();
        Place {
            handshakes: self,
            address,
            line,
        }
    }

    /// Whether there are more than get a turn at once.
    pub fn are_waiting(&self) -> bool {
        let paid = self.paid.try_lock();
        paid.map_or(true, |paid| *paid > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A handshake of so many steps, each of which keeps its thread busy.
    async fn steps(count: u32) {
        for _ in 0..count {
            std::thread::sleep(Duration::from_millis(2));
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn they_get_their_share_and_what_was_saved_up() {
        let handshakes = Handshakes::new(1);
        let start = Instant::now();
        for _ in 0..10 {
            handshakes.run(HERE, steps(2)).await;
        }
        let least = Duration::from_millis(10 * 2 * 2) * PARTS;
        assert!(start.elapsed() >= least, "{:?}", start.elapsed());
        let dear = async { std::thread::sleep(2 * DEAREST) };
        handshakes.run(HERE, dear).await;
        assert!(handshakes.are_waiting(), "it is still to be paid for");

        let handshakes = Handshakes::new(1);
        *handshakes.paid.lock().await -= 10 * SAVED;
        handshakes.run(HERE, steps(4)).await;
        assert!(!handshakes.are_waiting());
        let saved = Instant::now().duration_since(*handshakes.paid.lock().await);
        assert!(saved < SAVED, "{saved:?} of what was saved are left");
    }

    #[tokio::test]
    async fn one_that_waits_for_its_peer_keeps_nobody() {
        let handshakes = Handshakes::new(1);
        let silent = handshakes.run(HERE, std::future::pending::<()>());
        tokio::select! {
            biased;
            () = silent => {}
            () = handshakes.run(HERE, steps(1)) => {}
        }
        let (peer, ours) = tokio::sync::oneshot::channel();
        let (answer, ()) = tokio::join!(handshakes.run(HERE, ours), async {
            handshakes.run(HERE, steps(1)).await;
            peer.send("hello").unwrap_or_default();
        });
        assert_eq!(answer, Ok("hello"));
    }

    #[tokio::test]
    async fn a_crowd_of_one_address_keeps_no_other_waiting() {
        let handshakes = Arc::new(Handshakes::new(1));
        let mut crowd = tokio::task::JoinSet::new();
        for host in 0..100 {
            let handshakes = handshakes.clone();
            // All of one IPv6 network.
            let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into();
            crowd.spawn(async move { handshakes.run(from, steps(5)).await });
        }
        tokio::task::yield_now().await;
        handshakes.run(HERE, steps(1)).await;
        let done = std::iter::from_fn(|| crowd.try_join_next()).count();
        assert!(done < 10, "{done} of the crowd were first");
        assert_eq!(handshakes.lines.lock().len(), 1);
        crowd.shutdown().await;
        assert!(handshakes.lines.lock().is_empty());
    }
}
