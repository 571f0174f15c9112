//! Files: who may read a new one, which one it is, and reading and writing at a place.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

pub(crate) use std::os::unix::fs::FileExt;

/// Opens `path`; if that makes it, it gets the permission bits `mode`.
pub(crate) fn open(options: &mut OpenOptions, path: &Path, mode: u32) -> io::Result<File> {
    options.mode(mode).open(path)
}

/// Whether what is open is a pipe.
pub(crate) fn is_pipe(file: &File) -> io::Result<bool> {
    file.metadata().map(|it| it.file_type().is_fifo())
}

/// Tells files apart, whatever they are called: device and inode.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

impl Identity {
    /// That of an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|it| Self::from(&it))
    }

    /// That of the file that a path leads to.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|it| Self::from(&it))
    }
}

impl From<&Metadata> for Identity {
    fn from(it: &Metadata) -> Self {
        Self(it.dev(), it.ino())
    }
}
