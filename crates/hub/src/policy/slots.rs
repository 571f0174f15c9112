//! Counted places: taken within a limit, given back by being dropped.

use std::collections::HashMap;
use std::hash::Hash;
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

/// Counts places per key. Holds an entry only for keys that hold a place, so whatever bounds the
/// places bounds it.
#[derive(Debug)]
pub(crate) struct KeyedGate<K: Eq + Hash>(Arc<Mutex<HashMap<K, usize>>>);

/// One place of a key.
#[derive(Debug)]
pub(crate) struct KeyedSlot<K: Eq + Hash> {
    gate: KeyedGate<K>,
    key: K,
}

impl<K: Eq + Hash> Default for KeyedGate<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> KeyedGate<K> {
    /// A place for `key`, unless it holds `limit` (at least 1) already.
    pub(crate) fn take(&self, key: K, limit: usize) -> Option<KeyedSlot<K>> {
        let mut held = self.0.lock();
        let count = held.entry(key.clone()).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(KeyedSlot {
            gate: Self(self.0.clone()),
            key,
        })
    }
}

impl<K: Eq + Hash> KeyedGate<K> {
    /// Places that `key` holds.
    pub(super) fn held(&self, key: &K) -> usize {
        self.0.lock().get(key).copied().unwrap_or(0)
    }
}

impl<K: Eq + Hash> Drop for KeyedSlot<K> {
    fn drop(&mut self) {
        let mut held = self.gate.0.lock();
        let left = held.get_mut(&self.key).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            held.remove(&self.key);
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
    fn keys_are_counted_apart_and_forgotten() {
        let gate = KeyedGate::default();
        let [a, b] = ["192.0.2.1", "192.0.2.2"];
        let held = gate.take(a, 1).expect("room");
        assert!(gate.take(a, 1).is_none());
        assert!(gate.take(b, 1).is_some());
        drop(held);
        assert!(gate.0.lock().is_empty());
    }
}
