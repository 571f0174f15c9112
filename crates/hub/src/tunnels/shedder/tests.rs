//! The shedder alone, and a fleet that reconnects, simulated without a clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use nowconnect_proto::backoff::Backoff;

use super::*;

/// As the agent's: see its keeper.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How long an agent waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn rate(per_sec: u32) -> NonZeroU32 {
    NonZeroU32::new(per_sec).expect("not zero")
}

fn client(number: u32) -> Client {
    IpAddr::from(number.to_be_bytes()).into()
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same fleet in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[test]
fn turns_are_as_far_apart_as_tokens_are_judged() {
    let (mut shedder, mut dice) = (Shedder::default(), Dice(1));
    let mut came_back = [0u32; 61];
    for number in 0..5000 {
        match shedder.admit(client(number), SECOND, rate(200), dice.roll()) {
            Ok(()) => came_back[0] += 1,
            Err(Shed::Rate(wait)) => came_back[wait.as_secs() as usize] += 1,
            Err(shed) => panic!("{shed:?}"),
        }
    }
    assert_eq!(came_back[0], 200);
    let busy = came_back.iter().filter(|count| **count > 0).count();
    assert!((25..=26).contains(&busy), "{came_back:?}");
    assert!(
        came_back[2..24]
            .iter()
            .all(|count| (150..250).contains(count)),
        "{came_back:?}"
    );
}

#[test]
fn nobody_is_sent_away_for_longer_than_a_minute() {
    let (mut shedder, mut dice) = (Shedder::default(), Dice(2));
    let mut late = Vec::new();
    for number in 0..100_000 {
        if let Err(Shed::Rate(wait)) = shedder.admit(client(number), SECOND, rate(10), dice.roll())
        {
            late.push(wait.as_secs());
        }
    }
    assert_eq!(late.iter().max(), Some(&60));
    let last = &late[50_000..];
    assert!(last.iter().all(|wait| (30..60).contains(wait)));
}

#[test]
fn bad_tokens_cost_only_those_of_their_address() {
    let mut shedder = Shedder::default();
    let (bad, good) = (client(1), client(2));
    let mut judged = 0;
    for _ in 0..1000 {
        if shedder.admit(bad, SECOND, rate(200), 0).is_ok() {
            shedder.note_failed(bad, SECOND);
            judged += 1;
        }
    }
    assert_eq!(judged, FAILURES.get());
    assert_eq!(
        shedder.admit(bad, SECOND, rate(200), 0),
        Err(Shed::Failures(SECOND))
    );
    let others = (0..1000).filter(|_| shedder.admit(good, SECOND, rate(200), 0).is_ok());
    assert_eq!(others.count(), 190);
    assert!(shedder.admit(bad, SECOND * 2, rate(200), 0).is_ok());
}

/// What a hub does with those who come.
enum Hub {
    /// Takes everybody in and judges `per_sec` of them, in order, also those who have given up.
    Unbounded { per_sec: u32, busy_until: Duration },
    /// Ours.
    Shedding { per_sec: u32, shedder: Shedder },
}

impl Hub {
    /// When the agent is connected, or when it knows that it is not, and what it was told.
    fn receive(
        &mut self,
        agent: u32,
        now: Duration,
        random: u64,
    ) -> Result<Duration, (Duration, Duration)> {
        match self {
            Self::Unbounded {
                per_sec,
                busy_until,
            } => {
                *busy_until = (*busy_until).max(now) + SECOND / *per_sec;
                match *busy_until - now <= PATIENCE {
                    true => Ok(*busy_until),
                    false => Err((now + PATIENCE, Duration::ZERO)),
                }
            }
            Self::Shedding { per_sec, shedder } => {
                match shedder.admit(client(agent), now, rate(*per_sec), random) {
                    Ok(()) => Ok(now),
                    Err(Shed::Rate(wait) | Shed::Failures(wait)) => Err((now, wait)),
                }
            }
        }
    }
}

/// Seconds from the return of a hub, which was away for `away`, until each of its agents is
/// connected, sorted. Half of them lost another tunnel less than a minute before. All the time
/// `strangers` come per second, with good tokens, and never as they are told.
fn storm(mut hub: Hub, agents: u32, away: Duration, strangers: u32) -> Vec<f64> {
    let seed = 7;
    let mut dice = Dice(seed);
    let mut fleet: Vec<_> = (0..agents)
        .map(|_| Backoff::new(BACKOFF.0, BACKOFF.1))
        .collect();
    let mut attempts: BinaryHeap<Reverse<(Duration, u32)>> = BinaryHeap::new();
    for (number, backoff) in (0u32..).zip(&mut fleet) {
        for _ in 0..number % 2 * 4 {
            backoff.next(dice.roll());
        }
        attempts.push(Reverse((
            backoff.next_within(dice.roll(), SECOND * 5),
            number,
        )));
    }
    if strangers > 0 {
        attempts.push(Reverse((away, agents)));
    }
    let mut connected = Vec::new();
    while let Some(Reverse((now, number))) = attempts.pop()
        && connected.len() < fleet.len()
    {
        assert!(now < SECOND * 900, "{} are not connected", attempts.len());
        if number == agents {
            let _ = hub.receive(number, now, dice.roll());
            attempts.push(Reverse((now + SECOND / strangers, number)));
            continue;
        }
        let backoff = &mut fleet[number as usize];
        let failed = if now < away {
            Err((now, Duration::ZERO))
        } else {
            hub.receive(number, now, dice.roll())
        };
        match failed {
            Ok(at) => connected.push((at - away).as_secs_f64()),
            Err((at, wait)) => {
                backoff.note_retry_after(wait);
                attempts.push(Reverse((at + backoff.next(dice.roll()), number)));
            }
        }
    }
    connected.sort_by(f64::total_cmp);
    connected
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[test]
fn a_fleet_of_5000_is_back_soon_after_a_restart() {
    const PER_SEC: u32 = 200;
    for away in [SECOND * 2, SECOND * 20, SECOND * 120] {
        let unbounded = Hub::Unbounded {
            per_sec: PER_SEC,
            busy_until: Duration::ZERO,
        };
        let shedding = Hub::Shedding {
            per_sec: PER_SEC,
            shedder: Shedder::default(),
        };
        let [without, with] = [unbounded, shedding].map(|hub| storm(hub, 5000, away, 0));
        let show = |what: &str, times: &[f64]| {
            let [p50, p99, all] = [50, 99, 100].map(|percent| percentile(times, percent));
            println!("away {away:?}, {what}: p50 {p50:.1} s, p99 {p99:.1} s, all {all:.1} s");
        };
        show("without", &without);
        show("with", &with);
        assert_eq!(with.len(), 5000);
        // 25 s is what judging them takes.
        assert!(percentile(&with, 99) < 30.0 && percentile(&with, 100) < 35.0);
    }
}

#[test]
fn those_who_never_wait_for_their_turn_do_not_starve_a_fleet() {
    for strangers in [150, 300] {
        let hub = Hub::Shedding {
            per_sec: 200,
            shedder: Shedder::default(),
        };
        let times = storm(hub, 5000, SECOND * 2, strangers);
        let [p50, p99, all] = [50, 99, 100].map(|percent| percentile(&times, percent));
        println!("{strangers} strangers: p50 {p50:.1} s, p99 {p99:.1} s, all {all:.1} s");
        assert!(all < 600.0);
    }
}
