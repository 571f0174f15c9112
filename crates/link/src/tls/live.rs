//! Configurations that are replaced while connections run.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{ClientFiles, Files, Material, ServerFiles, TlsError};

/// A server's current configuration.
pub type LiveServerConfig = Live<ServerFiles>;
/// A client's current configuration.
pub type LiveClientConfig = Live<ClientFiles>;

/// The configuration that new connections use; running ones keep the one they began with.
///
/// Replacing the whole configuration also drops the session cache, so that nobody resumes under
/// CAs that are not trusted any more.
pub struct Live<F: Files> {
    current: ArcSwap<F::Config>,
    source: Mutex<Source<F>>,
}

struct Source<F> {
    files: F,
    material: Material,
}

impl<F: Files> Live<F> {
    /// Loads the files for the first time. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: F) -> Result<Self, TlsError> {
        let material = files.load()?;
        let config = files.build(&material)?;
        Ok(Self {
            current: ArcSwap::from_pointee(config),
            source: Mutex::new(Source { files, material }),
        })
    }

    /// What a new connection should use.
    #[must_use]
    pub fn current(&self) -> Arc<F::Config> {
        self.current.load_full()
    }

    /// Reads the same files again; `true` when their content is another. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`]; the current configuration stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = self.source.lock().files.clone();
        self.replace(files)
    }

    /// Goes on with other files; `true` when their content is another. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`]; the current configuration stays.
    pub fn replace(&self, files: F) -> Result<bool, TlsError> {
        let material = files.load()?;
        let config = files.build(&material)?;
        let mut source = self.source.lock();
        let changed = source.material != material || source.files != files;
        if changed {
            self.current.store(Arc::new(config));
        }
        *source = Source { files, material };
        Ok(changed)
    }

    /// When our own certificate ends, if we have one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.source.lock().material.expires
    }
}

impl<F: Files + fmt::Debug> fmt::Debug for Live<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("files", &self.source.lock().files)
            .finish_non_exhaustive()
    }
}
