//! What a storage must do, in so many lines, and nothing else: the memory that stands in for a disk.

use little_raft::{Change, Index, Run, Storage};
use std::io::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes a change from nothing lead to where a later one leads.
pub fn append<T: Clone, D>(saved: &mut Change<T, D>, later: Change<T, D>) {
    let (from, to) = (later.compacted.index + 1, later.truncate_from.unwrap_or(Index::MAX));
    let kept = |run: &Run<T>| from < to && run.last().index >= from && run.first < to;
    if later.truncate_from.is_some() || later.compacted != saved.compacted {
        saved.runs.retain(kept);
        saved.runs.iter_mut().for_each(|run| *run = run.slice(from, to - 1));
    }
    saved.runs.extend(later.runs);
    saved.snapshot = later.snapshot.or(saved.snapshot.take());
    saved.membership = later.membership.or(saved.membership.take());
    (saved.term, saved.voted_for, saved.compacted) = (later.term, later.voted_for, later.compacted);
}

/// Keeps everything in memory, where it outlives a [`Replica`](little_raft::Replica) but not the
/// process: for tests and experiments. Clones share what is saved.
#[derive(Clone, Debug)]
pub struct MemoryStorage<T, D = Vec<u8>>(Arc<Mutex<Change<T, D>>>);

impl<T, D> MemoryStorage<T, D> {
    fn saved(&self) -> MutexGuard<'_, Change<T, D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, D> Default for MemoryStorage<T, D> {
    fn default() -> Self {
        MemoryStorage(Arc::default())
    }
}

impl<T: Clone + Send + Sync, D: Clone + Send> Storage<T, D> for MemoryStorage<T, D> {
    fn load(&mut self) -> Result<Change<T, D>> {
        Ok(self.saved().clone())
    }

    fn save(&mut self, change: Change<T, D>) -> Result<()> {
        append(&mut self.saved(), change);
        Ok(())
    }
}
