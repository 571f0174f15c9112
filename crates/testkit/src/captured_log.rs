//! What a test's own thread logs, and everything that runs on it.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;

use crate::wait;

/// Log lines of this thread since it was made.
#[derive(Debug)]
pub struct CapturedLog {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl CapturedLog {
    /// Listens from now on.
    #[must_use]
    pub fn start() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            lines,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// Waits for a line with all of these words; returns it.
    ///
    /// # Errors
    /// At the deadline, with everything that was logged.
    pub async fn wait_line(&self, words: &[&str]) -> Result<String> {
        wait::until("a log line", async || {
            let text = String::from_utf8(self.lines.0.lock().clone())?;
            let fits = |line: &&str| words.iter().all(|word| line.contains(word));
            let line = text.lines().find(fits).map(str::to_owned);
            line.ok_or_else(|| anyhow!("none with {words:?} in:\n{text}"))
        })
        .await
    }
}
