//! Under which epoch the tunnels of this process stand, and who may ask for another one.
//!
//! All living tunnels belong to one epoch. A tunnel that is made while others live says their epoch
//! in HELLO, and joins it. When none lives, one attempt at a time founds a new epoch, so that two
//! hubs that are reached at the same moment do not end up with one each. A hub that knows better
//! grants a higher epoch: the other tunnels are outdated then, and renewed one after another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// How long others wait for a hub that was asked for an epoch.
const FOUNDING: Duration = Duration::from_secs(2);

/// The tunnels of a process that have an epoch or are about to get one.
#[derive(Debug)]
pub(crate) struct Standing {
    state: watch::Sender<State>,
    renewals: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// Of claims and of stands.
    last_number: u64,
    stands: BTreeMap<u64, Place>,
    /// The claim that founds, and since when.
    founder: Option<(u64, Instant)>,
}

#[derive(Debug)]
struct Place {
    /// `None` in version 1, which has no epochs.
    epoch: Option<u64>,
    leaving: bool,
}

impl State {
    /// The epoch of the living tunnels, 0 without any.
    fn held(&self) -> u64 {
        let epochs = self.stands.values().filter_map(|place| place.epoch);
        epochs.max().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Whether a tunnel may be asked for now, and as which number.
    fn claim(&mut self, now: Instant) -> Option<u64> {
        if self.held() > 0 {
            return Some(self.number());
        }
        match self.founder {
            Some((_, since)) if now.saturating_duration_since(since) < FOUNDING => None,
            _ => {
                let number = self.number();
                self.founder = Some((number, now));
                Some(number)
            }
        }
    }

    /// A tunnel under `epoch` is there; if it may stay, under which number.
    fn enter(&mut self, epoch: Option<u64>) -> Result<u64, u64> {
        let held = self.held();
        if epoch.is_some_and(|epoch| epoch < held) {
            return Err(held);
        }
        let number = self.number();
        let leaving = false;
        self.stands.insert(number, Place { epoch, leaving });
        Ok(number)
    }

    /// Whether there is a tunnel that is not about to be left.
    fn has_lasting(&self) -> bool {
        self.stands.values().any(|place| !place.leaving)
    }
}

impl Standing {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::default(),
            renewals: Arc::new(Semaphore::new(1)),
        })
    }

    /// Waits until a tunnel may be asked for. A hub must answer it soon: others may wait for that.
    pub(crate) async fn claim(self: &Arc<Self>) -> Claim {
        let mut changes = self.state.subscribe();
        loop {
            let mut claim = None;
            self.state.send_if_modified(|state| {
                claim = state.claim(Instant::now()).map(|number| Claim {
                    number,
                    held: state.held(),
                    standing: Arc::clone(self),
                });
                false
            });
            if let Some(claim) = claim {
                return claim;
            }
            let _ = timeout(FOUNDING, changes.changed()).await;
        }
    }

    /// A hub has granted a tunnel under `epoch`; `None` is version 1.
    ///
    /// # Errors
    /// Other tunnels stand under this higher epoch.
    pub(crate) fn enter(self: &Arc<Self>, epoch: Option<u64>) -> Result<Stand, u64> {
        let mut entered = Err(0);
        self.state.send_modify(|state| entered = state.enter(epoch));
        entered.map(|number| Stand {
            standing: Arc::clone(self),
            epoch,
            number,
        })
    }

    fn leave(&self, number: u64) {
        self.state.send_modify(|state| {
            if let Some(place) = state.stands.get_mut(&number) {
                place.leaving = true;
            }
        });
    }

    /// Waits until there was a tunnel that takes flows, and is none any more.
    pub(crate) async fn bereft(&self) {
        let mut changes = self.state.subscribe();
        let _ = changes.wait_for(State::has_lasting).await;
        let _ = changes.wait_for(|state| !state.has_lasting()).await;
    }

    /// Waits until nobody else renews a tunnel; the next one waits until the turn is dropped.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.renewals).acquire_owned().await.ok()
    }
}

/// The right to ask a hub for a tunnel, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    standing: Arc<Standing>,
    number: u64,
    /// The epoch to join; 0 asks for a new one.
    pub(crate) held: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.standing.state.send_if_modified(|state| {
            let founds = state
                .founder
                .is_some_and(|(number, _)| number == self.number);
            if founds {
                state.founder = None;
            }
            founds
        });
    }
}

/// A living tunnel's place; it is given up with this value.
#[derive(Debug)]
pub(crate) struct Stand {
    standing: Arc<Standing>,
    epoch: Option<u64>,
    number: u64,
}

impl Stand {
    /// The tunnel takes no new flows from now on, or will not for long, though it lives.
    pub(crate) fn leave(&self) {
        self.standing.leave(self.number);
    }

    /// Waits until other tunnels stand under a higher epoch.
    pub(crate) fn outdated(&self) -> impl Future<Output = ()> + Send + use<> {
        let (epoch, mut changes) = (self.epoch, self.standing.state.subscribe());
        async move {
            let higher = |state: &State| epoch.is_some_and(|epoch| epoch < state.held());
            let _ = changes.wait_for(higher).await;
        }
    }

    /// Makes way for others: waits until there is another tunnel that does not.
    pub(crate) fn spared(&self) -> impl Future<Output = ()> + Send + use<> {
        let (number, standing) = (self.number, Arc::clone(&self.standing));
        async move {
            standing.leave(number);
            let mut changes = standing.state.subscribe();
            let _ = changes.wait_for(State::has_lasting).await;
        }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.standing.state.send_modify(|state| {
            state.stands.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(seconds: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    #[test]
    fn one_founds_and_the_others_join() {
        let mut state = State::default();
        assert!(state.claim(later(0)).is_some());
        assert_eq!((state.held(), state.claim(later(1))), (0, None));
        state.enter(Some(5)).unwrap();
        assert!(state.claim(later(1)).is_some());
        assert_eq!(state.held(), 5);
    }

    #[test]
    fn a_hub_that_does_not_answer_holds_up_the_others_for_a_moment_only() {
        let mut state = State::default();
        let first = state.claim(later(0));
        let second = state.claim(later(2));
        assert!(first.is_some() && second.is_some() && first != second);
        assert_eq!(
            state.claim(later(3)),
            None,
            "the second one has its time too"
        );
    }

    #[test]
    fn the_highest_epoch_counts() {
        let mut state = State::default();
        let old = state.enter(Some(5)).unwrap();
        let new = state.enter(Some(9)).unwrap();
        assert_eq!(state.enter(Some(5)), Err(9));
        state.stands.remove(&old);
        assert_eq!(state.held(), 9);
        state.stands.remove(&new);
        assert_eq!(state.held(), 0, "whoever comes next founds");
        assert!(state.enter(Some(5)).is_ok());
    }

    #[test]
    fn version_1_has_no_part_in_it() {
        let mut state = State::default();
        state.enter(None).unwrap();
        assert_eq!(state.held(), 0);
        state.enter(Some(5)).unwrap();
        assert!(state.enter(None).is_ok());
    }

    #[tokio::test]
    async fn a_failed_founder_lets_the_next_one_try() {
        let standing = Standing::new();
        let founder = standing.claim().await;
        let next = tokio::spawn({
            let standing = Arc::clone(&standing);
            async move { standing.claim().await.held }
        });
        drop(founder);
        assert_eq!(next.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_outdated_tunnel_hears_of_it() {
        let standing = Standing::new();
        let old = standing.enter(Some(5)).unwrap();
        let outdated = tokio::spawn(old.outdated());
        let new = standing.enter(Some(6)).unwrap();
        outdated.await.unwrap();
        assert_eq!(standing.claim().await.held, 6);
        drop(new);
        assert_eq!(standing.claim().await.held, 5);
    }

    #[tokio::test]
    async fn the_last_tunnel_that_takes_flows_is_missed() {
        let standing = Standing::new();
        let [first, last] = [5, 5].map(|epoch| standing.enter(Some(epoch)).unwrap());
        let mut bereft = std::pin::pin!(standing.bereft());
        drop(first);
        let early = timeout(Duration::from_millis(1), &mut bereft).await;
        assert!(early.is_err(), "there is another");
        last.leave();
        bereft.await;
    }

    #[tokio::test]
    async fn tunnels_that_make_way_do_not_do_so_for_each_other() {
        let standing = Standing::new();
        let old = [5, 5].map(|epoch| standing.enter(Some(epoch)).unwrap());
        let waiting = old.each_ref().map(|stand| Box::pin(stand.spared()));
        let both = tokio::spawn(async {
            for spared in waiting {
                spared.await;
            }
        });
        let left = |state: &State| state.stands.values().any(|place| place.leaving);
        standing.state.subscribe().wait_for(left).await.unwrap();
        assert!(!both.is_finished());
        let _new = standing.enter(Some(5)).unwrap();
        both.await.unwrap();
    }
}
