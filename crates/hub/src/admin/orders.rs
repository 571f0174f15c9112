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
    pub(super) async fn reload(&self) -> Result<Reloaded, Answer> {
        let (reply, outcome) = oneshot::channel();
        self.send(Order::Reload(reply))?;
        outcome.await.map_err(|_| draining())
    }

    /// Asks for the end.
    pub(super) fn drain(&self) -> Result<(), Answer> {
        self.send(Order::Drain)
    }

    fn send(&self, order: Order) -> Result<(), Answer> {
        self.0.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => answer::unavailable("busy", 1),
            mpsc::error::TrySendError::Closed(_) => draining(),
        })
    }
}

fn draining() -> Answer {
    answer::explained(
        StatusCode::CONFLICT,
        "draining",
        "this hub is about to stop",
    )
}
