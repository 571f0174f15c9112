//! Where spans are sent and which ones, for hub and agent alike: the standard variables of
//! OpenTelemetry, and the keys that they set.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use crate::overlay::Alias;
use crate::secret::Secret;
use crate::table::Table;
use crate::value::Value;
use crate::{Shown, choices};

/// The variables that OpenTelemetry names for what we have keys for.
pub const TRACES_ALIASES: [Alias; 16] = [
    Alias::new("OTEL_EXPORTER_OTLP_ENDPOINT", "observability.otlp_endpoint"),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "observability.traces.endpoint",
    ),
    // What is said of traces alone comes behind what is said of all signals, and so counts more.
    Alias::new(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "observability.traces.protocol",
    ),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "observability.traces.protocol",
    ),
    Alias::new("OTEL_EXPORTER_OTLP_HEADERS", "observability.traces.headers"),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "observability.traces.headers",
    ),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "observability.traces.timeout_ms",
    ),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "observability.traces.timeout_ms",
    ),
    Alias::new(
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "observability.traces.ca_bundle",
    ),
    Alias::new(
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "observability.traces.ca_bundle",
    ),
    Alias::new("OTEL_SERVICE_NAME", "observability.traces.service_name"),
    Alias::new(
        "OTEL_RESOURCE_ATTRIBUTES",
        "observability.traces.resource_attributes",
    ),
    Alias::new("OTEL_TRACES_SAMPLER", "observability.traces.sampler"),
    Alias::new(
        "OTEL_TRACES_SAMPLER_ARG",
        "observability.traces.sampler_arg",
    ),
    Alias::new("OTEL_SDK_DISABLED", "observability.traces.disabled"),
    Alias::new("OTEL_TRACES_EXPORTER", "observability.traces.exporter"),
];

/// What is appended to an address for all signals (OTLP specification, "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";
const MOST_ATTRIBUTES: usize = 64;
const MOST_TEXT: usize = 1024;

/// Spans are to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// Where they are posted.
    pub endpoint: Uri,
    /// Headers of each request.
    pub headers: Headers,
    /// How long one request may take.
    pub timeout: Duration,
    /// CA certificates, PEM, for `https://`; `None` = the system's.
    pub ca_bundle: Option<PathBuf>,
    /// `service.name`; `None` = that of hub or agent.
    pub service_name: Option<String>,
    /// Further attributes of this process.
    pub resource: Vec<(String, String)>,
    /// Which flows are traced.
    pub sampler: Sampler,
    /// The share of them that the samplers with a ratio take, from 0 to 1.
    pub ratio: f64,
}

choices! {
    /// Which flows are traced; those of another process may have been decided about there.
    pub enum Sampler {
        /// All.
        AlwaysOn = "always_on",
        /// None.
        AlwaysOff = "always_off",
        /// A share, by trace id.
        Ratio = "traceidratio",
        /// All but those that another process does not trace.
        ParentAlwaysOn = "parentbased_always_on",
        /// Those that another process traces.
        ParentAlwaysOff = "parentbased_always_off",
        /// A share, and those that another process traces.
        ParentRatio = "parentbased_traceidratio",
    }
}

choices! {
    /// How spans are sent.
    enum Protocol {
        HttpProtobuf = "http/protobuf",
        HttpJson = "http/json",
        Grpc = "grpc",
    }
}

choices! {
    /// Where spans go.
    enum Exporter {
        Otlp = "otlp",
        None = "none",
    }
}

/// Headers with secrets in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Option<Secret>);

impl Headers {
    /// Each with its value, which is marked as sensitive.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let text = self.0.as_ref().map_or("", Secret::expose);
        pairs(text).filter_map(|pair| header(pair?))
    }
}

/// Reads `otlp_endpoint` and `traces` of the section that is about logs, metrics and traces; `None`
/// when nothing is to be sent, or after a problem was reported.
pub fn read_traces(t: &mut Table<'_>) -> Option<TracesConfig> {
    let base = http_url(t, "otlp_endpoint");
    t.section("traces", |t| section(t, base))
}

fn section(t: &mut Table<'_>, base: Option<Uri>) -> Option<TracesConfig> {
    let own = http_url(t, "endpoint");
    let protocol = t.field("protocol").or(Protocol::HttpProtobuf);
    let headers = t.field::<Secret>("headers").secret();
    let headers = headers.check("name=value, with commas between", |text| {
        pairs(text.expose()).all(|pair| pair.and_then(header).is_some())
    });
    let headers = Headers(headers.optional());
    let timeout = t.millis("timeout_ms", 1..=600_000, 10_000);
    let ca_bundle = t.field("ca_bundle").file();
    let service_name = t
        .field("service_name")
        .check(TEXT, |text: &String| is_short(text))
        .optional();
    let resource = t
        .field::<String>("resource_attributes")
        .check("name=value", |text| attribute(text).is_some())
        .commas()
        .up_to(MOST_ATTRIBUTES)
        .list();
    let sampler = t.field("sampler").or(Sampler::ParentAlwaysOn);
    let Ratio(ratio) = t.field("sampler_arg").or(Ratio(1.0));
    let disabled = t.field("disabled").or(false);
    let exporter = t.field("exporter").or(Exporter::Otlp);
    let endpoint = own.or_else(|| base.as_ref().and_then(for_traces))?;
    if disabled || exporter == Exporter::None {
        return None;
    }
    if protocol != Protocol::HttpProtobuf {
        let message = format!("spans are sent as http/protobuf, not as {protocol}");
        let hint =
            "set it to http/protobuf, and the port to the collector's for HTTP, usually 4318";
        t.problem("protocol", message, hint);
    }
    Some(TracesConfig {
        endpoint,
        headers,
        timeout,
        ca_bundle,
        service_name,
        resource: resource.iter().filter_map(|text| attribute(text)).collect(),
        sampler,
        ratio,
    })
}

const TEXT: &str = "up to 1024 bytes of text";

fn is_short(text: &str) -> bool {
    text.len() <= MOST_TEXT
}

fn http_url(t: &mut Table<'_>, key: &'static str) -> Option<Uri> {
    let is_http = |url: &Uri| matches!(url.scheme_str(), Some("http" | "https"));
    t.field(key)
        .check("http:// or https://", is_http)
        .optional()
}

/// The address for spans below that for all signals.
fn for_traces(base: &Uri) -> Option<Uri> {
    let mut parts = base.clone().into_parts();
    let path = base.path().trim_end_matches('/');
    parts.path_and_query = Some(format!("{path}{TRACES_PATH}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// `name=value,name=value`, percent-encoded (W3C Baggage, as the OTLP exporter's specification has it).
fn pairs(text: &str) -> impl Iterator<Item = Option<(String, String)>> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(attribute)
}

fn attribute(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let (name, value) = (decoded(name.trim())?, decoded(value.trim())?);
    let is_good = !name.is_empty() && is_short(&name) && is_short(&value);
    is_good.then_some((name, value))
}

fn header((name, value): (String, String)) -> Option<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::try_from(name).ok()?, value))
}

/// Without percent signs; `None` if what follows one is no byte, or it all is no text.
fn decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (hex, rest) = piece.split_at_checked(2)?;
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(hex, 16).ok().filter(|_| is_hex)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// From 0 to 1.
struct Ratio(f64);

impl Value for Ratio {
    const KIND: &'static str = "a number from 0 to 1";
    const TEXT: bool = false;

    fn parse(text: &str) -> Result<Self, String> {
        let number = text.parse().map_err(|_| String::new())?;
        match (0.0..=1.0).contains(&number) {
            true => Ok(Self(number)),
            false => Err(String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Plain(self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_to_the_address_for_all_signals() {
        for (base, whole) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp", "https://c/otlp/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ] {
            let url = for_traces(&base.parse().expect("a URL")).expect("a URL");
            assert_eq!(url, whole);
        }
    }

    #[test]
    fn pairs_are_read_as_the_specification_has_them() {
        let headers = Headers(Some(Secret::new("api-key=se%2Ccret, x-tenant = a b ,")));
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all[0].0, "api-key");
        assert_eq!(all[0].1, "se,cret");
        assert_eq!(all[1].1, "a b");
        assert!(all.iter().all(|(_, value)| value.is_sensitive()));
        for bad in [
            "a", "=b", "a=%zz", "a=%+1", "a=%4", "a=%0a", "a=%ff", "a=%é",
        ] {
            assert_eq!(attribute(bad), None, "{bad}");
        }
    }
}
