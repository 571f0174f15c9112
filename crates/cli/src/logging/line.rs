//! One event as one line of text.
//!
//! Values come from the network. Whatever they hold, a line stays one line, a JSON object stays one
//! object, a terminal gets no command, and no value is longer than [`MAX_VALUE_CHARS`].

use std::fmt::{self, Write as _};

use serde_json::{Map, Value as Json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::audit::Draft;
use crate::timestamp::{now, push_time};

/// Characters of the longest value; the rest becomes an ellipsis.
const MAX_VALUE_CHARS: usize = 1024;

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One flat JSON object: `ts`, `level`, `event`, then the fields.
    Json,
    /// Time, level, event, then `name=value`.
    Plain {
        /// With terminal colours.
        color: bool,
    },
}

impl Shape {
    /// Colours suit people on terminals only; JSON never has any.
    pub(super) fn with_color(self, on: bool) -> Self {
        match self {
            Shape::Json => Shape::Json,
            Shape::Plain { .. } => Shape::Plain { color: on },
        }
    }
}

/// The line of `event`, with its newline.
pub(super) fn render(event: &Event<'_>, shape: Shape) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    compose(
        shape,
        *event.metadata().level(),
        event.metadata().target(),
        fields,
    )
}

/// The record of an event whose field `mark` is true, without that field.
pub(crate) fn marked(event: &Event<'_>, mark: &str) -> Option<Draft> {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let at = fields.rest.iter().position(|(key, _)| *key == mark)?;
    let (_, value) = fields.rest.remove(at);
    if !matches!(value, Value::Literal(literal) if literal == "true") {
        return None;
    }
    let name = fields.event.take()?;
    let mut members = String::with_capacity(256);
    push_members(&mut members, &name, &fields);
    let ts = now();
    Some(Draft { ts, members })
}

/// A line of the log's own, outside of tracing.
pub(super) fn compose(shape: Shape, level: Level, target: &str, mut fields: Fields) -> String {
    // An event of a library has a message instead of a name.
    let name = fields
        .event
        .take()
        .unwrap_or_else(|| Value::Text(target.to_owned()));
    fields.rest.retain(|(_, value)| !value.as_str().is_empty());
    let mut line = String::with_capacity(256);
    match shape {
        Shape::Json => {
            line.push_str("{\"ts\":\"");
            push_time(&mut line);
            let _ = write!(line, "\",\"level\":\"{level}\",");
            push_members(&mut line, &name, &fields);
            line.push('}');
        }
        Shape::Plain { color } => {
            push_time(&mut line);
            let paint = |ansi: &'static str| if color { ansi } else { "" };
            let (ansi, reset) = (paint(color_of(level)), paint("\x1b[0m"));
            let _ = write!(line, " {ansi}{level:<5}{reset} ");
            line.push_str(paint("\x1b[1m"));
            push_plain(&mut line, name.as_str());
            line.push_str(reset);
            for (key, value) in fields.iter() {
                let _ = write!(line, " {}{key}={reset}", paint("\x1b[2m"));
                push_plain(&mut line, value.as_str());
            }
        }
    }
    line.push('\n');
    line
}

/// The event's name and its fields as members of a JSON object.
fn push_members(line: &mut String, name: &Value, fields: &Fields) {
    for (at, (key, value)) in std::iter::once(("event", name))
        .chain(fields.iter())
        .enumerate()
    {
        if at > 0 {
            line.push(',');
        }
        push_json_text(line, key);
        line.push(':');
        match value {
            Value::Text(text) => push_json_text(line, text),
            Value::Literal(literal) => line.push_str(literal),
        }
    }
}

fn color_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

enum Value {
    Text(String),
    /// A number or a boolean.
    Literal(String),
}

impl Value {
    fn as_str(&self) -> &str {
        match self {
            Value::Text(text) | Value::Literal(text) => text,
        }
    }
}

/// An event's fields in their order, its name apart.
#[derive(Default)]
pub(super) struct Fields {
    event: Option<Value>,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    /// For lines that the log writes about itself.
    pub(super) fn named(event: &str, key: &'static str, number: u64) -> Self {
        Self {
            event: Some(Value::Text(event.to_owned())),
            rest: vec![(key, Value::Literal(number.to_string()))],
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.rest.iter().map(|(key, value)| (*key, value))
    }

    /// Whether the event has one of these names.
    pub(super) fn is_named_among(&self, names: &[&str]) -> bool {
        let name = self.event.as_ref().map(Value::as_str);
        name.is_some_and(|name| names.contains(&name))
    }

    /// The event's name, and its fields as JSON.
    pub(super) fn into_json(self) -> (String, Map<String, Json>) {
        let name = self.event.map(|name| name.as_str().to_owned());
        let fields = self.rest.into_iter().map(|(key, value)| {
            let value = match value {
                Value::Text(text) => text.into(),
                Value::Literal(literal) => serde_json::from_str(&literal).unwrap_or(Json::Null),
            };
            (key.to_owned(), value)
        });
        (name.unwrap_or_default(), fields.collect())
    }

    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "event" => self.event = Some(value),
            name => self.rest.push((name, value)),
        }
    }

    fn literal(&mut self, field: &Field, value: impl fmt::Display) {
        self.put(field, Value::Literal(value.to_string()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded::default();
        let _ = write!(text, "{value:?}");
        self.put(field, Value::Text(text.finish()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = Bounded::default();
        let _ = text.write_str(value);
        self.put(field, Value::Text(text.finish()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.literal(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.literal(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.literal(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.literal(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither NaN nor infinity.
        if value.is_finite() {
            self.literal(field, value);
        } else {
            self.put(field, Value::Text(value.to_string()));
        }
    }
}

/// Stops taking text at [`MAX_VALUE_CHARS`], so that a huge value is not even formatted.
#[derive(Default)]
struct Bounded {
    text: String,
    chars: usize,
}

impl Bounded {
    fn finish(self) -> String {
        self.text
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for c in more.chars() {
            if self.chars == MAX_VALUE_CHARS {
                self.text.push('…');
                self.chars += 1;
            }
            if self.chars > MAX_VALUE_CHARS {
                return Err(fmt::Error);
            }
            self.text.push(c);
            self.chars += 1;
        }
        Ok(())
    }
}

/// Characters that move a cursor, end a line for somebody, or turn text around on screen.
pub(crate) fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
        )
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_dangerous(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
}

fn push_json_text(line: &mut String, text: &str) {
    line.push('"');
    push_escaped(line, text);
    line.push('"');
}

/// Quotes only what would not read back as one word.
fn push_plain(line: &mut String, text: &str) {
    let word = |c: char| !c.is_whitespace() && !is_dangerous(c) && !matches!(c, '"' | '\\' | '=');
    if !text.is_empty() && text.chars().all(word) {
        line.push_str(text);
    } else {
        push_json_text(line, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    /// Keeps the lines of a test's events.
    struct Capture(Shape, Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Capture {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.1.lock().unwrap().push(render(event, self.0));
        }
    }

    fn lines(shape: Shape, log: impl FnOnce()) -> Vec<String> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Capture(shape, Arc::clone(&kept)));
        tracing::subscriber::with_default(subscriber, log);
        let kept = kept.lock().unwrap();
        kept.clone()
    }

    const PLAIN: Shape = Shape::Plain { color: false };

    #[test]
    fn json_is_flat_with_ts_level_and_event_first() {
        let logged = lines(Shape::Json, || {
            tracing::info!(epoch = 7u64, event = "agent_connected", agent_id = %"a-1", audit = true);
            tracing::info!(event = "goaway", deadline_ms = 30_000u128);
        });
        let [line, wide] = &logged[..] else {
            panic!("{logged:?}")
        };
        assert!(wide.ends_with("\"deadline_ms\":30000}\n"), "{wide}");
        let parsed: serde_json::Value = serde_json::from_str(line).unwrap();
        let ts = parsed["ts"].as_str().unwrap();
        assert!(
            ts.len() == "2026-11-22T16:59:32.000000Z".len() && ts.ends_with('Z'),
            "{ts}"
        );
        assert_eq!(
            line.split_once("Z\"").unwrap().1,
            ",\"level\":\"INFO\",\"event\":\"agent_connected\",\"epoch\":7,\"agent_id\":\"a-1\",\"audit\":true}\n"
        );
    }

    #[test]
    fn library_events_are_named_by_their_target() {
        let logged = lines(
            Shape::Json,
            || tracing::warn!(target: "hyper::proto", "went {}", "wrong"),
        );
        assert!(
            logged[0].contains(r#""event":"hyper::proto","message":"went wrong"}"#),
            "{logged:?}"
        );
    }

    #[test]
    fn no_value_breaks_its_line_or_commands_a_terminal() {
        let nasty = "a\n{\"level\":\"x\"}\r\u{1b}[2J\u{9b}31m\0\u{7f}\u{202e}\u{2028}\\\"";
        for shape in [Shape::Json, PLAIN] {
            let logged = lines(shape, || tracing::error!(event = "e", reason = nasty));
            let body = logged[0].strip_suffix('\n').unwrap();
            assert!(!body.chars().any(is_dangerous), "{body:?}");
            if shape == Shape::Json {
                let parsed: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(parsed["reason"], nasty);
            }
        }
    }

    #[test]
    fn plain_quotes_only_what_needs_it() {
        let logged = lines(PLAIN, || {
            tracing::info!(
                event = "flow_closed",
                reason = "peer reset",
                bytes = 12,
                empty = ""
            );
        });
        let (_, rest) = logged[0].split_once("Z ").unwrap();
        assert_eq!(rest, "INFO  flow_closed reason=\"peer reset\" bytes=12\n");
    }

    #[test]
    fn color_appears_only_when_asked_for() {
        let log = || tracing::error!(event = "e", a = 1);
        assert!(lines(Shape::Plain { color: true }, log)[0].contains("\x1b[31mERROR\x1b[0m"));
        assert!(!lines(PLAIN, log)[0].contains('\x1b'));
        assert_eq!(Shape::Json.with_color(true), Shape::Json);
    }

    #[test]
    fn huge_values_are_cut_and_odd_numbers_stay_json() {
        let huge = "x".repeat(1 << 20);
        let logged = lines(Shape::Json, || {
            tracing::info!(event = "e", text = huge, debug = ?huge, nan = f64::NAN);
        });
        assert!(logged[0].len() < 3 * MAX_VALUE_CHARS);
        let parsed: serde_json::Value = serde_json::from_str(&logged[0]).unwrap();
        assert_eq!(
            parsed["text"].as_str().unwrap().chars().count(),
            MAX_VALUE_CHARS + 1
        );
        assert_eq!(parsed["nan"], "NaN");
    }
}
