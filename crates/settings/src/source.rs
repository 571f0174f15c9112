//! Where a configuration comes from: a file and an environment.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::problem::Problem;
use crate::regular::open_file;

/// A configuration file, or the file of a secret, may have this many bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Directory in which relative files are looked for first.
const CONFIG_DIR: &str = "SERVICE_CONFIG_DIR";

/// Environment variables, handed around rather than read where they are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables of this process. What is not UTF-8 is kept with replacement characters, so
    /// that the key it is meant for reports it.
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        std::env::vars_os()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    /// The value of a variable. One that is set to nothing counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// All variables in order of name, those set to nothing left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .filter(|(_, v)| !v.is_empty())
    }

    /// A relative path is looked for in `SERVICE_CONFIG_DIR` when that is set, then in the working
    /// directory; the first place where something is wins, else the first place.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        let mut places = self.places(path);
        let found = places.iter().position(|place| place.exists()).unwrap_or(0);
        places.swap_remove(found)
    }

    fn places(&self, path: &Path) -> Vec<PathBuf> {
        match self.get(CONFIG_DIR) {
            Some(dir) if path.is_relative() => vec![Path::new(dir).join(path), path.to_owned()],
            _ => vec![path.to_owned()],
        }
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        Self(
            iter.into_iter()
                .map(|(n, v)| (n.into(), v.into()))
                .collect(),
        )
    }
}

/// A configuration file, if there is one, and the environment over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The file; `None` = environment and defaults alone.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: Env,
}

impl Source {
    /// The file named on the command line or else by `NC_CONFIG`, and the environment.
    pub fn new(file: Option<PathBuf>, env: Env) -> Self {
        let file = file.or_else(|| env.get("NC_CONFIG").map(PathBuf::from));
        Self { file, env }
    }

    /// The file's place and text.
    pub(crate) fn read(&self) -> Result<Option<(PathBuf, String)>, Box<Problem>> {
        let Some(named) = &self.file else {
            return Ok(None);
        };
        let path = self.env.resolve(named);
        let text = read_text(&path).map_err(|problem| {
            let places = self.env.places(named);
            match places.len() > 1 && !path.exists() {
                true => Box::new(problem.hint(format!(
                    "looked for {} (from {CONFIG_DIR}), then {}",
                    places[0].display(),
                    places[1].display()
                ))),
                false => problem,
            }
        })?;
        Ok(Some((path, text)))
    }
}

/// The text of a file of bounded size.
pub(crate) fn read_text(path: &Path) -> Result<String, Box<Problem>> {
    let at = |problem: Problem| {
        let file = Some(path.to_owned());
        Box::new(Problem { file, ..problem })
    };
    let mut bytes = Vec::new();
    open_file(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => at(Problem::new("there is no such file")),
            std::io::ErrorKind::PermissionDenied => at(Problem::new("reading is not permitted")
                .hint("make it readable for the user this runs as")),
            _ if path.exists() && !path.is_file() => at(Problem::new("is no file")
                .hint("a pipe, device or directory is not read; name a file")),
            _ => at(Problem::new(format!("cannot be read: {error}"))),
        })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(at(
            Problem::new("larger than 1 MiB").hint("is this the right file?")
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = before.split('\n').count();
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let problem = Problem {
            line,
            column,
            ..Problem::new("not UTF-8 text")
        };
        at(problem.hint("save the file as UTF-8"))
    })
}
