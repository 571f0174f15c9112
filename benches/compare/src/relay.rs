//! The reference that any two-process tunnel is held against: accept, dial, copy, nothing else.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;

use crate::sockets;

const BUFFER: usize = 256 * 1024;

/// Copies connections from `listen` to `destination` until the process is stopped.
pub(crate) async fn serve(listen: SocketAddr, destination: SocketAddr) -> io::Result<()> {
    let listener = sockets::listen(listen)?;
    loop {
        let mut near = sockets::accept(&listener).await;
        tokio::spawn(async move {
            let mut far = sockets::connect(destination).await?;
            copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await
        });
    }
}
