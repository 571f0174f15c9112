//! Puts a file in place whole: readers see the old content or the new, never half of it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::platform::files;

/// Permission bits: only the owner may read it, for keys and tokens.
pub(crate) const SECRET: u32 = 0o600;
/// Everybody may read it.
pub(crate) const PUBLIC: u32 = 0o644;

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Refuse.
    Keep,
    /// Put the new one in its place.
    Replace,
}

/// Writes `content` to `path` with permissions `mode`, through a neighbour that takes its name.
///
/// # Errors
/// When the directory cannot be written, or the file exists and must be kept.
pub(crate) fn write(
    path: &Path,
    content: &str,
    mode: u32,
    existing: Existing,
) -> anyhow::Result<()> {
    let name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?;
    let mut neighbour = std::ffi::OsString::from(".");
    neighbour.push(name);
    neighbour.push(format!(".{}.new", std::process::id()));
    let neighbour = path.with_file_name(neighbour);
    let place = || -> std::io::Result<()> {
        let mut fresh = OpenOptions::new();
        fresh.write(true).create_new(true);
        let mut file = files::open(&mut fresh, &neighbour, mode)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        match existing {
            Existing::Replace => std::fs::rename(&neighbour, path),
            // Unlike rename, a link fails when the name is taken.
            Existing::Keep => std::fs::hard_link(&neighbour, path),
        }
    };
    let result = place();
    if result.is_err() || existing == Existing::Keep {
        let _ = std::fs::remove_file(&neighbour);
    }
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists; --force replaces it", path.display())
        }
        result => result.with_context(|| format!("cannot write {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_private_kept_or_replaced_and_leave_no_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write(&path, "one", SECRET, Existing::Keep).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SECRET);
        let refused = write(&path, "two", SECRET, Existing::Keep).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        write(&path, "two", SECRET, Existing::Replace).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("no/such"), "x", PUBLIC, Existing::Keep).is_err());
    }
}
