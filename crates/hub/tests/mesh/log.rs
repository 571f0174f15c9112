//! What a test's thread logs, which all its hubs run on.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use nowconnect_testkit::{anyhow, wait};
use tracing::subscriber::DefaultGuard;

/// Log lines since it was made.
pub(crate) struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn start() -> Self {
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
    pub(crate) async fn line(&self, words: &[&str]) -> String {
        wait::until("a log line", async || {
            let text = String::from_utf8(self.lines.0.lock().unwrap().clone())?;
            let fits = |line: &&str| words.iter().all(|word| line.contains(word));
            let line = text.lines().find(fits).map(str::to_owned);
            line.ok_or_else(|| anyhow::anyhow!("none with {words:?} in:\n{text}"))
        })
        .await
        .unwrap()
    }
}
