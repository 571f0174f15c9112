//! The configuration in effect, for people and for the admin API.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::node::plain_kind;

/// A value ready to be shown: secrets are masked already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A boolean or number.
    Plain(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Shown>),
    /// Keys in the order in which they are documented, with the environment variable that set them.
    Map(Vec<(String, Shown, Option<String>)>),
}

/// The configuration in effect, defaults included. Displays as YAML that loads to the same
/// configuration, except for masked secrets; serializes with the same structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective(pub(crate) Shown);

impl Effective {
    /// The keys whose values differ, as paths like `tunnel.port`. Secrets look all the same.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        self.0.compare(Some(&other.0), "", &mut found);
        found
    }

    /// Takes over from `other` the value of `key`, a path like `tunnel.port`.
    pub fn keep(&mut self, other: &Self, key: &str) {
        if let (Some(place), Some(value)) = (self.0.get_mut(key), other.0.get(key)) {
            *place = value.clone();
        }
    }
}

impl Shown {
    /// Adds the keys below `path` whose values differ.
    fn compare(&self, other: Option<&Self>, path: &str, found: &mut Vec<String>) {
        let below = |name: &str| match path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        match (self, other) {
            (Self::Map(own), Some(Self::Map(others))) => {
                let find = |entries: &[Entry], name: &str| {
                    let entry = entries.iter().find(|entry| entry.0 == name);
                    entry.map(|entry| entry.1.clone())
                };
                for (name, value, _) in own {
                    value.compare(find(others, name).as_ref(), &below(name), found);
                }
                let gone = others.iter().filter(|entry| find(own, &entry.0).is_none());
                found.extend(gone.map(|entry| below(&entry.0)));
            }
            (own, Some(other)) if own == other => {}
            _ => found.push(path.to_owned()),
        }
    }

    fn get(&self, key: &str) -> Option<&Self> {
        key.split('.').try_fold(self, |at, name| match at {
            Self::Map(entries) => entries.iter().find(|entry| entry.0 == name).map(|e| &e.1),
            _ => None,
        })
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        key.split('.').try_fold(self, |at, name| match at {
            Self::Map(entries) => {
                let entry = entries.iter_mut().find(|entry| entry.0 == name);
                entry.map(|entry| &mut entry.1)
            }
            _ => None,
        })
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(text) => match (text.parse::<bool>(), text.parse::<u64>()) {
                (Ok(bool), _) => serializer.serialize_bool(bool),
                (_, Ok(number)) => serializer.serialize_u64(number),
                _ => serializer.serialize_str(text),
            },
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value, _) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl Serialize for Effective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Shown::Map(entries) => write_map(f, entries, 0),
            other => writeln!(f, "{}", Inline(other)),
        }
    }
}

type Entry = (String, Shown, Option<String>);
type Entries = [Entry];

fn write_map(f: &mut fmt::Formatter<'_>, entries: &Entries, depth: usize) -> fmt::Result {
    for (key, value, env) in entries {
        write!(f, "{:1$}", "", depth * 2)?;
        write!(f, "{}:", Inline(&Shown::Text(key.clone())))?;
        let note = env
            .as_ref()
            .map(|env| format!("  # {env}"))
            .unwrap_or_default();
        match value {
            Shown::Map(inner) if !inner.is_empty() => {
                f.write_str("\n")?;
                write_map(f, inner, depth + 1)?;
            }
            Shown::List(items) if items.iter().any(|item| matches!(item, Shown::Map(_))) => {
                writeln!(f, "{note}")?;
                for item in items {
                    writeln!(f, "{:1$}- {2}", "", depth * 2 + 2, Inline(item))?;
                }
            }
            value => writeln!(f, " {}{note}", Inline(value))?,
        }
    }
    Ok(())
}

impl fmt::Display for Shown {
    /// YAML on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Inline(self).fmt(f)
    }
}

/// YAML flow style.
struct Inline<'a>(&'a Shown);

impl fmt::Display for Inline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Shown::Plain(text) => f.write_str(text),
            Shown::Text(text) if stays_text(text) => f.write_str(text),
            Shown::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            Shown::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if i > 0 { ", " } else { "" }, Inline(item))?;
                }
                f.write_str("]")
            }
            Shown::Map(entries) => {
                f.write_str("{ ")?;
                for (i, (key, value, _)) in entries.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(
                        f,
                        "{comma}{}: {}",
                        Inline(&Shown::Text(key.clone())),
                        Inline(value)
                    )?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// Whether text needs no quotes to be read back as the same text.
fn stays_text(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-:".contains(c))
        && !text.ends_with(':')
        && plain_kind(text).is_none()
        && !matches!(text, "null" | "Null" | "NULL")
}
