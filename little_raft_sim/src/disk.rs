//! A disk that may fail, crash in the middle of a save, fill up and rot.

use crate::append;
use crate::ledger::digest_of;
use little_raft::{Change, Storage};
use std::hash::Hash;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Records that are folded into one once there are so many.
const MOST_RECORDS: usize = 64;

/// How a save fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Power is lost after so many of the record's sectors; all of them may have been written.
    CrashAfter(usize),
    /// The disk says that it failed, although everything is written.
    FailsAfterAll,
    /// There is no space for this save and the next ones, so many in all.
    Full(usize),
}

/// A journal of changes on sectors, each with a checksum, as a storage for replicas.
///
/// Clones are handles to the same disk. A handle dies with the first error, as a handle of a
/// careful storage does; [`reopen`](SimulatedDisk::reopen) gives the next one. What a crash leaves
/// unfinished at the end of the journal is rolled back by `load`; any other damage it refuses.
#[derive(Debug)]
pub struct SimulatedDisk<T, D = Vec<u8>> {
    platter: Arc<Mutex<Platter<T, D>>>,
    dead: bool,
}

#[derive(Clone, Debug)]
struct Platter<T, D> {
    records: Vec<Record<T, D>>,
    fault: Option<DiskFault>,
    saves: u64,
}

#[derive(Clone, Debug)]
struct Record<T, D> {
    change: Change<T, D>,
    checksum: u64,
    /// How many of its sectors arrived.
    written: usize,
}

impl<T, D> Clone for SimulatedDisk<T, D> {
    fn clone(&self) -> Self {
        SimulatedDisk { platter: self.platter.clone(), dead: self.dead }
    }
}

impl<T, D> Default for SimulatedDisk<T, D> {
    fn default() -> Self {
        let platter = Platter { records: Vec::new(), fault: None, saves: 0 };
        SimulatedDisk { platter: Arc::new(Mutex::new(platter)), dead: false }
    }
}

impl<T: Clone + Hash, D: Clone> SimulatedDisk<T, D> {
    /// A new handle to the same disk, as after a restart.
    pub fn reopen(&self) -> Self {
        SimulatedDisk { platter: self.platter.clone(), dead: false }
    }

    /// Makes the next save fail.
    pub fn fail_next_save(&self, fault: DiskFault) {
        self.platter().fault = Some(fault);
    }

    /// Makes the next saves succeed.
    pub fn mend(&self) {
        self.platter().fault = None;
    }

    /// Flips a bit in one of the saved records. False if there is none.
    pub fn flip_bit(&self, which: usize) -> bool {
        let mut platter = self.platter();
        let records = platter.records.len();
        let record = which.checked_rem(records).map(|place| &mut platter.records[place]);
        record.into_iter().for_each(|record| record.checksum ^= 1 << (which % 64));
        records > 0
    }

    /// How many saves have succeeded.
    pub fn saves(&self) -> u64 {
        self.platter().saves
    }

    fn platter(&self) -> MutexGuard<'_, Platter<T, D>> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Hash, D: Clone> Platter<T, D> {
    /// What the journal says, after an unfinished end of it was rolled back.
    fn read(&mut self) -> Result<Change<T, D>> {
        self.records.pop_if(|last| last.written < sectors(&last.change));
        for (place, record) in self.records.iter().enumerate() {
            let whole = record.written == sectors(&record.change);
            if !whole || record.checksum != checksum(&record.change) {
                let error = format!("record {place} of the journal is damaged: replace this disk");
                return Err(Error::new(ErrorKind::InvalidData, error));
            }
        }
        if self.records.len() == 1 {
            return Ok(self.records[0].change.clone());
        }
        let (mut saved, anything) = (Change::default(), !self.records.is_empty());
        for record in std::mem::take(&mut self.records) {
            append(&mut saved, record.change);
        }
        self.records.extend(anything.then(|| Record::whole(saved.clone())));
        Ok(saved)
    }
}

impl<T: Clone + Hash, D: Clone> Record<T, D> {
    fn whole(change: Change<T, D>) -> Self {
        Record { checksum: checksum(&change), written: sectors(&change), change }
    }
}

impl<T: Clone + Hash + Send + Sync, D: Clone + Send> Storage<T, D> for SimulatedDisk<T, D> {
    fn load(&mut self) -> Result<Change<T, D>> {
        self.platter().read()
    }

    fn save(&mut self, change: Change<T, D>) -> Result<()> {
        if self.dead {
            return Err(Error::other("this handle has failed before, open the disk again"));
        }
        let mut platter = self.platter();
        let mut record = Record::whole(change);
        let error = match platter.fault.take() {
            Some(DiskFault::CrashAfter(sectors)) => {
                record.written = record.written.min(sectors);
                Error::other("power is lost")
            }
            Some(DiskFault::FailsAfterAll) => Error::other("the disk failed to sync"),
            Some(DiskFault::Full(times)) => {
                platter.fault = (times > 1).then_some(DiskFault::Full(times - 1));
                record.written = 0;
                Error::new(ErrorKind::StorageFull, "the disk is full")
            }
            None => {
                platter.saves += 1;
                platter.records.push(record);
                if platter.records.len() > MOST_RECORDS {
                    platter.read()?;
                }
                return Ok(());
            }
        };
        platter.records.push(record);
        drop(platter);
        self.dead = true;
        Err(error)
    }
}

/// Sectors that a change takes: for the term and vote, for each run, for a snapshot and for its
/// configuration.
fn sectors<T, D>(change: &Change<T, D>) -> usize {
    let snapshot = usize::from(change.snapshot.is_some());
    1 + change.runs.len() + snapshot + usize::from(change.membership.is_some())
}

fn checksum<T: Hash, D>(change: &Change<T, D>) -> u64 {
    let Change { term, voted_for, truncate_from, compacted, runs, .. } = change;
    let snapshot = change.snapshot.as_ref().map(|it| it.last());
    let ends = runs.iter().map(|run| (run.first, run.term, run.transitions.last()));
    digest_of(&(term, voted_for, truncate_from, compacted, snapshot, ends.collect::<Vec<_>>()))
}
