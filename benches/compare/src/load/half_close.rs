//! Half-close: send, shut down the sending side, read the answer that is only then written.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Sample, Subject};
use crate::failure::{Context, Failure, Result};
use crate::sockets;
use crate::wire::{Greeting, HALF_CLOSE_ANSWER, HALF_CLOSE_QUESTION, Job, check, payload};

/// How long a whole answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How many of the tries brought the whole answer and then the end of the stream.
pub(super) async fn measure(subject: &Subject<'_>, tries: usize) -> Result<Sample> {
    let before = subject.cpu()?;
    let mut answered = 0;
    for seed in 0..tries as u32 {
        let asked = timeout(ANSWER, ask(subject.entry, seed)).await;
        answered += u32::from(matches!(asked, Ok(Ok(()))));
    }
    let used = before.until(subject.cpu()?);
    Ok(Sample {
        values: vec![f64::from(answered)],
        foreign_cores: used.foreign_cores,
    })
}

async fn ask(entry: SocketAddr, seed: u32) -> Result<()> {
    let mut stream = sockets::connect(entry).await.context("connect")?;
    let greeting = Greeting::new(Job::HalfClose, seed).encode();
    let question = payload(seed, HALF_CLOSE_QUESTION);
    stream
        .write_all(&[&greeting, question].concat())
        .await
        .context("question")?;
    stream.shutdown().await.context("shutdown")?;
    let mut answer = Vec::with_capacity(HALF_CLOSE_ANSWER);
    stream.read_to_end(&mut answer).await.context("answer")?;
    if answer.len() != HALF_CLOSE_ANSWER {
        return Err(Failure::new(format!(
            "{} bytes of the answer are missing",
            HALF_CLOSE_ANSWER.abs_diff(answer.len())
        )));
    }
    check(seed, &answer).context("answer")
}
