//! What a process printed: kept in memory line by line, copied to a file, and waited on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::wait::DEADLINE;

/// The output of one process, in the order in which its lines arrived.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    copy: Mutex<File>,
    lines: Mutex<Vec<String>>,
    count: watch::Sender<usize>,
    followed: watch::Sender<usize>,
}

/// A place in a [`Log`]: what was printed before it is of no interest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(usize);

/// One JSON log line.
#[derive(Clone, Debug)]
pub struct Event(Value);

impl Log {
    /// An empty log whose lines are also appended to `file`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn new(name: &str, file: &Path) -> Result<Self> {
        let copy = File::options().create(true).append(true).open(file);
        Ok(Self(Arc::new(Shared {
            name: name.to_owned(),
            copy: Mutex::new(copy.with_context(|| file.display().to_string())?),
            lines: Mutex::default(),
            count: watch::Sender::new(0),
            followed: watch::Sender::new(0),
        })))
    }

    /// Reads `output` to its end on a thread of its own, so that a process never blocks on a pipe
    /// because a test is busy.
    pub fn follow(&self, output: impl Read + Send + 'static) {
        let log = self.clone();
        log.0.followed.send_modify(|outputs| *outputs += 1);
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
            log.0.followed.send_modify(|outputs| *outputs -= 1);
        });
    }

    /// Waits until every followed output has ended, as it does with its process.
    pub async fn wait_end(&self) {
        let mut followed = self.0.followed.subscribe();
        // A grandchild may hold an output open for longer: then what is there must do.
        let _ = timeout(
            Duration::from_secs(2),
            followed.wait_for(|outputs| *outputs == 0),
        )
        .await;
    }

    fn push(&self, line: String) {
        // The copy is for people; a full disk must not fail a test.
        let _ = writeln!(self.0.copy.lock(), "{line}");
        let mut lines = self.0.lines.lock();
        lines.push(line);
        let count = lines.len();
        drop(lines);
        self.0.count.send_replace(count);
    }

    /// The end of the log as it is now.
    pub fn mark(&self) -> Mark {
        Mark(self.0.lines.lock().len())
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        self.0.lines.lock().join("\n")
    }

    /// The events with this name since `from`.
    pub fn events(&self, name: &str, from: Mark) -> Vec<Event> {
        self.0.lines.lock()[from.0..]
            .iter()
            .filter_map(|line| Event::parse(line, name))
            .collect()
    }

    /// Waits for the first event with this name.
    ///
    /// # Errors
    /// After [`DEADLINE`], with the end of the log.
    pub async fn wait_event(&self, name: &str) -> Result<Event> {
        self.wait_event_where(name, Mark::default(), |_| true).await
    }

    /// Waits for the first event with this name since `from`.
    ///
    /// # Errors
    /// After [`DEADLINE`], with the end of the log.
    pub async fn wait_event_since(&self, name: &str, from: Mark) -> Result<Event> {
        self.wait_event_where(name, from, |_| true).await
    }

    /// Waits for the first event with this name since `from` that `accept` takes.
    ///
    /// # Errors
    /// After [`DEADLINE`], with the end of the log.
    pub async fn wait_event_where(
        &self,
        name: &str,
        from: Mark,
        mut accept: impl FnMut(&Event) -> bool,
    ) -> Result<Event> {
        self.wait_line(name, from, DEADLINE, |line| {
            Event::parse(line, name).filter(|event| accept(event))
        })
        .await
    }

    /// Waits for the first line since `from` out of which `pick` makes something.
    ///
    /// # Errors
    /// After `deadline`, with the end of the log.
    pub async fn wait_line<T>(
        &self,
        what: &str,
        from: Mark,
        deadline: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut grown = self.0.count.subscribe();
        let mut next = from.0;
        loop {
            grown.borrow_and_update();
            let found = {
                let lines = self.0.lines.lock();
                let found = lines[next..].iter().find_map(|line| pick(line));
                next = lines.len();
                found
            };
            if let Some(found) = found {
                return Ok(found);
            }
            if timeout_at(end, grown.changed()).await.is_err() {
                bail!(
                    "{}: no {what} within {deadline:?}; its log ends:\n{}",
                    self.0.name,
                    self.tail()
                );
            }
        }
    }

    /// The last lines, for the message of a failed test.
    pub fn tail(&self) -> String {
        let lines = self.0.lines.lock();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Event {
    fn parse(line: &str, name: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        (value.get("event")?.as_str()? == name).then_some(Self(value))
    }

    /// A field as text; empty when it is missing.
    pub fn text(&self, field: &str) -> String {
        match self.0.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// A field as a number, also when it was printed as text.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.text(field).parse().ok()
    }

    /// The whole line.
    pub fn json(&self) -> &Value {
        &self.0
    }
}
