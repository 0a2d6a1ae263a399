//! Whole clusters in bad weather: messages are lost, repeated, late and out of order, partitions
//! come and go, one-way ones too, and replicas crash and come back.

use crate::support::*;
use little_raft::{ReadState, TransitionAbandonedReason::OutcomeUnknown, TransitionState};
use little_raft_sim::MemoryStorage;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long the weather stays as it is. Nothing is waited for in it.
const SPELL: Duration = Duration::from_millis(400);

struct Storm {
    group: Group,
    storages: Vec<MemoryStorage<Write, Vec<usize>>>,
    snapshot_delta: usize,
    random: StdRng,
    /// Every state machine there ever was.
    books: Vec<Arc<Mutex<Book>>>,
    next_id: usize,
    /// For each read, how much had been applied somewhere when it was asked.
    reads: BTreeMap<usize, usize>,
}

impl Storm {
    fn new(count: usize, snapshot_delta: usize, seed: u64) -> Storm {
        let storages: Vec<_> = (0..count).map(|_| MemoryStorage::default()).collect();
        let group = Group::start(count, |id, replica| {
            replica.with_storage(storages[id - 1].clone()).with_snapshots(snapshot_delta)
        });
        let books = group.nodes.iter().map(|node| node.book.clone()).collect();
        let (random, reads) = (StdRng::seed_from_u64(seed), BTreeMap::new());
        Storm { group, storages, snapshot_delta, random, books, next_id: 1, reads }
    }

    /// Cuts some replicas off from the others, in both directions or in one.
    fn shift_partitions(&mut self) {
        let count = self.group.nodes.len();
        let apart: BTreeSet<_> = (1..=count).filter(|_| self.random.random_bool(0.4)).collect();
        let (to, from) =
            *[(true, true), (true, false), (false, true)].choose(&mut self.random).unwrap();
        let pairs = (1..=count).flat_map(|a| (1..=count).map(move |b| (a, b)));
        let is_cut = |&(a, b): &(usize, usize)| {
            apart.contains(&a) && !apart.contains(&b) && to
                || !apart.contains(&a) && apart.contains(&b) && from
        };
        self.group.net.weather().cut = pairs.filter(is_cut).collect();
    }

    /// Stops a replica and starts it again with what it had saved, and an empty state machine.
    fn crash_one(&mut self) {
        let count = self.group.nodes.len();
        let id = self.random.random_range(1..=count);
        self.group.nodes[id - 1].halt().expect("no storage has failed");
        let peers: Vec<_> = (1..=count).filter(|peer| *peer != id).collect();
        let (storage, delta) = (self.storages[id - 1].clone(), self.snapshot_delta);
        let node = Node::start(&self.group.net, id, &peers, SOON, |replica| {
            replica.with_storage(storage).with_snapshots(delta)
        });
        self.books.push(node.book.clone());
        self.group.nodes[id - 1] = node;
    }

    /// Writes wherever somebody believes to lead, and reads anywhere, until the weather changes.
    fn use_cluster(&mut self) {
        let began = Instant::now();
        while began.elapsed() < SPELL {
            let applied = self.group.nodes.iter().map(|it| it.book().written.len()).max();
            let node = self.group.nodes.choose(&mut self.random).expect("there are some");
            self.reads.insert(self.next_id, applied.unwrap_or_default());
            node.ask(self.next_id);
            for node in self.group.nodes.iter().filter(|node| node.leads()) {
                node.write(self.next_id);
                self.next_id += 1;
            }
            self.next_id += 1;
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn rage(&mut self, spells: usize) {
        {
            let mut weather = self.group.net.weather();
            (weather.lost, weather.twice, weather.held) = (0.25, 0.1, 0.3);
        }
        self.group.net.run_courier();
        for spell in 0..spells {
            self.shift_partitions();
            self.use_cluster();
            if spell % 3 == 2 {
                self.crash_one();
            }
        }
    }

    /// Calms down, and returns what all replicas have written in the end.
    fn calm_down(&mut self) -> Vec<usize> {
        {
            let mut weather = self.group.net.weather();
            (weather.lost, weather.twice, weather.held) = (0.0, 0.0, 0.0);
            weather.cut.clear();
        }
        let (healed, last) = (Instant::now(), self.next_id);
        self.group.write(last);
        let written = self.group.agree(|written| written.contains(&last));
        println!("{} written, converged {:?} after healing", written.len(), healed.elapsed());
        written
    }
}

/// What must hold of every state machine there ever was, if this is what all have in the end.
/// Returns how many reads were answered.
fn check(storm: &Storm, written: &[usize]) -> usize {
    let mut once = BTreeSet::new();
    let writes = written.iter().filter(|id| **id != NOOP);
    assert!(writes.copied().all(|id| once.insert(id)), "nothing is written twice");
    let mut ready = 0;
    for (number, book) in storm.books.iter().enumerate() {
        let lives = storm.group.nodes.iter().any(|node| Arc::ptr_eq(&node.book, book));
        let book = book.lock().unwrap_or_else(PoisonError::into_inner);
        check_events(&book.events);
        assert!(written.starts_with(&book.written), "state machine {number} is of another order");
        let (mut queued, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for event in &book.events {
            match event {
                Event::State(NOOP, _) => {}
                Event::State(id, TransitionState::Queued) => assert!(queued.insert(*id)),
                Event::State(id, TransitionState::Applied) => {
                    assert!(once.contains(id), "{id} was acknowledged, and is lost");
                    assert!(ended.insert(*id), "{id} ends twice");
                }
                Event::State(id, TransitionState::Abandoned(reason)) => {
                    assert!(ended.insert(*id), "{id} ends twice");
                    let certain = *reason != OutcomeUnknown;
                    assert!(!certain || !once.contains(id), "{id} was abandoned: {reason:?}");
                }
                Event::Read(id, ReadState::Ready, length) => {
                    assert!(*length >= storm.reads[id], "read {id} is stale");
                    ready += 1;
                }
                _ => {}
            }
        }
        let unended: Vec<_> = queued.difference(&ended).collect();
        assert!(!lives || unended.is_empty(), "{unended:?} are queued and never end");
    }
    ready
}

/// Returns how much was written, and how many reads were answered.
fn weather_a_storm(count: usize, snapshot_delta: usize, seed: u64) -> (usize, usize) {
    let mut storm = Storm::new(count, snapshot_delta, seed);
    storm.rage(9);
    let written = storm.calm_down();
    (written.len(), check(&storm, &written))
}

fn has_told_something((written, ready): (usize, usize)) {
    assert!(ready > 0, "no read was answered, so none was checked");
    assert!(written > 20, "too little was written to tell anything");
}

#[test]
fn three_replicas_keep_one_order_in_a_storm() {
    has_told_something(weather_a_storm(3, 0, 31));
}

#[test]
fn five_replicas_keep_one_order_in_a_storm() {
    has_told_something(weather_a_storm(5, 20, 52));
}

#[test]
fn five_replicas_keep_one_order_in_a_storm_with_a_snapshot_of_every_transition() {
    has_told_something(weather_a_storm(5, 1, 53));
}

/// Storm after storm, each of other replicas and another seed, for five minutes or as many seconds
/// as the environment says:
///
/// ```text
/// LITTLE_RAFT_SOAK=3600 cargo test -p little_raft --test replica soak -- --ignored --nocapture
/// ```
#[test]
#[ignore = "takes minutes"]
fn soak() {
    let variable = |name| std::env::var(name).ok().map(|it| it.parse().expect("a number"));
    let lasts = Duration::from_secs(variable("LITTLE_RAFT_SOAK").unwrap_or(300));
    let (began, mut storms, mut written, mut ready) = (Instant::now(), 0, 0, 0);
    let seed = variable("LITTLE_RAFT_SOAK_SEED").unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    while began.elapsed() < lasts {
        let count = *[1, 2, 3, 4, 5].choose(&mut random).expect("there are some");
        let snapshot_delta = *[0, 1, 7, 20, 100].choose(&mut random).expect("there are some");
        let storm = random.random();
        println!("{count} replicas, a snapshot every {snapshot_delta} entries, seed {storm}");
        let (more_written, more_ready) = weather_a_storm(count, snapshot_delta, storm);
        (storms, written, ready) = (storms + 1, written + more_written, ready + more_ready);
    }
    println!("{storms} storms, {written} written, {ready} reads, in {:?}", began.elapsed());
    has_told_something((written, ready));
}
