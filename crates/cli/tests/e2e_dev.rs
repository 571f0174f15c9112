//! `nowconnect dev`: everything in one process, for trying out.

use anyhow::Result;
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::process::{Process, Signal};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use tokio::net::TcpStream;

#[tokio::test]
async fn a_mapped_port_reaches_its_target_with_nothing_else_installed() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    let (one, two) = (Target::echo().await?, Target::source(2).await?);
    let ports = [ports::reserve()?, ports::reserve()?];
    let maps = [
        format!("{}={}", ports[0], one.addr()),
        format!("{}={}", ports[1], two.addr()),
    ];
    let mut command = lab.command(&["dev", "--map", &maps[0], "--map", &maps[1]]);
    let mut dev = Process::spawn("dev", &mut command, lab.dir())?;
    until("the mapped port", async || {
        dev.check_alive()?;
        let mut client = TcpStream::connect(ports::local(ports[0])).await?;
        echo(&mut client, Pattern(1), 0, 100_000).await
    })
    .await?;
    dev.signal(Signal::Term).await?;
    assert!(dev.wait_exit().await?.success(), "{}", dev.log().text());
    Ok(())
}
