//! The server behind every tunnel: one port, and the client's greeting says what it shall do.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::chunks;
use crate::sockets;
use crate::wire::{
    GREETING, Greeting, HALF_CLOSE_ANSWER, HALF_CLOSE_QUESTION, Job, REQUEST, RESPONSE, check,
    payload, request_seed,
};

static OPEN: AtomicU64 = AtomicU64::new(0);

/// Serves until the process is stopped.
pub(crate) async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener: TcpListener = sockets::listen(address)?;
    loop {
        let stream = sockets::accept(&listener).await;
        tokio::spawn(async move {
            OPEN.fetch_add(1, Ordering::Relaxed);
            // A client that goes away is the load generator's finding, not the server's.
            serve_connection(stream).await.ok();
            OPEN.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve_connection(mut stream: TcpStream) -> io::Result<()> {
    let mut greeting = [0; GREETING];
    stream.read_exact(&mut greeting).await?;
    let greeting = Greeting::decode(&greeting)?;
    match greeting.job {
        Job::Echo => echo(stream).await,
        Job::Answer => answer(stream, greeting.seed).await,
        Job::HalfClose => half_close(stream, greeting.seed).await,
        Job::Count => stream.write_u64_le(OPEN.load(Ordering::Relaxed)).await,
        Job::Sink | Job::Source => {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            tokio::task::spawn_blocking(move || bulk(stream, greeting)).await?
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn answer(mut stream: TcpStream, seed: u32) -> io::Result<()> {
    let mut request = [0; REQUEST];
    for number in 0_u32.. {
        stream.read_exact(&mut request).await?;
        let seed = request_seed(seed, number);
        check(seed, &request)?;
        stream.write_all(payload(seed, RESPONSE)).await?;
    }
    Ok(())
}

async fn half_close(mut stream: TcpStream, seed: u32) -> io::Result<()> {
    let mut question = Vec::with_capacity(HALF_CLOSE_QUESTION);
    stream.read_to_end(&mut question).await?;
    if question.len() == HALF_CLOSE_QUESTION {
        check(seed, &question)?;
        stream.write_all(payload(seed, HALF_CLOSE_ANSWER)).await?;
    }
    stream.shutdown().await
}

fn bulk(mut stream: std::net::TcpStream, greeting: Greeting) -> io::Result<()> {
    if greeting.job == Job::Source {
        let until = Instant::now() + Duration::from_millis(greeting.argument);
        chunks::send(&mut stream, greeting.seed, until)?;
        return Ok(());
    }
    let number = chunks::receive(&mut stream, greeting.seed)?;
    stream.write_all(&number.to_le_bytes())
}
