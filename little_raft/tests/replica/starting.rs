//! Starting: from nothing, from what the storage holds, from what the state machine remembers.

use crate::support::*;
use little_raft::{
    Change, LogId, Membership, Message, Role, Snapshot, StateMachine, Storage, TransitionState,
};
use little_raft_sim::MemoryStorage;
use std::io::ErrorKind;
use std::sync::Mutex;
use std::time::Duration;

type Memory = MemoryStorage<Write, Vec<usize>>;

/// A storage in which a replica without peers has written 1 to 10, with snapshots.
fn memory_of_a_life(snapshot_delta: usize) -> (Memory, Vec<usize>) {
    let (storage, net) = (Memory::default(), Net::new(1));
    let keep = storage.clone();
    let mut node = Node::start(&net, 1, &[], SOON, |replica| {
        replica.with_storage(keep).with_snapshots(snapshot_delta)
    });
    node.until("leadership", || node.leads());
    for id in 1..=10 {
        node.write(id);
        node.until("the write", || node.book().written.contains(&id));
    }
    node.halt().unwrap();
    let written = node.book().written.clone();
    (storage, written)
}

#[test]
fn the_snapshot_in_the_storage_is_restored_and_the_entries_after_it_are_applied_again() {
    let (storage, mut written) = memory_of_a_life(4);
    let book = Book::default();
    let keep = storage.clone();
    let node = Node::start_with(&Net::new(1), 1, &[], SOON, book, |replica| {
        replica.with_storage(keep).with_snapshots(4)
    });
    written.push(NOOP);
    node.until("all that was written", || node.book().written == written);
    let book = node.book();
    let Event::Restore(restored) = &book.events[0] else { panic!("{:?} first", book.events[0]) };
    assert_eq!((restored.len(), &written[..restored.len()]), (8, &restored[..]));
    let again = book.events.iter().filter(|event| matches!(event, Event::Apply(_)));
    assert_eq!(again.count(), written.len() - restored.len());
    assert_eq!(book.asked_for_snapshot, 0, "the storage's snapshot is the one that counts");
}

#[test]
fn without_a_snapshot_in_the_storage_all_entries_are_applied_again() {
    let (storage, mut written) = memory_of_a_life(0);
    let node =
        Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_storage(storage.clone()));
    written.push(NOOP);
    node.until("all that was written", || node.book().written == written);
    assert_eq!(node.book().asked_for_snapshot, 1);
    check_events(&node.book().events);
}

#[test]
fn the_configuration_in_the_storage_wins_over_the_arguments() {
    for snapshot_delta in [0, 4] {
        // Saved by a cluster of one: it needs nobody's vote, whoever is named now.
        let (storage, written) = memory_of_a_life(snapshot_delta);
        let node = Node::start(&Net::new(3), 1, &[2, 3], SOON, |replica| {
            replica.with_storage(storage.clone()).with_snapshots(snapshot_delta)
        });
        node.until("leadership", || node.leads());
        node.until("all that was written", || node.book().written.starts_with(&written));
        let voters = node.status().unwrap().membership.voters.clone();
        assert_eq!(Vec::from_iter(voters), [1]);
    }
}

/// A state machine that brings five entries with it, the last of term 2.
fn book_with_five_entries() -> Book {
    let data = vec![NOOP, 1, 2, 3, 4];
    let snapshot = Snapshot { last_included_index: 5, last_included_term: 2, data };
    Book { initial: Some(snapshot), ..Book::default() }
}

#[test]
fn the_state_machines_own_snapshot_is_asked_for_once_and_continued() {
    let storage = Memory::default();
    let (keep, book) = (storage.clone(), book_with_five_entries());
    let mut node =
        Node::start_with(&Net::new(1), 1, &[], SOON, book, |replica| replica.with_storage(keep));
    node.until("leadership", || node.leads());
    node.write(9);
    node.until("the write", || node.book().written == [NOOP, 1, 2, 3, 4, NOOP, 9]);
    node.until("the status after that", || {
        let status = node.status().unwrap();
        (status.first_index, status.last_index, status.term) == (6, 7, 3)
    });
    node.halt().unwrap();
    assert_eq!(node.book().asked_for_snapshot, 1);
    assert!(!node.book().events.iter().any(|event| matches!(event, Event::Restore(_))));
    let saved = storage.clone().load().unwrap().snapshot.expect("it is saved from now on");
    assert_eq!(saved.last(), LogId { term: 2, index: 5 });
}

#[test]
fn a_leader_sends_the_snapshot_that_it_began_with_to_those_who_lack_it() {
    let net = Net::new(3);
    let start = |id, book| {
        let peers: Vec<_> = (1..=3).filter(|peer| *peer != id).collect();
        Node::start_with(&net, id, &peers, SOON, book, |replica| replica)
    };
    let nodes = vec![
        start(1, book_with_five_entries()),
        start(2, book_with_five_entries()),
        start(3, Book::default()),
    ];
    let group = Group { net: net.clone(), nodes };
    group.write(9);
    group.agree(|written| written.starts_with(&[NOOP, 1, 2, 3, 4]) && written.contains(&9));
    assert!(matches!(group.node(3).book().events[0], Event::Restore(_)));
}

#[test]
fn a_state_machines_snapshot_does_not_hide_the_configurations_before_it() {
    let (storage, net) = (Memory::default(), Net::new(2));
    let keep = storage.clone();
    let mut node = Node::start(&net, 1, &[], SOON, |replica| replica.with_storage(keep));
    node.until("leadership", || node.leads());
    node.receive(Message::change_membership(vec![1], vec![2]));
    let learns = || node.status().is_some_and(|it| it.membership.learners.contains(&2));
    node.until("a learner", learns);
    node.write(9);
    node.until("the write", || node.book().written.contains(&9));
    let last = node.status().unwrap();
    node.halt().unwrap();
    // A state machine that keeps itself comes back with all that it had applied.
    let data = node.book().written.clone();
    // One entry more than it has written: the configuration.
    let snapshot =
        Snapshot { last_included_index: data.len() + 1, last_included_term: last.term, data };
    let book = Book { initial: Some(snapshot), ..Book::default() };
    let node =
        Node::start_with(&net, 1, &[], SOON, book, |replica| replica.with_storage(storage.clone()));
    node.until("leadership", || node.leads());
    let learners = node.status().unwrap().membership.learners.clone();
    assert_eq!(Vec::from_iter(learners), [2], "the configuration of index 2 is still in force");
}

#[test]
fn a_replica_that_is_joining_never_stands_for_election() {
    let timeouts = (HEARTBEAT * 2, HEARTBEAT * 3);
    let node = Node::start(&Net::new(3), 1, &[2, 3], timeouts, |replica| replica.joining());
    node.until("ten election timeouts", || {
        node.status().is_some_and(|status| status.now > 30 * HEARTBEAT)
    });
    assert!(node.wire().statuses.iter().all(|it| (it.role, it.term) == (Role::Follower, 0)));
    assert!(node.net.collect(2).is_empty());
}

/// A storage with what no replica saves.
struct Damaged(Change<Write, Vec<usize>>);

impl Storage<Write, Vec<usize>> for Damaged {
    fn load(&mut self) -> std::io::Result<Change<Write, Vec<usize>>> {
        Ok(self.0.clone())
    }

    fn save(&mut self, _change: Change<Write, Vec<usize>>) -> std::io::Result<()> {
        panic!("nothing is saved over it")
    }
}

#[test]
fn an_impossible_saved_state_ends_start_with_an_error() {
    let membership = Membership { voters: [1].into(), ..Membership::default() };
    let good = Change { term: 3, membership: Some(membership), ..Change::default() };
    let data = vec![NOOP];
    let snapshot =
        |index| Snapshot { last_included_index: index, last_included_term: 2, data: data.clone() };
    let damages = [
        ("a gap", Change { runs: vec![run(2, 1, &[7])], ..good.clone() }),
        ("a term above the current", Change { runs: vec![run(1, 4, &[7])], ..good.clone() }),
        ("a falling term", Change { runs: vec![run(1, 2, &[7]), run(2, 1, &[8])], ..good.clone() }),
        ("a run of nothing", Change { runs: vec![run(1, 1, &[])], ..good.clone() }),
        ("a snapshot beyond the log", Change { snapshot: Some(snapshot(9)), ..good.clone() }),
        ("a term without end", Change { term: usize::MAX, ..good.clone() }),
        (
            "compacted without end",
            Change { compacted: LogId { term: 3, index: usize::MAX }, ..good.clone() },
        ),
        (
            "compacted at the limit",
            Change {
                compacted: LogId { term: 2, index: usize::MAX / 2 },
                snapshot: Some(snapshot(usize::MAX / 2)),
                ..good.clone()
            },
        ),
        ("an index without end", Change { runs: vec![run(usize::MAX, 1, &[7])], ..good.clone() }),
    ];
    for (damage, saved) in damages {
        let mut node =
            Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_storage(Damaged(saved)));
        let error = node.join().expect_err(damage);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{damage}: {error}");
        assert!(node.book().events.is_empty(), "{damage}: the state machine is left alone");
    }
}

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps what the library warns of.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) && record.target().starts_with("little_raft") {
            WARNINGS.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_replica_that_keeps_nothing_warns_of_it() {
    log::set_logger(&Warnings).expect("nobody else sets one");
    log::set_max_level(log::LevelFilter::Warn);
    let start = |id: usize, storage: bool| {
        let net = Net::of([id]);
        let mut node = Node::start(
            &net,
            id,
            &[],
            (Duration::from_secs(60), Duration::from_secs(60)),
            |replica| {
                if storage { replica.with_storage(Memory::default()) } else { replica }
            },
        );
        node.until("a turn", || node.turns() > 0);
        node.halt().unwrap();
    };
    let (forgetful, durable) = (9001, 9002);
    start(forgetful, false);
    start(durable, true);
    let warnings = WARNINGS.lock().unwrap();
    assert!(warnings.iter().any(|it| it.starts_with("9001:")), "{warnings:?}");
    assert!(!warnings.iter().any(|it| it.starts_with("9002:")), "{warnings:?}");
}

/// A state machine that knows nothing but transitions.
struct Plain;

impl StateMachine<Write, Vec<usize>> for Plain {
    fn register_transition_state(&mut self, _: usize, _: TransitionState) {}
    fn apply_transition(&mut self, _: Write) {}
    fn get_pending_transitions(&mut self) -> Vec<Write> {
        Vec::new()
    }
}

#[test]
#[should_panic(expected = "implement set_snapshot for LogId { term: 2, index: 7 }")]
fn a_state_machine_that_knows_no_snapshots_passes_over_none() {
    Plain.set_snapshot(Snapshot { last_included_index: 7, last_included_term: 2, data: vec![] });
}

#[test]
#[should_panic(expected = "with_snapshots needs StateMachine::create_snapshot at 7@2")]
fn a_state_machine_that_knows_no_snapshots_creates_none() {
    Plain.create_snapshot(7, 2);
}
