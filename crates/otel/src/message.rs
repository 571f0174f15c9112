//! Spans as protobuf messages.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nowconnect_link::trace::{self, Attribute, Kind, Value};
use nowconnect_settings::TracesConfig;
use prost::Message as _;

use crate::otlp::{
    AnyValue, Event, InstrumentationScope, KIND_CLIENT, KIND_INTERNAL, KIND_SERVER, KeyValue,
    REMOTE_PARENT, REMOTENESS_KNOWN, Request, Resource, ResourceSpans, SAMPLED, STATUS_ERROR,
    ScopeSpans, Span, Status, any_value,
};

/// Who makes the spans.
#[derive(Clone, Debug)]
pub struct Process {
    /// `service.name` unless the configuration has another.
    pub service: &'static str,
    /// `service.instance.id`: which one of several.
    pub instance: String,
    /// `service.version`.
    pub version: &'static str,
}

/// Who speaks: what every message begins with.
#[derive(Debug)]
pub(crate) struct Speaker {
    resource: Resource,
    scope: InstrumentationScope,
}

impl Speaker {
    /// What the operator says of the process counts more than what it says of itself.
    pub(crate) fn new(config: &TracesConfig, process: &Process) -> Self {
        let own = [
            ("service.name", process.service),
            ("service.instance.id", &process.instance),
            ("service.version", process.version),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", "nowconnect"),
            ("telemetry.sdk.version", process.version),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let said = config.resource.iter().cloned();
        let name = config.service_name.iter();
        let name = name.map(|name| ("service.name".to_owned(), name.clone()));
        let all: BTreeMap<_, _> = own.into_iter().chain(said).chain(name).collect();
        let attributes = all.into_iter();
        Self {
            resource: Resource {
                attributes: attributes.map(|(key, value)| text(key, value)).collect(),
            },
            scope: InstrumentationScope {
                name: "nowconnect".to_owned(),
                version: process.version.to_owned(),
            },
        }
    }

    /// The body of a request that exports `spans`.
    pub(crate) fn message(&self, spans: Vec<trace::Span>) -> Bytes {
        let spans = ScopeSpans {
            scope: Some(self.scope.clone()),
            spans: spans.into_iter().map(span).collect(),
        };
        let resource = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![spans],
        };
        let request = Request {
            resource_spans: vec![resource],
        };
        request.encode_to_vec().into()
    }
}

fn span(span: trace::Span) -> Span {
    let kind = match span.kind {
        Kind::Internal => KIND_INTERNAL,
        Kind::Client => KIND_CLIENT,
        Kind::Server => KIND_SERVER,
    };
    let remote = match span.parent_is_remote {
        true => REMOTE_PARENT,
        false => 0,
    };
    let mut attributes = attributes(span.attributes);
    attributes.extend(
        span.error
            .map(|error| text("error.type".to_owned(), error.to_owned())),
    );
    let status = span.error.map(|error| Status {
        code: STATUS_ERROR,
        message: error.to_owned(),
    });
    Span {
        trace_id: span.context.trace_id.to_vec(),
        span_id: span.context.span_id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: SAMPLED | REMOTENESS_KNOWN | remote,
        name: span.name.to_owned(),
        kind,
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes,
        events: span.events.into_iter().map(event).collect(),
        dropped_events_count: span.dropped_events,
        status,
    }
}

fn event(event: trace::Event) -> Event {
    Event {
        time_unix_nano: nanos(event.at),
        name: event.name.to_owned(),
        attributes: attributes(event.attributes),
    }
}

fn attributes(attributes: Vec<Attribute>) -> Vec<KeyValue> {
    let attributes = attributes.into_iter();
    attributes
        .map(|(key, value)| match value {
            Value::Text(value) => text(key.to_owned(), value.to_string()),
            Value::Number(number) => key_value(key.to_owned(), any_value::Value::IntValue(number)),
        })
        .collect()
}

fn text(key: String, value: String) -> KeyValue {
    key_value(key, any_value::Value::StringValue(value))
}

fn key_value(key: String, value: any_value::Value) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
