use super::*;
use crate::config::{ProbeConfig, ProbeKind};

fn spec(interval: u64) -> Arc<Spec> {
    Arc::new(Spec {
        config: ProbeConfig {
            kind: ProbeKind::Tcp,
            interval: Duration::from_secs(interval),
            timeout: Duration::from_secs(1),
            down_after: 2,
            up_after: 1,
            starttls: false,
            server_name: None,
            ca_file: None,
            path: "/".into(),
            expect_status: Vec::new(),
        },
        trust: None,
    })
}

fn pair(agent_id: &str) -> Pair {
    (agent_id.into(), "ldap".into())
}

/// Rounds at a moment that the test sets.
struct Clock {
    rounds: Rounds,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let (rounds, start) = (Rounds::default(), Instant::now());
        Self { rounds, start }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn see(&mut self, at: u64, agents: &[&str], spec: &Arc<Spec>) -> usize {
        let present = agents.iter().map(|id| (pair(id), spec.clone())).collect();
        let (now, clock) = (self.at(at), SystemTime::UNIX_EPOCH);
        let altered = self.rounds.reconcile(present, |_| true, now, clock, || 0.5);
        altered.len()
    }

    fn look(&mut self, at: u64, well: bool) -> Option<Option<Turn>> {
        let now = self.at(at);
        let (pair, spec) = self.rounds.take(now)?;
        Some(self.tell(at, &pair, &spec, well))
    }

    fn tell(&mut self, at: u64, pair: &Pair, spec: &Arc<Spec>, well: bool) -> Option<Turn> {
        let fault = Fault::new("closed", "");
        self.end(at, pair, spec, if well { Ok(()) } else { Err(fault) })
    }

    fn end(
        &mut self,
        at: u64,
        pair: &Pair,
        spec: &Arc<Spec>,
        verdict: Result<(), Fault>,
    ) -> Option<Turn> {
        let (took, certificate) = (Duration::ZERO, None);
        let outcome = Outcome {
            took,
            verdict,
            certificate,
        };
        let now = self.at(at);
        self.rounds
            .note(pair, spec, outcome, now, SystemTime::UNIX_EPOCH, 0.5)
    }

    fn down(&self, agent_id: &str) -> usize {
        self.rounds.down(&agent_id.into()).len()
    }
}

fn turned(turn: Option<Option<Turn>>) -> Option<(State, State)> {
    turn.flatten().map(|turn| (turn.from, turn.to))
}

#[test]
fn a_target_goes_down_and_comes_back() {
    let (mut clock, spec) = (Clock::new(), spec(20));
    clock.see(0, &["site-1"], &spec);
    assert_eq!(
        turned(clock.look(1, true)),
        Some((State::Unknown, State::Up))
    );
    assert!(clock.look(20, true).is_none(), "not due yet");
    assert_eq!(clock.look(22, false), Some(None));
    assert!(clock.look(26, false).is_none());
    assert_eq!(
        turned(clock.look(27, false)),
        Some((State::Up, State::Down)),
        "sooner in doubt"
    );
    assert_eq!(clock.down("site-1"), 1);
    assert!(clock.look(46, true).is_none());
    assert_eq!(turned(clock.look(47, true)), Some((State::Down, State::Up)));
    assert_eq!(clock.down("site-1"), 0);
}

#[test]
fn a_lost_path_says_nothing_about_the_target() {
    let (mut clock, spec) = (Clock::new(), spec(4));
    clock.see(0, &["site-1"], &spec);
    for at in (1..100).step_by(4) {
        let (pair, spec) = clock.rounds.take(clock.at(at)).expect("due");
        let lost = Err(Fault::of_path("path", ""));
        assert_eq!(clock.end(at, &pair, &spec, lost), None);
    }
    assert!(
        clock
            .rounds
            .all()
            .all(|(_, one)| one.vital.state == State::Unknown && one.last.is_none())
    );
}

#[test]
fn who_comes_back_soon_is_remembered_and_looked_at_at_once() {
    let (mut clock, spec) = (Clock::new(), spec(50));
    clock.see(0, &["site-1"], &spec);
    clock.look(1, false);
    assert_eq!(
        turned(clock.look(14, false)),
        Some((State::Unknown, State::Down))
    );
    clock.see(20, &[], &spec);
    assert!(clock.rounds.take(clock.at(99)).is_none(), "nobody is there");
    clock.see(30, &["site-1"], &spec);
    assert_eq!(clock.down("site-1"), 1);
    assert_eq!(turned(clock.look(31, true)), Some((State::Down, State::Up)));
    clock.see(40, &[], &spec);
    assert_eq!(clock.see(99, &[], &spec), 1, "forgotten");
    assert_eq!(clock.rounds.all().count(), 0);
    assert_eq!(clock.rounds.next_due(), None);
}

#[test]
fn another_question_begins_anew_and_late_answers_do_not_count() {
    let (mut clock, old, new) = (Clock::new(), spec(50), spec(60));
    clock.see(0, &["site-1"], &old);
    let (pair, asked) = clock.rounds.take(clock.at(1)).expect("due");
    assert_eq!(clock.see(2, &["site-1"], &new), 1);
    assert_eq!(clock.tell(3, &pair, &asked, true), None);
    assert_eq!(
        turned(clock.look(3, true)),
        Some((State::Unknown, State::Up))
    );
    let altered = clock.rounds.reconcile(
        BTreeMap::new(),
        |_| false,
        clock.at(4),
        SystemTime::now(),
        || 0.0,
    );
    assert_eq!(
        (altered.len(), clock.rounds.all().count()),
        (1, 0),
        "not probed any more"
    );
}

#[test]
fn a_thousand_that_come_at_once_are_spread_out() {
    let (mut clock, spec) = (Clock::new(), spec(10));
    let present = (0..1000)
        .map(|n| (pair(&format!("site-{n}")), spec.clone()))
        .collect();
    let mut n = 0;
    let random = || {
        n += 1;
        f64::from(n) / 1000.0
    };
    clock
        .rounds
        .reconcile(present, |_| true, clock.start, SystemTime::now(), random);
    let mut due = 0;
    while clock.rounds.take(clock.at(1)).is_some() {
        due += 1;
    }
    assert!((150..=250).contains(&due), "{due} within a second");
}
