//! What errors say: which file, what was found, what can be done.

use std::any::Any;
use std::fmt::Display;
use std::io::{self, Error, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// What to do about a directory that has lost or damaged something.
pub(crate) const REMEDY: &str = "Something that was saved is lost, so this replica must not go on \
    under its id. Keep a copy of the directory; if a quorum of the cluster lives, remove this \
    replica with change_membership and add a new one under a new id with an empty directory; if \
    not, see `little_raft_redb recover`";

/// What happens inside of a database. Findings of our own are `Corrupted`, mistakes of the caller
/// are `Io` of kind `InvalidInput`.
pub(crate) type Outcome<R> = Result<R, Box<redb::Error>>;

/// Something that was saved is not as it was.
pub(crate) fn damaged<R>(finding: impl Into<String>) -> Outcome<R> {
    Err(Box::new(redb::Error::Corrupted(finding.into())))
}

/// Something was asked for that makes no sense.
pub(crate) fn refused<R>(reason: impl Into<String>) -> Outcome<R> {
    Err(Box::new(redb::Error::Io(Error::new(ErrorKind::InvalidInput, reason.into()))))
}

/// Boxes one of the many error types of `redb`.
pub(crate) fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

/// Does something with a database, and turns what it makes of damage, panics included, into an
/// error that says what to do.
pub(crate) fn guarded<R>(file: &Path, work: impl FnOnce() -> Outcome<R>) -> io::Result<R> {
    let text = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref().copied().unwrap_or("a panic").to_string(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|panic| damaged(text(panic))).map_err(|error| explain(file, *error))
}

fn explain(file: &Path, error: redb::Error) -> Error {
    let file = file.display();
    match error {
        redb::Error::Corrupted(finding) => {
            Error::new(ErrorKind::InvalidData, format!("{file} is damaged: {finding}. {REMEDY}"))
        }
        redb::Error::Io(error) => explain_io(file, error),
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Error::new(
            ErrorKind::ResourceBusy,
            format!("{file}: another program has it open; stop that first"),
        ),
        redb::Error::UpgradeRequired(version) => Error::new(
            ErrorKind::Unsupported,
            format!("{file}: in version {version} of redb's format; upgrade it with redb 2 first"),
        ),
        redb::Error::ValueTooLarge(length) => Error::new(
            ErrorKind::InvalidInput,
            format!("{file}: {length} bytes in one entry are too many; put a handle in its place"),
        ),
        error => Error::other(format!("{file}: {error}. Start again; if it stays, {REMEDY}")),
    }
}

fn explain_io(file: impl Display, error: Error) -> Error {
    let kind = error.kind();
    let remedy = match kind {
        ErrorKind::InvalidInput => return error,
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData => {
            let text = format!("{file} is damaged or cut short: {error}. {REMEDY}");
            return Error::new(ErrorKind::InvalidData, text);
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "Free some space and start again: whatever was acknowledged is there"
        }
        ErrorKind::PermissionDenied => "Give this user the right to read and write it",
        _ => "Check the disk; start again once it is sound, all that was acknowledged is checked",
    };
    Error::new(kind, format!("{file}: {error}. {remedy}"))
}
