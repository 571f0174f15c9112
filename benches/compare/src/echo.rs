//! A connection that gets back what it sends.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::failure::{Context, Result};
use crate::wire::{Greeting, Job, REQUEST, check, payload, request_seed};

pub(crate) struct Echo {
    stream: TcpStream,
    seed: u32,
    exchanges: u32,
}

impl Echo {
    /// Takes over what connecting gave.
    pub(crate) fn over(connected: io::Result<TcpStream>, seed: u32) -> Result<Self> {
        Ok(Self {
            stream: connected.context("connect")?,
            seed,
            exchanges: 0,
        })
    }

    /// Sends `length` bytes, at most [`REQUEST`], and checks that the same come back. The first
    /// ones travel behind the greeting in one write.
    pub(crate) async fn exchange(&mut self, length: usize) -> Result<()> {
        let seed = request_seed(self.seed, self.exchanges);
        let sent = payload(seed, length);
        if self.exchanges == 0 {
            let greeting = Greeting::new(Job::Echo, self.seed).encode();
            self.stream
                .write_all(&[&greeting, sent].concat())
                .await
                .context("send")?;
        } else {
            self.stream.write_all(sent).await.context("send")?;
        }
        let mut received = [0; REQUEST];
        let received = &mut received[..length];
        self.stream.read_exact(received).await.context("echo")?;
        self.exchanges += 1;
        check(seed, received).context("echo")
    }
}
