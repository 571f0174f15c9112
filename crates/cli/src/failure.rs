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
        let (error, code) = match &self {
            Failure::Usage(error) => (error, 2),
            Failure::Runtime(error) => (error, 1),
        };
        // `nowconnect … | head` closes our stdout; that is how it is meant to end.
        let io = error.root_cause().downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", explain(error));
        ExitCode::from(code)
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
