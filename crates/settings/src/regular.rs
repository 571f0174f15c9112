//! Files and nothing else.

use std::fs::{File, metadata};
use std::io;
use std::path::Path;

/// Opens a file to read it. A pipe or device is refused: whoever opens one may wait for ever.
///
/// # Errors
/// It is missing, not to be read, or no file.
pub fn open_file(path: &Path) -> io::Result<File> {
    match metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(io::Error::other("it is no file")),
    }
}
