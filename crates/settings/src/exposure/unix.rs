//! Permission bits.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Everybody, Holds};

pub(super) fn everybody(_: &Path, metadata: &Metadata) -> Option<Everybody> {
    let mode = metadata.permissions().mode() & 0o7777;
    Some(Everybody {
        reads: mode & 0o004 != 0,
        writes: mode & 0o002 != 0,
        shown: format!("mode {mode:04o}"),
    })
}

pub(super) fn remedy(path: &str, holds: Holds) -> String {
    match holds {
        Holds::Secret => format!("chmod 600 {path}"),
        Holds::Trust => format!("chmod o-w {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposure;
    use super::*;
    use crate::problem::Severity;
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
