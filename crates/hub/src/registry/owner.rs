//! Who owns an agent's id, and which epoch a claim gets.

use std::cmp::Ordering;
use std::time::SystemTime;

use nowconnect_proto::hello::Instance;

use super::{Claim, epoch};

/// An owner of an agent's id. Of two, the later one is the greater: the higher epoch, and where two
/// hubs that did not hear of each other gave out the same one, the higher instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The fencing number.
    pub epoch: u64,
    /// Which start of the agent.
    pub instance: Instance,
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |owner: &Self| (owner.epoch, owner.instance.0);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The epoch that a claim takes without a new one: that of the agent's other tunnels, whether
/// `record` knows them or has lost them. `None` where the claim is a new one.
pub(super) fn epoch_to_join(
    record: Option<Owner>,
    claim: &Claim,
    clock: SystemTime,
) -> Option<u64> {
    let held = claim.epoch_held;
    if let Some(owner) = record
        && owner.instance == claim.instance
        && held.is_none_or(|held| held == owner.epoch)
    {
        return Some(owner.epoch);
    }
    // The record is older than what the agent's living tunnels were told: its data was lost.
    held.filter(|&held| {
        held > record.map_or(0, |owner| owner.epoch) && epoch::is_believable(held, clock)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const CLOCK: u64 = 1_800_000_000_000;

    fn join(record: Option<(u64, u128)>, instance: u128, held: Option<u64>) -> Option<u64> {
        let record = record.map(|(epoch, instance)| Owner {
            epoch,
            instance: Instance(instance),
        });
        let claim = Claim {
            agent_id: "a".into(),
            instance: Instance(instance),
            epoch_seen: 0,
            epoch_held: held,
            connectors: Vec::new(),
        };
        epoch_to_join(record, &claim, UNIX_EPOCH + Duration::from_millis(CLOCK))
    }

    #[test]
    fn a_tunnel_joins_the_others_of_its_process() {
        assert_eq!(join(Some((7, 1)), 1, Some(7)), Some(7));
        assert_eq!(join(Some((7, 1)), 1, None), Some(7), "does not say");
        assert_eq!(join(Some((7, 1)), 1, Some(0)), None, "lost all of them");
        assert_eq!(join(Some((7, 1)), 1, Some(6)), None, "holds outlived ones");
        assert_eq!(join(Some((7, 1)), 2, Some(7)), None, "another process");
        assert_eq!(join(None, 1, None), None);
    }

    #[test]
    fn a_record_that_was_lost_is_restored_within_reason() {
        assert_eq!(join(None, 1, Some(7)), Some(7));
        assert_eq!(join(Some((6, 2)), 1, Some(7)), Some(7), "an older owner");
        assert_eq!(join(Some((8, 2)), 1, Some(7)), None, "a newer owner");
        assert_eq!(
            join(None, 1, Some(CLOCK + 86_400_000)),
            Some(CLOCK + 86_400_000)
        );
        assert_eq!(join(None, 1, Some(CLOCK + 86_400_001)), None);
        assert_eq!(join(None, 1, Some(u64::MAX)), None);
    }

    #[test]
    fn the_later_owner_is_the_greater() {
        let owner = |epoch, instance| Owner {
            epoch,
            instance: Instance(instance),
        };
        assert!(owner(2, 1) > owner(1, 9));
        assert!(owner(2, 2) > owner(2, 1));
    }
}
