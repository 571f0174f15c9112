//! Files: who may read a new one, which one it is, and reading and writing at a place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::FileExt as _;
use std::path::Path;

use super::acl;

/// Opens `path`; if that makes it and `mode`, which are Unix permission bits, lets nobody else read, only
/// its owner, administrators and the system may touch it. Otherwise the directory says who may.
pub(crate) fn open(options: &mut OpenOptions, path: &Path, mode: u32) -> io::Result<File> {
    let known = path.exists();
    let file = options.open(path)?;
    if !known && mode & 0o004 == 0 {
        acl::keep_private(path)?;
    }
    Ok(file)
}

/// Whether what is open is a pipe: those have names of their own that no configuration leads to.
pub(crate) fn is_pipe(_: &File) -> io::Result<bool> {
    Ok(false)
}

/// Tells files apart, whatever they are called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity(same_file::Handle);

impl Identity {
    /// That of an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        same_file::Handle::from_file(file.try_clone()?).map(Self)
    }

    /// That of the file that a path leads to.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        same_file::Handle::from_path(path).map(Self)
    }
}

/// Reading and writing at a place. Unlike on Unix, it moves the file's position.
pub(crate) trait FileExt {
    /// Fills `bytes` from `at` on.
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes `bytes` from `at` on.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
}

impl FileExt for File {
    fn read_exact_at(&self, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seek_read(bytes, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => (bytes, at) = (&mut bytes[n..], at + n as u64),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seek_write(bytes, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => (bytes, at) = (&bytes[n..], at + n as u64),
            }
        }
        Ok(())
    }
}
