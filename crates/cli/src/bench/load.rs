//! Workers that ask at the times of a clock, whatever the answers take.
//!
//! With a rate, a request's time runs from the moment at which it was due. A server that stalls holds up
//! the requests behind the one that it keeps, and their wait counts: nothing is left out because the
//! load generator itself had to wait (coordinated omission).

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::histogram::Histogram;
use crate::platform::Signals;

/// Different errors that are told apart in a report.
const MAX_ERRORS: usize = 20;
/// Between two pictures of the progress bar.
const TICK: Duration = Duration::from_millis(200);

/// How much is asked, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) workers: usize,
    /// Of each worker; 0: as fast as answers come.
    pub(super) per_second: f64,
    pub(super) duration: Duration,
    /// For one request.
    pub(super) timeout: Duration,
}

/// One worker's request, again and again.
pub(super) trait Work: Send + 'static {
    /// Connects ahead of the clock; what fails here is tried again by the first request.
    fn prepare(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// Asks and waits for the answer.
    fn request(&mut self) -> impl Future<Output = Result<Answer, String>> + Send;
    /// Forgets a connection whose request was given up.
    fn reset(&mut self);
    /// The clock has stopped.
    fn finish(self) -> impl Future<Output = ()> + Send;
}

/// What a request brought.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Answer {
    pub(super) entries: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What came of it all.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Of requests that succeeded.
    pub(super) times: Histogram,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) errors_total: u64,
    /// Requests that were due and for which there was no time any more.
    pub(super) not_started: u64,
    pub(super) brought: Answer,
    pub(super) elapsed: Duration,
    /// Ended before its time, by the user.
    pub(super) interrupted: bool,
}

impl Tally {
    /// Requests that ended.
    pub(super) fn requests(&self) -> u64 {
        self.times.count() + self.errors_total
    }

    fn take(&mut self, time: Duration, outcome: Result<Answer, String>) {
        match outcome {
            Ok(answer) => {
                self.times.record(time);
                self.brought.entries += answer.entries;
                self.brought.sent += answer.sent;
                self.brought.received += answer.received;
            }
            Err(error) => self.fail(error, 1),
        }
    }

    fn fail(&mut self, error: String, count: u64) {
        let full = self.errors.len() >= MAX_ERRORS && !self.errors.contains_key(&error);
        let error = if full { "others".to_owned() } else { error };
        *self.errors.entry(error).or_default() += count;
        self.errors_total += count;
    }

    fn merge(&mut self, other: Self) {
        self.times.merge(&other.times);
        for (error, count) in other.errors {
            self.fail(error, count);
        }
        self.not_started += other.not_started;
        self.brought.entries += other.brought.entries;
        self.brought.sent += other.brought.sent;
        self.brought.received += other.brought.received;
    }
}

/// Counts for the progress bar.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    failed: AtomicU64,
}

/// Runs workers until the time is over or the user interrupts.
///
/// # Errors
/// Signals cannot be taken over.
pub(super) async fn run<W: Work>(pace: Pace, make: impl Fn() -> W) -> std::io::Result<Tally> {
    let mut signals = Signals::install()?;
    let stop = CancellationToken::new();
    let progress = Arc::new(Progress::default());
    let ready = Arc::new(Barrier::new(pace.workers + 1));
    let mut workers = JoinSet::new();
    for index in 0..pace.workers {
        workers.spawn(worker(
            (pace, index),
            make(),
            Arc::clone(&ready),
            Arc::clone(&progress),
            stop.clone(),
        ));
    }
    tokio::select! {
        _ = ready.wait() => {}
        () = signals.stop() => stop.cancel(),
    }
    let began = Instant::now();
    let mut total = Tally::default();
    let mut bar = Bar::new(pace.duration);
    let mut tick = interval(TICK);
    loop {
        tokio::select! {
            done = workers.join_next() => match done {
                Some(Ok(tally)) => total.merge(tally),
                Some(Err(error)) => total.fail(error.to_string(), 1),
                None => break,
            },
            _ = tick.tick() => bar.draw(began.elapsed(), &progress),
            () = signals.stop() => {
                total.interrupted = true;
                stop.cancel();
            }
        }
    }
    bar.clear();
    total.elapsed = began.elapsed();
    total.interrupted |= stop.is_cancelled();
    Ok(total)
}

async fn worker<W: Work>(
    (pace, index): (Pace, usize),
    mut work: W,
    ready: Arc<Barrier>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Tally {
    let prepare = async {
        if !matches!(timeout(pace.timeout, work.prepare()).await, Ok(Ok(()))) {
            work.reset();
        }
        ready.wait().await;
    };
    let mut tally = Tally::default();
    if stop.run_until_cancelled(prepare).await.is_none() {
        return tally;
    }
    let end = Instant::now() + pace.duration;
    let period = (pace.per_second > 0.0).then(|| Duration::from_secs_f64(1.0 / pace.per_second));
    // Workers begin one after the other, so that they do not all ask at the same moment.
    let mut due = Instant::now();
    if let Some(period) = period {
        due += period.mul_f64(index as f64 / pace.workers as f64);
    }
    loop {
        if stop
            .run_until_cancelled(sleep_until(due.min(end)))
            .await
            .is_none()
        {
            break;
        }
        let now = Instant::now();
        if now >= end {
            tally.not_started = period.map_or(0, |period| missed(due, end, period));
            break;
        }
        let from = if period.is_some() { due } else { now };
        let asked = timeout(pace.timeout, work.request());
        let Some(outcome) = stop.run_until_cancelled(asked).await else {
            work.reset();
            break;
        };
        let outcome = outcome.unwrap_or_else(|_| {
            work.reset();
            Err(format!("no answer within {} s", pace.timeout.as_secs_f64()))
        });
        let count = if outcome.is_ok() {
            &progress.done
        } else {
            &progress.failed
        };
        count.fetch_add(1, Ordering::Relaxed);
        let failed = outcome.is_err();
        tally.take(from.elapsed(), outcome);
        match period {
            Some(period) => due += period,
            None => due = Instant::now(),
        }
        // What refuses at once is not asked in a tight loop.
        if failed && period.is_none() {
            due += Duration::from_millis(50);
        }
    }
    let _ = timeout(Duration::from_secs(1), work.finish()).await;
    tally
}

/// Requests that were due from `due` on and before `end`.
fn missed(due: Instant, end: Instant, period: Duration) -> u64 {
    let left = end.saturating_duration_since(due).as_secs_f64();
    (left / period.as_secs_f64()).ceil() as u64
}

/// One line on standard error that is drawn again and again, if that is a terminal.
struct Bar {
    duration: Duration,
    shown: bool,
    styled: bool,
}

impl Bar {
    const WIDTH: usize = 24;

    fn new(duration: Duration) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            duration,
            shown: std::io::stderr().is_terminal() && !dumb,
            styled: !refused,
        }
    }

    fn draw(&mut self, elapsed: Duration, progress: &Progress) {
        if !self.shown {
            return;
        }
        let part = (elapsed.as_secs_f64() / self.duration.as_secs_f64()).min(1.0);
        let full = (part * Self::WIDTH as f64) as usize;
        let (done, failed) = (
            progress.done.load(Ordering::Relaxed),
            progress.failed.load(Ordering::Relaxed),
        );
        let errors = match (failed, self.styled) {
            (1.., true) => format!("\x1b[31m{failed} errors\x1b[0m"),
            _ => format!("{failed} errors"),
        };
        let line = format!(
            "[{}{}] {:.0}/{:.0} s  {done} ok  {errors}",
            "#".repeat(full),
            ".".repeat(Self::WIDTH - full),
            elapsed.as_secs_f64(),
            self.duration.as_secs_f64(),
        );
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{line}");
        let _ = stderr.flush();
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes its time with the first request and none with the others.
    struct StallsOnce(Duration);

    impl Work for StallsOnce {
        async fn prepare(&mut self) -> Result<(), String> {
            Ok(())
        }
        async fn request(&mut self) -> Result<Answer, String> {
            tokio::time::sleep(std::mem::take(&mut self.0)).await;
            Ok(Answer::default())
        }
        fn reset(&mut self) {}
        async fn finish(self) {}
    }

    #[tokio::test]
    async fn a_stall_counts_for_every_request_that_was_due_in_it() {
        let pace = Pace {
            workers: 1,
            per_second: 20.0,
            duration: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        };
        let stall = Duration::from_millis(500);
        let tally = run(pace, || StallsOnce(stall)).await.unwrap();
        assert_eq!(tally.requests() + tally.not_started, 20);
        // Due at 0, 50, .. 450 ms and answered after 500 ms: half of all waited, 3 for 400 ms.
        assert!(tally.times.quantile_ms(1.0) >= 500.0, "{tally:?}");
        assert!(tally.times.quantile_ms(0.86) >= 400.0, "{tally:?}");
        assert!(tally.times.quantile_ms(0.55) >= 50.0, "{tally:?}");
    }

    #[tokio::test]
    async fn what_does_not_answer_is_an_error_and_what_was_not_asked_is_told() {
        let pace = Pace {
            workers: 2,
            per_second: 10.0,
            duration: Duration::from_millis(400),
            timeout: Duration::from_millis(450),
        };
        let stall = Duration::from_secs(60);
        let tally = run(pace, || StallsOnce(stall)).await.unwrap();
        assert_eq!((tally.errors_total, tally.not_started), (2, 6));
    }
}
