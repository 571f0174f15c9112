//! What the admin API asks of the process that runs the hub: only that knows where its
//! configuration comes from, and when to end.

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::server::{Answer, answer};

/// Orders that may wait.
const WAITING: usize = 8;

/// The keys that wait for the next start, or what is wrong with the configuration.
pub type Reloaded = Result<Vec<&'static str>, String>;

/// Something to do.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again, and say what became of it.
    Reload(oneshot::Sender<Reloaded>),
    /// Let flows end, and stop.
    Drain,
}

/// Why an order is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Too many wait.
    Busy,
    /// The hub is about to stop.
    Draining,
}

impl NotTaken {
    pub(super) fn into_answer(self) -> Answer {
        let detail = "this hub is about to stop";
        match self {
            Self::Busy => answer::unavailable("busy", 1),
            Self::Draining => answer::explained(StatusCode::CONFLICT, "draining", detail),
        }
    }
}

/// The orders as they come.
#[derive(Debug)]
pub struct Orders(mpsc::Receiver<Order>);

impl Orders {
    /// The next order. Cancel safe.
    pub async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Takes no more orders; those that wait are refused.
    pub fn close(&mut self) {
        self.0.close();
        while self.0.try_recv().is_ok() {}
    }
}

/// Where orders go.
pub(super) struct Sender(mpsc::Sender<Order>);

pub(super) fn channel() -> (Sender, Orders) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Sender(sender), Orders(receiver))
}

impl Sender {
    /// Asks for a reload and waits for its outcome.
    pub(super) async fn reload(&self) -> Result<Reloaded, NotTaken> {
        let (reply, outcome) = oneshot::channel();
        self.send(Order::Reload(reply))?;
        outcome.await.map_err(|_| NotTaken::Draining)
    }

    /// Asks for the end.
    pub(super) fn drain(&self) -> Result<(), NotTaken> {
        self.send(Order::Drain)
    }

    fn send(&self, order: Order) -> Result<(), NotTaken> {
        self.0.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Draining,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_that_nobody_will_follow_are_refused() {
        let (sender, mut orders) = channel();
        let (asked, ()) = tokio::join!(sender.reload(), async { orders.close() });
        assert_eq!(asked, Err(NotTaken::Draining));
        assert_eq!(sender.drain(), Err(NotTaken::Draining));
    }

    #[tokio::test]
    async fn orders_are_followed_one_by_one_and_do_not_pile_up() {
        let (sender, mut orders) = channel();
        for _ in 0..WAITING {
            assert_eq!(sender.drain(), Ok(()));
        }
        assert_eq!(sender.drain(), Err(NotTaken::Busy));
        assert!(matches!(orders.next().await, Order::Drain));
        assert_eq!(sender.drain(), Ok(()));
    }
}
