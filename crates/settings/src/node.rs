//! The tree that files and environment variables are merged into before anything is typed.

use std::sync::Arc;

use crate::secret::mask_url;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Line and column of the file, both from 1.
    File { line: usize, column: usize },
    /// An environment variable.
    Env(Arc<str>),
}

/// How a scalar was written, which says what types it may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// YAML plain scalar: its look decides (YAML 1.2 core schema).
    Plain,
    /// Quoted or block scalar: text.
    Quoted,
    /// From the environment: whatever the key wants.
    Untyped,
}

/// A scalar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    /// Its text, `${VAR}` replaced.
    pub(crate) text: String,
    /// What the file says, where that differs: replaced text is not shown in problems.
    pub(crate) written: Option<String>,
    pub(crate) style: Style,
    /// The list or map that an untyped text also spells, should the key want one.
    pub(crate) literal: Option<Box<Node>>,
}

impl Scalar {
    /// The parts of the text between commas.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        self.text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
    }

    /// One of them as a value.
    pub(crate) fn part(&self, text: &str, origin: &Origin) -> Node {
        let scalar = Scalar {
            text: text.to_owned(),
            written: self.written.as_deref().map(excerpt),
            style: self.style,
            literal: None,
        };
        Node {
            origin: origin.clone(),
            content: Content::Scalar(scalar),
        }
    }
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A value with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) content: Content,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) origin: Origin,
    pub(crate) node: Node,
}

impl Node {
    /// An empty map: a file that was not given.
    pub(crate) fn empty() -> Self {
        Self {
            origin: Origin::File { line: 0, column: 0 },
            content: Content::Map(Vec::new()),
        }
    }

    /// Text without a type.
    pub(crate) fn from_env(origin: Origin, text: &str) -> Self {
        let (text, written, literal) = (text.to_owned(), None, None);
        let scalar = Scalar {
            text,
            written,
            style: Style::Untyped,
            literal,
        };
        Self {
            origin,
            content: Content::Scalar(scalar),
        }
    }

    /// Whether this is a key without a value (`key:`, `key: ~`, `key: null`, or a variable set to
    /// nothing), which counts as unset.
    pub(crate) fn is_null(&self) -> bool {
        let Content::Scalar(scalar) = &self.content else {
            return false;
        };
        match scalar.style {
            Style::Plain => matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL"),
            Style::Quoted => false,
            Style::Untyped => scalar.text.is_empty(),
        }
    }

    /// This node, or the collection that its text spells.
    pub(crate) fn collection(&self) -> &Node {
        match &self.content {
            Content::Scalar(Scalar {
                literal: Some(literal),
                ..
            }) => literal,
            _ => self,
        }
    }

    /// The entry of a map.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.collection().content {
            Content::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The set (not null) value of a map's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key)
            .map(|entry| &entry.node)
            .filter(|node| !node.is_null())
    }

    /// Where the value at `path` (`listeners[1].bind`) is written, or else its nearest ancestor.
    /// A section is found by its key. Names may hold dots, so keys are matched, not split.
    pub(crate) fn locate(&self, path: &str) -> &Origin {
        let (mut origin, mut node, mut rest) = (&self.origin, self, path);
        loop {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let (next, after, at) = match &node.collection().content {
                Content::Map(entries) => {
                    let named = |e: &&Entry| {
                        rest.strip_prefix(e.key.as_str())
                            .is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
                    };
                    let Some(entry) = entries.iter().filter(named).max_by_key(|e| e.key.len())
                    else {
                        return origin;
                    };
                    let scalar = matches!(entry.node.content, Content::Scalar(_));
                    let from_env = matches!(entry.node.origin, Origin::Env(_));
                    let by_value = from_env || scalar && !entry.node.is_null();
                    let at = if by_value {
                        &entry.node.origin
                    } else {
                        &entry.origin
                    };
                    (&entry.node, &rest[entry.key.len()..], at)
                }
                Content::List(items) => {
                    let index = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
                    let Some((item, after)) = index
                        .and_then(|(n, after)| Some((items.get(n.parse::<usize>().ok()?)?, after)))
                    else {
                        return origin;
                    };
                    (item, after, &item.origin)
                }
                Content::Scalar(_) => return origin,
            };
            (node, rest, origin) = (next, after, at);
        }
    }

    /// What the node is, in words, with an excerpt unless it is `secret`.
    pub(crate) fn describe(&self, secret: bool) -> String {
        let scalar = match &self.content {
            Content::List(_) => return "a list".into(),
            Content::Map(_) => return "a section with keys".into(),
            Content::Scalar(scalar) => scalar,
        };
        if secret {
            return "a value that is not one (not shown)".into();
        }
        if self.is_null() {
            return "nothing".into();
        }
        let shown = excerpt(scalar.written.as_deref().unwrap_or(&scalar.text));
        // Passwords hide in URLs that are not meant to have any.
        let shown = match shown.contains("://") {
            true => mask_url(&shown),
            false => shown,
        };
        match scalar.style {
            Style::Quoted => format!("the text {shown:?}"),
            Style::Plain => match plain_kind(&scalar.text) {
                Some(kind) => format!("{kind} {shown}"),
                None => format!("{shown:?}"),
            },
            Style::Untyped => format!("{shown:?}"),
        }
    }
}

/// The start of a text, for a message.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a plain scalar is when it is not text, by its look (YAML 1.2 section 10.3.2, core schema).
pub(crate) fn plain_kind(text: &str) -> Option<&'static str> {
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        return Some("the boolean");
    }
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix, valid: fn(&char) -> bool| {
        number
            .strip_prefix(prefix)
            .is_some_and(|d: &str| !d.is_empty() && d.chars().all(|c| valid(&c)))
    };
    if radix("0x", char::is_ascii_hexdigit)
        || radix("0o", |c| ('0'..='7').contains(c))
        || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    {
        return Some("the integer");
    }
    let float = number
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && number.bytes().any(|b| b.is_ascii_digit())
        && number.parse::<f64>().is_ok();
    let named =
        matches!(number, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    (float || named).then_some("the number")
}
