//! Whatever is saved, in whatever order, and wherever the program ends: what comes back is what
//! `Change::append` says.

mod common;

use common::*;
use little_raft::{Change, Membership, Storage};
use little_raft_redb::RedbStorage;
use little_raft_sim::append;
use proptest::prelude::*;
use std::sync::Arc;

/// One save, in terms of whatever was saved before.
#[derive(Clone, Debug)]
struct Step {
    /// How much the term grows.
    term: usize,
    vote: Option<usize>,
    /// How many entries go from the end.
    truncated: Option<usize>,
    /// How much of what is left is compacted, in percent. More than 100: by so many entries beyond
    /// the end, as when a snapshot was installed.
    compacted: Option<usize>,
    /// Runs, by their number of entries, none for a configuration, and the size of each.
    appended: Vec<(usize, usize)>,
    snapshot: Option<usize>,
    membership: Option<Vec<usize>>,
    /// Whether the program ends after it.
    reopen: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0..40usize, 2 => 200..300usize, 1 => 3000..20_000usize];
    let count = prop_oneof![3 => Just(0usize), 8 => 1..5usize, 3 => 30..400usize];
    let run = (count, size).prop_map(|(count, size)| (count, size.min(200_000 / (count + 1))));
    let ids = || proptest::collection::vec(1..9usize, 1..5);
    (
        0..2usize,
        proptest::option::of(1..4usize),
        proptest::option::weighted(0.2, 0..60usize),
        proptest::option::weighted(0.2, 0..120usize),
        proptest::collection::vec(run, 0..4),
        proptest::option::weighted(0.15, 0..200_000usize),
        proptest::option::weighted(0.15, ids()),
        proptest::bool::weighted(0.25),
    )
        .prop_map(
            |(term, vote, truncated, compacted, appended, snapshot, membership, reopen)| Step {
                term,
                vote,
                truncated,
                compacted,
                appended,
                snapshot,
                membership,
                reopen,
            },
        )
}

/// The change that a step means after what was saved.
fn change(step: &Step, saved: &Saved) -> Saved {
    let last = saved.runs.last().map_or(saved.compacted, |run| run.last());
    let length = last.index - saved.compacted.index;
    let truncate_from = step.truncated.map(|count| last.index + 1 - count.min(length));
    let kept = truncate_from.map_or(last.index, |from| from - 1);
    let term = saved.term + step.term + 1;
    let compacted = match step.compacted {
        Some(percent @ ..=100) => {
            let index = saved.compacted.index + (kept - saved.compacted.index) * percent / 100;
            let holds = saved.runs.iter().find(|run| run.last().index >= index);
            let at = holds.filter(|_| index > saved.compacted.index);
            at.map_or(saved.compacted, |run| id(run.term, index))
        }
        Some(beyond) => id(term, kept + beyond - 100),
        None => saved.compacted,
    };
    let mut next = kept.max(compacted.index) + 1;
    let mut runs = Vec::new();
    for &(count, size) in &step.appended {
        runs.push(match count {
            0 => configuration(next, term, &[1, size + 2]),
            _ => run(next, term, count, size),
        });
        next += count.max(1);
    }
    let snapshot = step.snapshot.map(|size| snapshot(compacted.index, compacted.term, size));
    let voters = step.membership.as_deref();
    let membership: Option<Membership> = voters.map(membership);
    Change { term, voted_for: step.vote, truncate_from, compacted, runs, snapshot, membership }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(repetitions("PROPTEST_CASES", 32) as u32))]


    #[test]
    fn what_was_saved_comes_back(steps in proptest::collection::vec(step(), 1..25)) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut storage = RedbStorage::open(directory.path()).expect("opened");
        let mut model = Saved::default();
        for step in &steps {
            let change = change(step, &model);
            append(&mut model, change.clone());
            storage.save(change).expect("saved");
            if step.reopen {
                drop(storage);
                storage = RedbStorage::open(directory.path()).expect("opened again");
                let loaded: Saved = storage.load().expect("loaded");
                prop_assert_eq!(flat(loaded), flat(model.clone()));
            }
        }
        drop(storage);
        let inspection = little_raft_redb::inspect(directory.path()).expect("inspected");
        let last = model.runs.last().map_or(model.compacted, |run| run.last());
        prop_assert_eq!((inspection.saves, inspection.last), (steps.len() as u64, last));
        prop_assert_eq!(flat(load(directory.path()).expect("loaded")), flat(model));
    }
}

#[test]
fn nothing_was_saved() {
    let directory = tempfile::tempdir().expect("a directory");
    assert_eq!(load(directory.path()).expect("loaded"), Saved::default());
    assert_eq!(load(directory.path()).expect("loaded again"), Saved::default());
}

#[test]
fn a_truncation_below_the_compaction_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    storage.save(appending(1, vec![run(1, 1, 100, 10)])).expect("saved");
    // A leader's snapshot replaces a log of which a part was compacted in the same turn.
    let (truncate_from, compacted) = (Some(11), id(2, 50));
    let install = Change { truncate_from, compacted, ..appending(2, vec![run(51, 2, 1, 10)]) };
    storage.save(install).expect("saved");
    drop(storage);
    let loaded = load(directory.path()).expect("loaded");
    assert_eq!((loaded.compacted, loaded.runs), (id(2, 50), vec![run(51, 2, 1, 10)]));
}

#[test]
fn many_small_runs_come_back_as_few_long_ones() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    for index in 1..=300 {
        storage.save(appending(1, vec![run(index, 1, 1, 30)])).expect("saved");
    }
    let change = Change { compacted: id(1, 7), ..appending(2, vec![configuration(301, 1, &[1])]) };
    storage.save(change).expect("saved");
    drop(storage);
    let loaded = load(directory.path()).expect("loaded");
    assert_eq!(loaded.runs, vec![run(8, 1, 293, 30), configuration(301, 1, &[1])]);
}

#[test]
fn a_change_that_does_not_follow_is_refused_and_changes_nothing() {
    let mut gap = appending(1, vec![run(7, 1, 1, 10)]);
    let mut back = appending(1, vec![]);
    let mut both = appending(1, vec![run(6, 1, 1, 10)]);
    (gap.compacted, back.compacted, both.compacted) = (id(1, 2), id(1, 1), id(1, 2));
    both.runs[0].membership = Some(Arc::new(membership(&[1])));
    for wrong in [gap, back, both] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut storage = RedbStorage::open(directory.path()).expect("opened");
        let right = Change { compacted: id(1, 2), ..appending(1, vec![run(3, 1, 3, 10)]) };
        storage.save(appending(1, vec![run(1, 1, 2, 10)])).expect("saved");
        storage.save(right).expect("saved");
        let error = storage.save(wrong).expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        let error = storage.save(Saved::default()).expect_err("dead");
        assert!(error.to_string().contains("has failed before"), "{error}");
        drop(storage);
        assert_eq!(load(directory.path()).expect("loaded").runs, vec![run(3, 1, 3, 10)]);
    }
}
