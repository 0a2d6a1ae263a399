//! What every storage must do, as a suite to run against yours.
//!
//! ```
//! use little_raft_sim::MemoryStorage;
//! use little_raft_sim::conformance::{Entry, Place, check};
//!
//! struct Memory(MemoryStorage<Entry>);
//!
//! impl Place for Memory {
//!     type Storage = MemoryStorage<Entry>;
//!
//!     fn open(&mut self) -> std::io::Result<Self::Storage> {
//!         Ok(self.0.clone())
//!     }
//! }
//!
//! check(|| Memory(MemoryStorage::default()));
//! ```

use crate::Random;
use little_raft::{Change, LogId, Membership, Run, Snapshot, StateMachineTransition, Storage};
use rand::{RngExt, SeedableRng};
use std::sync::Arc;

/// What the suite saves as transitions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Entry(pub u64, pub Vec<u8>);

impl StateMachineTransition for Entry {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.0
    }
}

/// Somewhere a storage keeps its data: a directory, a shared piece of memory. Dropping it may remove
/// the data.
pub trait Place {
    /// The storage under test.
    type Storage: Storage<Entry>;

    /// Opens the storage of this place, new or with what was saved there. The one before is dropped
    /// first.
    ///
    /// # Errors
    /// Those of the storage.
    fn open(&mut self) -> std::io::Result<Self::Storage>;
}

/// A place whose storage can be made to fail.
pub trait FailingPlace: Place {
    /// Makes the next save fail, at a point that depends on the number: before anything is written,
    /// after all is, or anywhere in between.
    fn fail_next_save(&mut self, storage: &mut Self::Storage, point: usize);
}

/// Checks order, truncation, compaction, snapshots, configurations and reopening: what a storage
/// loads is what was saved, after every one of hundreds of changes such as replicas make.
///
/// # Panics
/// At the first rule that is broken, with what was saved and what was loaded.
pub fn check<P: Place>(new: impl Fn() -> P) {
    let mut place = new();
    let nothing = load(&mut place);
    assert_eq!(nothing, Held::default(), "a new storage holds nothing");
    for seed in 0..20 {
        let (mut place, mut writer) = (new(), Writer::new(seed));
        let mut storage = place.open().expect("a new storage opens");
        assert_eq!(Held::of(&storage.load().expect("a new storage loads")), Held::default());
        for number in 0..40 {
            let change = writer.change();
            writer.held.take(&change);
            storage.save(change).expect("a save succeeds");
            if writer.random.random_ratio(1, 4) {
                drop(storage);
                storage = place.open().expect("a storage opens again");
                let loaded = Held::of(&storage.load().expect("a storage loads"));
                assert_eq!(loaded, writer.held, "after save {number} with seed {seed}");
            }
        }
    }
}

/// Checks that a save which fails has either happened as a whole or not at all, that the handle is
/// dead after it, and that another one goes on from there.
///
/// # Panics
/// At the first rule that is broken.
pub fn check_failures<P: FailingPlace>(new: impl Fn() -> P) {
    for seed in 0..40 {
        let (mut place, mut writer) = (new(), Writer::new(seed));
        let mut storage = place.open().expect("a new storage opens");
        storage.load().expect("a new storage loads");
        for point in 0..30 {
            let (before, change) = (writer.held.clone(), writer.change());
            let fails = writer.random.random_ratio(1, 2);
            if fails {
                place.fail_next_save(&mut storage, point);
            }
            writer.held.take(&change);
            let result = storage.save(change.clone());
            assert_eq!(result.is_err(), fails, "a save fails if it is made to: {result:?}");
            if !fails {
                continue;
            }
            assert!(storage.save(change).is_err(), "a handle that has failed saves nothing more");
            drop(storage);
            storage = place.open().expect("a storage opens after a failure");
            let loaded = Held::of(&storage.load().expect("a storage loads after a failure"));
            let whole = loaded == before || loaded == writer.held;
            assert!(
                whole,
                "half of a save: {loaded:?} is neither {before:?} nor {:?}",
                writer.held
            );
            writer.resume(loaded);
        }
    }
}

fn load<P: Place>(place: &mut P) -> Held {
    let mut storage = place.open().expect("a storage opens");
    Held::of(&storage.load().expect("a storage loads"))
}

/// What a storage must hold, however it divides it into runs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    term: usize,
    voted_for: Option<usize>,
    compacted: LogId,
    /// Index, term and content of every entry.
    entries: Vec<(LogId, Content)>,
    snapshot: Option<Snapshot<Vec<u8>>>,
    membership: Option<Membership>,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Transition(Entry),
    Configuration(Arc<Membership>),
}

impl Held {
    fn of(change: &Change<Entry>) -> Held {
        let mut held = Held::default();
        held.take(change);
        held
    }

    fn last(&self) -> LogId {
        self.entries.last().map_or(self.compacted, |(id, _)| *id)
    }

    /// The meaning of a change, said as plainly as can be.
    fn take(&mut self, change: &Change<Entry>) {
        (self.term, self.voted_for) = (change.term, change.voted_for);
        if let Some(from) = change.truncate_from {
            self.entries.retain(|(id, _)| id.index < from);
        }
        self.compacted = change.compacted;
        self.entries.retain(|(id, _)| id.index > change.compacted.index);
        for run in &change.runs {
            let transitions = run.transitions.iter().cloned().map(Content::Transition);
            let membership = run.membership.iter().cloned().map(Content::Configuration);
            for (index, content) in (run.first..).zip(transitions.chain(membership)) {
                self.entries.push((LogId { term: run.term, index }, content));
            }
        }
        self.snapshot = change.snapshot.clone().or(self.snapshot.take());
        self.membership = change.membership.clone().or(self.membership.take());
    }
}

/// Makes changes such as a replica makes.
struct Writer {
    random: Random,
    held: Held,
    number: u64,
}

impl Writer {
    fn new(seed: u64) -> Writer {
        Writer { random: Random::seed_from_u64(seed), held: Held::default(), number: 0 }
    }

    /// Goes on from what a storage has loaded.
    fn resume(&mut self, held: Held) {
        self.held = held;
    }

    fn change(&mut self) -> Change<Entry> {
        let term = self.held.term.max(1) + usize::from(self.random.random_ratio(1, 5));
        let kept = if term == self.held.term { self.held.voted_for } else { None };
        let voted_for = kept.or_else(|| self.random.random_ratio(1, 2).then_some(3));
        let compacted = self.held.compacted;
        let mut change = Change { term, voted_for, compacted, ..Change::default() };
        if self.held.membership.is_none() {
            change.membership = Some(self.configuration());
        }
        let mut last = self.held.last();
        match self.random.random_range(0..8) {
            0 if !self.held.entries.is_empty() => last = self.truncate(&mut change),
            1 if !self.held.entries.is_empty() => self.compact(&mut change),
            2 => last = self.install(&mut change),
            _ => {}
        }
        for _ in 0..self.random.random_range(0..4) {
            let run = self.run(last, term);
            last = run.last();
            change.runs.push(run);
        }
        change
    }

    fn truncate(&mut self, change: &mut Change<Entry>) -> LogId {
        let place = self.random.random_range(0..self.held.entries.len());
        change.truncate_from = Some(self.held.entries[place].0.index);
        place.checked_sub(1).map_or(self.held.compacted, |place| self.held.entries[place].0)
    }

    /// A snapshot of a part of the log, and perhaps less of that forgotten.
    fn compact(&mut self, change: &mut Change<Entry>) {
        let place = self.random.random_range(0..self.held.entries.len());
        let end = self.held.entries[place].0;
        if self.held.snapshot.as_ref().is_none_or(|it| it.last_included_index < end.index) {
            let kept = self.random.random_range(0..=place);
            change.compacted = self.held.entries[kept].0;
            self.snapshot(change, end);
        }
    }

    /// A leader's snapshot in the place of the whole log.
    fn install(&mut self, change: &mut Change<Entry>) -> LogId {
        let index = self.held.last().index + self.random.random_range(1..9);
        let end = LogId { term: change.term, index };
        if self.random.random() {
            change.truncate_from = Some(self.held.compacted.index + 1);
        }
        change.compacted = end;
        self.snapshot(change, end);
        end
    }

    fn snapshot(&mut self, change: &mut Change<Entry>, end: LogId) {
        let data = vec![self.random.random(); self.random.random_range(0..3_000)];
        let (last_included_index, last_included_term) = (end.index, end.term);
        change.snapshot = Some(Snapshot { last_included_index, last_included_term, data });
        change.membership = Some(self.configuration());
    }

    fn run(&mut self, prev: LogId, term: usize) -> Run<Entry> {
        let (first, mut transitions, mut membership) = (prev.index + 1, Vec::new(), None);
        if self.random.random_ratio(1, 6) {
            membership = Some(Arc::new(self.configuration()));
        } else {
            for _ in 0..self.random.random_range(1..6) {
                self.number += 1;
                let content = vec![self.random.random(); self.random.random_range(0..300)];
                transitions.push(Entry(self.number, content));
            }
        }
        let term = self.random.random_range(prev.term.max(1)..=term);
        Run { first, term, transitions: Arc::new(transitions), membership }
    }

    fn configuration(&mut self) -> Membership {
        let mut some = |least: usize| {
            let count = self.random.random_range(least..4);
            (0..count).map(|_| self.random.random_range(0..9)).collect()
        };
        Membership { voters: some(1), outgoing: some(0), learners: some(0) }
    }
}
