//! A key with one value or a list of them.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::effective::Shown;
use crate::exposure::Holds;
use crate::key_spec::KeySpec;
use crate::node::{Content, Node, Origin, Style};
use crate::problem::Problem;
use crate::rule::Rule;
use crate::secret::mask_url;
use crate::source::read_text;
use crate::table::Table;
use crate::value::{Number, Value};

/// Items of a list unless the key says otherwise.
const MAX_ITEMS: usize = 10_000;

/// A key being asked for: say what is allowed, then end with [`Field::or`], [`Field::optional`],
/// [`Field::required`], [`Field::list`] or [`Field::file`].
#[must_use = "end with or(), optional(), required(), list() or file()"]
pub struct Field<'f, 't, T> {
    table: &'f mut Table<'t>,
    key: &'static str,
    rule: Rule<T>,
    commas: bool,
    /// Items that a list may have.
    most: usize,
    vars: &'static [&'static str],
    /// What a file that is named holds.
    holds: Holds,
}

impl<'f, 't, T: Value> Field<'f, 't, T> {
    pub(crate) fn new(table: &'f mut Table<'t>, key: &'static str) -> Self {
        Self {
            table,
            key,
            rule: Rule::default(),
            commas: false,
            most: MAX_ITEMS,
            vars: &[],
            holds: Holds::Trust,
        }
    }

    /// Masks the value wherever it is shown, and lets `<key>_file` name a file that holds it.
    pub fn secret(mut self) -> Self {
        self.rule.secret = true;
        self
    }

    /// Allows only what `allowed` does; `bounds` says that in a few words.
    pub fn check(mut self, bounds: &str, allowed: impl Fn(&T) -> bool + 'static) -> Self {
        self.rule.bounds = bounds.to_owned();
        self.rule.allowed = Box::new(allowed);
        self
    }

    /// The value, or `default` when it is not set.
    pub fn or(mut self, default: T) -> T {
        self.describe("", Some(default.show()));
        let value = self.value().unwrap_or(default);
        self.table.show(self.key, value.show());
        value
    }

    /// The value; `None` when it is not set or is empty text.
    pub fn optional(mut self) -> Option<T> {
        self.describe("", Some(Shown::Text(String::new())));
        let value = self.value();
        match &value {
            Some(value) => self.table.show(self.key, value.show()),
            None if T::TEXT => self.table.show(self.key, Shown::Text(String::new())),
            // Nothing could be shown that would read as unset.
            None => {}
        }
        value
    }

    /// The value; not set is a problem, and so `None` means that there was one.
    pub fn required(mut self) -> Option<T> {
        self.describe("", None);
        let value = self.value();
        match &value {
            Some(value) => self.table.show(self.key, value.show()),
            None => self.table.missing(self.key),
        }
        value
    }

    /// Falls back to environment variables that are not ours (`HTTPS_PROXY`), the first that is set.
    pub fn or_vars(self, vars: &'static [&'static str]) -> Self {
        Self { vars, ..self }
    }

    /// Lets a list also be written as one text with commas.
    pub fn commas(self) -> Self {
        Self {
            commas: true,
            ..self
        }
    }

    /// Allows a list at most this many items.
    pub fn up_to(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// A list of values; empty when it is not set.
    pub fn list(mut self) -> Vec<T> {
        self.describe_list(Some(Shown::List(Vec::new())));
        let values = self.items();
        self.show_list(&values);
        values
    }

    /// A list that must have an item; empty means that a problem was reported.
    pub fn required_list(mut self) -> Vec<T> {
        self.describe_list(None);
        let values = self.items();
        self.show_list(&values);
        if values.is_empty() {
            self.table.missing(self.key);
        }
        values
    }

    fn describe_list(&mut self, default: Option<Shown>) {
        let text = if self.commas {
            " (or text with commas)"
        } else {
            ""
        };
        self.describe(&format!("list{text}: "), default);
    }

    fn show_list(&mut self, values: &[T]) {
        let shown = Shown::List(values.iter().map(T::show).collect());
        self.table.show(self.key, shown);
    }

    fn items(&mut self) -> Vec<T> {
        let Some(node) = self.table.ask(self.key) else {
            return Vec::new();
        };
        let path = self.table.path(self.key);
        let items: Vec<Cow<'_, Node>> = match &node.collection().content {
            Content::List(items) => items
                .iter()
                .take(self.most + 1)
                .map(Cow::Borrowed)
                .collect(),
            // `a,b`, as is usual in the environment.
            Content::Scalar(scalar) if scalar.style == Style::Untyped || self.commas => {
                let parts = scalar.parts().take(self.most + 1);
                parts
                    .map(|part| Cow::Owned(scalar.part(part, &node.origin)))
                    .collect()
            }
            _ => {
                let found = node.describe(self.rule.secret);
                let message = format!("expected a list, each item {}, found {found}", T::KIND);
                let problem = Problem::new(message).hint("write [a, b]");
                self.table.reader.report(path, &node.origin, problem);
                return Vec::new();
            }
        };
        if items.len() > self.most {
            let problem = Problem::new(format!("a list of more than {}", self.most));
            self.table.reader.report(path, &node.origin, problem);
            return Vec::new();
        }
        let listed = matches!(node.collection().content, Content::List(_));
        let at = |i| {
            if listed {
                format!("{path}[{i}]")
            } else {
                path.clone()
            }
        };
        let items = items.iter().enumerate();
        items
            .filter_map(|(i, item)| self.typed(item, at(i)))
            .collect()
    }

    /// The value, unless it is not set, is empty text, or is wrong, which is reported.
    fn value(&mut self) -> Option<T> {
        let node = match self.rule.secret {
            true => self.secret_node(),
            false => self.set(self.key).map(Cow::Borrowed),
        };
        let node = node.or_else(|| self.ambient())?;
        let path = self.table.path(self.key);
        self.typed(&node, path)
    }

    /// The value of a key, unless it is unset; a type of text cannot be empty text.
    fn set(&mut self, key: &str) -> Option<&'t Node> {
        let empty = |node: &&Node| matches!(&node.content, Content::Scalar(s) if s.text.is_empty());
        self.table.ask(key).filter(|node| !T::TEXT || !empty(node))
    }

    /// What a variable that is not ours says.
    fn ambient(&self) -> Option<Cow<'t, Node>> {
        let env = &self.table.reader.env;
        let (var, text) = self
            .vars
            .iter()
            .find_map(|var| Some((*var, env.get(var)?)))?;
        Some(Cow::Owned(Node::from_env(
            Origin::Env(Arc::from(var)),
            text,
        )))
    }

    /// What `key` or the file named by `key_file` says; the environment's word counts more.
    fn secret_node(&mut self) -> Option<Cow<'t, Node>> {
        let file_key = format!("{}_file", self.key);
        let (direct, named) = (self.set(self.key), self.set(&file_key));
        let from_env = |node: &Node| matches!(node.origin, Origin::Env(_));
        let named = match (direct, named) {
            (direct, None) => {
                self.table.reader.tells |= direct.is_some_and(tells);
                return direct.map(Cow::Borrowed);
            }
            (None, Some(named)) => named,
            (Some(direct), Some(named)) => match (from_env(direct), from_env(named)) {
                (true, false) => return Some(Cow::Borrowed(direct)),
                (false, true) => named,
                _ => {
                    let message = format!("{} is set as well", self.key);
                    self.table
                        .problem(&file_key, message, "keep one of the two");
                    return None;
                }
            },
        };
        let path = Field::<PathBuf>::new(self.table, self.key).typed(named, file_key.clone())?;
        let path = self.table.reader.env.resolve(&path);
        let (table, holds) = (&mut self.table, Holds::Secret);
        table.names(&file_key, path.clone(), true, holds);
        match read_text(&path) {
            Ok(text) => {
                let origin = named.origin.clone();
                Some(Cow::Owned(Node::from_env(origin, text.trim_end())))
            }
            Err(problem) => {
                let message = format!("{}: {}", path.display(), problem.message);
                self.table
                    .problem(&file_key, message, problem.hint.as_deref().unwrap_or(""));
                None
            }
        }
    }

    /// Gives a node its type, or reports why that cannot be.
    fn typed(&mut self, node: &Node, path: String) -> Option<T> {
        match self.rule.convert(node) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.table.reader.report(path, &node.origin, *problem);
                None
            }
        }
    }

    fn describe(&mut self, list: &str, default: Option<Shown>) {
        let key = self.table.pattern(self.key);
        let Some(schema) = &mut self.table.reader.schema else {
            return;
        };
        let one = match self.rule.bounds.as_str() {
            "" => T::KIND,
            bounds => bounds,
        };
        schema.push(KeySpec {
            key,
            kind: T::KIND,
            allowed: format!("{list}{one}"),
            default: default.map(|shown| match shown {
                Shown::Text(text) => text,
                shown => shown.to_string(),
            }),
            secret: self.rule.secret,
        });
    }
}

impl<T: Number + 'static> Field<'_, '_, T> {
    /// Allows only numbers in `range`.
    pub fn range(self, range: RangeInclusive<T>) -> Self {
        let bounds = format!("{} to {}", range.start(), range.end());
        self.check(&bounds, move |number| range.contains(number))
    }
}

impl Field<'_, '_, PathBuf> {
    /// The file holds a key, token or password, and is nobody else's business ([`crate::exposure`]).
    pub fn private(self) -> Self {
        Self {
            holds: Holds::Secret,
            ..self
        }
    }

    /// A file that is read while running: it is resolved as [`crate::Env::resolve`] says, watched,
    /// and must be there in the end. `None` when it is not set or is empty text.
    pub fn file(self) -> Option<PathBuf> {
        let Self {
            table, key, holds, ..
        } = self;
        let path = Field::new(table, key).optional();
        named(table, key, path, holds)
    }

    /// The same for a file that must be named; `None` means that a problem was reported.
    pub fn required_file(self) -> Option<PathBuf> {
        let Self {
            table, key, holds, ..
        } = self;
        let path = Field::new(table, key).required();
        named(table, key, path, holds)
    }
}

fn named(table: &mut Table<'_>, key: &str, path: Option<PathBuf>, holds: Holds) -> Option<PathBuf> {
    let path = path?;
    if is_token(&path) {
        let message = "this is a token, not the name of a file";
        table.problem(
            key,
            message,
            "write it to a file of mode 0600, and name that",
        );
        return None;
    }
    let path = table.reader.env.resolve(&path);
    table.names(key, path.clone(), true, holds);
    Some(path)
}

/// Whether a JWT stands where the name of its file should: it must not be shown.
fn is_token(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("eyJ") && text.matches('.').count() == 2
}

/// Whether a secret stands in the file itself: a URL without a password is none.
fn tells(node: &Node) -> bool {
    let (Content::Scalar(scalar), Origin::File { .. }) = (&node.content, &node.origin) else {
        return false;
    };
    scalar.written.is_none() && mask_url(&scalar.text) != scalar.text
}
