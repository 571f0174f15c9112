//! Writes lines on a thread of its own, so that a reader of stdout that stalls stalls nobody else.

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing::Level;

use super::line::{Fields, Shape, compose};

/// Lines that may wait to be written; those beyond are dropped and counted.
const MAX_WAITING: usize = 4096;
/// How long the end of the process waits for its last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

enum Job {
    Line(String),
    /// Answered once everything before it was written.
    Flush(SyncSender<()>),
}

/// The way in for lines.
#[derive(Clone)]
pub(super) struct Lines {
    jobs: SyncSender<Job>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Hands a line over; never blocks.
    pub(super) fn push(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.jobs.try_send(Job::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits, when dropped, until what was logged before is written, but not for ever.
pub(super) struct Flush(Lines);

impl Drop for Flush {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        let (answer, done) = sync_channel(1);
        let mut job = Job::Flush(answer);
        while let Err(TrySendError::Full(back)) = self.0.jobs.try_send(job) {
            if Instant::now() >= deadline {
                return;
            }
            job = back;
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Starts the thread that writes to `out`.
pub(super) fn start<W: Write + Send + 'static>(
    out: W,
    shape: Shape,
) -> std::io::Result<(Lines, Flush)> {
    let (jobs, queue) = sync_channel(MAX_WAITING);
    let lines = Lines {
        jobs,
        dropped: Arc::default(),
    };
    let dropped = Arc::clone(&lines.dropped);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            write_lines(
                &queue,
                BufWriter::with_capacity(64 * 1024, out),
                shape,
                &dropped,
            )
        })?;
    Ok((lines.clone(), Flush(lines)))
}

/// Errors are ignored: there is nowhere left to report that stdout is gone.
fn write_lines(queue: &Receiver<Job>, mut out: impl Write, shape: Shape, dropped: &AtomicU64) {
    loop {
        let job = match queue.try_recv() {
            Ok(job) => job,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let _ = out.flush();
                match queue.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                }
            }
        };
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let fields = Fields::named("log_lines_dropped", "dropped", lost);
            let _ = out.write_all(compose(shape, Level::WARN, "log", fields).as_bytes());
        }
        match job {
            Job::Line(line) => {
                let _ = out.write_all(line.as_bytes());
            }
            Job::Flush(answer) => {
                let _ = out.flush();
                let _ = answer.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// A reader of the log that can stall.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<State>, Condvar)>);

    #[derive(Default)]
    struct State {
        stalled: bool,
        writing: bool,
        text: String,
    }

    impl Pipe {
        fn stall(&self, stalled: bool) {
            self.0.0.lock().unwrap().stalled = stalled;
            self.0.1.notify_all();
        }

        fn wait(&self, until: impl Fn(&State) -> bool) {
            let state = self.0.0.lock().unwrap();
            let limit = Duration::from_secs(10);
            let (state, timeout) = self
                .0
                .1
                .wait_timeout_while(state, limit, |state| !until(state))
                .unwrap();
            assert!(!timeout.timed_out(), "{:?}", state.text);
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut state = self.0.0.lock().unwrap();
            state.writing = true;
            self.0.1.notify_all();
            while state.stalled {
                state = self.0.1.wait(state).unwrap();
            }
            state.text.push_str(std::str::from_utf8(bytes).unwrap());
            self.0.1.notify_all();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_in_order_and_dropping_the_guard_writes_the_last() {
        let pipe = Pipe::default();
        let (lines, flush) = start(pipe.clone(), Shape::Json).unwrap();
        let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
        (0..100).for_each(|n| lines.push(format!("{n}\n")));
        drop(flush);
        assert_eq!(pipe.0.0.lock().unwrap().text, expected);
    }

    #[test]
    fn a_stalled_reader_costs_lines_not_time() {
        let pipe = Pipe::default();
        let (lines, flush) = start(pipe.clone(), Shape::Json).unwrap();
        pipe.stall(true);
        lines.push("first\n".into());
        pipe.wait(|state| state.writing);
        let started = Instant::now();
        for _ in 0..MAX_WAITING + 50 {
            lines.push("more\n".into());
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        let started = Instant::now();
        drop(flush);
        assert!(started.elapsed() < LAST_WORDS * 3);
        pipe.stall(false);
        pipe.wait(|state| {
            state
                .text
                .contains(r#""event":"log_lines_dropped","dropped":50}"#)
        });
    }

    #[test]
    fn a_closed_reader_is_survived() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        }
        let (lines, flush) = start(Gone, Shape::Json).unwrap();
        lines.push("lost\n".into());
        drop(flush);
    }
}
