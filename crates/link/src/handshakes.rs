//! The time that TLS handshakes of strangers may take from flows.
//!
//! A ClientHello costs its sender nothing and us a key exchange and a signature, on a thread that carries
//! flows. So handshakes take their steps one at a time, which bounds what a flow waits for them, and all
//! together get a share of the time; whoever comes faster than that waits for a turn.

use std::future::poll_fn;
use std::pin::pin;
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
}

impl Handshakes {
    /// For so many threads that carry flows, at least one.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: u32::try_from(threads).unwrap_or(u32::MAX).max(1),
            paid: Mutex::new(Instant::now()),
        }
    }

    /// Completes `handshake`, each step of it in its turn. Turns are given in the order in which they
    /// are asked for; the caller sets the deadline.
    pub async fn run<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        loop {
            let mut paid = self.paid.lock().await;
            sleep_until(*paid).await;
            let start = std::time::Instant::now();
            let step = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
            let cost = start.elapsed().min(DEAREST) * PARTS / self.threads;
            let now = Instant::now();
            *paid = now.checked_sub(SAVED).unwrap_or(now).max(*paid) + cost;
            drop(paid);
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

    /// Whether there are more than get a turn at once.
    pub fn are_waiting(&self) -> bool {
        let paid = self.paid.try_lock();
        paid.map_or(true, |paid| *paid > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            handshakes.run(steps(2)).await;
        }
        let least = Duration::from_millis(10 * 2 * 2) * PARTS;
        assert!(start.elapsed() >= least, "{:?}", start.elapsed());
        let dear = async { std::thread::sleep(2 * DEAREST) };
        handshakes.run(dear).await;
        assert!(handshakes.are_waiting(), "it is still to be paid for");

        let handshakes = Handshakes::new(1);
        *handshakes.paid.lock().await -= 10 * SAVED;
        handshakes.run(steps(4)).await;
        assert!(!handshakes.are_waiting());
        let saved = Instant::now().duration_since(*handshakes.paid.lock().await);
        assert!(saved < SAVED, "{saved:?} of what was saved are left");
    }

    #[tokio::test]
    async fn one_that_waits_for_its_peer_keeps_nobody() {
        let handshakes = Handshakes::new(1);
        let silent = handshakes.run(std::future::pending::<()>());
        tokio::select! {
            biased;
            () = silent => {}
            () = handshakes.run(steps(1)) => {}
        }
        let (peer, ours) = tokio::sync::oneshot::channel();
        let (answer, ()) = tokio::join!(handshakes.run(ours), async {
            handshakes.run(steps(1)).await;
            peer.send("hello").unwrap_or_default();
        });
        assert_eq!(answer, Ok("hello"));
    }
}
