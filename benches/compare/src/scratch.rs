//! The run's temporary directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Result};

/// Removed with all that is in it by drop, unless it shall be kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    pub(crate) fn make(path: PathBuf, keep: bool) -> Result<Self> {
        fs::create_dir(&path).context(path.display())?;
        Ok(Self { path, keep })
    }

    /// One for the whole run, below the system's temporary directory.
    pub(crate) fn for_run(keep: bool) -> Result<Self> {
        let name = format!("nowconnect-compare-{}", std::process::id());
        Self::make(std::env::temp_dir().join(name), keep)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else {
            fs::remove_dir_all(&self.path).ok();
        }
    }
}
