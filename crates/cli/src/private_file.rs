//! Files of keys and tokens that are named on the command line.

use std::path::Path;

use anyhow::bail;
use nowconnect_settings::{Holds, Severity, exposure};

/// Refuses a file with a secret that every user of this machine can change, and warns of one that
/// every user can read.
///
/// # Errors
/// Everybody can change it.
pub(crate) fn judge(path: &Path) -> anyhow::Result<()> {
    match exposure(path, Holds::Secret) {
        None => Ok(()),
        Some(problem) if problem.severity == Severity::Error => bail!("{problem}"),
        Some(problem) => {
            eprintln!("{problem}");
            Ok(())
        }
    }
}
