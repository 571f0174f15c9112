//! `nowconnect bench tcp`: connections, echoes and bulk against a port.

use std::time::Duration;

use anyhow::anyhow;
use clap::ValueEnum;
use nowconnect_link::dial::{TcpOptions, dial_tcp};
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load::{self, Answer, Work};
use super::options::{Load, Target};
use super::report::{Output, Run};
use crate::failure::Failure;
use crate::platform::raise_open_files;
use crate::runtime::block_on;

const EXAMPLES: &str = "\
Examples:
  nowconnect bench tcp --host hub.example.com --port 5432 --mode connect --rps-per-worker 10
  nowconnect bench tcp --port 7000 --mode echo --size 512 --keep --concurrency 32 --slo p99=20,errors=0
  nowconnect bench tcp --port 7000 --mode bulk --concurrency 8 --duration 30 --out bulk.json

echo needs a service behind the port that sends back what it gets. connect ends when the port takes the
connection, which a hub does before its agent has reached the target. bulk sends as fast as the other
side takes it, reads whatever comes back, and counts a chunk as a request.";

/// Measure connections, echoes or bulk through a TCP port
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    load: Load,
    /// What a request is
    #[arg(long, value_enum, default_value = "echo")]
    mode: Mode,
    /// Bytes of an echo, or of a chunk of bulk [default: 128, bulk 65536]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    size: Option<u32>,
    /// Keep the connection between echoes
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Connect and close
    Connect,
    /// Connect, send, read the same back, close
    Echo,
    /// Send without pause
    Bulk,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    raise_open_files();
    args.output.check()?;
    let port = args.target.port()?;
    let default = if args.mode == Mode::Bulk { 65_536 } else { 128 };
    let size = args.size.unwrap_or(default);
    let pace = args.load.pace(1.0, 10);
    let mode = args.mode.to_possible_value();
    let workload = json!({
        "mode": mode.as_ref().map(|mode| mode.get_name()),
        "size": size,
        "keep": args.keep,
        "concurrency": pace.workers,
        "rps_per_worker": pace.per_second,
        "duration_s": pace.duration.as_secs_f64(),
        "timeout_s": pace.timeout.as_secs_f64(),
    });
    let make = || Worker {
        host: args.target.host.clone(),
        port,
        timeout: pace.timeout,
        mode: args.mode,
        keep: args.keep,
        chunk: pattern(size),
        input: vec![0; 64 * 1024],
        io: None,
    };
    let target = json!({ "host": args.target.host, "port": port, "ssl": false });
    let measure = async {
        if let Err(error) = make().connect().await {
            return Err(anyhow!("{error}"));
        }
        let run = Run::begin(target, workload)?;
        Ok((run, load::run(pace, make).await?))
    };
    let (run, tally) = block_on(measure)??;
    let mut more = Map::new();
    if args.mode != Mode::Connect {
        let seconds = tally.elapsed.as_secs_f64().max(1e-9);
        let rate = |bytes: u64| json!((bytes as f64 / seconds / 1e4).round() / 100.0);
        more.insert("mb_per_s_sent".into(), rate(tally.brought.sent));
        more.insert("mb_per_s_received".into(), rate(tally.brought.received));
    }
    run.end(&tally, &args.output, more)
}

/// Bytes that differ from their neighbours, so that a shift is seen.
fn pattern(size: u32) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

struct Worker {
    host: String,
    port: u16,
    timeout: Duration,
    mode: Mode,
    keep: bool,
    chunk: Vec<u8>,
    input: Vec<u8>,
    io: Option<TcpStream>,
}

impl Worker {
    async fn connect(&self) -> Result<TcpStream, String> {
        let connect = dial_tcp(&self.host, self.port, self.timeout, TcpOptions::default());
        connect.await.map_err(|error| error.to_string())
    }

    async fn echo(&mut self, io: &mut TcpStream) -> std::io::Result<Answer> {
        let (mut reader, mut writer) = io.split();
        let (chunk, input) = (&self.chunk, &mut self.input);
        input.resize(chunk.len(), 0);
        // Both at once: an echo of more than the buffers on the way hold would block itself.
        tokio::try_join!(writer.write_all(chunk), async {
            reader.read_exact(input).await.map(drop)
        })?;
        if input != chunk {
            return Err(std::io::Error::other(
                "other bytes came back: is it an echo service?",
            ));
        }
        Ok(self.moved(self.chunk.len()))
    }

    async fn bulk(&mut self, io: &mut TcpStream) -> std::io::Result<Answer> {
        let (mut reader, mut writer) = io.split();
        let mut received = 0;
        let write = writer.write_all(&self.chunk);
        tokio::pin!(write);
        loop {
            tokio::select! {
                done = &mut write => break done?,
                read = reader.read(&mut self.input) => match read? {
                    0 => return Err(std::io::Error::other("the other side closed the connection")),
                    len => received += len,
                },
            }
        }
        Ok(self.moved(received))
    }

    fn moved(&self, received: usize) -> Answer {
        Answer {
            sent: self.chunk.len() as u64,
            received: received as u64,
            ..Answer::default()
        }
    }
}

impl Work for Worker {
    async fn prepare(&mut self) -> Result<(), String> {
        if self.mode == Mode::Bulk || (self.mode == Mode::Echo && self.keep) {
            self.io = Some(self.connect().await?);
        }
        Ok(())
    }

    async fn request(&mut self) -> Result<Answer, String> {
        let mut io = match self.io.take() {
            Some(io) => io,
            None => self.connect().await?,
        };
        let done = match self.mode {
            Mode::Connect => Ok(Answer::default()),
            Mode::Echo => self.echo(&mut io).await,
            Mode::Bulk => self.bulk(&mut io).await,
        };
        let answer = done.map_err(|error| error.to_string())?;
        if self.mode == Mode::Bulk || (self.mode == Mode::Echo && self.keep) {
            self.io = Some(io);
        }
        Ok(answer)
    }

    fn reset(&mut self) {
        self.io = None;
    }

    async fn finish(self) {}
}
