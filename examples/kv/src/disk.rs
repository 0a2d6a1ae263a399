//! The log on disk, together with the snapshots that it builds upon.

use crate::command::Command;
use crate::snapshots::{Handle, Snapshots};
use crate::tallies::Tallies;
use little_raft::{Change, Storage};
use little_raft_redb::RedbStorage;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Keeps the log in a database and looks after the files that its handles name: what a save refers
/// to is there before it, what no save refers to any more is removed after it.
pub(crate) struct Disk {
    pub(crate) log: RedbStorage,
    pub(crate) snapshots: Snapshots,
    pub(crate) tallies: Arc<Tallies>,
    /// Index of the last entry that is saved.
    pub(crate) last: usize,
}

impl Disk {
    fn note(&mut self, change: &Change<Command, Handle>) -> usize {
        let left = change.truncate_from.map_or(self.last, |from| self.last.min(from - 1));
        change.runs.last().map_or(left, |run| run.last().index).max(change.compacted.index)
    }

    fn reached(&mut self, last: usize) {
        self.last = last;
        Tallies::set(&self.tallies.saved_index, last as u64);
    }
}

impl Storage<Command, Handle> for Disk {
    fn load(&mut self) -> io::Result<Change<Command, Handle>> {
        let saved: Change<Command, Handle> = self.log.load()?;
        let handle = saved.snapshot.as_ref().map(|snapshot| &snapshot.data);
        self.snapshots.sweep(handle)?;
        if let Some(handle) = handle {
            self.snapshots.preload(handle)?;
            self.snapshots.adopt(handle);
        }
        let last = self.note(&saved);
        self.reached(last);
        Ok(saved)
    }

    fn save(&mut self, change: Change<Command, Handle>) -> io::Result<()> {
        let handle = change.snapshot.as_ref().map(|snapshot| snapshot.data.clone());
        if let Some(error) = handle.as_ref().and_then(Handle::failure) {
            return Err(error);
        }
        let (last, began) = (self.note(&change), Instant::now());
        self.log.save(change)?;
        Tallies::add(&self.tallies.saves, 1);
        Tallies::add(&self.tallies.save_microseconds, began.elapsed().as_micros() as u64);
        self.reached(last);
        if handle.is_some()
            && let Err(error) = self.snapshots.sweep(handle.as_ref())
        {
            log::warn!("cannot remove a snapshot that is not needed any more: {error}");
        }
        Ok(())
    }
}
