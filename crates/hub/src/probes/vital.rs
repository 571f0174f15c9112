//! When a target counts as up or down: one answer may be wrong, several in a row are believed.

use std::time::SystemTime;

/// What is believed of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not enough has been seen yet.
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Up, Self::Down];

    /// The name in metrics, logs and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What is believed of one target, and how sure that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vital {
    pub(super) state: State,
    pub(super) since: SystemTime,
    /// Results one after the other that contradict `state`.
    pub(super) doubts: u32,
}

impl Vital {
    pub(super) fn unknown(now: SystemTime) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            doubts: 0,
        }
    }

    /// Takes a result in; returns what was believed before, if that has changed. Whoever is not known
    /// yet is up with the first success.
    pub(super) fn note(
        &mut self,
        well: bool,
        down_after: u32,
        up_after: u32,
        now: SystemTime,
    ) -> Option<State> {
        let (next, enough) = match (self.state, well) {
            (State::Up, true) | (State::Down, false) => {
                self.doubts = 0;
                return None;
            }
            (State::Unknown, true) => (State::Up, 1),
            (State::Down, true) => (State::Up, up_after),
            (State::Unknown | State::Up, false) => (State::Down, down_after),
        };
        self.doubts += 1;
        if self.doubts < enough {
            return None;
        }
        let before = std::mem::replace(&mut self.state, next);
        (self.since, self.doubts) = (now, 0);
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(results: &str) -> String {
        let mut vital = Vital::unknown(SystemTime::UNIX_EPOCH);
        let mut shown = String::new();
        for result in results.chars() {
            vital.note(result == '+', 3, 2, SystemTime::UNIX_EPOCH);
            shown.push(match vital.state {
                State::Unknown => '?',
                State::Up => 'U',
                State::Down => 'D',
            });
        }
        shown
    }

    #[test]
    fn several_in_a_row_are_believed_and_the_first_success() {
        assert_eq!(states("+--+---"), "UUUUUUD");
        assert_eq!(states("---+-++"), "??DDDDU");
        assert_eq!(states("--+---"), "??UUUD");
        assert_eq!(states("-----"), "??DDD");
    }

    #[test]
    fn a_change_is_told_once_with_what_was_before() {
        let mut vital = Vital::unknown(SystemTime::UNIX_EPOCH);
        let now = SystemTime::now();
        assert_eq!(vital.note(true, 1, 1, now), Some(State::Unknown));
        assert_eq!(vital.note(true, 1, 1, now), None);
        assert_eq!(vital.note(false, 1, 1, now), Some(State::Up));
        assert_eq!(vital.note(false, 1, 1, now), None);
        assert_eq!(vital.since, now);
    }
}
