//! Small requests and their responses.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::closed_loop::{self, Exchange};
use super::{Sample, Subject};
use crate::failure::{Context, Result};
use crate::sockets;
use crate::wire::{Greeting, Job, REQUEST, RESPONSE, check, payload, request_seed};

struct Connection {
    stream: TcpStream,
    seed: u32,
    number: u32,
}

pub(super) async fn measure(subject: &Subject<'_>, connections: usize) -> Result<Sample> {
    let mut connected = Vec::new();
    for seed in 0..connections as u32 {
        connected.push(Connection::open(subject.entry, seed).await?);
    }
    closed_loop::measure(subject, connected).await
}

impl Connection {
    async fn open(entry: SocketAddr, seed: u32) -> Result<Self> {
        let mut stream = sockets::connect(entry).await.context("connect")?;
        let greeting = Greeting::new(Job::Answer, seed).encode();
        stream.write_all(&greeting).await.context("greeting")?;
        Ok(Self {
            stream,
            seed,
            number: 0,
        })
    }
}

impl Exchange for Connection {
    async fn exchange(&mut self) -> Result<()> {
        let seed = request_seed(self.seed, self.number);
        self.number += 1;
        self.stream
            .write_all(payload(seed, REQUEST))
            .await
            .context("request")?;
        let mut response = [0; RESPONSE];
        self.stream
            .read_exact(&mut response)
            .await
            .context("response")?;
        check(seed, &response).context("response")
    }
}
