//! TCP servers for agents to dial: well-behaved ones and the other kind.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::pattern::Pattern;
use crate::transfer;
use crate::wait::within;

/// How a connection ended, seen from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side finished; this many bytes came before.
    Finished(u64),
    /// The other side reset the connection.
    Reset,
    /// Any other error.
    Failed(io::ErrorKind),
}

/// A server on a port of 127.0.0.1; it and its connections go when it is dropped.
#[derive(Debug)]
pub struct Target {
    addr: SocketAddr,
    state: watch::Receiver<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    accepted: usize,
    ends: Vec<End>,
}

impl Target {
    /// A server that runs `handler` for every connection; it returns the bytes that it received.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn serve<F, Fut>(handler: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<u64>> + Send + 'static,
    {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        let addr = listener.local_addr()?;
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(accept(listener, handler, Arc::new(sender)));
        Ok(Self {
            addr,
            state,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Sends everything back.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn echo() -> Result<Self> {
        Self::serve(async |mut stream: TcpStream| {
            let mut buf = vec![0; 64 * 1024];
            let mut total = 0;
            loop {
                let n = stream.read(&mut buf).await?;
                if n == 0 {
                    stream.shutdown().await?;
                    return Ok(total);
                }
                total += n as u64;
                stream.write_all(&buf[..n]).await?;
            }
        })
        .await
    }

    /// Reads to the end and only then answers, with `answer` bytes of the pattern with the number
    /// of bytes that came: what a half-closing client relies on.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn answer_after_end(answer: usize) -> Result<Self> {
        Self::serve(move |mut stream: TcpStream| async move {
            let total = drain(&mut stream).await?;
            let pattern = Pattern(u32::try_from(total).unwrap_or_default());
            stream.write_all(&pattern.bytes(0, answer)).await?;
            stream.shutdown().await?;
            Ok(total)
        })
        .await
    }

    /// Reads everything and never answers.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn sink() -> Result<Self> {
        Self::serve(async |mut stream: TcpStream| drain(&mut stream).await).await
    }

    /// Sends the pattern with this number until the other side is gone.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn source(stream_number: u32) -> Result<Self> {
        Self::serve(move |mut stream: TcpStream| async move {
            // Thousands of endless streams must not use up what memory this kernel has for TCP.
            let _ = socket2::SockRef::from(&stream).set_send_buffer_size(32 * 1024);
            let mut chunk = vec![0; 32 * 1024];
            for index in 0.. {
                Pattern(stream_number).fill(index * chunk.len() as u64, &mut chunk);
                stream.write_all(&chunk).await?;
            }
            Ok(0)
        })
        .await
    }

    /// Accepts and never reads.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn stalled() -> Result<Self> {
        Self::serve(async |stream: TcpStream| {
            // A small window, so that the other side notices soon.
            let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
            std::future::pending::<()>().await;
            drop(stream);
            Ok(0)
        })
        .await
    }

    /// Reads one byte, sends `reply` bytes, then resets the connection.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn resetter(reply: usize) -> Result<Self> {
        Self::serve(move |mut stream: TcpStream| async move {
            stream.read_u8().await?;
            stream.write_all(&Pattern(1).bytes(0, reply)).await?;
            stream.set_zero_linger()?;
            Ok(1)
        })
        .await
    }

    /// Serves [`transfer::Transfer`]: bulk both ways at once, every byte checked.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn bulk() -> Result<Self> {
        Self::serve(async |stream: TcpStream| transfer::serve(stream).await).await
    }

    /// The address to configure in an agent.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Number of connections so far.
    pub fn accepted(&self) -> usize {
        self.state.borrow().accepted
    }

    /// How the connections ended so far.
    pub fn ends(&self) -> Vec<End> {
        self.state.borrow().ends.clone()
    }

    /// Waits for this many connections in all.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_accepted(&self, count: usize) -> Result<()> {
        let mut state = self.state.clone();
        let what = format!("{count} connections at the target");
        within(&what, state.wait_for(|state| state.accepted >= count))
            .await?
            .map(drop)?;
        Ok(())
    }

    /// Waits for a connection to end, the `index`-th to do so.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_end(&self, index: usize) -> Result<End> {
        let mut state = self.state.clone();
        let ended = within("a connection to end at the target", async {
            let state = state.wait_for(|state| state.ends.len() > index).await?;
            anyhow::Ok(state.ends.get(index).copied())
        });
        ended.await??.context("no end")
    }
}

async fn accept<F, Fut>(listener: TcpListener, handler: F, state: Arc<watch::Sender<State>>)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = io::Result<u64>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        state.send_modify(|state| state.accepted += 1);
        let (work, state) = (handler(stream), state.clone());
        connections.spawn(async move {
            let end = match work.await {
                Ok(received) => End::Finished(received),
                Err(error) if is_reset(&error) => End::Reset,
                Err(error) => End::Failed(error.kind()),
            };
            state.send_modify(|state| state.ends.push(end));
        });
        while connections.try_join_next().is_some() {}
    }
}

/// A reset shows as `ECONNRESET` to a reader and as `EPIPE` to a later writer.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

async fn drain(stream: &mut TcpStream) -> io::Result<u64> {
    let mut buf = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}
