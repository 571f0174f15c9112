//! A log in files of bounded size, for a process without standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// A file that takes the name `NAME.1` when it is full, while what had it becomes `NAME.2`, and so on.
#[derive(Clone)]
pub(crate) struct Rolling(Arc<Mutex<Files>>);

struct Files {
    path: PathBuf,
    file: File,
    size: u64,
    limit: Limit,
}

/// What the log may take of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Bytes of a file.
    pub(crate) size: u64,
    /// Older files that are kept.
    pub(crate) older: u32,
}

impl Rolling {
    /// Goes on behind what is in the file already.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(path: &Path, limit: Limit) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let path = path.to_owned();
        Ok(Self(Arc::new(Mutex::new(Files {
            path,
            file,
            size,
            limit,
        }))))
    }
}

impl Write for Rolling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut files = self.0.lock();
        if files.size >= files.limit.size && !bytes.is_empty() {
            files.roll();
        }
        let written = files.file.write(bytes)?;
        files.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().file.flush()
    }
}

impl Files {
    /// Begins a new file. Where somebody holds one of the files so that it cannot be renamed, the present
    /// one goes on growing until the next try.
    fn roll(&mut self) {
        self.size = 0;
        let older = |n: u32| match n {
            0 => self.path.clone(),
            n => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                name.into()
            }
        };
        for n in (0..self.limit.older).rev() {
            let _ = std::fs::rename(older(n), older(n + 1));
        }
        if let Ok(file) = append(&self.path) {
            self.file = file;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_renamed_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let limit = Limit { size: 4, older: 2 };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            Rolling::open(&path, limit)
                .unwrap()
                .write_all(line.as_bytes())
                .unwrap();
        }
        let text = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(text("agent.log"), "four\n");
        assert_eq!(text("agent.log.1"), "three\n");
        assert_eq!(text("agent.log.2"), "two\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
