//! Listening sockets as a service manager holds them: open whether the service runs or not.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use socket2::SockRef;

/// The first of them, in whichever process they are passed to (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;
/// Numbers that nothing else has.
const ASIDE: usize = 700;

/// Sockets with names, for `sd_listen_fds(3)`. Closed when dropped.
#[derive(Debug, Default)]
pub struct HeldSockets(Vec<(String, TcpListener)>);

impl HeldSockets {
    /// Adds a socket that listens on `address`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(mut self, name: &str, address: SocketAddr) -> Result<Self> {
        let socket = TcpListener::bind(address).context(address)?;
        // For every process that starts from now on.
        SockRef::from(&socket).set_cloexec(false)?;
        self.0.push((name.to_owned(), socket));
        Ok(self)
    }

    /// The words of a command that passes the sockets to the program behind them.
    pub fn launcher(&self) -> Vec<String> {
        let (mut script, mut names) = (String::from("exec"), Vec::new());
        for (index, (name, socket)) in self.0.iter().enumerate() {
            let (own, aside) = (socket.as_raw_fd(), ASIDE + index);
            // Nothing can go wrong with text in memory.
            let _ = write!(script, " {aside}<&{own} {own}<&-");
            names.push(name.as_str());
        }
        for index in 0..self.0.len() {
            let (aside, passed) = (ASIDE + index, FIRST + index);
            let _ = write!(script, " {passed}<&{aside} {aside}<&-");
        }
        let (count, names) = (self.0.len(), names.join(":"));
        let _ = write!(
            script,
            "; LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names} exec \"$0\" \"$@\""
        );
        vec!["bash".into(), "-c".into(), script]
    }
}
