//! Counted places: taken within a limit, given back by being dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Counts what is held of one kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<AtomicUsize>);

/// One place of a [`Gate`].
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Gate {
    /// A place, unless `limit` are held already.
    pub(super) fn take(&self, limit: usize) -> Option<Slot> {
        let below = |held| (held < limit).then_some(held + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below);
        taken.ok().map(|_| Slot(self.0.clone()))
    }

    pub(super) fn held(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts places per client address. Holds an entry only for addresses that hold a place, so the
/// limit on all connections bounds it.
#[derive(Debug, Clone, Default)]
pub(super) struct ClientGate(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One place of a client address.
#[derive(Debug)]
pub(super) struct ClientSlot {
    gate: ClientGate,
    address: IpAddr,
}

impl ClientGate {
    /// A place for `address`, unless it holds `limit` already.
    pub(super) fn take(&self, address: IpAddr, limit: usize) -> Option<ClientSlot> {
        let mut held = self.0.lock();
        let count = held.entry(address).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(ClientSlot {
            gate: self.clone(),
            address,
        })
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.gate.0.lock().entry(self.address) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_slot_makes_room() {
        let gate = Gate::default();
        let first = gate.take(1).expect("room");
        assert!(gate.take(1).is_none());
        drop(first);
        assert_eq!(gate.held(), 0);
        assert!(gate.take(1).is_some());
    }

    #[test]
    fn clients_are_counted_apart_and_forgotten() {
        let gate = ClientGate::default();
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().expect("an address"));
        let held = gate.take(a, 1).expect("room");
        assert!(gate.take(a, 1).is_none());
        assert!(gate.take(b, 1).is_some());
        drop(held);
        assert!(gate.0.lock().is_empty());
    }
}
