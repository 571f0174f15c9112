//! How many wrong tokens an address may show: enough for people who mistype, too few to find one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wrong tokens that an address may show at once.
const BURST: u32 = 10;
/// In this time it may show one more.
const REFILL: Duration = Duration::from_secs(1);
/// Addresses that are kept apart; those beyond share one account.
const MOST: usize = 4096;

/// Accounts of the wrong tokens that addresses have shown.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<IpAddr, Account>>);

/// When all that was used will have come back.
#[derive(Debug, Clone, Copy)]
struct Account(Instant);

impl Account {
    fn used(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }
}

impl Attempts {
    /// Whether no more tokens of this address are looked at for now, right ones included: to look
    /// would be another attempt.
    pub(super) fn are_used_up(&self, address: IpAddr) -> bool {
        self.are_used_up_at(address, Instant::now())
    }

    /// The address has shown a wrong token.
    pub(super) fn count(&self, address: IpAddr) {
        self.count_at(address, Instant::now());
    }

    fn are_used_up_at(&self, address: IpAddr, now: Instant) -> bool {
        let accounts = self.0.lock();
        let own = accounts.get(&network(address));
        let shared = || accounts.get(&SHARED).filter(|_| accounts.len() > MOST);
        let account = own.or_else(shared);
        account.is_some_and(|account| account.used(now) > REFILL * (BURST - 1))
    }

    fn count_at(&self, address: IpAddr, now: Instant) {
        let (mut accounts, mut key) = (self.0.lock(), network(address));
        if !accounts.contains_key(&key) && accounts.len() >= MOST {
            accounts.retain(|_, account| !account.used(now).is_zero());
            if accounts.len() >= MOST {
                key = SHARED;
            }
        }
        let account = accounts.entry(key).or_insert(Account(now));
        account.0 = account.0.max(now) + REFILL;
    }
}

/// The account of those for whom there is none.
const SHARED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Who has one IPv6 address has the 2^64 beside it too.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            // Never that of the shared account, which is no host's.
            IpAddr::V6(Ipv6Addr::from_bits(prefix | 1))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn an_address_has_a_few_attempts_and_gets_them_back() {
        let (attempts, now, own) = (Attempts::default(), Instant::now(), at("192.0.2.1"));
        for _ in 0..BURST {
            assert!(!attempts.are_used_up_at(own, now));
            attempts.count_at(own, now);
        }
        assert!(attempts.are_used_up_at(own, now));
        assert!(attempts.are_used_up_at(at("::ffff:192.0.2.1"), now));
        assert!(!attempts.are_used_up_at(at("192.0.2.2"), now));
        let later = now + REFILL;
        assert!(!attempts.are_used_up_at(own, later));
        attempts.count_at(own, later);
        assert!(attempts.are_used_up_at(own, later));
        assert!(!attempts.are_used_up_at(own, later + REFILL * BURST));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for host in 0..BURST {
            attempts.count_at(at(&format!("2001:db8::{host:x}")), now);
        }
        assert!(attempts.are_used_up_at(at("2001:db8::ffff"), now));
        assert!(!attempts.are_used_up_at(at("2001:db8:0:1::1"), now));
    }

    #[test]
    fn many_addresses_take_no_more_room_and_no_more_attempts() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for host in 0..2 * MOST as u32 {
            attempts.count_at(IpAddr::V4(host.into()), now);
        }
        assert_eq!(attempts.0.lock().len(), MOST + 1);
        assert!(attempts.are_used_up_at(at("198.51.100.1"), now));
        let later = now + REFILL * 2 * MOST as u32;
        attempts.count_at(at("198.51.100.1"), later);
        assert!(attempts.0.lock().len() < 3);
    }
}
