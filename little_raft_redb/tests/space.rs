//! What a compaction of the log leaves unused is given back, and what that costs.

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::*;
use disk::Cable;
use little_raft::{Change, Storage};
use little_raft_redb::RedbStorage;
use little_raft_sim::append;
use std::fs;
use std::path::Path;

/// The entries of the log before it is compacted.
const ENTRIES: usize = 240;

fn size(directory: &Path) -> u64 {
    fs::metadata(directory.join("replica.redb")).expect("there").len()
}

/// Saves a long log.
fn fill(storage: &mut RedbStorage) -> Saved {
    let mut model = Saved::default();
    for first in (1..=ENTRIES).step_by(40) {
        let change = appending(1, vec![run(first, 1, 40, 25_000)]);
        append(&mut model, change.clone());
        storage.save(change).expect("saved");
    }
    model
}

/// Removes all but a few entries of it.
fn compaction(index: usize) -> Saved {
    Change {
        compacted: id(1, index),
        snapshot: Some(snapshot(index, 1, 1000)),
        ..appending(1, vec![])
    }
}

#[test]
fn a_compaction_gives_most_of_the_file_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let mut model = fill(&mut storage);
    let before = size(directory.path());
    let change = compaction(ENTRIES - 10);
    append(&mut model, change.clone());
    storage.save(change).expect("saved");
    let after = size(directory.path());
    assert!(before > 6_000_000 && after < before / 4, "{before} bytes made {after}");
    for first in (ENTRIES + 1..ENTRIES + 100).step_by(10) {
        let change =
            Change { compacted: model.compacted, ..appending(1, vec![run(first, 1, 10, 100)]) };
        append(&mut model, change.clone());
        storage.save(change).expect("saved");
    }
    drop(storage);
    assert_eq!(flat(load(directory.path()).expect("loaded")), flat(model));
}

/// A log that is compacted again and again while it grows, as replicas do.
#[test]
fn a_save_syncs_once_and_space_is_given_back_seldom() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut storage, cable) = Cable::open(directory.path(), 1).expect("opened");
    let (mut growths, mut give_backs) = (0, 0);
    let mut save = |change: Saved| {
        let (syncs, length) = (cable.disk().syncs, size(directory.path()));
        storage.save(change).expect("saved");
        match (cable.disk().syncs - syncs, size(directory.path())) {
            (1, _) => {}
            (2, longer) if longer > length => growths += 1,
            (_, shorter) if shorter < length / 2 => give_backs += 1,
            (syncs, now) => panic!("{syncs} syncs for a save, {length} bytes made {now}"),
        }
    };
    for first in (1..=ENTRIES).step_by(40) {
        save(appending(1, vec![run(first, 1, 40, 25_000)]));
    }
    for first in (ENTRIES + 1..3 * ENTRIES).step_by(2) {
        let compacted = id(1, first - 10);
        save(Change { compacted, ..appending(1, vec![run(first, 1, 2, 100)]) });
    }
    assert_eq!(give_backs, 1);
    // The file doubles when it is full.
    assert!(growths < 10, "{growths}");
    assert!(size(directory.path()) < 5_000_000);
}

#[test]
fn a_power_cut_while_space_is_given_back_loses_nothing() {
    let full = tempfile::tempdir().expect("a directory");
    let before = fill(&mut RedbStorage::open(full.path()).expect("opened"));
    let mut after = before.clone();
    append(&mut after, compaction(ENTRIES - 10));
    let (mut numbers, mut outcomes) = (Numbers::new(5), [0, 0, 0]);
    for cut in 0..repetitions("LITTLE_RAFT_POWER_CUTS", 6) {
        let directory = tempfile::tempdir().expect("a directory");
        copy(full.path(), directory.path());
        let (mut storage, cable) = Cable::open(directory.path(), cut as u64).expect("opened");
        cable.disk().fail_after(numbers.below(1500), numbers.below(24));
        let saved = storage.save(compaction(ENTRIES - 10)).is_ok();
        drop(storage);
        if cable.disk().is_off {
            cable.disk().come_back().expect("the real disk works");
        }
        let acknowledged = little_raft_redb::inspect(directory.path()).expect("sound").acknowledged;
        let loaded = flat(load(directory.path()).expect("a power cut is no damage"));
        let is_after = loaded == flat(after.clone());
        assert!(is_after || loaded == flat(before.clone()), "cut {cut}");
        assert!(
            is_after || !saved && acknowledged == ENTRIES as u64 / 40,
            "cut {cut}: an acknowledged save is lost"
        );
        outcomes[usize::from(is_after) + usize::from(saved)] += 1;
    }
    println!("{outcomes:?}: before the save, after it, after the end");
    assert!(outcomes[1] > 0, "{outcomes:?}");
}
