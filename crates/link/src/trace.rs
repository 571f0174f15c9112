//! What a flow went through, as spans for a tracing system.
//!
//! A flow is in one stage at a time, so its spans are a chain under one parent: the flow as a whole
//! where it began, or the span of another process that its OPEN names. Nothing is recorded frame by
//! frame. Without a [`Collector`], and for flows that it does not want, no trace is made.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nowconnect_proto::TraceContext;

/// Events of one span that are kept; a flow may change its path without end.
const MOST_EVENTS: usize = 64;

/// Decides which flows are traced, and takes their spans.
pub trait Collector: Send + Sync + fmt::Debug {
    /// Whether spans of this trace are wanted; `followed` tells that another process records it.
    fn wants(&self, trace_id: &[u8; 16], followed: bool) -> bool;

    /// A span has ended. Must not block: it is called where traffic is carried.
    fn take(&self, span: Span);
}

/// Makes traces; by default none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<dyn Collector>>);

/// What a span stands for, as OpenTelemetry has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something inside of the process.
    Internal,
    /// Asking somebody else.
    Client,
    /// Being asked.
    Server,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text; never payload, and no secret.
    Text(Arc<str>),
    /// A number.
    Number(i64),
}

/// Name and value; OpenTelemetry's names where it has one.
pub type Attribute = (&'static str, Value);

/// Something that happened during a span.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub name: &'static str,
    /// When.
    pub at: SystemTime,
    /// Its particulars.
    pub attributes: Vec<Attribute>,
}

/// One stage of a flow, or the whole of it.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its own name in its trace.
    pub context: TraceContext,
    /// The span that it belongs to.
    pub parent: Option<[u8; 8]>,
    /// Whether another process records that one.
    pub parent_is_remote: bool,
    /// What it is.
    pub name: &'static str,
    /// Of what kind.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Its particulars.
    pub attributes: Vec<Attribute>,
    /// What happened.
    pub events: Vec<Event>,
    /// Events that were too many.
    pub dropped_events: u32,
    /// Why it failed; the word that logs and metrics use.
    pub error: Option<&'static str>,
    began: Instant,
}

impl Tracer {
    /// One whose spans go to `collector`.
    pub fn new(collector: Arc<dyn Collector>) -> Self {
        Self(Some(collector))
    }

    /// Begins a trace with a span for the whole of something, if it is to be recorded.
    #[must_use]
    pub fn begin(&self, name: &'static str, kind: Kind) -> Option<Box<Trace>> {
        let collector = self.0.as_ref()?;
        let trace_id = not_zero();
        if !collector.wants(&trace_id, false) {
            return None;
        }
        let whole = Span::new(trace_id, None, false, name, kind);
        Some(Box::new(Trace {
            collector: Arc::clone(collector),
            parent: whole.context,
            whole: Some(whole),
            stage: None,
            over: false,
        }))
    }

    /// Goes on with the trace of another process, if there is one and it is to be recorded here too.
    #[must_use]
    pub fn follow(&self, parent: Option<TraceContext>) -> Option<Box<Trace>> {
        let (collector, parent) = (self.0.as_ref()?, parent?);
        collector.wants(&parent.trace_id, true).then(|| {
            Box::new(Trace {
                collector: Arc::clone(collector),
                parent,
                whole: None,
                stage: None,
                over: false,
            })
        })
    }
}

/// The spans of a flow in this process. Dropping it ends them.
#[derive(Debug)]
pub struct Trace {
    collector: Arc<dyn Collector>,
    /// What stages belong to.
    parent: TraceContext,
    whole: Option<Span>,
    stage: Option<Span>,
    over: bool,
}

impl Trace {
    /// What other processes are told to follow: the whole, or, where that is elsewhere, the stage.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        match (&self.whole, &self.stage) {
            (None, Some(stage)) => stage.context,
            _ => self.parent,
        }
    }

    /// Ends the stage and begins the next one.
    pub fn stage(&mut self, name: &'static str, kind: Kind) {
        if self.over {
            return;
        }
        let TraceContext { trace_id, span_id } = self.parent;
        let remote = self.whole.is_none();
        let next = Span::new(trace_id, Some(span_id), remote, name, kind);
        let last = self.stage.replace(next);
        self.hand_over(last);
    }

    /// Whether the stage is the one of this name.
    #[must_use]
    pub fn is_in(&self, name: &str) -> bool {
        self.stage.as_ref().is_some_and(|stage| stage.name == name)
    }

    /// Says something about the stage.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(stage) = &mut self.stage {
            stage.attributes.push((key, value.into()));
        }
    }

    /// Says something about the whole, or, where that is elsewhere, about the stage.
    pub fn set_whole(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.whole.as_mut().or(self.stage.as_mut()) {
            span.attributes.push((key, value.into()));
        }
    }

    /// Something happened during the stage.
    pub fn event(&mut self, name: &'static str, attributes: impl Into<Vec<Attribute>>) {
        let Some(stage) = &mut self.stage else { return };
        if stage.events.len() == MOST_EVENTS {
            stage.dropped_events += 1;
            return;
        }
        stage.events.push(Event {
            name,
            at: stage.now(),
            attributes: attributes.into(),
        });
    }

    /// The stage failed; another may follow.
    pub fn fail_stage(&mut self, error: &'static str) {
        if let Some(stage) = &mut self.stage {
            stage.error = Some(error);
        }
    }

    /// The stage failed, and the whole with it.
    pub fn fail(&mut self, error: &'static str) {
        self.fail_stage(error);
        if let Some(whole) = &mut self.whole {
            whole.error = Some(error);
        }
    }

    /// It is over. Further calls do nothing.
    pub fn end(&mut self) {
        self.over = true;
        let (stage, whole) = (self.stage.take(), self.whole.take());
        self.hand_over(stage);
        self.hand_over(whole);
    }

    fn hand_over(&self, span: Option<Span>) {
        if let Some(mut span) = span {
            span.end = span.now();
            self.collector.take(span);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.end();
    }
}

impl Span {
    fn new(
        trace_id: [u8; 16],
        parent: Option<[u8; 8]>,
        parent_is_remote: bool,
        name: &'static str,
        kind: Kind,
    ) -> Self {
        let (start, span_id) = (SystemTime::now(), not_zero());
        Self {
            context: TraceContext { trace_id, span_id },
            parent,
            parent_is_remote,
            name,
            kind,
            start,
            end: start,
            attributes: Vec::new(),
            events: Vec::new(),
            dropped_events: 0,
            error: None,
            began: Instant::now(),
        }
    }

    /// Never before the start, whatever is done to the system's clock.
    fn now(&self) -> SystemTime {
        self.start + self.began.elapsed()
    }
}

/// An id: all zero is none (W3C Trace Context, section 3.2.2).
fn not_zero<const N: usize>() -> [u8; N] {
    loop {
        let id = rand::random();
        if id != [0; N] {
            return id;
        }
    }
}

/// Where the address of a peer goes, and its port.
pub type AddressKeys = (&'static str, &'static str);

/// Whoever asked first.
pub const CLIENT: AddressKeys = ("client.address", "client.port");
/// The other end of the connection.
pub const PEER: AddressKeys = ("network.peer.address", "network.peer.port");

/// The two attributes that an address is.
pub fn address((host, port): AddressKeys, address: SocketAddr) -> [Attribute; 2] {
    [
        (host, address.ip().into()),
        (port, i64::from(address.port()).into()),
    ]
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<&Arc<str>> for Value {
    fn from(text: &Arc<str>) -> Self {
        Self::Text(Arc::clone(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        address.to_canonical().to_string().into()
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Spans {
        unwanted: bool,
        taken: Mutex<Vec<Span>>,
    }

    impl Collector for Spans {
        fn wants(&self, _: &[u8; 16], _: bool) -> bool {
            !self.unwanted
        }

        fn take(&self, span: Span) {
            self.taken.lock().push(span);
        }
    }

    fn tracer() -> (Arc<Spans>, Tracer) {
        let spans = Arc::<Spans>::default();
        (spans.clone(), Tracer::new(spans))
    }

    #[test]
    fn stages_follow_each_other_under_the_whole() {
        let (spans, tracer) = tracer();
        let mut trace = tracer.begin("flow", Kind::Server).expect("wanted");
        let whole = trace.context();
        trace.stage("open", Kind::Client);
        trace.set("nowconnect.connector", "ldap");
        assert_eq!(trace.context(), whole);
        trace.stage("relay", Kind::Internal);
        assert!(trace.is_in("relay"));
        trace.event("path_lost", []);
        trace.fail("resume_expired");
        drop(trace);
        let taken = spans.taken.lock();
        let names: Vec<_> = taken.iter().map(|span| span.name).collect();
        assert_eq!(names, ["open", "relay", "flow"]);
        let errors: Vec<_> = taken.iter().map(|span| span.error).collect();
        assert_eq!(
            errors,
            [None, Some("resume_expired"), Some("resume_expired")]
        );
        let parents: Vec<_> = taken.iter().map(|span| span.parent).collect();
        assert_eq!(parents, [Some(whole.span_id), Some(whole.span_id), None]);
        assert_eq!(
            taken[0].attributes,
            [("nowconnect.connector", "ldap".into())]
        );
        assert_eq!(taken[1].events[0].name, "path_lost");
        assert!(taken[0].end <= taken[2].end);
        for span in &*taken {
            assert_eq!(span.context.trace_id, whole.trace_id);
            assert!(span.start <= span.end && !span.parent_is_remote);
        }
    }

    #[test]
    fn another_process_is_followed_where_it_records() {
        let (spans, tracer) = tracer();
        assert!(tracer.follow(None).is_none());
        let parent = TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
        };
        let mut trace = tracer.follow(Some(parent)).expect("wanted");
        trace.stage("forward", Kind::Server);
        let handed_on = trace.context();
        assert_eq!(handed_on.trace_id, parent.trace_id);
        assert_ne!(handed_on.span_id, parent.span_id);
        trace.set_whole("nowconnect.connector", "ldap");
        trace.end();
        trace.stage("late", Kind::Internal);
        trace.end();
        let taken = spans.taken.lock();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].parent, Some(parent.span_id));
        assert!(taken[0].parent_is_remote && taken[0].attributes.len() == 1);
    }

    #[test]
    fn events_are_bounded() {
        let (spans, tracer) = tracer();
        let mut trace = tracer.begin("flow", Kind::Server).expect("wanted");
        trace.stage("relay", Kind::Internal);
        for _ in 0..MOST_EVENTS + 3 {
            trace.event("path_lost", []);
        }
        drop(trace);
        let taken = spans.taken.lock();
        assert_eq!(taken[0].events.len(), MOST_EVENTS);
        assert_eq!(taken[0].dropped_events, 3);
    }

    #[test]
    fn what_is_not_wanted_is_not_recorded() {
        assert!(Tracer::default().begin("flow", Kind::Server).is_none());
        let tracer = Tracer::new(Arc::new(Spans {
            unwanted: true,
            ..Spans::default()
        }));
        assert!(tracer.begin("flow", Kind::Server).is_none());
    }
}
