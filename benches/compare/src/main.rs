//! Compares NowConnect with other tunnels on one machine; `docs/benchmarks.md` has the method.

mod cases;
mod chunks;
mod contest;
mod credentials;
mod delay;
mod echo;
mod failure;
mod json;
mod load;
mod machine;
mod multiplexer;
mod obtain;
mod options;
mod process;
mod relay;
mod report;
mod scratch;
mod slapd;
mod sockets;
mod systems;
mod target;
mod tool;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Context, Failure, Result};
use crate::options::{HELP, Options};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        // The servers that a run starts from this same program.
        ["target", listen] => serve_target(listen),
        ["relay", listen, dial] => serve_relay(listen, dial),
        ["multiplexer-near", tunnel, listen] => serve_multiplexer_near(tunnel, listen),
        ["multiplexer-far", tunnel, target] => serve_multiplexer_far(tunnel, target),
        ["delay", listen, dial, millis] => serve_delay(listen, dial, millis),
        _ => compare(&arguments),
    };
    // Whatever still runs in the background has lost its purpose; nothing waits for it.
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    if options.help {
        print!("{HELP}");
        return Ok(());
    }
    let runtime = runtime(&mut Builder::new_current_thread())?;
    let outcome = runtime.block_on(async {
        // Leaving the contest drops it, and with it every process and file of the run.
        tokio::select! {
            outcome = contest::run(&options) => outcome,
            name = interrupted() => Err(Failure::new(format!("stopped by {}", name?))),
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn interrupted() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = hangup.recv() => Ok("SIGHUP"),
    }
}

fn runtime(builder: &mut Builder) -> Result<Runtime> {
    builder.enable_all().build().context("runtime")
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().context(text)
}

fn ended(outcome: io::Result<()>) -> Result<()> {
    outcome.context("server")
}

fn serve_target(listen: &str) -> Result<()> {
    let listen = address(listen)?;
    ended(runtime(&mut Builder::new_current_thread())?.block_on(target::serve(listen)))
}

fn serve_relay(listen: &str, dial: &str) -> Result<()> {
    let (listen, dial) = (address(listen)?, address(dial)?);
    ended(runtime(&mut Builder::new_multi_thread())?.block_on(relay::serve(listen, dial)))
}

fn serve_multiplexer_near(tunnel: &str, listen: &str) -> Result<()> {
    let (tunnel, listen) = (address(tunnel)?, address(listen)?);
    let runtime = runtime(&mut Builder::new_current_thread())?;
    ended(runtime.block_on(multiplexer::serve_near(tunnel, listen)))
}

fn serve_multiplexer_far(tunnel: &str, target: &str) -> Result<()> {
    let (tunnel, target) = (address(tunnel)?, address(target)?);
    let runtime = runtime(&mut Builder::new_current_thread())?;
    ended(runtime.block_on(multiplexer::serve_far(tunnel, target)))
}

fn serve_delay(listen: &str, dial: &str, millis: &str) -> Result<()> {
    let (listen, dial) = (address(listen)?, address(dial)?);
    let round_trip = Duration::from_millis(millis.parse().context("round-trip time")?);
    let runtime = runtime(&mut Builder::new_current_thread())?;
    ended(runtime.block_on(delay::serve(listen, dial, round_trip)))
}
