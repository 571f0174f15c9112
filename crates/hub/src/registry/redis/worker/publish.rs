//! This hub's own table and records in the shared registry.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;

use super::super::super::own::Record;
use super::super::super::wire::{Changes, News, Notice, Stamp};
use super::super::fault::Fault;
use super::super::link::Link;
use super::super::operations::{Over, Write, Written};
use super::{Standing, Worker};

/// Agents per write, and records per batch.
const BATCH: usize = 256;
const RECORDS: usize = 32;

impl Worker {
    /// Writes the table anew from what is here.
    pub(super) async fn rewrite(&mut self, link: &Arc<Link>) -> Result<(), Fault> {
        self.store.dirty.lock().clear();
        let all: Changes = {
            let own = self.registry.own.lock();
            let entry = |record: &Record, id: &Arc<str>| record.entry(self.registry.ailing.of(id));
            own.iter()
                .map(|(id, record)| (id.clone(), Some(entry(record, id))))
                .collect()
        };
        self.held_at = None;
        let mut batches = all.chunks(BATCH).map(<[_]>::to_vec);
        let mut over = match self.succeeded {
            true => Over::Own,
            false => Over::Anything,
        };
        let mut batch = batches.next().unwrap_or_default();
        loop {
            let next = batches.next();
            // Told at the end: who reads before would read in vain.
            let news = next.is_none().then_some(News::Rewritten);
            self.version += 1;
            self.write(link, over, &batch, news).await?;
            self.succeeded = true;
            over = Over::Version(self.version);
            match next {
                Some(next) if self.standing == Standing::Ours => batch = next,
                _ => return Ok(()),
            }
        }
    }

    /// Writes what has changed here since it was written last.
    pub(super) async fn publish(&mut self, link: &Arc<Link>) -> Result<(), Fault> {
        if self.standing != Standing::Ours {
            return Ok(());
        }
        let ids: Vec<_> = {
            let mut dirty = self.store.dirty.lock();
            let ids: Vec<_> = dirty.iter().take(BATCH).cloned().collect();
            dirty.retain(|id| !ids.contains(id));
            if !dirty.is_empty() {
                self.store.changed.notify_one();
            }
            ids
        };
        if ids.is_empty() {
            return Ok(());
        }
        let changes: Changes = {
            let own = self.registry.own.lock();
            let ailing = |id: &Arc<str>| self.registry.ailing.of(id);
            let entry = |id: &Arc<str>| own.get(id).map(|record| record.entry(ailing(id)));
            ids.into_iter().map(|id| (id.clone(), entry(&id))).collect()
        };
        let over = Over::Version(self.version);
        self.version += 1;
        let news = News::Changed(changes.clone());
        self.write(link, over, &changes, Some(news)).await?;
        match self.standing {
            // It was lost, or came back from the past.
            Standing::Unwritten => self.tick(link).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn write(
        &mut self,
        link: &Link,
        over: Over,
        changes: &Changes,
        news: Option<News>,
    ) -> Result<(), Fault> {
        let notice = news.map(|news| self.notice(news));
        let written = link
            .write(&Write {
                hub: &self.registry.hub,
                stamp: &self.stamp(),
                over,
                changes,
                notice: notice.as_ref(),
            })
            .await?;
        self.standing = match written {
            Written::Done => Standing::Ours,
            Written::Stale => Standing::Unwritten,
            Written::Conflict => Standing::Theirs,
        };
        Ok(())
    }

    /// Lets the agents' records know of their owners here.
    pub(super) async fn hold(&mut self, link: &Link) -> Result<(), Fault> {
        let owners: Vec<_> = {
            let own = self.registry.own.lock();
            own.iter()
                .map(|(id, record)| (id.clone(), record.owner))
                .collect()
        };
        for batch in owners.chunks(RECORDS) {
            try_join_all(batch.iter().map(|(id, owner)| link.hold(id, *owner))).await?;
        }
        self.held_at = Some(Instant::now());
        Ok(())
    }

    pub(super) async fn leave(&mut self, link: &Link) -> Result<(), Fault> {
        match self.standing {
            Standing::Ours => link.leave(&self.notice(News::Left)).await,
            _ => Ok(()),
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            nonce: self.nonce.clone().unwrap_or_default(),
            version: self.version,
        }
    }

    fn notice(&self, news: News) -> Notice {
        Notice {
            hub: self.registry.hub.clone(),
            stamp: self.stamp(),
            news,
        }
    }
}
