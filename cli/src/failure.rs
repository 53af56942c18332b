//! How a command ends when it does not succeed: one line, a hint, an exit code. Never a backtrace.
//!
//! A struct and not an enum of causes: nobody above `main` matches on a cause, they only print it. What a
//! script may tell apart is the exit code, so the code is the type.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, as `docs/reference/cli.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something went wrong while running.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was started.
    Usage = 2,
    /// The model cannot be loaded.
    Model = 3,
    /// The address cannot be bound.
    Address = 4,
    /// The server that was asked cannot be reached.
    Unreachable = 5,
    /// Stopped as asked, but requests were cut at the deadline.
    Cut = 6,
    /// A tier of the cache cannot be opened.
    Storage = 7,
    /// A purge, or the report of one, leaves something that is held or was not seen to be gone.
    Incomplete = 8,
    /// A report is not what the key signed, or is signed by another key.
    Unverified = 9,
    /// The executor or its device is lost for this process; another start may find it well.
    Lost = 10,
}

impl Exit {
    /// Every code with its meaning, for the reference page.
    pub const ALL: [(u8, &'static str); 11] = [
        (0, "success; a server that was asked to stop and finished its requests"),
        (Exit::Failed as u8, "something went wrong while running"),
        (Exit::Usage as u8, "the command line or the configuration is wrong; nothing was started"),
        (Exit::Model as u8, "the model cannot be loaded"),
        (Exit::Address as u8, "the address cannot be bound"),
        (Exit::Unreachable as u8, "the server that was asked cannot be reached"),
        (Exit::Cut as u8, "stopped as asked, but requests were cut at the deadline or by a second signal"),
        (Exit::Storage as u8, "a tier of the cache cannot be opened"),
        (Exit::Incomplete as u8, "a purge is incomplete: something is held, or was not seen to be gone"),
        (Exit::Unverified as u8, "a report is not what its key signed, or is signed by another key"),
        (Exit::Lost as u8, "the executor or its GPU is lost for this process: start the server again"),
    ];
}

/// Why a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_a_hint() {
        let failure = Failure::usage("unknown key `prt`").hint("did you mean `port`?");
        assert_eq!(failure.to_string(), "error: unknown key `prt`\nhint: did you mean `port`?");
    }

    #[test]
    fn the_listed_codes_are_in_order() {
        for (expected, (code, _)) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(*code), expected);
        }
    }
}
