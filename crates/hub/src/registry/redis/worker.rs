//! The task that keeps this hub's table in the shared registry, and what it knows of others' fresh.

mod publish;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_proto::backoff::Backoff;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout};

use super::super::routes::{Entry, Refresh};
use super::super::tables::{Heard, Tables};
use super::super::wire::{Changes, Notice};
use super::super::{Registry, RegistryHealth};
use super::dial::Dialer;
use super::fault::Fault;
use super::link::Link;
use super::operations::Over;
use super::{Store, Target};

/// Between renewals of the table; each also finds whatever notifications did not tell. Jittered.
const TICK: std::ops::Range<Duration> = Duration::from_millis(2500)..Duration::from_millis(4000);
/// Between attempts to reach the registry: at first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AT_MOST: Duration = Duration::from_secs(2);
/// Between looks at the agents' records, which would be forgotten otherwise.
const HOLD: Duration = Duration::from_secs(3600);
/// A table that was read as lately as that is not read again for a single flow.
const JUST_READ: Duration = Duration::from_millis(200);
/// How long a hub that stops takes to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs until its store is told to stop.
pub(in crate::registry) struct Worker {
    registry: Arc<Registry>,
    store: Arc<Store>,
    refreshes: mpsc::Receiver<Refresh>,
    tables: Tables,
    read_at: HashMap<Arc<str>, Instant>,
    /// Which start of this hub it is, from the first contact on; and the version of its table.
    nonce: Option<Arc<str>>,
    version: u64,
    /// Whether this start of the hub has taken over from the one before it, which it does once.
    succeeded: bool,
    standing: Standing,
    held_at: Option<Instant>,
    shown: Option<RegistryHealth>,
}

/// How the table in the registry stands to this hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// To be written anew.
    Unwritten,
    /// As written last.
    Ours,
    /// Another hub of the same name has it.
    Theirs,
}

impl Worker {
    pub(in crate::registry) fn new(
        registry: Arc<Registry>,
        store: Arc<Store>,
        refreshes: mpsc::Receiver<Refresh>,
    ) -> Self {
        Self {
            registry,
            store,
            refreshes,
            tables: Tables::default(),
            read_at: HashMap::new(),
            nonce: None,
            version: 0,
            succeeded: false,
            standing: Standing::Unwritten,
            held_at: None,
            shown: None,
        }
    }

    pub(in crate::registry) async fn run(mut self) {
        let mut backoff = Backoff::new(AGAIN, AT_MOST);
        let start = Instant::now();
        let stop = self.store.stop.clone();
        while let Err(fault) = self.session(&mut backoff, start).await {
            if self.store.link.swap(None).is_some() {
                *self.store.lost_at.lock() = Some(Instant::now());
            }
            self.tables.suspend();
            self.show(RegistryHealth::Down(fault.to_string()));
            backoff.note_lost(start.elapsed());
            let nap = sleep(backoff.next(rand::random()));
            tokio::select! {
                () = stop.cancelled() => break,
                () = nap => {}
            }
            // Nobody waits for what cannot be read.
            while self.refreshes.try_recv().is_ok() {}
        }
        self.store.link.store(None);
        for hub in self.tables.hubs() {
            let changes = self.tables.remove(&hub);
            self.learn(&hub, changes);
        }
    }

    /// From a connection to its end; `Ok` when told to stop.
    async fn session(&mut self, backoff: &mut Backoff, start: Instant) -> Result<(), Fault> {
        let stop = self.store.stop.clone();
        let store = self.store.clone();
        let connected = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            connected = self.connect() => connected?,
        };
        let (link, mut inbox) = connected;
        backoff.note_connected(start.elapsed());
        let mut next = tokio::time::Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let _ = timeout(FAREWELL, self.leave(&link)).await;
                    return Ok(());
                }
                () = link.lost.cancelled() => return Err(Fault::Lost),
                () = sleep_until(next) => {
                    self.tick(&link).await?;
                    next = tokio::time::Instant::now() + rand::random_range(TICK);
                }
                () = store.suspect.notified() => self.tick(&link).await?,
                () = store.changed.notified() => self.publish(&link).await?,
                Some(refresh) = self.refreshes.recv() => self.refresh(&link, refresh).await?,
                Some(message) = inbox.recv() => self.hear(&link, &message).await?,
            }
        }
    }

    async fn connect(&mut self) -> Result<(Arc<Link>, mpsc::Receiver<Vec<u8>>), Fault> {
        let config = &self.store.config;
        let target = Target::parse(config.url.expose()).ok_or(Fault::Url)?;
        let tasks = self.registry.tasks.clone();
        let dialer = Dialer::new(target, config.ca.clone(), tasks).await?;
        let (link, inbox) = Link::establish(dialer).await?;
        if self.nonce.is_none() {
            let nonce = format!("{:020}-{:08x}", link.clock().await?, rand::random::<u32>());
            self.nonce = Some(nonce.into());
        }
        self.standing = Standing::Unwritten;
        Ok((Arc::new(link), inbox))
    }

    /// Renews the table, and looks at those of all others.
    async fn tick(&mut self, link: &Arc<Link>) -> Result<(), Fault> {
        if self.standing == Standing::Ours {
            let unchanged = Changes::new();
            let over = Over::Version(self.version);
            self.write(link, over, &unchanged, None).await?;
        }
        if self.standing != Standing::Ours {
            self.rewrite(link).await?;
        }
        if self.standing == Standing::Unwritten {
            // Lost again while it was being written.
            self.store.suspect.notify_one();
            return Ok(());
        }
        link.check().await?;
        let here = self.registry.hub.clone();
        let signs_in = (self.standing == Standing::Ours).then_some(&*here);
        let mut hubs = link.hubs(signs_in).await?;
        hubs.extend(self.tables.hubs());
        hubs.sort_unstable();
        hubs.dedup();
        for hub in hubs.iter().filter(|hub| **hub != here) {
            self.look(link, hub).await?;
        }
        if self.standing == Standing::Theirs {
            self.store.link.store(None);
            let what = format!("replica_id_conflict: another hub runs as {here}");
            self.show(RegistryHealth::Down(what));
            return Ok(());
        }
        if self.held_at.is_none_or(|at| at.elapsed() > HOLD) {
            self.hold(link).await?;
        }
        self.store.link.store(Some(link.clone()));
        self.show(RegistryHealth::Up);
        Ok(())
    }

    async fn hear(&mut self, link: &Link, message: &[u8]) -> Result<(), Fault> {
        let Some(notice) = Notice::read(message) else {
            tracing::debug!(event = "registry_notice_unread", bytes = message.len());
            return Ok(());
        };
        let hub = notice.hub.clone();
        if hub == self.registry.hub {
            if Some(&notice.stamp.nonce) != self.nonce.as_ref() {
                self.store.suspect.notify_one();
            }
            return Ok(());
        }
        match self.tables.hear(notice) {
            Heard::Apply(changes) => self.learn(&hub, changes),
            Heard::Old => {}
            Heard::Read => self.read(link, &hub).await?,
        }
        Ok(())
    }

    async fn refresh(&mut self, link: &Link, refresh: Refresh) -> Result<(), Fault> {
        let Refresh { hub, done } = refresh;
        let known = self.read_at.get(&hub);
        if known.is_some_and(|at| at.elapsed() >= JUST_READ) {
            self.read(link, &hub).await?;
        }
        drop(done);
        Ok(())
    }

    /// Reads a hub's table if it is not the one that is known.
    async fn look(&mut self, link: &Link, hub: &Arc<str>) -> Result<(), Fault> {
        match link.stamp(hub).await? {
            Some(stamp) if self.tables.is_current(hub, &stamp) => Ok(()),
            _ => self.read(link, hub).await,
        }
    }

    async fn read(&mut self, link: &Link, hub: &Arc<str>) -> Result<(), Fault> {
        let changes = match link.read(hub).await? {
            Some((stamp, agents)) => self.tables.replace(hub, stamp, agents),
            None => self.tables.miss(hub, Instant::now()),
        };
        self.learn(hub, changes);
        let known = self.tables.hubs();
        self.read_at.retain(|hub, _| known.contains(hub));
        if known.contains(hub) {
            self.read_at.insert(hub.clone(), Instant::now());
        }
        Ok(())
    }

    fn learn(&self, hub: &Arc<str>, changes: Vec<(Arc<str>, Option<Entry>)>) {
        for (agent_id, entry) in changes {
            self.registry.learn(hub, &agent_id, entry.as_ref());
        }
    }

    /// Shows how the registry is, and logs when that changes.
    fn show(&mut self, health: RegistryHealth) {
        let up = health == RegistryHealth::Up;
        let gauge = &self.registry.metrics.mesh.registry_healthy;
        gauge.set(i64::from(up));
        let before = self.shown.replace(health.clone());
        let was_up = before.as_ref().map(|before| *before == RegistryHealth::Up);
        match &health {
            RegistryHealth::Up if was_up != Some(true) => tracing::info!(event = "registry_up"),
            health if before.as_ref() == Some(health) => {}
            RegistryHealth::Down(_) if self.standing == Standing::Theirs => self.complain(),
            RegistryHealth::Down(reason) if was_up != Some(false) => {
                tracing::warn!(event = "registry_down", %reason);
            }
            _ => {}
        }
        *self.store.health.lock() = health;
    }

    fn complain(&self) {
        tracing::error!(
            event = "replica_id_conflict",
            replica_id = %self.registry.hub,
            detail = "another hub runs under this name: give each hub a replica_id of its own; \
                this one keeps serving its agents and is unknown to others",
            audit = true,
        );
    }
}
