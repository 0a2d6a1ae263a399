//! What the tests share.
#![allow(dead_code)]

use little_raft::{Change, Index, LogId, Membership, Run, Snapshot, Storage, Term};
use little_raft_redb::RedbStorage;
use little_raft_sim::append;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What the log of a test holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) number: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) bytes: Vec<u8>,
}

impl Command {
    /// Different for every number, in content and length.
    pub(crate) fn new(number: u64, length: usize) -> Command {
        let byte = |place| (number.wrapping_mul(31).wrapping_add(place) % 251) as u8;
        Command { number, bytes: (0..length as u64).map(byte).collect() }
    }
}

pub(crate) type Saved = Change<Command, Vec<u8>>;

/// Opens a directory and loads what is in it.
pub(crate) fn load(directory: &Path) -> io::Result<Saved> {
    RedbStorage::open(directory)?.load()
}

/// The same state with every entry in a run of its own, for how they are grouped means nothing.
pub(crate) fn flat(mut saved: Saved) -> Saved {
    let single = |run: &Run<Command>| -> Vec<Run<Command>> {
        (run.first..=run.last().index).map(|index| run.slice(index, index)).collect()
    };
    saved.runs = saved.runs.iter().flat_map(single).collect();
    saved.truncate_from = None;
    saved
}

/// A run of commands whose numbers are their indices.
pub(crate) fn run(first: Index, term: Term, count: usize, length: usize) -> Run<Command> {
    let commands = (first..first + count).map(|index| Command::new(index as u64, length));
    Run { first, term, transitions: Arc::new(commands.collect()), membership: None }
}

/// A configuration as an entry.
pub(crate) fn configuration(first: Index, term: Term, voters: &[usize]) -> Run<Command> {
    let membership = Some(Arc::new(membership(voters)));
    Run { first, term, transitions: Arc::default(), membership }
}

pub(crate) fn membership(voters: &[usize]) -> Membership {
    Membership { voters: voters.iter().copied().collect(), ..Membership::default() }
}

pub(crate) fn snapshot(index: Index, term: Term, length: usize) -> Snapshot<Vec<u8>> {
    let data = (0..length).map(|place| (place * 7 + index) as u8).collect();
    Snapshot { last_included_index: index, last_included_term: term, data }
}

pub(crate) fn id(term: Term, index: Index) -> LogId {
    LogId { term, index }
}

/// Appends entries to what was saved.
pub(crate) fn appending(term: Term, runs: Vec<Run<Command>>) -> Saved {
    Change { term, voted_for: Some(1), runs, ..Change::default() }
}

/// A directory with something of everything in it: several hundred entries of several sizes and
/// terms, a configuration, a snapshot, and a compacted beginning. Returns what is in it.
pub(crate) fn furnish(storage: &mut RedbStorage) -> Saved {
    let mut model = Saved::default();
    let first = Change { membership: Some(membership(&[1, 2, 3])), ..Change::default() };
    let compacted = id(1, 30);
    let mut changes = vec![first];
    for begin in (1..=200).step_by(20) {
        changes.push(appending(1, vec![run(begin, 1, 20, 100 + begin)]));
    }
    changes.push(appending(2, vec![configuration(201, 2, &[1, 2])]));
    changes.push(appending(3, vec![run(202, 3, 30, 10), run(232, 3, 2, 9000)]));
    changes.push(Change {
        term: 3,
        voted_for: Some(2),
        compacted,
        snapshot: Some(snapshot(40, 1, 70_000)),
        membership: Some(membership(&[1, 2, 3])),
        ..Change::default()
    });
    changes.push(Change { compacted, ..appending(4, vec![run(234, 4, 3, 50)]) });
    for change in changes {
        append(&mut model, change.clone());
        storage.save(change).expect("saved");
    }
    model
}

/// Copies the files of a directory into another, which may be while they are in use: what comes
/// over is what a process that died at this moment would have left.
pub(crate) fn copy(from: &Path, to: &Path) {
    for file in ["replica.redb", "acknowledged"] {
        std::fs::copy(from.join(file), to.join(file)).expect("copied");
    }
}

/// Numbers that look random and are the same in every run.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(2) + 1)
    }

    /// The next one below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % bound
    }
}

/// How often to repeat what is only worth repeating: as the environment says, or so often.
pub(crate) fn repetitions(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().expect("a number"))
}
