//! What the console, or the service control manager, asks of the process.
//!
//! Ctrl-C, Ctrl-Break, closing the console and shutting down end it gracefully; the second of them ends
//! it at once with exit code 1. Reloading is asked for by a change of a file, or of a service by
//! `sc control NAME paramchange`.

use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

use super::control::{self, Controls};
use crate::platform::Request;

/// The console events and service controls of the process, from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: CtrlC,
    interrupt_break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
    controls: Option<Controls>,
}

impl Signals {
    /// Takes them over from the system's defaults.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            interrupt_break: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
            controls: control::controls(),
        })
    }

    /// Waits for the next request. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        let controls = &mut self.controls;
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.interrupt_break.recv() => Request::Stop,
            _ = self.close.recv() => Request::Stop,
            _ = self.shutdown.recv() => Request::Stop,
            Some(request) = async { controls.as_mut()?.recv().await } => request,
        }
    }

    /// Waits until the process is told to stop; reloads no longer matter. Cancel safe.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Request::Stop {}
    }
}
