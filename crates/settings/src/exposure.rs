//! Who else on this machine can touch a file.

use std::os::unix::fs::PermissionsExt as _;
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

/// What is wrong with the permissions of the file at `path`: an error when everybody can change a
/// secret, a warning when everybody can read one or change what is trusted.
///
/// The owner's group may read and write: that is how orchestrators hand files to a process that does
/// not own them (`fsGroup` in Kubernetes). What is missing, and what is no file, is judged elsewhere.
pub fn exposure(path: &Path, holds: Holds) -> Option<Problem> {
    let metadata = std::fs::metadata(path).ok().filter(|it| it.is_file())?;
    let mode = metadata.permissions().mode() & 0o7777;
    let (readable, writable) = (mode & 0o004 != 0, mode & 0o002 != 0);
    let (severity, verb, chmod) = match holds {
        Holds::Secret if writable => (Severity::Error, "change", "600"),
        Holds::Secret if readable => (Severity::Warning, "read", "600"),
        Holds::Trust if writable => (Severity::Warning, "change", "o-w"),
        _ => return None,
    };
    let shown = path.display();
    let what = match holds {
        Holds::Secret => "the secret in ",
        Holds::Trust => "",
    };
    let message = format!("every user of this machine can {verb} {what}{shown} (mode {mode:04o})");
    let problem = Problem::new(message).hint(format!("chmod {chmod} {shown}"));
    Some(Problem {
        severity,
        ..problem
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn everybody_else_is_kept_from_secrets_and_from_changing_what_is_trusted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let judge = |mode, holds| {
            std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            exposure(file.path(), holds).map(|problem| problem.severity)
        };
        let (error, warning) = (Some(Severity::Error), Some(Severity::Warning));
        for (mode, secret, trust) in [
            (0o400, None, None),
            (0o600, None, None),
            (0o640, None, None),
            (0o660, None, None),
            (0o644, warning, None),
            (0o604, warning, None),
            (0o666, error, warning),
            (0o602, error, warning),
        ] {
            assert_eq!(judge(mode, Holds::Secret), secret, "{mode:o}");
            assert_eq!(judge(mode, Holds::Trust), trust, "{mode:o}");
        }
        let said = exposure(file.path(), Holds::Secret).unwrap().to_string();
        let path = file.path().display();
        assert!(said.contains(&format!("chmod 600 {path}")), "{said}");
        assert!(said.contains("0602"), "{said}");
        assert_eq!(exposure(Path::new("/nonexistent"), Holds::Secret), None);
        assert_eq!(exposure(Path::new("/dev/null"), Holds::Secret), None);
    }
}
