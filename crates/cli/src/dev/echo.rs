//! A target for those who have none: sends back what it gets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Connections at one time; the next ones wait.
const MAX_CONNECTIONS: usize = 100;

/// Listens on a free loopback port.
pub(super) async fn start(tasks: &mut JoinSet<()>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    let Ok((mut socket, _)) = accepted else { continue };
                    connections.spawn(async move {
                        let (mut reader, mut writer) = socket.split();
                        let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Ok(address)
}
