//! Configurations that are replaced while connections run.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{ClientFiles, Files, Material, ServerFiles, TlsError, TrustFiles};

/// A server's current configuration.
pub type LiveServerConfig = Live<ServerFiles>;
/// A client's current configuration.
pub type LiveClientConfig = Live<ClientFiles>;

/// The CAs that certificates are judged by.
pub type LiveTrust = Live<TrustFiles>;

/// The configuration that new connections use; running ones keep the one they began with.
///
/// Replacing the whole configuration also drops the session cache, so that nobody resumes under
/// CAs that are not trusted any more.
pub struct Live<F: Files> {
    current: ArcSwap<F::Config>,
    source: Mutex<Source<F>>,
}

#[derive(PartialEq)]
struct Source<F> {
    files: F,
    material: Arc<Material>,
}

/// A configuration that is good and not yet in force: several can be changed together, or none.
pub struct Prepared<F: Files> {
    source: Source<F>,
    config: F::Config,
}

impl<F: Files> Prepared<F> {
    /// Reads `files` and makes a configuration of them. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: F) -> Result<Self, TlsError> {
        let material = files.load()?;
        let config = files.build(&material)?;
        let material = Arc::new(material);
        let source = Source { files, material };
        Ok(Self { source, config })
    }
}

impl<F: Files> From<Prepared<F>> for Live<F> {
    fn from(prepared: Prepared<F>) -> Self {
        let Prepared { source, config } = prepared;
        Self {
            current: ArcSwap::from_pointee(config),
            source: Mutex::new(source),
        }
    }
}

impl<F: Files> Live<F> {
    /// Loads the files for the first time. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: F) -> Result<Self, TlsError> {
        Prepared::load(files).map(Self::from)
    }

    /// What it is made from.
    #[must_use]
    pub fn files(&self) -> F {
        self.source.lock().files.clone()
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
        Ok(self.refresh(Prepared::load(self.files())?))
    }

    /// Goes on with other files; `true` when their content is another. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`]; the current configuration stays.
    pub fn replace(&self, files: F) -> Result<bool, TlsError> {
        Ok(self.commit(Prepared::load(files)?))
    }

    /// Goes on with what was prepared; `true` when its content is another.
    pub fn commit(&self, prepared: Prepared<F>) -> bool {
        self.put(&mut self.source.lock(), prepared)
    }

    /// The same with files that were read again. Where other files took their place in the meantime,
    /// these stay in force.
    pub fn refresh(&self, prepared: Prepared<F>) -> bool {
        let mut current = self.source.lock();
        current.files == prepared.source.files && self.put(&mut current, prepared)
    }

    fn put(&self, current: &mut Source<F>, prepared: Prepared<F>) -> bool {
        let Prepared { source, config } = prepared;
        let changed = *current != source;
        if changed {
            self.current.store(Arc::new(config));
        }
        *current = source;
        changed
    }

    /// Whether `other` is made from other files, or from other content of the same.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        // Never both locks at once.
        let material = Arc::clone(&self.source.lock().material);
        let source = Source {
            files: self.files(),
            material,
        };
        *other.source.lock() != source
    }

    /// When our own certificate ends, if we have one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.source.lock().material.expires
    }

    /// When the first of the CAs ends that others are judged by, those of the system aside.
    #[must_use]
    pub fn trust_expires(&self) -> Option<SystemTime> {
        self.source.lock().material.roots_expire
    }
}

impl<F: Files + fmt::Debug> fmt::Debug for Live<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("files", &self.source.lock().files)
            .finish_non_exhaustive()
    }
}
