//! From a source to a configuration or to every problem in it.

use std::path::PathBuf;

use crate::effective::{Effective, Shown};
use crate::exposure::{Holds, exposure};
use crate::key_spec::KeySpec;
use crate::node::{Content, Node};
use crate::overlay::{self, Alias};
use crate::problem::{Problem, Problems, Severity};
use crate::reader::{Named, Reader, placed};
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
    named: Vec<Named>,
    /// The file itself holds a secret.
    tells: bool,
}

impl<T> Loaded<T> {
    /// The configuration file and every file that it names, each once: what to watch.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self.named.iter().map(|named| named.path.clone());
        let mut files: Vec<_> = self.file.iter().cloned().chain(named).collect();
        files.sort();
        files.dedup();
        files
    }

    /// One problem for each file that is needed and cannot be opened, or is something else: whoever
    /// opens a pipe may wait for ever.
    pub fn missing_files(&self) -> Vec<Problem> {
        let missing = |named: &Named| {
            let shown = named.path.display();
            let message = match std::fs::metadata(&named.path) {
                Ok(found) if !found.is_file() => format!("{shown} is no file"),
                _ if !named.needed => return None,
                _ => {
                    let error = std::fs::File::open(&named.path).err()?;
                    match error.kind() {
                        std::io::ErrorKind::NotFound => format!("there is no file {shown}"),
                        _ => format!("{shown} cannot be opened: {error}"),
                    }
                }
            };
            let place = named.place.clone();
            let place = place.hint("put the file there, or correct the name");
            Some(Problem { message, ..place })
        };
        self.named.iter().filter_map(missing).collect()
    }

    /// One problem for each file that every user of this machine can touch and should not, see
    /// [`exposure`].
    pub fn exposed_files(&self) -> Vec<Problem> {
        let holds = if self.tells {
            Holds::Secret
        } else {
            Holds::Trust
        };
        let own = self.file.iter().filter_map(|file| {
            let problem = exposure(file, holds)?;
            let file = Some(file.clone());
            Some(Problem { file, ..problem })
        });
        let named = self.named.iter().filter_map(|named| {
            let Problem {
                severity,
                message,
                hint,
                ..
            } = exposure(&named.path, named.holds)?;
            Some(Problem {
                severity,
                message,
                hint,
                ..named.place.clone()
            })
        });
        own.chain(named).collect()
    }

    /// Turns missing files, and secrets that everybody can change, into an error, unless they are
    /// `excused`; the rest is added to the warnings.
    ///
    /// # Errors
    /// Every such file.
    pub fn with_files(mut self, excused: impl Fn(&Problem) -> bool) -> Result<Self, Problems> {
        let found = self.missing_files().into_iter().chain(self.exposed_files());
        let found = found.map(|problem| match excused(&problem) {
            true => problem.as_warning(),
            false => problem,
        });
        let (warnings, errors): (Vec<_>, Vec<_>) =
            found.partition(|problem| problem.severity == Severity::Warning);
        if !errors.is_empty() {
            return Err(Problems(errors));
        }
        self.warnings.extend(warnings);
        Ok(self)
    }
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
        let (config, shown) = Table::root(&mut reader, read);
        let (problems, left_out) = (reader.problems, reader.left_out);
        let (named, tells) = (reader.named, reader.tells);
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
                    tells,
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
    Table::root(&mut reader, read);
    reader.schema.unwrap_or_default()
}
