//! Stopping: by `halt`, and by an error.

use crate::support::*;
use crossbeam_channel::unbounded;
use little_raft::{Body, Change, LogId, Storage, TransitionState};
use little_raft_sim::MemoryStorage;
use std::io::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

#[test]
fn halt_ends_start_without_any_notification() {
    // Neither of the two has anything to do for an hour but look at `halt`.
    let mut follower = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    follower.until("a turn", || follower.turns() > 0);
    follower.halt().unwrap();
    let mut leader = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica);
    leader.until("leadership", || leader.leads());
    leader.halt().unwrap();
}

#[test]
fn halt_is_looked_at_once_per_heartbeat_timeout() {
    let node = Node::start(&Net::new(3), 1, &[2, 3], NEVER, |replica| replica);
    // The status is told once per heartbeat, in a turn, and each turn begins with `halt`.
    node.until("a hundred turns", || node.turns() >= 100);
    let turns_without_news = node.wire().statuses.len();
    assert!(turns_without_news > 20, "{turns_without_news} statuses in a hundred turns");
}

#[test]
fn after_a_halt_start_goes_on_where_it_stopped() {
    let net = Net::new(1);
    let (wire, book) = (Wire::new(1, &net), Book::default());
    let shared = wire.shared.clone();
    let (wire, book) = (Arc::new(Mutex::new(wire)), Arc::new(Mutex::new(book)));
    let (bell, heard) = unbounded();
    let mut replica = shell(1, &[], &wire, &book, SOON);
    for life in 1..=3 {
        shared.halt.store(false, SeqCst);
        let (recv_msg, heard) = (net.bell(1), heard.clone());
        let thread = thread::spawn(move || (replica.start(recv_msg, heard), replica));
        let mut asked = 0;
        eventually("a write", || {
            let mut book = book.lock().unwrap();
            let refused = |state: &&_| matches!(state, TransitionState::Abandoned(_));
            // Again only once it is told that nothing comes of it.
            if book.states(life).iter().filter(refused).count() == asked {
                book.pending.push(Write(life));
                asked += 1;
            }
            bell.send(()).unwrap();
            book.written.contains(&life)
        });
        shared.halt.store(true, SeqCst);
        let (ended, again) = thread.join().unwrap();
        ended.unwrap();
        replica = again;
    }
    let book = book.lock().unwrap();
    let writes: Vec<_> = book.written.iter().copied().filter(|id| *id != NOOP).collect();
    assert_eq!(writes, [1, 2, 3], "nothing is lost, nothing is applied again");
    assert_eq!(book.asked_for_snapshot, 1, "only when it began");
    check_events(&book.events);
}

/// A storage that fails from some call on, and counts the calls.
struct Failing {
    calls: Arc<AtomicUsize>,
    fails_at: usize,
    memory: MemoryStorage<Write, Vec<usize>>,
}

impl Failing {
    fn new(fails_at: usize) -> (Failing, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        (Failing { calls: calls.clone(), fails_at, memory: MemoryStorage::default() }, calls)
    }

    fn call(&self) -> Result<()> {
        match self.calls.fetch_add(1, SeqCst) + 1 < self.fails_at {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::StorageFull, "the disk of replica 1 is full")),
        }
    }
}

impl Storage<Write, Vec<usize>> for Failing {
    fn load(&mut self) -> Result<Change<Write, Vec<usize>>> {
        self.call()?;
        self.memory.load()
    }

    fn save(&mut self, change: Change<Write, Vec<usize>>) -> Result<()> {
        self.call()?;
        self.memory.save(change)
    }
}

#[test]
fn start_returns_the_storages_error_and_refuses_to_start_again() {
    for fails_at in 1..=4 {
        let (storage, calls) = Failing::new(fails_at);
        let net = Net::new(1);
        let wire = Arc::new(Mutex::new(Wire::new(1, &net)));
        let pending = (1..1_000_000).map(Write).collect();
        let book = Arc::new(Mutex::new(Book { pending, batch: 1, ..Book::default() }));
        let mut replica = shell(1, &[], &wire, &book, SOON).with_storage(storage);
        let (bell, heard) = unbounded();
        let recv_msg = net.bell(1);
        let thread = thread::spawn(move || (replica.start(recv_msg, heard), replica));
        eventually("the failure", || {
            bell.send(()).unwrap_or_default();
            thread.is_finished()
        });
        let (ended, mut replica) = thread.join().unwrap();
        let error = ended.expect_err("the storage has failed");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().contains("the disk of replica 1 is full"), "{error}");
        let error = replica.start(net.bell(1), unbounded().1).expect_err("it has failed before");
        assert!(!error.to_string().is_empty());
        assert_eq!(calls.load(SeqCst), fails_at, "a storage that has failed is not used again");
    }
}

#[test]
fn nothing_is_promised_that_could_not_be_saved() {
    let (storage, _) = Failing::new(2);
    let net = Net::new(3);
    let mut node = Node::start(&net, 1, &[2, 3], NEVER, |replica| replica.with_storage(storage));
    let body = Body::RequestVote { pre: false, transfer: false, last: LogId::default() };
    node.hear(2, 5, body);
    assert_eq!(node.join().map_err(|error| error.kind()), Err(ErrorKind::StorageFull));
    assert_eq!(net.collect(2), [], "no vote leaves before it is saved");
}

#[test]
fn nothing_is_applied_that_could_not_be_saved() {
    let (storage, _) = Failing::new(3);
    let mut node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica.with_storage(storage));
    node.until("the no-op or the failure", || {
        node.write(7);
        node.leads()
    });
    let ended = node.join().map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::StorageFull));
    let book = node.book();
    assert!(!book.written.contains(&7), "{:?}", book.events);
}

/// Poisons a mutex, as a thread of the user does that panics while it holds it.
fn poison<M: Send + 'static>(mutex: &Arc<Mutex<M>>) {
    let mutex = mutex.clone();
    let poisoner = thread::spawn(move || {
        let _guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        std::panic::resume_unwind(Box::new("a panic of the user's"));
    });
    assert!(poisoner.join().is_err());
}

#[test]
fn a_poisoned_mutex_ends_start_with_an_error() {
    for of_state_machine in [true, false] {
        let mut node = Node::start(&Net::new(1), 1, &[], SOON, |replica| replica);
        node.until("leadership", || node.leads());
        if of_state_machine {
            poison(&node.book)
        } else {
            poison(&node.wire)
        }
        let error = node.join().expect_err("a mutex is poisoned");
        assert!(error.to_string().contains("mutex"), "{error}");
    }
}

#[test]
fn a_mutex_that_was_poisoned_before_the_start_ends_it_with_an_error() {
    for of_state_machine in [true, false] {
        let net = Net::new(1);
        let wire = Arc::new(Mutex::new(Wire::new(1, &net)));
        let book = Arc::new(Mutex::new(Book::default()));
        let mut replica = shell(1, &[], &wire, &book, SOON);
        if of_state_machine {
            poison(&book)
        } else {
            poison(&wire)
        }
        let error = replica.start(net.bell(1), unbounded().1).expect_err("a mutex is poisoned");
        assert!(error.to_string().contains("mutex"), "{error}");
    }
}
