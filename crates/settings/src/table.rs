//! A section of the document, asked key by key.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::effective::Shown;
use crate::exposure::Holds;
use crate::node::{Content, Node, Origin, excerpt};
use crate::problem::{Problem, Severity};
use crate::reader::{Named, Reader};
use crate::suggest::closest;

/// Keys as shown, with the environment variable that set them.
pub(crate) type ShownEntries = Vec<(String, Shown, Option<String>)>;

/// A section of the document. A reader asks for every key that the section may have; whatever the
/// document holds besides is reported as unknown.
pub struct Table<'t> {
    pub(crate) reader: &'t mut Reader,
    /// The section; `None` when the document does not have it.
    pub(crate) node: Option<&'t Node>,
    path: String,
    /// The path with `[]` and `<name>` for list items and names, for the schema.
    pattern: String,
    asked: Vec<String>,
    shown: ShownEntries,
}

impl<'t> Table<'t> {
    /// Reads the whole document.
    pub(crate) fn root<T>(
        reader: &'t mut Reader,
        read: impl FnOnce(&mut Table<'_>) -> T,
    ) -> (T, ShownEntries) {
        let document = reader.document.clone();
        Table::read(reader, Some(&document), String::new(), String::new(), read)
    }

    /// Reads one section.
    pub(crate) fn read<T>(
        reader: &'t mut Reader,
        node: Option<&'t Node>,
        path: String,
        pattern: String,
        read: impl FnOnce(&mut Table<'_>) -> T,
    ) -> (T, ShownEntries) {
        let (asked, shown) = (Vec::new(), Vec::new());
        let mut table = Self {
            reader,
            node,
            path,
            pattern,
            asked,
            shown,
        };
        let value = read(&mut table);
        table.report_unknown();
        (value, table.shown)
    }

    /// Path of a key of this section, as problems name it.
    pub fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The same for the schema.
    pub(crate) fn pattern(&self, key: &str) -> String {
        join(&self.pattern, key)
    }

    /// Notes that `key` is known and gives its value, if it has one.
    pub(crate) fn ask(&mut self, key: &str) -> Option<&'t Node> {
        self.asked.push(key.to_owned());
        self.node.and_then(|node| node.get(key))
    }

    /// Notes what a key's value is in the end.
    pub(crate) fn show(&mut self, key: &str, shown: Shown) {
        let set_by = self.set_by(key).map(str::to_owned);
        self.shown.push((key.to_owned(), shown, set_by));
    }

    /// Notes a file that is read while running: it is watched, and a configuration without it can
    /// be told from a complete one ([`crate::Loaded::missing_files`]) if it is `needed`.
    pub fn names_file(&mut self, key: &str, path: PathBuf, needed: bool) {
        self.names(key, path, needed, Holds::Trust);
    }

    /// The same for a file that `holds` something.
    pub(crate) fn names(&mut self, key: &str, path: PathBuf, needed: bool, holds: Holds) {
        let place = self.reader.place(&self.path(key), Problem::new(""));
        self.reader.named.push(Named {
            path,
            place,
            needed,
            holds,
        });
    }

    /// Notes that another key counts instead of `key`, so that it is not shown as in effect.
    pub fn overruled(&mut self, key: &str) {
        self.shown.retain(|(shown, ..)| shown != key);
    }

    /// The variable that set `key`, if one did.
    pub fn set_by(&self, key: &str) -> Option<&str> {
        match &self.node?.get(key)?.origin {
            Origin::Env(var) => Some(var),
            Origin::File { .. } => None,
        }
    }

    /// Whether the document sets `key` to anything. Does not count as asking for it.
    pub fn is_set(&self, key: &str) -> bool {
        self.node.is_some_and(|node| node.get(key).is_some())
    }

    /// Asks for a section. It is read even if the document does not have it, for its defaults.
    pub fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let node = self.ask(key).and_then(|node| {
            let is_map = matches!(node.collection().content, Content::Map(_));
            if !is_map {
                self.mismatch(key, node, "a section with keys");
            }
            is_map.then(|| node.collection())
        });
        let (path, pattern) = (self.path(key), self.pattern(key));
        let (value, shown) = Table::read(self.reader, node, path, pattern, read);
        self.show(key, Shown::Map(shown));
        value
    }

    /// Asks for a list of sections; `read` returns `None` for one that it reported a problem with.
    pub fn sections<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&mut Table<'_>) -> Option<T>,
    ) -> Vec<T> {
        let items = match self.ask(key) {
            None => &[][..],
            Some(node) => match &node.collection().content {
                Content::List(items) => items.as_slice(),
                _ => {
                    self.mismatch(key, node, "a list, each item a section with keys");
                    &[]
                }
            },
        };
        let pattern = format!("{}[]", self.pattern(key));
        if self.reader.schema.is_some() {
            Table::read(self.reader, None, String::new(), pattern.clone(), &mut read);
        }
        let (mut values, mut all_shown) = (Vec::new(), Vec::new());
        for (i, item) in items.iter().enumerate() {
            let path = format!("{}[{i}]", self.path(key));
            if !matches!(item.content, Content::Map(_)) {
                self.mismatch(&format!("{key}[{i}]"), item, "a section with keys");
                continue;
            }
            let pattern = pattern.clone();
            let (value, shown) = Table::read(self.reader, Some(item), path, pattern, &mut read);
            values.extend(value);
            all_shown.push(Shown::Map(shown));
        }
        self.show(key, Shown::List(all_shown));
        values
    }

    /// Asks for a section whose keys are names, each with a section of its own; `read` returns
    /// `None` for one that it reported a problem with.
    pub fn named<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&str, &mut Table<'_>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let pattern = format!("{}.<name>", self.pattern(key));
        self.section(key, |table| {
            if table.reader.schema.is_some() {
                Table::read(table.reader, None, String::new(), pattern, |t| read("", t));
            }
            let entries = match table.node.map(|node| &node.content) {
                Some(Content::Map(entries)) => entries.as_slice(),
                _ => &[],
            };
            let mut values = BTreeMap::new();
            for entry in entries {
                let value = table.section(&entry.key, |t| read(&entry.key, t));
                values.extend(value.map(|value| (entry.key.clone(), value)));
            }
            values
        })
    }

    /// Whether a problem with `key` or an item of it was reported.
    pub fn has_problem(&self, key: &str) -> bool {
        let path = self.path(key);
        let items = format!("{path}[");
        let mut problems = self.reader.problems.iter();
        problems.any(|p| p.key == path || p.key.starts_with(&items))
    }

    /// Reports that `key` must be set, unless it is and another problem with it was reported.
    pub fn missing(&mut self, key: &str) {
        if !self.has_problem(key) {
            let advice = self.reader.advice(&self.path(key));
            self.problem(key, "required but not set", &advice);
        }
    }

    /// Reports that the value of `key`, or this section if `key` is empty, cannot be used.
    pub fn problem(&mut self, key: &str, message: impl Into<String>, hint: &str) {
        self.add(Severity::Error, key, message.into(), hint);
    }

    /// Reports that it deserves a look.
    pub fn warning(&mut self, key: &str, message: impl Into<String>, hint: &str) {
        self.add(Severity::Warning, key, message.into(), hint);
    }

    fn add(&mut self, severity: Severity, key: &str, message: String, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        let problem = Problem {
            severity,
            hint,
            ..Problem::new(message)
        };
        let path = if key.is_empty() {
            self.path.clone()
        } else {
            self.path(key)
        };
        let problem = self.reader.place(&path, problem);
        self.reader.push(problem);
    }

    /// Reports a value where something larger is expected; the value may be a secret out of place.
    fn mismatch(&mut self, key: &str, node: &Node, expected: &str) {
        let (found, hint) = match (&node.content, &node.origin) {
            (Content::Scalar(_), Origin::Env(_)) => ("other text", Some("write it as JSON")),
            (Content::Scalar(_), _) => ("a single value", None),
            (Content::List(_), _) => ("a list", None),
            (Content::Map(_), _) => ("a section with keys", None),
        };
        let problem = Problem::new(format!("expected {expected}, found {found}"));
        let hint = hint.map(str::to_owned);
        self.reader
            .report(self.path(key), &node.origin, Problem { hint, ..problem });
    }

    fn report_unknown(&mut self) {
        let Some(Content::Map(entries)) = self.node.map(|node| &node.content) else {
            return;
        };
        for entry in entries
            .iter()
            .filter(|entry| !self.asked.contains(&entry.key))
        {
            let known = self.asked.iter().map(String::as_str);
            let hint = match closest(&entry.key, known.clone()) {
                Some(key) => format!("did you mean `{key}`?"),
                None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
            };
            let path = join(&self.path, &excerpt(&entry.key));
            let problem = Problem::new("there is no such key").hint(hint);
            self.reader.report(path, &entry.origin, problem);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
