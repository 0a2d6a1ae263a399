//! The simulated disk, at every byte of a save, in every order of sectors and with every bit flipped.

use little_raft::{Change, LogId, Membership, Run, Snapshot, Storage};
use little_raft_sim::conformance::Entry;
use little_raft_sim::{DiskFault, SimulatedDisk, append};
use std::io::ErrorKind;
use std::sync::Arc;

/// What the laws of replicas would call a history: runs, a configuration, a snapshot.
fn changes() -> Vec<Change<Entry>> {
    let run = |first: usize, count: usize| {
        let entries = (first..first + count).map(|it| Entry(it as u64, vec![it as u8; 3]));
        let transitions = Arc::new(entries.collect());
        Run { first, term: 1, transitions, membership: None }
    };
    let membership = Membership { voters: [1, 2].into(), ..Membership::default() };
    let begin = Change { term: 1, membership: Some(membership.clone()), ..Change::default() };
    let next = |runs| Change { term: 1, voted_for: Some(1), runs, ..Change::default() };
    let snapshot = Snapshot { last_included_index: 4, last_included_term: 1, data: vec![9; 40] };
    let compacted = LogId { term: 1, index: 3 };
    let compact = Change {
        compacted,
        snapshot: Some(snapshot),
        membership: Some(membership),
        ..next(vec![run(9, 2)])
    };
    vec![begin, next(vec![run(1, 5), run(6, 1)]), next(vec![run(7, 2)]), compact]
}

/// A disk on which all but the last change are saved, what it then holds, and what it holds with the
/// last.
fn prepared() -> (SimulatedDisk<Entry>, Change<Entry>, Change<Entry>) {
    let (mut disk, mut before) = (SimulatedDisk::default(), Change::default());
    let mut changes = changes();
    let last = changes.pop().expect("there are some");
    for change in changes {
        append(&mut before, change.clone());
        disk.save(change).expect("no fault yet");
    }
    let mut after = before.clone();
    append(&mut after, last);
    (disk, before, after)
}

/// Saves the last change with a fault. Whether it is there afterwards.
fn crash(fault: DiskFault) -> bool {
    let (mut disk, before, after) = prepared();
    let last = changes().pop().expect("there are some");
    disk.fail_next_save(fault);
    disk.save(last.clone()).expect_err("the fault is told");
    assert!(disk.save(last).is_err(), "a handle that has failed is dead");
    let mut disk = disk.reopen();
    let loaded = disk.load().expect("what a crash leaves behind is no damage");
    assert!(loaded == before || loaded == after, "{fault:?} leaves half a save: {loaded:?}");
    // It goes on from there, and a second look sees the same.
    assert_eq!(disk.reopen().load().expect("loads"), loaded);
    let more =
        Change { term: 7, voted_for: None, compacted: loaded.compacted, ..Change::default() };
    disk.save(more).expect("it is mended by now");
    assert_eq!(disk.reopen().load().expect("loads").term, 7);
    loaded == after
}

/// Where the journal ends after the last save.
fn record_end() -> usize {
    let (mut disk, ..) = prepared();
    disk.save(changes().pop().expect("there are some")).expect("no fault");
    disk.journal_len()
}

#[test]
fn power_may_be_lost_at_every_byte_of_a_save() {
    let length = record_end() - prepared().0.journal_len();
    assert!(length > 150, "long enough to be torn in many ways");
    for bytes in 0..length + 30 {
        let kept = crash(DiskFault::CrashAt(bytes));
        assert_eq!(kept, bytes >= length, "{bytes} of {length} bytes were written");
    }
}

#[test]
fn sectors_may_be_written_in_any_order() {
    const SECTOR: usize = 32;
    let (first, last) = (prepared().0.journal_len() / SECTOR, record_end() / SECTOR);
    let count = last - first + 1;
    assert!((5..14).contains(&count), "enough sectors, and not too many orders: {count}");
    for written in 0..1_u64 << count {
        let kept = crash(DiskFault::Reordered(written << first));
        assert_eq!(
            kept,
            written == (1 << count) - 1,
            "of {count} sectors {written:b} were written"
        );
    }
}

#[test]
fn the_disk_may_fail_before_and_after_it_has_written_everything() {
    assert!(!crash(DiskFault::Fails));
    assert!(crash(DiskFault::FailsAfterAll));
    assert!(!crash(DiskFault::Full(1)));
}

#[test]
fn a_full_disk_stays_full_for_a_while() {
    let (disk, before, _) = prepared();
    disk.fail_next_save(DiskFault::Full(3));
    for _ in 0..3 {
        let mut disk = disk.reopen();
        assert_eq!(disk.load().expect("loads"), before);
        let error = disk.save(Change { term: 9, ..Change::default() }).expect_err("no space");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
    let mut disk = disk.reopen();
    disk.load().expect("loads");
    disk.save(Change { term: 9, ..Change::default() }).expect("there is space again");
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let (disk, before, _) = prepared();
    assert!(!SimulatedDisk::<Entry>::default().flip_bit(0), "an empty disk has nothing to flip");
    let (in_journal, bits) = (8 * disk.journal_len(), disk.bits());
    let mut loaded_anyway = 0;
    for bit in 0..bits {
        // A disk of its own for each, since loading folds the journal.
        let (disk, ..) = prepared();
        assert!(disk.flip_bit(bit) && !disk.flip_bit(bit), "one bit at a time");
        match disk.reopen().load() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidData),
            // The later of the marks says nothing that the record does not say itself.
            Ok(loaded) => {
                assert_eq!(loaded, before, "bit {bit} was flipped");
                assert!(bit >= in_journal, "bit {bit} of a record went unnoticed");
                loaded_anyway += 1;
            }
        }
    }
    assert!(loaded_anyway <= 8 * 20, "at most one mark is not needed: {loaded_anyway}");
    let (disk, before, _) = prepared();
    disk.flip_bit(77);
    disk.reopen().load().expect_err("it is damaged");
    disk.mend();
    assert_eq!(disk.reopen().load().expect("a sound copy took its place"), before);
}
