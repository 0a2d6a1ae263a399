//! Three replicas in their threads, on directories of their own: what was applied stays, whoever
//! stops and starts again.

use crossbeam_channel::{Receiver, Sender, bounded};
use little_raft::{Cluster, Message, Replica, Snapshot, StateMachine, StateMachineTransition};
use little_raft::{Status, TransitionState};
use little_raft_redb::RedbStorage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Add(u64);

impl StateMachineTransition for Add {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.0
    }
}

/// What the threads and the test tell each other, under one mutex, with one condition for all
/// changes.
#[derive(Default)]
struct Shared {
    inboxes: BTreeMap<usize, Vec<Message<Add>>>,
    wake: BTreeMap<usize, (Sender<()>, Sender<()>)>,
    pending: BTreeMap<usize, Vec<Add>>,
    applied: BTreeMap<usize, Vec<u64>>,
    restored: BTreeMap<usize, usize>,
    leader: BTreeMap<usize, Option<usize>>,
    halted: BTreeMap<usize, bool>,
    /// What has to be proposed again.
    lost: Vec<Add>,
}

impl Shared {
    /// Proposes at the leader what is to be proposed again; says whether there is one.
    fn propose(&mut self) -> bool {
        let leaders = self.leader.values().flatten().copied();
        let Some(leader) = leaders.filter(|id| self.wake.contains_key(id)).max() else {
            return false;
        };
        if !self.lost.is_empty() {
            self.pending.entry(leader).or_default().append(&mut self.lost);
            // A full channel will wake it as well.
            let _ = self.wake[&leader].1.try_send(());
        }
        true
    }
}

#[derive(Clone, Default)]
struct World(Arc<(Mutex<Shared>, Condvar)>);

impl World {
    fn with<R>(&self, work: impl FnOnce(&mut Shared) -> R) -> R {
        let result = work(&mut self.0.0.lock().expect("no thread has panicked"));
        self.0.1.notify_all();
        result
    }

    /// Waits until something is so.
    fn wait(&self, what: &str, mut is_so: impl FnMut(&mut Shared) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        let mut shared = self.0.0.lock().expect("no thread has panicked");
        while !is_so(&mut shared) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} does not come: {:?}", shared.applied);
            shared = self.0.1.wait_timeout(shared, left).expect("no thread has panicked").0;
        }
    }
}

/// A replica's side of it.
struct Node {
    id: usize,
    world: World,
}

impl Cluster<Add> for Node {
    fn send_message(&mut self, to_id: usize, message: Message<Add>) {
        self.world.with(|shared| {
            if let Some((wake, _)) = shared.wake.get(&to_id) {
                let _ = wake.try_send(());
                shared.inboxes.entry(to_id).or_default().push(message);
            }
        });
    }

    fn receive_messages(&mut self) -> Vec<Message<Add>> {
        self.world.with(|shared| shared.inboxes.remove(&self.id).unwrap_or_default())
    }

    fn halt(&self) -> bool {
        self.world.with(|shared| shared.halted[&self.id])
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        self.world.with(|shared| shared.leader.insert(self.id, leader_id));
    }

    fn register_status(&mut self, _: Status) {}
}

impl StateMachine<Add> for Node {
    fn register_transition_state(&mut self, number: u64, state: TransitionState) {
        if matches!(state, TransitionState::Abandoned(_)) {
            self.world.with(|shared| shared.lost.push(Add(number)));
        }
    }

    fn apply_transition(&mut self, transition: Add) {
        self.world.with(|shared| {
            if transition != Add(0) {
                shared.applied.entry(self.id).or_default().push(transition.0);
            }
        });
    }

    fn get_pending_transitions(&mut self) -> Vec<Add> {
        self.world.with(|shared| shared.pending.remove(&self.id).unwrap_or_default())
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Vec<u8>> {
        let applied = self.world.with(|shared| shared.applied.get(&self.id).cloned());
        let numbers = applied.unwrap_or_default();
        let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Vec<u8>>) {
        let numbers = snapshot.data.chunks_exact(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let numbers = numbers.map(number).collect();
        self.world.with(|shared| {
            shared.applied.insert(self.id, numbers);
            *shared.restored.entry(self.id).or_default() += 1;
        });
    }
}

struct Group {
    world: World,
    directories: [TempDir; 3],
    threads: BTreeMap<usize, JoinHandle<std::io::Result<()>>>,
    proposed: u64,
}

impl Group {
    fn new() -> Group {
        let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let (world, threads) = (World::default(), BTreeMap::new());
        Group { world, directories, threads, proposed: 0 }
    }

    fn start(&mut self, id: usize) {
        let ((wake, recv_msg), (propose, recv_transition)) = (bounded(1), bounded(1));
        self.world.with(|shared| {
            shared.wake.insert(id, (wake, propose));
            shared.halted.insert(id, false);
            shared.applied.remove(&id);
            shared.leader.remove(&id);
        });
        let (world, path) = (self.world.clone(), self.directories[id - 1].path().to_path_buf());
        let thread = std::thread::spawn(move || run(id, world, &path, recv_msg, recv_transition));
        self.threads.insert(id, thread);
    }

    fn stop(&mut self, id: usize) {
        self.world.with(|shared| {
            shared.halted.insert(id, true);
            shared.wake.remove(&id);
            shared.inboxes.remove(&id);
            let unasked = shared.pending.remove(&id).unwrap_or_default();
            shared.lost.extend(unasked);
        });
        let thread = self.threads.remove(&id).expect("it runs");
        thread.join().expect("it has not panicked").expect("it has not failed");
    }

    /// Proposes transitions one by one, again if they are abandoned, until the replicas have
    /// applied the last.
    fn commit(&mut self, count: u64, replicas: &[usize]) {
        for _ in 0..count {
            self.proposed += 1;
            let number = self.proposed;
            self.world.with(|shared| shared.lost.push(Add(number)));
            self.world.wait("a leader", Shared::propose);
        }
        let proposed = self.proposed;
        self.world.wait("the end", |shared| {
            shared.propose();
            let is_behind = |id| shared.applied.get(id).is_none_or(|all| !all.contains(&proposed));
            !replicas.iter().any(is_behind)
        });
    }
}

fn run(
    id: usize, world: World, path: &Path, recv_msg: Receiver<()>, recv_transition: Receiver<()>,
) -> std::io::Result<()> {
    let node = || Arc::new(Mutex::new(Node { id, world: world.clone() }));
    let peers = (1..=3).filter(|peer| *peer != id).collect();
    let (heartbeat, timeouts) = (20, (150, 300));
    Replica::new(
        id,
        peers,
        node(),
        node(),
        Add(0),
        Duration::from_millis(heartbeat),
        (Duration::from_millis(timeouts.0), Duration::from_millis(timeouts.1)),
    )
    .with_snapshots(50)
    .with_storage(RedbStorage::options().replica_id(id).cluster_id("test").open(path)?)
    .start(recv_msg, recv_transition)
}

#[test]
fn what_was_applied_survives_stopping_any_and_all() {
    let mut group = Group::new();
    for id in 1..=3 {
        group.start(id);
    }
    group.commit(40, &[1, 2, 3]);
    for id in 1..=3 {
        group.stop(id);
        group.commit(60, &[1, 2, 3].map(|other| if other == id { id % 3 + 1 } else { other }));
        group.start(id);
        group.commit(1, &[1, 2, 3]);
    }
    for id in 1..=3 {
        group.stop(id);
    }
    let before = group.world.with(|shared| shared.applied.clone());
    for id in 1..=3 {
        group.start(id);
    }
    group.commit(10, &[1, 2, 3]);
    for id in 1..=3 {
        group.stop(id);
    }
    let (after, restored) =
        group.world.with(|shared| (shared.applied.clone(), shared.restored.clone()));
    for id in 1..=3 {
        assert!(after[&id].starts_with(&before[&id]), "{id}: {before:?}, {after:?}");
        assert_eq!(after[&id], after[&1], "all replicas applied the same in the same order");
        assert!(restored[&id] > 0, "the snapshot came back");
        let inspection = little_raft_redb::inspect(group.directories[id - 1].path());
        let inspection = inspection.expect("inspected");
        assert!(inspection.snapshot.is_some() && inspection.compacted.index > 0, "{inspection}");
        assert!(inspection.closed && inspection.replica_id == Some(id), "{inspection}");
    }
}
