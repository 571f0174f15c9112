//! Files that hold one bearer token.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use nowconnect_settings::{Secret, open_file};

/// Bytes of the longest token file that is read.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("{key}: cannot read {}: {source}", path.display())]
    Read {
        /// The key that names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{key}: {} must hold one token, up to 4096 printable characters without spaces",
        path.display()
    )]
    Content {
        /// The key that names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
    },
}

/// Reads the token that `key` names the file of; white space around it does not count. Blocks on
/// file I/O.
///
/// # Errors
/// The file cannot be read, or does not hold one token.
pub(crate) fn load(key: &'static str, path: &Path) -> Result<Secret, TokenFileError> {
    let mut text = String::new();
    let opened =
        open_file(path).and_then(|file| file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text));
    let path = || path.to_owned();
    opened.map_err(|source| TokenFileError::Read {
        key,
        path: path(),
        source,
    })?;
    let token = text.trim();
    let fits = !token.is_empty() && text.len() as u64 <= MAX_TOKEN_BYTES;
    if !fits || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenFileError::Content { key, path: path() });
    }
    Ok(Secret::new(token))
}
