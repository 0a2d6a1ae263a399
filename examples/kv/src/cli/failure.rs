//! Why a command did not do what it was asked for, and what the process ends with.

use serde_json::{Value, json};
use std::fmt::{Display, Formatter};
use std::io::ErrorKind;
use std::process::ExitCode;

/// How the process ends, for scripts. `--help` tells users the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no such key, or a condition did not hold.
    Negative = 1,
    /// The command makes no sense.
    Usage = 2,
    /// No node could do it, and it was not done.
    Unavailable = 3,
    /// It may or may not have been done.
    OutcomeUnknown = 4,
    /// Something else, such as a full disk.
    Other = 5,
}

/// The code of output that nobody reads any more.
const ENOUGH: &str = "broken_pipe";

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// A code for programs, as the nodes give it.
    code: String,
    message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, code: &str, message: impl Into<String>) -> Failure {
        Failure { kind, code: code.to_string(), message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, "usage", message)
    }

    pub(crate) fn other(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Other, "failed", message)
    }

    /// What a node has refused.
    pub(crate) fn refused(status: u16, body: &[u8]) -> Failure {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |field: &str| body[field].as_str().map(str::to_string);
        let code = text("error").unwrap_or_else(|| format!("status_{status}"));
        let message = text("message").unwrap_or_else(|| {
            format!("The node answered {status}, without a reason. Is it a node of kv?")
        });
        let kind = match (status, code.as_str()) {
            (_, "outcome_unknown" | "session_expired" | "stale_sequence") => Kind::OutcomeUnknown,
            (404 | 412, _) | (410, "forgotten") | (409, _) => Kind::Negative,
            (400 | 403 | 405 | 413, _) => Kind::Usage,
            (429 | 503 | 504, _) => Kind::Unavailable,
            _ => Kind::Other,
        };
        Failure { kind, code, message }
    }

    /// Whoever read our output has seen enough, which is no failure.
    pub(crate) fn is_harmless(&self) -> bool {
        self.code == ENOUGH
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == "not_found"
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "error": self.code, "message": self.message })
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let code = if error.kind() == ErrorKind::BrokenPipe { ENOUGH } else { "failed" };
        Failure::new(Kind::Other, code, error.to_string())
    }
}
