//! The user's side of durability: one load, one atomic save, and the memory that stands in for a
//! disk.

use crate::*;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps what a replica must not forget.
///
/// Both methods are called from the thread that runs [`Replica::start`](crate::Replica::start),
/// with no mutex held. After an error the replica stops, returns it, and never uses the storage
/// again: there is no safe way to go on with a disk in an unknown state.
pub trait Storage<T, D = Vec<u8>>: Send {
    /// Everything that was saved, as the one change that leads there from nothing. Called once,
    /// before anything is saved.
    ///
    /// # Errors
    /// Whatever makes the answer uncertain. A storage that has lost or damaged something must say
    /// so and not return the rest.
    fn load(&mut self) -> io::Result<Change<T, D>>;

    /// Makes a change durable before it returns: the whole of it or, in a crash, nothing. What it
    /// means is what [`Change::append`] does.
    ///
    /// # Errors
    /// Any failure, after which what is durable may be the state before or after the change.
    fn save(&mut self, change: Change<T, D>) -> io::Result<()>;
}

/// A change to what is saved, its parts in the order in which they are to be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Change<T, D = Vec<u8>> {
    /// The current term.
    pub term: Term,
    /// Whom this replica voted for in that term.
    pub voted_for: Option<ReplicaID>,
    /// Removes the entries from this index on.
    pub truncate_from: Option<Index>,
    /// Removes the entries up to and including this one. It never goes back.
    pub compacted: LogId,
    /// Appends these entries, which follow one another and what is left of the log.
    pub runs: Vec<Run<T>>,
    /// Replaces the snapshot.
    pub snapshot: Option<Snapshot<D>>,
    /// Replaces the configuration that held at the snapshot's end or, without one, at the beginning.
    pub membership: Option<Membership>,
}

impl<T, D> Default for Change<T, D> {
    fn default() -> Self {
        let (term, voted_for, truncate_from, compacted) = (0, None, None, LogId::default());
        let (runs, snapshot, membership) = (Vec::new(), None, None);
        Change { term, voted_for, truncate_from, compacted, runs, snapshot, membership }
    }
}

impl<T: Clone, D> Change<T, D> {
    /// Makes a change from nothing lead to where a later one leads.
    pub fn append(&mut self, later: Change<T, D>) {
        let (from, to) = (later.compacted.index + 1, later.truncate_from.unwrap_or(Index::MAX));
        let kept = |run: &Run<T>| from < to && run.last().index >= from && run.first < to;
        if later.truncate_from.is_some() || later.compacted != self.compacted {
            self.runs.retain(kept);
            self.runs.iter_mut().for_each(|run| *run = run.slice(from, to - 1));
        }
        self.runs.extend(later.runs);
        self.snapshot = later.snapshot.or(self.snapshot.take());
        self.membership = later.membership.or(self.membership.take());
        (self.term, self.voted_for, self.compacted) =
            (later.term, later.voted_for, later.compacted);
    }
}

/// Keeps everything in memory, where it outlives a [`Replica`] but not the process:
/// for tests and experiments. Clones share what is saved.
#[derive(Clone, Debug)]
pub struct MemoryStorage<T, D = Vec<u8>>(Arc<Mutex<Change<T, D>>>);

impl<T, D> Default for MemoryStorage<T, D> {
    fn default() -> Self {
        MemoryStorage(Arc::default())
    }
}

impl<T: Clone + Send + Sync, D: Clone + Send> Storage<T, D> for MemoryStorage<T, D> {
    fn load(&mut self) -> io::Result<Change<T, D>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&mut self, change: Change<T, D>) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(change);
        Ok(())
    }
}
