//! The agent's token: read afresh whenever it is presented, never kept longer than a tunnel.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nowconnect_proto::hello::{Body, MAX_TOKEN, Token};
use nowconnect_settings::open_file;

/// Why there is no token to present. Never shows what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error(
        "cannot read the token file {}: {source}; check tunnel.auth.token_file (NC_TOKEN_FILE) and \
         its permissions", path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds no token.
    #[error(
        "the token file {} holds no token: put one JWT there, up to {MAX_TOKEN} printable characters, \
         without `Bearer` and without spaces in it",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a token file; white space around the token is dropped.
///
/// # Errors
/// See [`TokenError`].
pub(crate) async fn read(path: &Path) -> Result<Token, TokenError> {
    let owned = path.to_owned();
    let read_error = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    // A mounted secret may lie on a network that hangs.
    let text = tokio::task::spawn_blocking(move || read_bounded(&owned))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
        .map_err(read_error)?;
    let token = Token {
        token: text.trim().to_owned(),
        proof: None,
    };
    match token.check() {
        Ok(()) => Ok(token),
        Err(_) => Err(TokenError::Content {
            path: path.to_owned(),
        }),
    }
}

/// One byte more than a token and its last line ends may have tells that it is none.
fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    let file = open_file(path)?;
    file.take(MAX_TOKEN as u64 + 3).read_to_end(&mut text)?;
    Ok(String::from_utf8(text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn content(text: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let read = read(file.path()).await;
        read.map(|token| token.token.clone())
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn white_space_around_the_token_is_dropped() {
        assert_eq!(content(b" a.b.c \r\n").await.as_deref(), Ok("a.b.c"));
        let longest = "x".repeat(MAX_TOKEN) + "\r\n";
        assert_eq!(
            content(longest.as_bytes()).await.as_deref(),
            Ok(longest.trim())
        );
    }

    #[tokio::test]
    async fn errors_name_the_file_and_hide_its_content() {
        let longer = "x".repeat(MAX_TOKEN + 1);
        for bad in [
            &b"  \n"[..],
            b"two words",
            b"a\0b",
            b"\xff\xfe",
            longer.as_bytes(),
        ] {
            let error = content(bad).await.unwrap_err();
            assert!(
                error.contains("/tmp") && error.contains("no token"),
                "{error}"
            );
            assert!(!error.contains("two words"), "{error}");
        }
        let error = read(Path::new("/dev/zero")).await.unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
        let error = read(Path::new("/nonexistent/token"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/token") && error.contains("NC_TOKEN_FILE"),
            "{error}"
        );
    }
}
