//! Log settings that hub and agent share.

use crate::choices;

choices! {
    /// Least important level that is logged.
    pub enum LogLevel {
        /// Everything.
        Trace = "TRACE",
        /// What a developer asks for.
        Debug = "DEBUG",
        /// What happens.
        Info = "INFO",
        /// What somebody should look at.
        Warn = "WARN" | "WARNING",
        /// What failed.
        Error = "ERROR" | "CRITICAL" | "FATAL",
    }
}

choices! {
    /// Shape of a log line.
    pub enum LogFormat {
        /// One JSON object.
        Json = "json",
        /// Text for people.
        Plain = "plain",
    }
}
