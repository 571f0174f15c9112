//! Who counts as one client, and how often each of them did something in the last second.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use nowconnect_proto::bucket::Bucket;

/// Clients with a bucket of their own. One that does nothing for a second needs none, so this many
/// must have been here within the same second before any has to share.
const MOST: usize = 65_536;
/// The table is swept when it has grown to twice what the last sweep left, and at least this, but not
/// more often than [`PAUSE`] allows.
const SWEEP: usize = 1024;
const PAUSE: Duration = Duration::from_millis(100);

/// One client as limits count them: an IPv4 address, or the /64 network of an IPv6 address, of which
/// every host has as many as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()
            }
            address => address,
        })
    }
}

/// A [`Bucket`] per client, in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct ClientBuckets {
    known: HashMap<Client, Bucket>,
    /// Of those for whom there is no room.
    others: Bucket,
    sweep_at: usize,
    swept: Duration,
}

impl ClientBuckets {
    /// Takes a token out of the client's bucket, which gains `per_sec` of them.
    ///
    /// # Errors
    /// As [`Bucket::take`].
    pub(crate) fn take(
        &mut self,
        client: Client,
        now: Duration,
        per_sec: NonZeroU32,
    ) -> Result<(), Duration> {
        self.bucket(client, now).take(now, per_sec)
    }

    /// How long until the client's bucket holds a token; `None` when it holds one now.
    pub(crate) fn wait(
        &self,
        client: Client,
        now: Duration,
        per_sec: NonZeroU32,
    ) -> Option<Duration> {
        self.known.get(&client)?.wait(now, per_sec)
    }

    fn bucket(&mut self, client: Client, now: Duration) -> &mut Bucket {
        let grown = self.known.len() >= self.sweep_at.max(SWEEP);
        if grown && now >= self.swept + PAUSE {
            self.swept = now;
            self.known.retain(|_, bucket| !bucket.is_full(now));
            self.known.shrink_to(SWEEP);
            self.sweep_at = (self.known.len() * 2).min(MOST);
        }
        if self.known.len() >= MOST && !self.known.contains_key(&client) {
            return &mut self.others;
        }
        self.known.entry(client).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(text: &str) -> Client {
        Client::from(text.parse::<IpAddr>().expect("an address"))
    }

    fn numbered(number: u32) -> Client {
        Client::from(IpAddr::from(number.to_be_bytes()))
    }

    fn rate(per_sec: u32) -> NonZeroU32 {
        NonZeroU32::new(per_sec).expect("not zero")
    }

    #[test]
    fn a_host_with_many_addresses_is_one_client() {
        assert_eq!(client("2001:db8:1:2::3"), client("2001:db8:1:2:ffff::4"));
        assert_ne!(client("2001:db8:1:2::3"), client("2001:db8:1:3::3"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
    }

    #[test]
    fn each_has_its_own_rate() {
        let mut buckets = ClientBuckets::default();
        let mut take = |who: &str, now| buckets.take(client(who), now, rate(2)).is_ok();
        let taken = [0; 3].map(|_| take("192.0.2.1", SECOND));
        assert_eq!(taken, [true, true, false]);
        assert!(take("192.0.2.2", SECOND));
        assert!(take("192.0.2.1", SECOND * 2));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_quiet() {
        let mut buckets = ClientBuckets::default();
        for number in 0..200_000 {
            let _ = buckets.take(numbered(number), SECOND, rate(1));
        }
        assert_eq!(buckets.known.len(), MOST);
        assert!(buckets.take(numbered(300_000), SECOND, rate(1)).is_err());
        assert!(buckets.take(numbered(300_000), SECOND * 3, rate(1)).is_ok());
        assert_eq!(buckets.known.len(), 1);
        assert!(buckets.known.capacity() < 4 * SWEEP);
    }
}
