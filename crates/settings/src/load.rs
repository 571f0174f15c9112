//! From a source to a configuration or to every problem in it.

use std::path::{Path, PathBuf};

use crate::effective::{Effective, Shown};
use crate::node::{Content, Node, Origin};
use crate::overlay::{self, Alias};
use crate::problem::{Problem, Problems, Severity};
use crate::reader::Reader;
use crate::source::{Env, Source};
use crate::suggest::closest;
use crate::table::Table;
use crate::yaml::parse_yaml;

/// A validated configuration and what is known about it.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// The file it came from.
    pub file: Option<PathBuf>,
    /// The configuration in effect, with secrets masked.
    pub effective: Effective,
    /// What is allowed but deserves a look.
    pub warnings: Vec<Problem>,
    /// Files that the configuration names, with the problem that it is when one is missing.
    named: Vec<(PathBuf, Option<Problem>)>,
}

impl<T> Loaded<T> {
    /// The configuration file and every file that it names, each once: what to watch.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self.named.iter().map(|(path, _)| path.clone());
        let mut files: Vec<_> = self.file.iter().cloned().chain(named).collect();
        files.sort();
        files.dedup();
        files
    }

    /// One problem for each file that is needed and cannot be opened.
    pub fn missing_files(&self) -> Vec<Problem> {
        let missing = |(path, problem): &(PathBuf, Option<Problem>)| {
            let problem = problem.clone()?;
            let error = std::fs::File::open(path).err()?;
            let message = match error.kind() {
                std::io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
                _ => format!("{} cannot be opened: {error}", path.display()),
            };
            Some(Problem {
                message,
                ..problem.clone()
            })
        };
        self.named.iter().filter_map(missing).collect()
    }

    /// Turns missing files into an error.
    pub fn with_files(self) -> Result<Self, Problems> {
        let missing = self.missing_files();
        if missing.is_empty() {
            Ok(self)
        } else {
            Err(Problems(missing))
        }
    }
}

/// A key of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Path: `tunnel.port`, `listeners[].bind`, `targets.<name>.host`.
    pub key: String,
    /// What is expected of one value: `an integer`.
    pub kind: &'static str,
    /// What is allowed, in words: bounds, words, form, and whether it is a list.
    pub allowed: String,
    /// The default, empty if there is none; `None` = the key is required.
    pub default: Option<String>,
    /// Whether the value is masked and `<key>_file` may name a file that holds it.
    pub secret: bool,
}

/// A file with the environment laid over it, not typed yet.
#[derive(Debug)]
pub struct Document {
    root: Node,
    file: Option<PathBuf>,
    env: Env,
    aliases: Vec<Alias>,
    problems: Vec<Problem>,
}

impl Document {
    /// Reads the file and lays the environment over it.
    ///
    /// # Errors
    /// Fails when nothing can be said about single keys: no such file, not UTF-8, too large, broken
    /// syntax. Other problems are kept for [`Document::decode`].
    pub fn read(source: &Source, aliases: &[Alias]) -> Result<Self, Problems> {
        let mut document = Self {
            root: Node::empty(),
            file: None,
            env: source.env.clone(),
            aliases: aliases.to_vec(),
            problems: Vec::new(),
        };
        let nowhere = document.root.origin.clone();
        if let Some((path, text)) = source.read()? {
            let in_file = |problem| Problem {
                file: Some(path.clone()),
                ..problem
            };
            let (root, problems) = parse_yaml(&text);
            document.problems = problems;
            document.root = match root {
                // What is not in the file at all is at no line of it.
                Some(root) if matches!(root.content, Content::Map(_)) => {
                    let origin = nowhere;
                    Node { origin, ..root }
                }
                Some(root) if !root.is_null() => {
                    let problem = Problem::new("the file must hold keys and values at its top");
                    let problem = problem.hint("like `tunnel:`");
                    return Err(placed(problem, &root.origin, Some(&path)).into());
                }
                _ if !document.problems.is_empty() => {
                    return Err(Problems(
                        document.problems.into_iter().map(in_file).collect(),
                    ));
                }
                _ => return Err(in_file(Problem::new("the file holds no configuration")).into()),
            };
            overlay::substitute(&mut document.root, "", &source.env, &mut document.problems);
            document.problems = document.problems.into_iter().map(in_file).collect();
            document.file = Some(path);
        }
        let problems = overlay::overlay(&mut document.root, &source.env, &document.aliases);
        document.problems.extend(problems);
        Ok(document)
    }

    /// Warns of variables that begin with `prefix` and that nothing reads. `known` are read besides
    /// the documented ones; names that begin with one that ends in `_` are known as well.
    pub fn warn_unknown(&mut self, prefix: &str, known: &[&str]) {
        let documented = self.aliases.iter().map(|alias| alias.var);
        let all: Vec<_> = documented.chain(known.iter().copied()).collect();
        let read = |var: &str| {
            all.iter()
                .any(|k| *k == var || k.ends_with('_') && var.starts_with(k))
        };
        for (var, _) in self.env.iter() {
            if !var.starts_with(prefix) || var.starts_with(overlay::PREFIX) || read(var) {
                continue;
            }
            let mut problem = Problem::new("nothing reads this environment variable");
            problem.hint = closest(var, all.iter().copied()).map(|v| format!("did you mean {v}?"));
            (problem.severity, problem.env) = (Severity::Warning, Some(var.to_owned()));
            self.problems.push(problem);
        }
    }

    /// Reports a variable whose name or value cannot be used.
    pub fn reject(&mut self, var: &str, message: impl Into<String>, hint: &str) {
        let problem = Problem::new(message).hint(hint);
        let env = Some(var.to_owned());
        self.problems.push(Problem { env, ..problem });
    }

    /// Sets a key from a variable whose name holds part of the path.
    pub fn set(&mut self, path: &[&str], var: &str, text: &str) {
        self.problems
            .extend(overlay::set(&mut self.root, path, var, text));
    }

    /// Paths of the keys at the top and of those one level below.
    pub fn keys(&self) -> Vec<String> {
        let Content::Map(top) = &self.root.content else {
            return Vec::new();
        };
        let mut keys = Vec::new();
        for entry in top {
            keys.push(entry.key.clone());
            if let Content::Map(below) = &entry.node.collection().content {
                let below = below
                    .iter()
                    .map(|inner| format!("{}.{}", entry.key, inner.key));
                keys.extend(below);
            }
        }
        keys
    }

    /// The texts of a list that is not checked yet; what is no text is left out.
    pub fn texts(&self, section: &str, key: &str) -> Vec<String> {
        let list = self.root.get(section).and_then(|section| section.get(key));
        let Some(node) = list else { return Vec::new() };
        let text = |node: &Node| match &node.content {
            Content::Scalar(scalar) => Some(scalar.text.clone()),
            _ => None,
        };
        match &node.collection().content {
            Content::List(items) => items.iter().filter_map(text).collect(),
            Content::Scalar(scalar) => scalar.parts().map(str::to_owned).collect(),
            Content::Map(_) => Vec::new(),
        }
    }

    /// Types and checks the document with `read`, which returns `None` only after it has had a
    /// problem reported.
    ///
    /// # Errors
    /// Every problem that is not a warning.
    pub fn decode<T>(
        self,
        read: impl FnOnce(&mut Table<'_>) -> Option<T>,
    ) -> Result<Loaded<T>, Problems> {
        let mut reader = Reader::new(self.root, self.file.clone(), self.env, self.aliases);
        reader.problems = self.problems;
        let (config, shown) = reader.root(read);
        let (problems, left_out, named) = (reader.problems, reader.left_out, reader.named);
        let (warnings, mut errors): (Vec<_>, Vec<_>) = problems
            .into_iter()
            .partition(|p| p.severity == Severity::Warning);
        match config {
            Some(config) if errors.is_empty() && left_out == 0 => {
                let effective = Effective(Shown::Map(shown));
                Ok(Loaded {
                    config,
                    file: self.file,
                    effective,
                    warnings,
                    named,
                })
            }
            _ => {
                errors.sort_by_key(|p| (p.env.is_some(), p.line, p.column));
                if left_out > 0 || errors.is_empty() {
                    let message = format!("{left_out} more problems are not shown");
                    errors.push(Problem {
                        file: self.file,
                        ..Problem::new(message)
                    });
                }
                Err(Problems(errors))
            }
        }
    }
}

/// Reads, types and checks a configuration.
///
/// # Errors
/// Every problem that is not a warning.
pub fn load<T>(
    source: &Source,
    aliases: &[Alias],
    read: impl FnOnce(&mut Table<'_>) -> Option<T>,
) -> Result<Loaded<T>, Problems> {
    Document::read(source, aliases)?.decode(read)
}

/// Every key that `read` asks for, in order.
pub fn describe<T>(read: impl FnOnce(&mut Table<'_>) -> T) -> Vec<KeySpec> {
    let mut reader = Reader::new(Node::empty(), None, Env::default(), Vec::new());
    reader.schema = Some(Vec::new());
    reader.root(read);
    reader.schema.unwrap_or_default()
}

/// Fills in where a problem is.
pub(crate) fn placed(problem: Problem, origin: &Origin, file: Option<&Path>) -> Problem {
    match origin {
        Origin::Env(var) => Problem {
            env: Some(var.to_string()),
            ..problem
        },
        Origin::File { line, column } => Problem {
            file: file.map(Path::to_owned),
            line: *line,
            column: *column,
            ..problem
        },
    }
}
