//! How a command ends when it does not succeed: what to print, and the exit code.

use std::process::ExitCode;

/// Why a command failed, by whose move it is next.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(anyhow::Error),
    /// Something went wrong while it ran: exit code 1.
    Runtime(anyhow::Error),
}

impl Failure {
    /// A mistake of whoever typed the command or wrote the file.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Failure::Usage(error.into())
    }

    /// Everything that is wrong with a configuration, one problem a line.
    pub(crate) fn configuration(problems: nowconnect_settings::Problems) -> Self {
        Failure::Usage(anyhow::anyhow!(
            "the configuration cannot be used:\n{problems}"
        ))
    }

    /// Prints the error with its causes to stderr and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        // `nowconnect … | head` closes our stdout; that is how it is meant to end.
        let io = self.error().root_cause().downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", self.text());
        ExitCode::from(self.code())
    }

    /// The error with its causes.
    pub(crate) fn text(&self) -> String {
        explain(self.error())
    }

    /// What the process ends with.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Runtime(_) => 1,
        }
    }

    fn error(&self) -> &anyhow::Error {
        match self {
            Failure::Usage(error) | Failure::Runtime(error) => error,
        }
    }
}

/// An error with its causes, without those that it quotes itself.
fn explain(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| {
            match text.contains(&cause) {
                true => text,
                false => format!("{text}: {cause}"),
            }
        })
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Runtime(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read a: no such file");
        assert_eq!(
            explain(&error.context("starting")),
            "starting: cannot read a: no such file"
        );
    }
}
