//! Who else on this machine can touch a file.

#[cfg(any(windows, test))]
mod sddl;
#[cfg(unix)]
#[path = "exposure/unix.rs"]
mod system;
#[cfg(windows)]
#[path = "exposure/windows.rs"]
mod system;

use std::path::Path;

use crate::problem::{Problem, Severity};

/// What a file means to those who can touch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A key, token or password: nobody else should read it, and nobody else may write it.
    Secret,
    /// What this process obeys or trusts: nobody else should write it.
    Trust,
}

/// What every user of this machine can do with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Everybody {
    reads: bool,
    writes: bool,
    /// The permissions that say so, as the system shows them.
    shown: String,
}

/// What is wrong with the permissions of the file at `path`: an error when everybody can change a
/// secret, a warning when everybody can read one or change what is trusted.
///
/// On Unix the owner's group may read and write: that is how orchestrators hand files to a process that
/// does not own them (`fsGroup` in Kubernetes). What is missing, and what is no file, is judged
/// elsewhere.
pub fn exposure(path: &Path, holds: Holds) -> Option<Problem> {
    let metadata = std::fs::metadata(path).ok().filter(|it| it.is_file())?;
    let everybody = system::everybody(path, &metadata)?;
    let (severity, verb) = match holds {
        Holds::Secret if everybody.writes => (Severity::Error, "change"),
        Holds::Secret if everybody.reads => (Severity::Warning, "read"),
        Holds::Trust if everybody.writes => (Severity::Warning, "change"),
        _ => return None,
    };
    let what = match holds {
        Holds::Secret => "the secret in ",
        Holds::Trust => "",
    };
    let (path, shown) = (path.display(), everybody.shown);
    let message = format!("every user of this machine can {verb} {what}{path} ({shown})");
    let problem = Problem::new(message).hint(system::remedy(&path.to_string(), holds));
    Some(Problem {
        severity,
        ..problem
    })
}
