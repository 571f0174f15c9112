//! YAML text to tree; the only file that names the YAML library.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag, options,
};

use crate::node::{Content, Entry, Node, Origin, Scalar, Style};
use crate::problem::Problem;

/// Values of one document, aliases counted each time they are used.
const MAX_NODES: usize = 100_000;
/// Bytes of their text, keys included, counted in the same way.
const MAX_TEXT: usize = 4 * 1024 * 1024;
/// Levels of nesting.
const MAX_DEPTH: usize = 32;

/// Parses one YAML document.
///
/// Problems that leave the rest readable (a doubled key, a tag) come with a tree, broken syntax
/// without one. An empty document has neither.
pub(crate) fn parse_yaml(text: &str) -> (Option<Node>, Vec<Problem>) {
    let limits = options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH, emit_comments: false };
    let mut builder = Builder {
        events: Parser::new_from_str_with_options(text, limits),
        anchors: HashMap::new(),
        problems: Vec::new(),
        path: String::new(),
        size: Size::default(),
    };
    let root = builder.document().unwrap_or_else(|error| {
        builder.problems.push(syntax_problem(error, text));
        None
    });
    (root, builder.problems)
}

struct Builder<I> {
    events: I,
    anchors: HashMap<usize, (Node, Size)>,
    problems: Vec<Problem>,
    /// Key of the value being built.
    path: String,
    size: Size,
}

/// How much there is of something.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    text: usize,
}

/// Ends parsing, at a line and column from 1.
struct Broken {
    line: usize,
    column: usize,
    message: String,
}

impl Broken {
    fn at(mark: &Marker, message: impl Into<String>) -> Self {
        Self {
            line: mark.line(),
            column: mark.col() + 1,
            message: message.into(),
        }
    }
}

impl<'t, I: Iterator<Item = Result<(Event<'t>, Span), ScanError>>> Builder<I> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Broken> {
        match self.events.next() {
            Some(event) => event.map_err(|error| {
                let message = format!(
                    "not valid YAML: {} (look at indentation, quotes and brackets here and above)",
                    error.info()
                );
                Broken::at(error.marker(), message)
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(&mut self) -> Result<Option<Node>, Broken> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::DocumentStart(..), span) if root.is_some() => {
                    let problem = Problem::new("a second document starts here");
                    self.problem(&span, problem.hint("keep one document in the file"));
                    return Ok(root);
                }
                (event, span) if event.is_node() => root = Some(self.node(event, &span)?),
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: &Span) -> Result<Node, Broken> {
        let (anchor, before) = (event.anchor_id(), self.size);
        let text = match &event {
            Event::Scalar(text, ..) => text.len(),
            _ => 0,
        };
        self.count(Size { nodes: 1, text }, span)?;
        let content = match event {
            Event::Scalar(text, style, _, tag) => {
                let tagged = self.tag(tag.as_deref(), span);
                let plain = style == ScalarStyle::Plain && !tagged;
                let style = if plain { Style::Plain } else { Style::Quoted };
                Content::Scalar(Scalar {
                    text: text.into_owned(),
                    written: None,
                    style,
                    literal: None,
                })
            }
            Event::SequenceStart(_, _, tag) => {
                self.tag(tag.as_deref(), span);
                Content::List(self.list()?)
            }
            Event::MappingStart(_, _, tag) => {
                self.tag(tag.as_deref(), span);
                Content::Map(self.map()?)
            }
            Event::Alias(id) => {
                // An alias inside its own anchor finds nothing here, so there are no cycles.
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    let message = "an alias that stands inside its own anchor";
                    return Err(Broken::at(&span.start, message));
                };
                self.count(size, span)?;
                return Ok(Node {
                    origin: origin(span),
                    ..node
                });
            }
            _ => return Err(Broken::at(&span.start, "unexpected YAML here")),
        };
        let node = Node {
            origin: origin(span),
            content,
        };
        if let Some(id) = anchor {
            let size = Size {
                nodes: self.size.nodes - before.nodes,
                text: self.size.text - before.text,
            };
            self.anchors.insert(id, (node.clone(), size));
        }
        Ok(node)
    }

    fn list(&mut self) -> Result<Vec<Node>, Broken> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => {
                    let step = format!("[{}]", items.len());
                    items.push(self.at(&step, |builder| builder.node(event, &span))?);
                }
            }
        }
    }

    /// Builds what is at one more step of the path.
    fn at<T>(&mut self, step: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.path.len();
        if outer > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let built = build(self);
        self.path.truncate(outer);
        built
    }

    fn map(&mut self) -> Result<Vec<Entry>, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = match event {
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Broken::at(&span.start, "a key must be plain text")),
            };
            let text = key.len();
            self.count(Size { nodes: 0, text }, &span)?;
            let (event, value_span) = self.next()?;
            let node = self.at(&key, |builder| builder.node(event, &value_span))?;
            if let Some(line) = lines.get(&key) {
                let message = format!("this key is already set on line {line}");
                let problem = Problem::new(message).hint("remove one of the two");
                self.at(&key, |builder| builder.problem(&span, problem));
                continue;
            }
            lines.insert(key.clone(), span.start.line());
            entries.push(Entry {
                key,
                origin: origin(&span),
                node,
            });
        }
    }

    /// Whether a tag makes a scalar text; any tag but `!!str` is a problem.
    fn tag(&mut self, tag: Option<&Tag>, span: &Span) -> bool {
        match tag {
            None => false,
            Some(tag) if tag.is_yaml_core_schema_tag("str") => true,
            Some(tag) => {
                let problem =
                    Problem::new(format!("the tag {} means nothing here", tag.original()));
                self.problem(span, problem.hint("remove it"));
                false
            }
        }
    }

    fn count(&mut self, more: Size, span: &Span) -> Result<(), Broken> {
        self.size.nodes += more.nodes;
        self.size.text += more.text;
        let problem = match self.size {
            Size { nodes, .. } if nodes > MAX_NODES => format!("more than {MAX_NODES} values"),
            Size { text, .. } if text > MAX_TEXT => "aliases make it too long".to_owned(),
            _ => return Ok(()),
        };
        Err(Broken::at(&span.start, problem))
    }

    fn problem(&mut self, span: &Span, problem: Problem) {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        self.problems.push(Problem {
            line,
            column,
            key: self.path.clone(),
            ..problem
        });
    }
}

fn origin(span: &Span) -> Origin {
    Origin::File {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

/// A syntax error in words, with advice where the cause is a usual one.
fn syntax_problem(error: Broken, text: &str) -> Problem {
    let indented_by_tab = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    // The scanner may notice a tab a line early or late.
    let around = text
        .lines()
        .enumerate()
        .skip(error.line.saturating_sub(2))
        .take(3);
    match around.into_iter().find(|(_, line)| indented_by_tab(line)) {
        Some((i, line)) => Problem {
            line: i + 1,
            column: line.len() - line.trim_start_matches(' ').len() + 1,
            ..Problem::new("a tab is used for indentation").hint("indent with spaces")
        },
        None => Problem {
            line: error.line,
            column: error.column,
            ..Problem::new(error.message)
        },
    }
}
