//! What one reading of a document shares among all its sections.

use std::path::PathBuf;
use std::sync::Arc;

use crate::load::{KeySpec, Named, placed};
use crate::node::{Node, Origin};
use crate::overlay::{Alias, PREFIX};
use crate::problem::{Problem, Severity};
use crate::source::Env;
use crate::table::{ShownEntries, Table};

/// What one reading shares among all sections.
pub(crate) struct Reader {
    document: Arc<Node>,
    file: Option<PathBuf>,
    pub(crate) env: Env,
    pub(crate) problems: Vec<Problem>,
    /// Errors beyond [`MAX_PROBLEMS`], which are only counted.
    pub(crate) left_out: usize,
    /// Files to watch.
    pub(crate) named: Vec<Named>,
    /// The file itself holds a secret.
    pub(crate) tells: bool,
    /// Documented variables, for advice.
    pub(crate) aliases: Vec<Alias>,
    /// Collects the keys asked for, when that is all that is wanted.
    pub(crate) schema: Option<Vec<KeySpec>>,
}

/// Nobody reads more, and a file may hold a hundred thousand mistakes.
const MAX_PROBLEMS: usize = 100;

impl Reader {
    pub(crate) fn new(
        document: Node,
        file: Option<PathBuf>,
        env: Env,
        aliases: Vec<Alias>,
    ) -> Self {
        Self {
            document: Arc::new(document),
            file,
            env,
            aliases,
            problems: Vec::new(),
            left_out: 0,
            named: Vec::new(),
            tells: false,
            schema: None,
        }
    }

    /// How to set a key that is missing.
    pub(crate) fn advice(&self, path: &str) -> String {
        match self.aliases.iter().find(|alias| alias.key == path) {
            Some(alias) => format!("set it in the file or by {}", alias.var),
            None if path.contains('[') => "set it in the file".into(),
            None => {
                let var = path.to_uppercase().replace('.', "__");
                format!("set it in the file or by {PREFIX}{var}")
            }
        }
    }

    /// Reads the whole document.
    pub(crate) fn root<T>(&mut self, read: impl FnOnce(&mut Table<'_>) -> T) -> (T, ShownEntries) {
        let document = self.document.clone();
        Table::read(self, Some(&document), String::new(), String::new(), read)
    }

    /// Says where the key at `path` is written.
    pub(crate) fn place(&self, path: &str, problem: Problem) -> Problem {
        let problem = Problem {
            key: path.to_owned(),
            ..problem
        };
        placed(problem, self.document.locate(path), self.file.as_deref())
    }

    /// Keeps a problem, or counts it when there are many.
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else if problem.severity == Severity::Error {
            self.left_out += 1;
        }
    }

    /// Reports a problem with what stands at `origin`.
    pub(crate) fn report(&mut self, path: String, origin: &Origin, problem: Problem) {
        let problem = Problem {
            key: path,
            ..problem
        };
        let problem = placed(problem, origin, self.file.as_deref());
        self.push(problem);
    }
}
