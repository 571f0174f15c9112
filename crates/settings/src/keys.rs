//! What a section is asked about single keys.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::field::Field;
use crate::table::Table;
use crate::value::Value;

impl<'t> Table<'t> {
    /// Asks for a number of milliseconds.
    pub fn millis(&mut self, key: &'static str, range: RangeInclusive<u64>, or: u64) -> Duration {
        Duration::from_millis(self.field(key).range(range).or(or))
    }

    /// Asks for a number of seconds.
    pub fn seconds(&mut self, key: &'static str, range: RangeInclusive<u64>, or: u64) -> Duration {
        Duration::from_secs(self.field(key).range(range).or(or))
    }

    /// Asks for a key with one value or a list of them.
    pub fn field<T: Value>(&mut self, key: &'static str) -> Field<'_, 't, T> {
        Field::new(self, key)
    }

    /// The files `cert_file` and `key_file`, which only make sense together; `None` where neither is
    /// named, or one without the other, which is reported.
    pub fn key_pair(&mut self) -> Option<(PathBuf, PathBuf)> {
        let cert = self.field("cert_file").file();
        let key = self.field("key_file").private().file();
        match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (Some(_), None) => {
                let hint = "set key_file to its private key";
                self.problem("cert_file", "a certificate without a key", hint);
                None
            }
            (None, Some(_)) => {
                let hint = "set cert_file to its certificate";
                self.problem("key_file", "a key without a certificate", hint);
                None
            }
            (None, None) => None,
        }
    }
}
