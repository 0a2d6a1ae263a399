//! A disk that may fail, lose power at any byte of a save, fill up and rot.

use crate::append;
use little_raft::{Change, Storage};
use std::hash::{Hash, Hasher};
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that reach the disk together or not at all when sectors are written in any order. Small, so
/// that even a short record has several.
const SECTOR: usize = 32;
/// Before each record: its length, a checksum of all that follows, and its number.
const HEADER: usize = 16;
/// The number of a record, where it ends, and a checksum.
const MARK: usize = 20;
/// A journal that has grown by so much, and to twice its size, is folded into one record.
const GROWTH: usize = 4096;

/// How a save fails. The replica is told of an error each time, and a handle is dead after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Power is lost after so many bytes of the record and of the mark that follows it; all of them
    /// may have been written.
    CrashAt(usize),
    /// Power is lost when only some sectors of the record are written, perhaps later ones and not
    /// the ones before: those whose bit is set.
    Reordered(u64),
    /// The disk says that it failed, and nothing is written. The next save succeeds.
    Fails,
    /// The disk says that it failed, although everything is written.
    FailsAfterAll,
    /// There is no space for this save and the next ones, so many in all.
    Full(usize),
}

/// A journal of changes as bytes on a disk, as a storage for replicas.
///
/// Each change is a record with a checksum. When the record is on the disk, one of two marks is
/// written in turn, which say how far the journal is saved; only then does the save return. `load`
/// rolls back a record beyond the marks that is not whole, keeps one that is, and refuses a journal
/// that is damaged anywhere else: it returns everything that was saved, or an error.
///
/// The bytes of a transition and of a snapshot's data are what they hash. They are not decoded:
/// once the bytes of a record are proven whole, the change that they stand for is looked up under
/// the record's number.
///
/// Clones are handles to the same disk. A handle dies with the first error, as a handle of a
/// careful storage does; [`reopen`](SimulatedDisk::reopen) gives the next one.
#[derive(Debug)]
pub struct SimulatedDisk<T, D = Vec<u8>> {
    platter: Arc<Mutex<Platter<T, D>>>,
    dead: bool,
}

#[derive(Clone, Debug)]
struct Platter<T, D> {
    journal: Vec<u8>,
    marks: [[u8; MARK]; 2],
    /// What the records say, and the number of the first. Others are unknown, whatever they say.
    changes: Vec<Change<T, D>>,
    first: u64,
    /// How long the journal was when it was folded last.
    folded: usize,
    fault: Option<DiskFault>,
    /// The bit that is flipped.
    flipped: Option<usize>,
    saves: u64,
}

impl<T, D> Clone for SimulatedDisk<T, D> {
    fn clone(&self) -> Self {
        SimulatedDisk { platter: self.platter.clone(), dead: self.dead }
    }
}

impl<T, D> Default for SimulatedDisk<T, D> {
    fn default() -> Self {
        let platter = Platter {
            journal: Vec::new(),
            marks: [mark(0, 0); 2],
            changes: Vec::new(),
            first: 1,
            folded: 0,
            fault: None,
            flipped: None,
            saves: 0,
        };
        SimulatedDisk { platter: Arc::new(Mutex::new(platter)), dead: false }
    }
}

impl<T: Clone + Hash, D: Clone + Hash> SimulatedDisk<T, D> {
    /// A new handle to the same disk, as after a restart.
    pub fn reopen(&self) -> Self {
        SimulatedDisk { platter: self.platter.clone(), dead: false }
    }

    /// Makes the next save fail.
    pub fn fail_next_save(&self, fault: DiskFault) {
        self.platter().fault = Some(fault);
    }

    /// Makes the next saves succeed, and flips back the bit that was flipped.
    pub fn mend(&self) {
        let mut platter = self.platter();
        platter.fault = None;
        if let Some(bit) = platter.flipped.take() {
            platter.flip(bit);
        }
    }

    /// Flips one bit of what is on the disk. False if nothing is, or a bit is flipped already.
    pub fn flip_bit(&self, which: usize) -> bool {
        let mut platter = self.platter();
        let possible = !platter.journal.is_empty() && platter.flipped.is_none();
        if possible {
            let bit = which % platter.bits();
            platter.flip(bit);
            platter.flipped = Some(bit);
        }
        possible
    }

    /// How many bits there are to flip: those of the journal, and then those of the two marks.
    pub fn bits(&self) -> usize {
        self.platter().bits()
    }

    /// How many bytes the journal has.
    pub fn journal_len(&self) -> usize {
        self.platter().journal.len()
    }

    /// How many saves have succeeded.
    pub fn saves(&self) -> u64 {
        self.platter().saves
    }

    fn platter(&self) -> MutexGuard<'_, Platter<T, D>> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn damaged<V>(what: &str) -> Result<V> {
    let error = format!("{what} is damaged: replace this disk, under a new replica id");
    Err(Error::new(ErrorKind::InvalidData, error))
}

impl<T, D> Platter<T, D> {
    fn bits(&self) -> usize {
        8 * (self.journal.len() + 2 * MARK)
    }

    fn flip(&mut self, bit: usize) {
        let (byte, bit) = (bit / 8, 1 << (bit % 8));
        match byte.checked_sub(self.journal.len()) {
            None => self.journal[byte] ^= bit,
            Some(byte) => self.marks[byte / MARK][byte % MARK] ^= bit,
        }
    }

    /// The number of the next record.
    fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// The place behind a record, if there is a whole one of this number at `at`.
    fn record_end(&self, at: usize, number: u64) -> Option<usize> {
        let header = self.journal.get(at..at + HEADER)?;
        let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
        let rest = self.journal.get(at + 8..)?.get(..length)?;
        let whole = header[4..8] == crc32fast::hash(rest).to_le_bytes();
        let known = (self.first..self.next()).contains(&number);
        let named = header[8..] == number.to_le_bytes();
        (whole && known && named).then_some(at + 8 + length)
    }

    /// How many of the changes the journal holds, if it holds all that it should.
    fn read(&self) -> Result<usize> {
        let marks = self.marks.map(|bytes| read_mark(&bytes));
        let Some((last, end)) = marks.iter().flatten().max().copied() else {
            return damaged("each of the marks");
        };
        let (mut at, mut number) = (0, self.first);
        while at < end {
            let Some(next) = self.record_end(at, number) else {
                return damaged(&format!("record {number}"));
            };
            (at, number) = (next, number + 1);
        }
        if at != end || (end > 0 && number != last + 1) {
            return damaged("the end of the journal");
        }
        if self.record_end(end, number).is_some() {
            number += 1;
        } else if marks.contains(&None) {
            // A mark is written after its record, so half a mark comes with a whole record.
            return damaged("a mark");
        }
        Ok((number - self.first) as usize)
    }
}

impl<T: Clone + Hash, D: Clone + Hash> Platter<T, D> {
    /// What the journal says, after an unfinished end of it was rolled back.
    fn load(&mut self) -> Result<Change<T, D>> {
        let held = self.read()?;
        self.changes.truncate(held);
        self.fold();
        Ok(self.changes.first().cloned().unwrap_or_default())
    }

    /// Puts a new journal in the place of the old one, as renaming a file does: at once.
    fn fold(&mut self) {
        let number = self.next() - 1;
        let mut saved = Change::default();
        let anything = !self.changes.is_empty();
        self.changes.drain(..).for_each(|change| append(&mut saved, change));
        (self.journal, self.flipped, self.first) = (Vec::new(), None, number + 1);
        if anything {
            self.first = number;
            self.write_record(number, &saved);
            self.changes.push(saved);
        }
        self.marks = [mark(number, self.journal.len()); 2];
        self.folded = self.journal.len();
    }

    fn write_record(&mut self, number: u64, change: &Change<T, D>) {
        let at = self.journal.len();
        self.journal.extend([0; 8]);
        self.journal.extend(number.to_le_bytes());
        let mut bytes = Bytes(std::mem::take(&mut self.journal));
        let Change { term, voted_for, truncate_from, compacted, runs, .. } = change;
        (term, voted_for, truncate_from, compacted, runs, &change.membership).hash(&mut bytes);
        let snapshot = change.snapshot.as_ref().map(|it| (it.last(), &it.data));
        snapshot.hash(&mut bytes);
        self.journal = bytes.0;
        let rest = &self.journal[at + 8..];
        let (length, checksum) = (rest.len() as u32, crc32fast::hash(rest));
        self.journal[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.journal[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
    }

    fn save(&mut self, change: Change<T, D>) -> Result<()> {
        let (number, at) = (self.next(), self.journal.len());
        if let Some(DiskFault::Full(times)) = self.fault {
            self.fault = (times > 1).then_some(DiskFault::Full(times - 1));
            return Err(Error::new(ErrorKind::StorageFull, "the disk is full"));
        }
        if self.fault.take_if(|fault| *fault == DiskFault::Fails).is_some() {
            return Err(Error::other("the disk failed to write"));
        }
        self.write_record(number, &change);
        self.changes.push(change);
        let (end, slot) = (self.journal.len(), (number % 2) as usize);
        let before = std::mem::replace(&mut self.marks[slot], mark(number, end));
        match self.fault.take() {
            Some(DiskFault::CrashAt(bytes)) => {
                self.journal.truncate(at + bytes.min(end - at));
                let written = bytes.saturating_sub(end - at).min(MARK);
                self.marks[slot][written..].copy_from_slice(&before[written..]);
                Err(Error::other("power is lost"))
            }
            Some(DiskFault::Reordered(sectors)) => {
                self.marks[slot] = before;
                self.lose_sectors(at, sectors);
                Err(Error::other("power is lost"))
            }
            Some(_) => Err(Error::other("the disk failed to sync")),
            None => {
                self.saves += 1;
                if end > 2 * self.folded + GROWTH {
                    self.fold();
                }
                Ok(())
            }
        }
    }

    /// Undoes the writing of those sectors from `at` on that do not have their bit.
    fn lose_sectors(&mut self, at: usize, sectors: u64) {
        let kept = |place: usize| sectors >> ((place / SECTOR) % 64) & 1 == 1;
        let end = (at..self.journal.len()).rev().find(|place| kept(*place));
        self.journal.truncate(end.map_or(at, |place| place + 1));
        (at..self.journal.len()).filter(|it| !kept(*it)).for_each(|it| self.journal[it] = 0);
    }
}

impl<T: Clone + Hash + Send + Sync, D: Clone + Hash + Send> Storage<T, D> for SimulatedDisk<T, D> {
    fn load(&mut self) -> Result<Change<T, D>> {
        self.platter().load()
    }

    fn save(&mut self, change: Change<T, D>) -> Result<()> {
        if self.dead {
            return Err(Error::other("this handle has failed before, open the disk again"));
        }
        let result = self.platter().save(change);
        self.dead = result.is_err();
        result
    }
}

/// Says that the journal is saved up to the record of this number, which ends here.
fn mark(number: u64, end: usize) -> [u8; MARK] {
    let mut bytes = [0; MARK];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&(end as u64).to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn read_mark(bytes: &[u8; MARK]) -> Option<(u64, usize)> {
    let number = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let end = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
    (mark(number, end as usize) == *bytes).then_some((number, end as usize))
}

/// Writes down what is hashed.
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}
