//! The two mutexes: never both, none during somebody else's code, and few times per turn.

use crate::support::*;
use crossbeam_channel::unbounded;
use little_raft::{
    Body, Change, Cluster, LogId, Message, ReadState, Replica, Snapshot, StateMachine, Status,
    Storage, TransitionState,
};
use little_raft_sim::MemoryStorage;
use std::collections::BTreeMap;
use std::io::Result;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::thread;

const CALLBACKS: [&str; 15] = [
    "apply_transition",
    "create_snapshot",
    "get_pending_reads",
    "get_pending_transitions",
    "get_snapshot",
    "halt",
    "load",
    "receive_messages",
    "register_leader",
    "register_read_state",
    "register_status",
    "register_transition_state",
    "save",
    "send_message",
    "set_snapshot",
];

/// How often each callback was called, and whether the mutex that is not its own was free.
type Seen = Arc<Mutex<BTreeMap<(&'static str, bool), usize>>>;

/// What notes whether a mutex is free. Nobody but the replica ever holds it.
fn watch<M: Send>(seen: &Seen, mutex: &Arc<Mutex<M>>) -> impl Fn(&'static str) + Send + use<M> {
    let (seen, mutex): (_, Weak<_>) = (seen.clone(), Arc::downgrade(mutex));
    move |name| {
        let mutex = mutex.upgrade();
        let is_held =
            |mutex: &Arc<Mutex<M>>| matches!(mutex.try_lock(), Err(TryLockError::WouldBlock));
        let seen_so = (name, !mutex.as_ref().is_some_and(is_held));
        *seen.lock().unwrap().entry(seen_so).or_default() += 1;
    }
}

/// A storage in memory that is watched too.
struct Watched<W> {
    memory: MemoryStorage<Write, Vec<usize>>,
    watch: W,
}

impl<W: Fn(&'static str) + Send> Storage<Write, Vec<usize>> for Watched<W> {
    fn load(&mut self) -> Result<Change<Write, Vec<usize>>> {
        (self.watch)("load");
        self.memory.load()
    }

    fn save(&mut self, change: Change<Write, Vec<usize>>) -> Result<()> {
        (self.watch)("save");
        self.memory.save(change)
    }
}

/// Starts replica `id` of three with more to do than it can do, everything watched.
fn start_watched(net: &Arc<Net>, id: usize, seen: &Seen) -> Node {
    let wire = Arc::new(Mutex::new(Wire::new(id, net)));
    let (pending, questions) = ((1..10_000).map(Write).collect(), (1..10_000).collect());
    let book = Arc::new(Mutex::new(Book { pending, questions, batch: 1, ..Book::default() }));
    wire.lock().unwrap().probe = Some(Box::new(watch(seen, &book)));
    book.lock().unwrap().probe = Some(Box::new(watch(seen, &wire)));
    let (of_wire, of_book) = (watch(seen, &wire), watch(seen, &book));
    let watch = move |name| [of_wire(name), of_book(name)].into_iter().collect();
    let storage = Watched { memory: MemoryStorage::default(), watch };
    let peers: Vec<_> = (1..=3).filter(|peer| *peer != id).collect();
    Node::run(&wire, &book, &peers, SOON, |replica| replica.with_storage(storage).with_snapshots(2))
}

#[test]
fn the_other_mutex_is_free_in_every_callback_and_both_are_while_the_storage_works() {
    let (net, seen) = (Net::new(3), Seen::default());
    let mut nodes = vec![start_watched(&net, 1, &seen), start_watched(&net, 2, &seen)];
    let calls = |name| {
        let seen = seen.lock().unwrap();
        [true, false].iter().filter_map(|free| seen.get(&(name, *free))).sum::<usize>()
    };
    eventually("snapshots, and so many that the beginning of the log is gone", || {
        nodes.iter().for_each(Node::ring);
        calls("create_snapshot") > 10
    });
    // This one is behind, and gets a snapshot: what it was sent before is lost.
    net.collect(3);
    nodes.push(start_watched(&net, 3, &seen));
    eventually("every callback", || {
        nodes.iter().for_each(Node::ring);
        CALLBACKS.iter().all(|name| calls(name) > 0)
    });
    let held: Vec<_> = seen.lock().unwrap().keys().filter(|(_, free)| !free).copied().collect();
    assert!(held.is_empty(), "the other mutex was held in {held:?}");
}

/// A user's one thing that is both the state machine and the cluster.
struct Both {
    book: Book,
    wire: Wire,
}

impl StateMachine<Write, Vec<usize>> for Both {
    fn register_transition_state(&mut self, id: usize, state: TransitionState) {
        self.book.register_transition_state(id, state);
    }

    fn apply_transition(&mut self, transition: Write) {
        self.book.apply_transition(transition);
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        self.book.get_pending_transitions()
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Vec<usize>> {
        self.book.create_snapshot(index, term)
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Vec<usize>>) {
        self.book.set_snapshot(snapshot);
    }

    fn get_pending_reads(&mut self) -> Vec<usize> {
        self.book.get_pending_reads()
    }

    fn register_read_state(&mut self, id: usize, state: ReadState) {
        self.book.register_read_state(id, state);
    }
}

impl Cluster<Write, Vec<usize>> for Both {
    fn send_message(&mut self, to_id: usize, letter: Letter) {
        self.wire.send_message(to_id, letter);
    }

    fn receive_messages(&mut self) -> Vec<Letter> {
        self.wire.receive_messages()
    }

    fn halt(&self) -> bool {
        self.wire.halt()
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        self.wire.register_leader(leader_id);
    }

    fn register_status(&mut self, status: Status) {
        self.wire.register_status(status);
    }
}

#[test]
fn one_struct_may_be_both_behind_one_mutex() {
    let (net, mut threads, mut both) = (Net::new(3), Vec::new(), Vec::new());
    let start = |id: usize, both: &Arc<Mutex<Both>>, threads: &mut Vec<thread::JoinHandle<()>>| {
        let peers = (1..=3).filter(|peer| *peer != id).collect();
        let (cluster, state_machine) = (both.clone(), both.clone());
        let noop = Write(NOOP);
        let (bell, heard) = unbounded();
        let replica = Replica::new(id, peers, cluster, state_machine, noop, HEARTBEAT, SOON);
        let (mut replica, recv_msg) = (replica.with_snapshots(1), net.bell(id));
        threads.push(thread::spawn(move || replica.start(recv_msg, heard).unwrap()));
        bell
    };
    let bells: Vec<_> = (1..=3)
        .map(|id| {
            let it = Both { book: Book::default(), wire: Wire::new(id, &net) };
            both.push(Arc::new(Mutex::new(it)));
            // The third comes late, and gets a snapshot: the ancestor's deadlock.
            (id < 3).then(|| start(id, &both[id - 1], &mut threads))
        })
        .collect();
    let mut next = 0;
    eventually("some writes", || {
        let ended = threads.iter().any(|thread| thread.is_finished());
        assert!(!ended, "a replica ended");
        next += 1;
        for (it, bell) in both.iter().zip(&bells).take(2) {
            it.lock().unwrap().book.pending.push(Write(next));
            bell.iter().for_each(|bell| bell.send(()).unwrap());
        }
        both.iter().take(2).all(|it| it.lock().unwrap().book.written.len() > 10)
    });
    net.collect(3);
    let _bell = start(3, &both[2], &mut threads);
    eventually("the snapshot at the third", || {
        let events = &both[2].lock().unwrap().book.events;
        events.iter().any(|event| matches!(event, Event::Restore(_)))
    });
    both.iter().for_each(|it| it.lock().unwrap().wire.shared.halt.store(true, SeqCst));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Counts how often somebody else had the mutex within a turn: no more often than the replica let
/// go of it.
#[derive(Default)]
struct Visited {
    visits: usize,
    seen: usize,
    in_this_turn: usize,
    most: usize,
    calls: usize,
}

impl Visited {
    fn call(&mut self) {
        // Gives the others a processor, so that they are there when the replica lets go.
        if self.calls.is_multiple_of(8) {
            thread::yield_now();
        }
        self.calls += 1;
        self.in_this_turn += usize::from(self.visits != self.seen);
        self.seen = self.visits;
        self.most = self.most.max(self.in_this_turn);
    }
}

/// A state machine and a cluster that count visits. The cluster brings a thousand letters at once.
struct Counting {
    visited: Visited,
    wire: Wire,
    turns: usize,
    left: usize,
}

impl Counting {
    fn new(net: &Arc<Net>, left: usize) -> Counting {
        Counting { visited: Visited::default(), wire: Wire::new(1, net), turns: 0, left }
    }

    fn call(&mut self) {
        let turns = self.wire.shared.turns.load(SeqCst);
        if turns != self.turns {
            (self.turns, self.visited.in_this_turn) = (turns, 0);
        }
        self.visited.call();
    }
}

impl StateMachine<Write, Vec<usize>> for Counting {
    fn register_transition_state(&mut self, _id: usize, _state: TransitionState) {
        self.call();
    }

    fn apply_transition(&mut self, _transition: Write) {
        self.call();
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        self.call();
        self.left -= 1;
        (0..1000).map(Write).collect()
    }
}

impl Cluster<Write, Vec<usize>> for Counting {
    fn send_message(&mut self, _to_id: usize, _letter: Letter) {
        self.call();
    }

    fn receive_messages(&mut self) -> Vec<Letter> {
        self.call();
        self.left -= 1;
        let body = Body::RequestVote { pre: true, transfer: false, last: LogId::default() };
        (1..=1000).map(|term| Message { from_id: 2, term, body: body.clone() }).collect()
    }

    fn halt(&self) -> bool {
        self.wire.halt()
    }

    fn register_leader(&mut self, _leader_id: Option<usize>) {}

    fn register_status(&mut self, _status: Status) {
        self.call();
    }
}

const ROUNDS: usize = 20;

/// Runs a replica while other threads take the mutex of one side as often as they can get it, for
/// many rounds of a thousand letters or transitions. Returns how often they got it in one turn.
fn most_visits_in_a_turn(of_cluster: bool) -> usize {
    let net = Net::new(1);
    let [cluster, state_machine] =
        [ROUNDS, ROUNDS].map(|left| Arc::new(Mutex::new(Counting::new(&net, left))));
    let visited = if of_cluster { cluster.clone() } else { state_machine.clone() };
    // Both count the same turns.
    let shared = cluster.lock().unwrap().wire.shared.clone();
    state_machine.lock().unwrap().wire.shared = shared.clone();
    let (peers, timeouts) = if of_cluster { (vec![2, 3], NEVER) } else { (vec![], SOON) };
    let mut replica =
        Replica::new(1, peers, cluster, state_machine, Write(NOOP), HEARTBEAT, timeouts);
    let ((letters, recv_msg), (transitions, heard)) = (unbounded(), unbounded());
    let (bell, done) = (if of_cluster { letters } else { transitions }, AtomicBool::new(false));
    let thread = thread::spawn(move || replica.start(recv_msg, heard).unwrap());
    thread::scope(|scope| {
        // Whoever waits for the mutex makes letting go of it slower, so that the other gets it.
        scope.spawn(|| {
            while !done.load(SeqCst) {
                visited.lock().unwrap().visited.visits += 1;
            }
        });
        scope.spawn(|| {
            while !done.load(SeqCst) {
                visited.try_lock().iter_mut().for_each(|it| it.visited.visits += 1);
            }
        });
        for left in (0..ROUNDS).rev() {
            bell.send(()).unwrap();
            let enough = (ROUNDS - left) * 1000;
            eventually("a round", || {
                let it = visited.lock().unwrap();
                it.left <= left && it.visited.calls >= enough
            });
        }
        done.store(true, SeqCst);
    });
    shared.halt.store(true, SeqCst);
    thread.join().unwrap();
    visited.lock().unwrap().visited.most
}

#[test]
fn each_mutex_is_taken_a_constant_number_of_times_per_turn() {
    for of_cluster in [true, false] {
        let most = most_visits_in_a_turn(of_cluster);
        assert!(most <= 5, "{most} visits in one turn, of the cluster: {of_cluster}");
    }
}
