//! The user's side of durability: one load, one atomic save, and the memory that stands in for a
//! disk.

use crate::{Index, LogId, Membership, ReplicaID, Run, Snapshot, Term};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps what a replica must not forget.
///
/// Both methods are called from the thread that runs [`Replica::start`](crate::Replica::start),
/// with no mutex held. After an error the replica stops, returns it, and never uses the storage
/// again: there is no safe way to go on with a disk in an unknown state.
pub trait Storage<T, D = Vec<u8>>: Send {
    /// Everything that was saved. Called once, before anything is saved.
    ///
    /// # Errors
    /// Whatever makes the answer uncertain. A storage that has lost or damaged something must say
    /// so and not return the rest.
    fn load(&mut self) -> io::Result<Saved<T, D>>;

    /// Makes a change durable before it returns: the whole of it or, in a crash, nothing.
    ///
    /// # Errors
    /// Any failure, after which what is durable may be the state before or after the change.
    fn save(&mut self, change: Change<T, D>) -> io::Result<()>;
}

/// One turn's change to what is saved, in the order in which its parts are to be understood. The
/// meaning is exactly that of [`Saved::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T, D = Vec<u8>> {
    /// The current term.
    pub term: Term,
    /// Whom this replica voted for in that term.
    pub voted_for: Option<ReplicaID>,
    /// Removes the entries from this index on.
    pub truncate_from: Option<Index>,
    /// Appends these entries, which follow one another and what is left of the log.
    pub runs: Vec<Run<T>>,
    /// Replaces the snapshot.
    pub snapshot: Option<Snapshot<D>>,
    /// Replaces the configuration that held at the snapshot's end or, without one, at the beginning.
    pub membership: Option<Membership>,
    /// Removes the entries up to and including this one; never goes back.
    pub compacted: LogId,
}

/// Everything that is saved. The default is the state of a replica that has never run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<T, D = Vec<u8>> {
    /// The current term.
    pub term: Term,
    /// Whom this replica voted for in that term.
    pub voted_for: Option<ReplicaID>,
    /// The latest snapshot.
    pub snapshot: Option<Snapshot<D>>,
    /// The configuration at the snapshot's end or, without one, at the beginning.
    pub membership: Option<Membership>,
    /// The position just before the first entry of `runs`.
    pub compacted: LogId,
    /// The log, without gaps.
    pub runs: Vec<Run<T>>,
}

impl<T, D> Default for Saved<T, D> {
    fn default() -> Self {
        Saved {
            term: 0,
            voted_for: None,
            snapshot: None,
            membership: None,
            compacted: LogId::default(),
            runs: Vec::new(),
        }
    }
}

impl<T: Clone, D> Saved<T, D> {
    /// What a change means: the saved state after it, given the one before.
    pub fn apply(&mut self, change: Change<T, D>) {
        (self.term, self.voted_for) = (change.term, change.voted_for);
        if let Some(from) = change.truncate_from {
            while self.runs.last().is_some_and(|run| run.first >= from) {
                self.runs.pop();
            }
            if let Some(run) = self.runs.last_mut().filter(|run| run.last().index >= from) {
                *run = run.slice(run.first, from - 1);
            }
        }
        self.runs.extend(change.runs);
        self.snapshot = change.snapshot.or(self.snapshot.take());
        self.membership = change.membership.or(self.membership.take());
        if self.compacted != change.compacted {
            self.compacted = change.compacted;
            let first = self.compacted.index + 1;
            let gone = self.runs.partition_point(|run| run.last().index < first);
            self.runs.drain(..gone);
            if let Some(run) = self.runs.first_mut().filter(|run| run.first < first) {
                *run = run.slice(first, run.last().index);
            }
        }
    }
}

/// Keeps everything in memory, where it outlives a [`Replica`](crate::Replica) but not the process:
/// for tests and experiments. Clones share what is saved.
#[derive(Clone, Debug)]
pub struct MemoryStorage<T, D = Vec<u8>>(Arc<Mutex<Saved<T, D>>>);

impl<T, D> Default for MemoryStorage<T, D> {
    fn default() -> Self {
        MemoryStorage(Arc::default())
    }
}

impl<T: Clone + Send + Sync, D: Clone + Send> Storage<T, D> for MemoryStorage<T, D> {
    fn load(&mut self) -> io::Result<Saved<T, D>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&mut self, change: Change<T, D>) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).apply(change);
        Ok(())
    }
}
