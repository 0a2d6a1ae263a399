//! The user's side of durability: one load, one atomic save.

use crate::*;

/// Keeps what a replica must not forget.
///
/// Both methods are called from the thread that runs [`Replica::start`],
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

    /// Makes a change durable before it returns: the whole of it or, in a crash, nothing. Its
    /// fields say what it means, and `append` of the package `little_raft_sim` does it in memory.
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
    /// Replaces the configuration that held at the snapshot's end or, without one, at the
    /// beginning.
    pub membership: Option<Membership>,
}

impl<T, D> Default for Change<T, D> {
    fn default() -> Self {
        let (term, voted_for, truncate_from, compacted, runs, snapshot, membership) =
            Default::default();
        Change { term, voted_for, truncate_from, compacted, runs, snapshot, membership }
    }
}
