//! The flows of the agent: what becomes of an OPEN, and of a flow at its end.

mod traced;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nowconnect_link::counters::Engine;
use nowconnect_link::endpoint::{FlowEvents, SocketFlow, Summary};
use nowconnect_link::flows::{FlowTable, Place};
use nowconnect_link::metrics::OTHER;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::session::Link;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::Tracer;
use nowconnect_proto::flow::Ending;
use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::{FlowId, Reason};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::config::LimitsConfig;
use crate::metrics::Metrics;
use crate::targets::{Destination, DialFailure, Targets};
use traced::Traced;

/// How often idle flows and those without a path are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Longest grace that a hub may ask for.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// All flows of the process, over whatever tunnels they come.
#[derive(Debug)]
pub struct Flows {
    engine: Arc<Engine>,
    table: FlowTable,
    targets: Targets,
    limits: ArcSwap<LimitsConfig>,
    /// What the hub said, in milliseconds.
    hub_grace: AtomicU64,
    draining: AtomicBool,
    /// A flow ended.
    ended: Notify,
    metrics: Arc<Metrics>,
    refusals: Quiet,
    tracer: Tracer,
    dials: Tasks,
}

impl Flows {
    /// No flows yet. Dials run as tasks of `dials`; flows that hubs trace are traced by `tracer`.
    pub fn new(
        engine: &Arc<Engine>,
        targets: Targets,
        limits: LimitsConfig,
        metrics: Arc<Metrics>,
        tracer: Tracer,
        dials: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            table: FlowTable::new(engine),
            targets,
            limits: ArcSwap::from_pointee(limits),
            hub_grace: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ended: Notify::new(),
            metrics,
            refusals: Quiet::default(),
            tracer,
            dials,
        })
    }

    /// The exported connectors.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.table.live()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any of them waits for a path.
    pub fn any_waiting(&self) -> bool {
        !self.without_path().is_empty()
    }

    fn without_path(&self) -> Vec<Arc<SocketFlow>> {
        self.table.select(|flow| flow.detached_ms().is_some())
    }

    /// Sets memory aside for so many flows.
    ///
    /// # Errors
    /// There is not enough; how many there may be.
    pub fn reserve(&self, flows: usize) -> Result<(), u64> {
        self.engine.budget.reserve(flows)
    }

    /// Other limits, for new flows; the grace for all.
    pub fn set_limits(&self, limits: LimitsConfig) {
        self.limits.store(Arc::new(limits));
    }

    /// The hub keeps flows without a path for `grace`: to give up earlier than the other end would
    /// make its waiting pointless.
    pub fn set_hub_grace(&self, grace: Duration) {
        let grace = u64::try_from(grace.min(MAX_GRACE).as_millis()).unwrap_or(u64::MAX);
        self.hub_grace.store(grace, Ordering::Relaxed);
    }

    /// A hub opens or resumes a flow over `link`, under the ownership `epoch`.
    pub fn open(self: &Arc<Self>, link: &Arc<Link>, id: FlowId, open: &Open, epoch: u64) {
        if let Err(reason) = self.admit(link, id, open, epoch) {
            if let Some(suppressed) = self.refusals.pass() {
                tracing::info!(
                    event = "flow_refused", cid = %open.cid, connector = open.connector,
                    client = open.client, %reason, suppressed
                );
            }
            self.metrics.refused(&self.known(&open.connector), reason);
            link.refuse(id, reason);
        }
    }

    fn admit(
        self: &Arc<Self>,
        link: &Arc<Link>,
        id: FlowId,
        open: &Open,
        epoch: u64,
    ) -> Result<(), Reason> {
        if open.epoch != epoch && !link.is_v1() {
            self.engine.counters.epoch_mismatch.inc();
            return Err(Reason::StaleEpoch);
        }
        if let Some(flow) = self.table.get(open.cid) {
            if !flow.knows(&open.secret) {
                return Err(Reason::Denied);
            }
            return link.bind(id, &flow, open).inspect_err(|reason| {
                // A link that closed in between leaves the flow to the next one; an OPEN that a
                // later one has overtaken leaves it where it is.
                if !matches!(reason, Reason::ConnectionLost | Reason::Moved) {
                    flow.expire(*reason);
                }
            });
        }
        let unknown = match open.mode {
            OpenMode::Resume => true,
            OpenMode::New | OpenMode::ResumeOrNew => self.table.ended_recently(open),
        };
        if unknown {
            return Err(Reason::UnknownFlow);
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(Reason::Draining);
        }
        let target = self
            .targets
            .get(&open.connector)
            .ok_or(Reason::UnknownConnector)?;
        let limits = self.limits.load();
        if self.len() >= limits.max_inflight_cids {
            return Err(Reason::Limit);
        }
        let counters = self.metrics.connector(&open.connector);
        let traced = self.tracer.follow(open.trace);
        let traced =
            traced.map(|trace| Traced::new(Arc::clone(self), trace, open, target.target()));
        let events = match &traced {
            Some(traced) => Arc::clone(traced) as Arc<dyn FlowEvents>,
            None => Arc::clone(self) as Arc<dyn FlowEvents>,
        };
        let flow = SocketFlow::target(open, &self.engine, counters.flow.clone(), events);
        let idle_timeout = limits.idle_timeout.unwrap_or_default();
        let place = self.table.insert(&flow, idle_timeout);
        counters.connections.inc();
        counters.active.inc();
        // From here on the flow ends through `closed` and `over`, which takes it out again.
        if let Err(reason) = link.bind(id, &flow, open) {
            flow.expire(reason);
            return Err(reason);
        }
        let limit = limits.connect_timeout;
        let dial = Arc::clone(self).dial(flow, place, target, limit, traced);
        self.dials.spawn("dial", dial);
        Ok(())
    }

    /// `place` keeps a flow that was reset among those that count until its dial and socket are gone.
    async fn dial(
        self: Arc<Self>,
        flow: Arc<SocketFlow>,
        place: Arc<Place>,
        target: Arc<Destination>,
        limit: Duration,
        traced: Option<Arc<Traced>>,
    ) {
        let label = flow.label();
        let dialed = tokio::select! {
            biased;
            () = flow.closed() => None,
            dialed = target.dial(limit, &label.client, &label.destination) => Some(dialed),
        };
        if let (Some(traced), Some(Ok(socket))) = (traced, &dialed) {
            traced.connected(&flow, socket);
        }
        if let Some(dialed) = dialed {
            self.dialed(&flow, &target, dialed);
        }
        drop(place);
        self.ended.notify_waiters();
    }

    fn dialed(
        &self,
        flow: &Arc<SocketFlow>,
        target: &Destination,
        dialed: Result<TcpStream, DialFailure>,
    ) {
        let label = flow.label();
        let counters = self.metrics.connector(&label.connector);
        match dialed {
            Ok(socket) => {
                // Its end tells all that is worth telling of a probe.
                if !label.is_probe() {
                    tracing::info!(
                        event = "flow_opened", cid = %flow.cid(), connector = %label.connector,
                        client = %label.client, listener = %label.listener
                    );
                }
                counters
                    .open_latency
                    .observe(flow.since().elapsed().as_secs_f64());
                flow.connected(socket);
            }
            Err(failure) => {
                if let Some(suppressed) = target.quiet.pass() {
                    tracing::warn!(
                        event = "target_failed", cid = %flow.cid(), connector = %label.connector,
                        reason = %failure.reason, error = %failure, suppressed
                    );
                }
                self.metrics.refused(&label.connector, failure.reason);
                flow.abort(failure.reason);
            }
        }
    }

    /// The name when it may become a label.
    fn known(&self, connector: &str) -> String {
        let known = self.targets.get(connector).is_some();
        if known {
            connector.to_owned()
        } else {
            OTHER.to_owned()
        }
    }

    /// Ends the flows of connectors that are exported no longer.
    pub fn end_removed(&self) {
        let removed = |flow: &Arc<SocketFlow>| self.targets.get(&flow.label().connector).is_none();
        for flow in self.table.select(removed) {
            flow.abort(Reason::Removed);
        }
    }

    /// Looks for flows that were idle, or without a path, for too long, as long as it is polled.
    pub async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            let hub = Duration::from_millis(self.hub_grace.load(Ordering::Relaxed));
            self.table.sweep(self.limits.load().resume_grace.max(hub));
        }
    }

    /// Takes no new flows, and waits until there are none. Those without a path end at once: the
    /// agent that stops opens no other tunnel for them.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        for flow in self.without_path() {
            flow.expire(Reason::Shutdown);
        }
        self.until(|| self.is_empty()).await;
    }

    /// Waits until the hubs know of the end of every flow.
    pub async fn all_over(&self) {
        self.until(|| self.table.is_empty()).await;
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if reached() {
                return;
            }
            ended.await;
        }
    }

    /// Resets all flows.
    pub fn abort_all(&self, reason: Reason) {
        for flow in self.table.select(|_| true) {
            flow.abort(reason);
        }
    }
}

impl FlowEvents for Flows {
    // The next two are for the origin's end.
    fn opened(&self, _: &Arc<SocketFlow>) {}

    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        false
    }

    fn path_lost(&self, flow: &Arc<SocketFlow>) {
        tracing::debug!(event = "flow_detached", cid = %flow.cid());
        if self.draining.load(Ordering::Relaxed) {
            flow.expire(Reason::Shutdown);
        }
    }

    fn closed(&self, flow: &Arc<SocketFlow>, summary: Summary) {
        let reset = flow.is_opened() && matches!(summary.ending, Ending::Local(_));
        self.table.remember_ended(flow.cid(), flow.attempt(), reset);
        self.table.note_closed(flow.cid());
        let reason = summary.reason();
        if reason == Reason::ResumeExpired {
            self.metrics.expired.inc();
        }
        let label = flow.label();
        let counters = self.metrics.connector(&label.connector);
        counters.active.dec();
        counters
            .duration
            .observe(flow.since().elapsed().as_secs_f64());
        self.ended.notify_waiters();
        if label.is_probe() {
            return tracing::debug!(
                event = "probe_closed", cid = %flow.cid(), connector = %label.connector, %reason,
                duration_ms = summary.duration_ms
            );
        }
        tracing::info!(
            event = "flow_closed", cid = %flow.cid(), connector = %label.connector,
            client = %label.client, listener = %label.listener, %reason,
            bytes_c2a = summary.bytes_c2a, bytes_a2c = summary.bytes_a2c,
            duration_ms = summary.duration_ms
        );
    }

    fn over(&self, flow: &Arc<SocketFlow>) {
        self.table.remove(flow.cid());
        self.ended.notify_waiters();
    }
}
