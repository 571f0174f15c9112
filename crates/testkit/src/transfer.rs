//! Client connections that check every byte.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pattern::Pattern;
use crate::wait::within;

const CHUNK: usize = 32 * 1024;
const VERDICT_OK: &str = "ok";
/// Set in the number of the pattern that runs from target to client.
const DOWN: u32 = 1 << 23;

/// Bulk both ways at once with [`crate::target::Target::bulk`].
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Number of the stream; names the bytes, so give every flow its own.
    pub stream: u32,
    /// Bytes from client to target.
    pub up: u64,
    /// Bytes from target to client.
    pub down: u64,
}

impl Transfer {
    /// Sends and receives everything; both ends check every byte.
    ///
    /// # Errors
    /// When the connection breaks, or any byte is lost, doubled, out of order or foreign.
    pub async fn run(self, mut socket: TcpStream) -> Result<()> {
        let (mut read, mut write) = socket.split();
        let send = async {
            write.write_u32(self.stream).await?;
            write.write_u64(self.up).await?;
            write.write_u64(self.down).await?;
            send(&mut write, Pattern(self.stream), self.up).await?;
            write.shutdown().await
        };
        let receive = async {
            receive(&mut read, Pattern(self.stream | DOWN), self.down).await?;
            let mut verdict = String::new();
            read.read_to_string(&mut verdict).await?;
            ensure!(verdict == VERDICT_OK, "at the target: {verdict}");
            Ok(())
        };
        let (sent, received) = tokio::join!(send, receive);
        received.with_context(|| format!("{self:?}"))?;
        sent.with_context(|| format!("sending {self:?}"))
    }
}

/// The target's side of a [`Transfer`].
pub(crate) async fn serve(mut socket: TcpStream) -> io::Result<u64> {
    let (mut read, mut write) = socket.split();
    let stream = read.read_u32().await?;
    let (up, down) = (read.read_u64().await?, read.read_u64().await?);
    let (received, sent) = tokio::join!(
        receive(&mut read, Pattern(stream), up),
        send(&mut write, Pattern(stream | DOWN), down)
    );
    sent?;
    let verdict = match received {
        Ok(()) => VERDICT_OK.to_owned(),
        Err(error) => format!("{error:#}"),
    };
    write.write_all(verdict.as_bytes()).await?;
    write.shutdown().await?;
    match read.read(&mut [0; 1]).await? {
        0 => Ok(up),
        _ => Err(io::Error::other("bytes behind the end")),
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), pattern: Pattern, len: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let n = CHUNK.min(usize::try_from(len - at).unwrap_or(CHUNK));
        pattern.fill(at, &mut chunk[..n]);
        to.write_all(&chunk[..n]).await?;
        at += n as u64;
    }
    to.flush().await
}

async fn receive(from: &mut (impl AsyncRead + Unpin), pattern: Pattern, len: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let room = CHUNK.min(usize::try_from(len - at).unwrap_or(CHUNK));
        let n = from
            .read(&mut chunk[..room])
            .await
            .with_context(|| format!("at byte {at}"))?;
        ensure!(n > 0, "ended at byte {at} of {len}");
        pattern.check(at, &chunk[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Sends `len` bytes to an echo target and checks that they come back.
///
/// # Errors
/// When they do not, or not in time.
pub async fn echo(socket: &mut TcpStream, pattern: Pattern, offset: u64, len: usize) -> Result<()> {
    let sent = pattern.bytes(offset, len);
    let mut back = vec![0; len];
    let (mut read, mut write) = socket.split();
    let exchange = async {
        let (sent, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        sent.context("sending")?;
        read.context("receiving")?;
        anyhow::Ok(())
    };
    within("an echo", exchange).await??;
    pattern.check(offset, &back)
}

/// How the other side ended a connection, seen by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// End of file.
    Finished,
    /// `ECONNRESET`.
    Reset,
}

/// Reads until the connection ends; returns what came and how it ended.
///
/// # Errors
/// When it does not end in time, or in another way.
pub async fn read_to_end(socket: &mut TcpStream) -> Result<(Vec<u8>, End)> {
    let mut bytes = Vec::new();
    match within("the connection to end", socket.read_to_end(&mut bytes)).await? {
        Ok(_) => Ok((bytes, End::Finished)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok((bytes, End::Reset)),
        Err(error) => bail!("neither end nor reset: {error}"),
    }
}

/// Aborts a connection with a TCP reset.
///
/// # Errors
/// When the socket is broken already.
pub fn reset(socket: TcpStream) -> Result<()> {
    socket.set_zero_linger()?;
    drop(socket);
    Ok(())
}
