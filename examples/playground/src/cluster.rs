//! The replicas of this process: one thread each, the network between them, and what they tell.

use crate::board::{Board, Leader, Told};
use crate::network::{Link, Network};
use crate::store::{Data, RequestId, State, Store, Text, Transition};
use crossbeam_channel::{Sender, bounded};
use little_raft::{Membership, Message, Replica, ReplicaID, Status};
use little_raft_sim::MemoryStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(50);
/// Several heartbeats, so that a lost one starts no election, and a wide range, so that two
/// replicas seldom stand at once.
const ELECTION: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(600));

/// All replicas there have ever been.
pub(crate) struct Cluster {
    board: Arc<Board>,
    network: Arc<Network>,
    seats: BTreeMap<ReplicaID, Seat>,
    snapshot_delta: usize,
}

/// What is left of a replica while it does not run, and the running replica.
struct Seat {
    /// The other replicas at the beginning; nobody for one that joined later.
    founders: Option<Vec<ReplicaID>>,
    /// Survives the replica, as a disk would.
    storage: MemoryStorage<Transition, Data>,
    running: Option<Running>,
}

struct Running {
    store: Arc<Mutex<Store>>,
    halt: Arc<AtomicBool>,
    /// Notifies the replica of transitions and reads.
    notify: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

/// Who leads, or why nobody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Led(Leader),
    /// There is no leader that everybody follows yet, but there can be one.
    Electing,
    /// No majority of these voters runs and is connected.
    Impossible(Arc<Membership>),
}

/// Takes a replica off the board when its thread ends, by a panic too.
struct Presence(Arc<Board>, ReplicaID);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

/// The life of the replicas.
impl Cluster {
    /// Starts the replicas 1 to `count`.
    pub(crate) fn start(count: usize, snapshot_delta: usize) -> Result<Cluster> {
        let (board, network) = Default::default();
        let mut cluster = Cluster { board, network, seats: BTreeMap::new(), snapshot_delta };
        for id in 1..=count {
            cluster.seat(id, Some((1..=count).filter(|peer| *peer != id).collect()));
        }
        (1..=count).try_for_each(|id| cluster.run(id))?;
        Ok(cluster)
    }

    fn seat(&mut self, id: ReplicaID, founders: Option<Vec<ReplicaID>>) {
        let seat = Seat { founders, storage: MemoryStorage::default(), running: None };
        self.seats.insert(id, seat);
    }

    /// Starts a replica: one that was stopped comes back with its storage, a new one waits to be
    /// made a member.
    pub(crate) fn run(&mut self, id: ReplicaID) -> Result<()> {
        if !self.seats.contains_key(&id) {
            self.seat(id, None);
        }
        let Some(seat) = self.seats.get_mut(&id) else { return Ok(()) };
        let halt = Arc::new(AtomicBool::new(false));
        let (inbox, recv_msg) = self.network.connect(id);
        let (notify, recv_transition) = bounded(1);
        let (network, board) = (self.network.clone(), self.board.clone());
        let link = Link { id, network, inbox, halt: halt.clone(), board };
        let store = Arc::new(Mutex::new(Store::new(self.board.clone())));
        let mut replica = Replica::new(
            id,
            seat.founders.clone().unwrap_or_default(),
            Arc::new(Mutex::new(link)),
            store.clone(),
            Transition::NoOp,
            HEARTBEAT,
            ELECTION,
        )
        .with_storage(seat.storage.clone())
        .with_snapshots(self.snapshot_delta);
        if seat.founders.is_none() {
            replica = replica.joining();
        }
        let presence = Presence(self.board.clone(), id);
        let life = move || {
            let _presence = presence;
            replica.start(recv_msg, recv_transition)
        };
        let thread = thread::Builder::new().name(format!("replica {id}")).spawn(life)?;
        seat.running = Some(Running { store, halt, notify, thread });
        Ok(())
    }

    /// Stops a replica and waits until its thread has ended.
    pub(crate) fn stop(&mut self, id: ReplicaID) -> Result<()> {
        let running = self.seats.get_mut(&id).and_then(|seat| seat.running.take());
        let Some(Running { halt, notify, thread, .. }) = running else { return Ok(()) };
        halt.store(true, Ordering::Release);
        let _ = notify.try_send(());
        let ended = thread.join();
        self.network.disconnect(id);
        ended.unwrap_or_else(|_| Err(Error::other("its thread has panicked")))
    }

    /// Stops all replicas. Returns what went wrong with each that did not end well.
    pub(crate) fn stop_all(&mut self) -> Vec<(ReplicaID, Error)> {
        let ids = self.seats.keys().copied().collect::<Vec<_>>();
        let stopped = ids.into_iter().map(|id| (id, self.stop(id)));
        stopped.filter_map(|(id, result)| Some((id, result.err()?))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// What can be asked of the replicas.
impl Cluster {
    fn store(&self, id: ReplicaID) -> Option<(MutexGuard<'_, Store>, &Sender<()>)> {
        let running = self.seats.get(&id)?.running.as_ref()?;
        // If a replica's thread has panicked, `stop` will say so.
        Some((running.store.lock().unwrap_or_else(PoisonError::into_inner), &running.notify))
    }

    pub(crate) fn propose(&self, id: ReplicaID, transitions: Vec<Transition>) {
        if let Some((mut store, notify)) = self.store(id) {
            store.propose(transitions);
            let _ = notify.try_send(());
        }
    }

    pub(crate) fn read(&self, at: ReplicaID, id: RequestId, key: Text) {
        if let Some((mut store, notify)) = self.store(at) {
            store.read(id, key);
            let _ = notify.try_send(());
        }
    }

    /// Asks the leader to make exactly these the members.
    pub(crate) fn change_membership(
        &self, leader: Leader, voters: &BTreeSet<ReplicaID>, learners: &BTreeSet<ReplicaID>,
    ) {
        let (voters, learners) = (voters.iter().copied(), learners.iter().copied());
        let request = Message::change_membership(voters.collect(), learners.collect());
        self.network.deliver(leader.id, request);
    }

    pub(crate) fn transfer_leadership(&self, leader: Leader, to_id: ReplicaID) {
        self.network.deliver(leader.id, Message::transfer_leadership(to_id));
    }
}

/// How things are.
impl Cluster {
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    pub(crate) fn snapshot_delta(&self) -> usize {
        self.snapshot_delta
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Everybody, running or not.
    pub(crate) fn ids(&self) -> BTreeSet<ReplicaID> {
        self.seats.keys().copied().collect()
    }

    pub(crate) fn is_running(&self, id: ReplicaID) -> bool {
        let running = self.seats.get(&id).and_then(|seat| seat.running.as_ref());
        running.is_some_and(|running| !running.thread.is_finished())
    }

    /// The replicated state as a replica has it, and its latest snapshot.
    pub(crate) fn look_into<R>(&self, id: ReplicaID, look: impl FnOnce(&Store) -> R) -> Option<R> {
        self.store(id).map(|(store, _)| look(&store))
    }

    /// A copy of a replica's state, which costs no more than a snapshot.
    pub(crate) fn state(&self, id: ReplicaID) -> Option<State> {
        self.look_into(id, |store| store.state().clone())
    }

    pub(crate) fn status(&self, id: ReplicaID) -> Option<Status> {
        self.board.look().status(id).cloned()
    }

    /// Who knows best: the leader or, while there is none, whoever has the latest log.
    pub(crate) fn authority<'a>(&self, told: &'a Told) -> Option<&'a Status> {
        let statuses = told.statuses.values().map(|(_, status)| status);
        let latest = || statuses.max_by_key(|status| (status.term, status.last_index));
        told.leader().and_then(|leader| told.status(leader.id)).or_else(latest)
    }

    /// The configuration in force, as far as the running replicas know.
    pub(crate) fn membership(&self, told: &Told) -> Option<Arc<Membership>> {
        self.authority(told).map(|status| status.membership.clone())
    }

    /// Who leads: not who says so, but whom all follow that hear it and are a quorum.
    pub(crate) fn standing(&self, told: &Told) -> Standing {
        let Some(membership) = self.membership(told) else { return Standing::Electing };
        let meets = |one, other| self.is_running(other) && !self.network.is_cut(one, other);
        if let Some(leader) = told.leader() {
            let follows = |id| {
                let status = told.status(id);
                status.is_some_and(|it| (it.term, it.leader) == (leader.term, Some(leader.id)))
            };
            let members = membership.members();
            let mut hearing = members.into_iter().filter(|id| meets(leader.id, *id));
            if membership.quorum(|id| meets(leader.id, id)) && hearing.all(follows) {
                return Standing::Led(leader);
            }
        }
        let mut voters = membership.voters.union(&membership.outgoing).copied();
        let can_lead = |id| self.is_running(id) && membership.quorum(|other| meets(id, other));
        if voters.any(can_lead) { Standing::Electing } else { Standing::Impossible(membership) }
    }

    /// Waits until there is a leader that all who hear it follow, or until it is clear that there
    /// can be none.
    pub(crate) fn settle(&self, deadline: Instant) -> Standing {
        let settled = self.board.wait(deadline, |told| {
            Some(self.standing(told)).filter(|standing| *standing != Standing::Electing)
        });
        settled.unwrap_or(Standing::Electing)
    }

    /// Waits until every running replica has told how it is now; they do so once per heartbeat.
    pub(crate) fn refresh(&self) {
        let now = Instant::now();
        let running = self.ids().into_iter().filter(|id| self.is_running(*id)).collect::<Vec<_>>();
        self.board.wait(now + 20 * HEARTBEAT, |told| {
            let is_fresh = |id| told.statuses.get(id).is_some_and(|(at, _)| *at > now);
            running.iter().all(is_fresh).then_some(())
        });
    }

    /// Waits until the running members that hear the leader have applied all that is committed.
    /// Returns who has.
    pub(crate) fn catch_up(&self, deadline: Instant) -> BTreeSet<ReplicaID> {
        let Standing::Led(leader) = self.settle(deadline) else { return BTreeSet::new() };
        self.refresh();
        let told = self.board.look();
        let commit = told.status(leader.id).map_or(0, |status| status.commit);
        let mut members = self.membership(&told).map(|it| it.members()).unwrap_or_default();
        drop(told);
        members.retain(|id| self.is_running(*id) && !self.network.is_cut(leader.id, *id));
        let has_all =
            |told: &Told, id| told.status(id).is_some_and(|status| status.applied >= commit);
        self.board.wait(deadline, |told| members.iter().all(|id| has_all(told, *id)).then_some(()));
        let told = self.board.look();
        members.into_iter().filter(|id| has_all(&told, *id)).collect()
    }
}
