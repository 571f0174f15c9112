//! What one reading of a document shares among all its sections.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::exposure::Holds;
use crate::key_spec::KeySpec;
use crate::node::{Node, Origin};
use crate::overlay::{Alias, PREFIX};
use crate::problem::{Problem, Severity};
use crate::source::Env;

/// What one reading shares among all sections.
pub(crate) struct Reader {
    pub(crate) document: Arc<Node>,
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

/// A file that the configuration names.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) path: PathBuf,
    /// A problem with it, but for what is wrong.
    pub(crate) place: Problem,
    pub(crate) needed: bool,
    pub(crate) holds: Holds,
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
