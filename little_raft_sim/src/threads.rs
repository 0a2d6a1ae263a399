//! Replicas in threads of one process, on a network that fails: a ready-made cluster for the tests of
//! your own state machine.
//!
//! What runs is [`Replica`], as in production. Between the replicas are channels, on which messages
//! are lost, repeated, late and out of order as you wish; links can be cut, in one direction too, and
//! a replica can be killed in the middle of whatever it does and started again with what its storage
//! holds. Here is the test of a counter:
//!
//! ```
//! use little_raft::{Snapshot, StateMachine, StateMachineTransition, TransitionState};
//! use little_raft_sim::MemoryStorage;
//! use little_raft_sim::threads::{Threads, Weather};
//! use std::time::Duration;
//!
//! #[derive(Clone, Debug)]
//! struct Add { number: u64, amount: i64 }
//! impl StateMachineTransition for Add {
//!     type TransitionID = u64;
//!     fn get_id(&self) -> u64 { self.number }
//! }
//!
//! /// What is to be tested.
//! #[derive(Clone, Default)]
//! struct Counter { value: i64, latest: u64 }
//! impl StateMachine<Add, Counter> for Counter {
//!     fn apply_transition(&mut self, add: Add) {
//!         if add.number > self.latest {
//!             (self.latest, self.value) = (add.number, self.value + add.amount);
//!         }
//!     }
//!     fn register_transition_state(&mut self, _: u64, _: TransitionState) {}
//!     fn get_pending_transitions(&mut self) -> Vec<Add> { vec![] }
//!     fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Counter> {
//!         Snapshot { last_included_index: index, last_included_term: term, data: self.clone() }
//!     }
//!     fn set_snapshot(&mut self, snapshot: Snapshot<Counter>) { *self = snapshot.data }
//! }
//!
//! let patience = Duration::from_secs(30);
//! let disks: [MemoryStorage<Add, Counter>; 3] = Default::default();
//! let noop = Add { number: 0, amount: 0 };
//! let bad = Weather { lost: 100_000, duplicated: 100_000, delay: Duration::from_millis(5) };
//! let mut cluster = Threads::new(3, noop, |_| Counter::default(), move |id| disks[id].clone())
//!     .with_snapshots(2)
//!     .with_faults(7, bad)
//!     .start();
//! for number in 1..=5 {
//!     cluster.submit(Add { number, amount: 10 }, patience)?;
//! }
//! let leader = cluster.leader().expect("there is one");
//! cluster.kill(leader);
//! cluster.submit(Add { number: 6, amount: -8 }, patience)?;
//! cluster.restart(leader);
//! cluster.wait_until(
//!     |cluster| (0..3).all(|id| cluster.inspect(id, |counter| counter.value == 42)),
//!     patience,
//! )?;
//! # Ok::<(), little_raft_sim::threads::Late>(())
//! ```
//!
//! Threads and clocks are real, so a failure here may not come again. What you want to see again and
//! again, run in a [`Simulation`](crate::Simulation).

use crate::Random;
use crate::faults::PerMillion;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use little_raft::{
    Change, Cluster, Message, ReadState, Replica, ReplicaID, Role, Snapshot, StateMachine,
    StateMachineTransition, Status, Storage, TransitionAbandonedReason, TransitionState,
};
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the network does to messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// How many are lost.
    pub lost: PerMillion,
    /// How many come twice.
    pub duplicated: PerMillion,
    /// How long each is underway at most. Every one has a delay of its own, so that they overtake
    /// each other.
    pub delay: Duration,
}

/// Something did not happen in time. Shows how every replica was when patience ran out.
#[derive(Clone, Debug)]
pub struct Late {
    waited: Duration,
    replicas: Vec<String>,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it did not come about within {:?}:", self.waited)?;
        self.replicas.iter().try_for_each(|replica| write!(f, "\n{replica}"))
    }
}

impl std::error::Error for Late {}

/// A cluster of replicas `0..n` in threads, with a state machine `S` each.
///
/// Dropping it stops all of them. A panic in a replica's thread, as of a failed assertion in your
/// state machine, is passed on to the thread that owns the cluster, when it next waits or drops it.
pub struct Threads<S, T: StateMachineTransition, D: Clone = Vec<u8>> {
    noop: T,
    machine: Box<dyn FnMut(ReplicaID) -> S>,
    storage: Box<dyn FnMut(ReplicaID) -> Box<dyn Storage<T, D>>>,
    voters: usize,
    heartbeat: Duration,
    election: (Duration, Duration),
    snapshot_delta: usize,
    max_clock_drift: Option<Duration>,
    network: Arc<Network<T, D>>,
    lives: Vec<Option<Life<S, T>>>,
}

/// A replica between its start and its end.
struct Life<S, T: StateMachineTransition> {
    seat: Arc<Mutex<Seat<S, T>>>,
    status: Arc<Mutex<Option<Status>>>,
    killed: Arc<AtomicBool>,
    bell: Sender<()>,
    thread: Option<JoinHandle<io::Result<()>>>,
    /// What a replica that has ended by itself returned.
    ended: Option<io::Result<()>>,
}

impl<S, T, D> Threads<S, T, D>
where
    S: StateMachine<T, D> + Send + 'static,
    T: StateMachineTransition + Send + Sync + 'static,
    T::TransitionID: Send + 'static,
    D: Clone + Send + Sync + 'static,
{
    /// A cluster of so many voters in fair weather. Nothing runs before [`start`](Self::start).
    ///
    /// `machine` makes the empty state machine for each start of a replica. `storage` opens a
    /// replica's storage, which must hold what was saved through the one before; for
    /// [`MemoryStorage`](crate::MemoryStorage) that is a clone.
    pub fn new<St: Storage<T, D> + 'static>(
        replicas: usize, noop: T, machine: impl FnMut(ReplicaID) -> S + 'static,
        mut storage: impl FnMut(ReplicaID) -> St + 'static,
    ) -> Self {
        Threads {
            noop,
            machine: Box::new(machine),
            storage: Box::new(move |id| Box::new(storage(id))),
            voters: replicas,
            heartbeat: Duration::from_millis(25),
            election: (Duration::from_millis(150), Duration::from_millis(300)),
            snapshot_delta: 0,
            max_clock_drift: None,
            network: Network::new(replicas),
            lives: (0..replicas).map(|_| None).collect(),
        }
    }

    /// Other timeouts than 25 ms between heartbeats and 150 to 300 ms for elections.
    pub fn with_timeouts(mut self, heartbeat: Duration, election: (Duration, Duration)) -> Self {
        (self.heartbeat, self.election) = (heartbeat, election);
        self
    }

    /// See [`Replica::with_snapshots`].
    pub fn with_snapshots(mut self, snapshot_delta: usize) -> Self {
        self.snapshot_delta = snapshot_delta;
        self
    }

    /// See [`Replica::with_lease_reads`].
    pub fn with_lease_reads(mut self, max_clock_drift: Duration) -> Self {
        self.max_clock_drift = Some(max_clock_drift);
        self
    }

    /// So many more replicas, with the next ids, which wait to be added: see
    /// [`ask`](Self::ask) and [`Message::change_membership`].
    pub fn with_joining(mut self, replicas: usize) -> Self {
        let weather = lock(&self.network.weather).clone();
        self.network = Network::new(self.voters + replicas);
        *lock(&self.network.weather) = weather;
        self.lives = (0..self.voters + replicas).map(|_| None).collect();
        self
    }

    /// A network that fails from the first message on.
    pub fn with_faults(self, seed: u64, weather: Weather) -> Self {
        *lock(&self.network.weather) = (weather, Random::seed_from_u64(seed));
        self
    }

    /// Starts all replicas.
    pub fn start(mut self) -> Self {
        (0..self.lives.len()).for_each(|id| self.restart(id));
        self
    }

    /// Changes what the network does to messages from now on.
    pub fn set_weather(&self, weather: Weather) {
        lock(&self.network.weather).0 = weather;
    }

    /// Starts a replica with an empty state machine and what its storage holds. One that runs is
    /// killed first.
    pub fn restart(&mut self, id: ReplicaID) {
        self.kill(id);
        let machine = (self.machine)(id);
        let seat = Seat { machine, pending: vec![], questions: vec![], submitted: None };
        let (seat, killed) = (Arc::new(Mutex::new(seat)), Arc::new(AtomicBool::new(false)));
        let (status, network) = (Arc::default(), self.network.clone());
        let wire = Wire { id, network, killed: killed.clone(), status: Arc::clone(&status) };
        let storage = Mortal { storage: (self.storage)(id), killed: killed.clone() };
        let (wire, peers) = (Arc::new(Mutex::new(wire)), self.voters());
        let peers = peers.filter(|peer| *peer != id).collect();
        let (noop, times) = (self.noop.clone(), (self.heartbeat, self.election));
        let replica = Replica::new(id, peers, wire, seat.clone(), noop, times.0, times.1);
        let mut replica = replica.with_storage(storage).with_snapshots(self.snapshot_delta);
        if let Some(drift) = self.max_clock_drift {
            replica = replica.with_lease_reads(drift);
        }
        if id >= self.voters {
            replica = replica.joining();
        }
        let (bell, transitions) = bounded(1);
        let messages = self.network.open(id);
        let thread = Some(thread::spawn(move || replica.start(messages, transitions)));
        self.lives[id] = Some(Life { seat, status, killed, bell, thread, ended: None });
    }

    fn voters(&self) -> impl Iterator<Item = ReplicaID> + use<S, T, D> {
        0..self.voters
    }

    /// Kills a replica wherever it is: from this moment on nothing of it is saved or sent, and what
    /// it had not saved is lost. Its state machine can still be inspected. Nothing happens to one
    /// that is down.
    pub fn kill(&mut self, id: ReplicaID) {
        self.network.close(id);
        if let Some(life) = &mut self.lives[id] {
            life.killed.store(true, SeqCst);
            life.join();
        }
    }

    /// Whether a replica runs. It does not after it was killed or its storage has failed.
    pub fn is_up(&self, id: ReplicaID) -> bool {
        self.living(id).is_some()
    }

    fn living(&self, id: ReplicaID) -> Option<&Life<S, T>> {
        let runs = |thread: &JoinHandle<_>| !thread.is_finished();
        self.lives[id].as_ref().filter(|life| life.thread.as_ref().is_some_and(runs))
    }

    /// Has a replica propose a transition, if it is up. What becomes of it your state machine hears
    /// there.
    pub fn propose(&self, id: ReplicaID, transition: T) {
        self.give(id, |seat| seat.pending.push(transition));
    }

    /// Asks for a linearizable read at a replica, if it is up. Your state machine hears there when
    /// it can be answered.
    pub fn read(&self, id: ReplicaID, read_id: T::TransitionID) {
        self.give(id, |seat| seat.questions.push(read_id));
    }

    fn give(&self, id: ReplicaID, give: impl FnOnce(&mut Seat<S, T>)) {
        if let Some(life) = self.living(id) {
            give(&mut lock(&life.seat));
            let _ = life.bell.try_send(());
        }
    }

    /// Has a replica ask the leader to change the configuration or to hand over its leadership.
    pub fn ask(&self, id: ReplicaID, request: Message<T, D>) {
        self.network.post.deliver(id, request);
    }

    /// Proposes a transition at whoever leads, again and again as long as it certainly was not
    /// applied, until it is applied where it was proposed. Returns that replica.
    ///
    /// # Errors
    /// If that takes too long. Whether the transition is ever applied is unknown then.
    pub fn submit(&mut self, transition: T, patience: Duration) -> Result<ReplicaID, Late> {
        let began = Instant::now();
        loop {
            let left = patience.saturating_sub(began.elapsed());
            self.wait_until(|it| it.leader().is_some(), left)?;
            let Some(id) = self.leader() else { continue };
            self.give(id, |seat| {
                seat.submitted = Some((transition.clone(), None));
                seat.pending.push(transition.clone());
            });
            let seat = self.lives[id].as_ref().map(|life| life.seat.clone());
            let fate = || lock(seat.as_ref()?).submitted.as_ref()?.1.clone();
            let left = patience.saturating_sub(began.elapsed());
            self.wait_until(|_| fate().is_some(), left)?;
            match fate() {
                Some(TransitionState::Abandoned(TransitionAbandonedReason::OutcomeUnknown)) => {
                    return Err(self.late(began.elapsed()));
                }
                Some(TransitionState::Applied) => return Ok(id),
                // It asks somebody else, unless there is nobody else: then it takes a breath.
                _ => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Waits until something is so, which is looked at about every millisecond.
    ///
    /// # Errors
    /// If it is not so within `patience`.
    ///
    /// # Panics
    /// If a replica's thread has panicked.
    pub fn wait_until(
        &mut self, mut condition: impl FnMut(&Self) -> bool, patience: Duration,
    ) -> Result<(), Late> {
        let began = Instant::now();
        while !condition(self) {
            self.lives.iter_mut().flatten().for_each(Life::look_after);
            if began.elapsed() >= patience {
                return Err(self.late(patience));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn late(&self, waited: Duration) -> Late {
        let replicas = self.lives.iter().enumerate().map(|(id, life)| match life {
            None => format!("{id} was never started"),
            Some(Life { ended: Some(result), .. }) => format!("{id} ended: {result:?}"),
            Some(life) => format!("{id} is {:?}", lock(&life.status)),
        });
        Late { waited, replicas: replicas.collect() }
    }

    /// Looks at the state machine of a replica, as it is or, if the replica is down, as it was last.
    ///
    /// # Panics
    /// If the replica was never started.
    pub fn inspect<R>(&self, id: ReplicaID, look: impl FnOnce(&S) -> R) -> R {
        let life = self.lives[id].as_ref().expect("only a replica that was started has a state");
        look(&lock(&life.seat).machine)
    }

    /// How a replica last said it was; none if it is down or has not said anything yet.
    pub fn status(&self, id: ReplicaID) -> Option<Status> {
        lock(&self.living(id)?.status).clone()
    }

    /// The replica that is up and leads the latest term.
    pub fn leader(&self) -> Option<ReplicaID> {
        let statuses = (0..self.lives.len()).filter_map(|id| self.status(id));
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.id)
    }

    /// Loses everything between two replicas.
    pub fn cut(&self, one: ReplicaID, other: ReplicaID) {
        lock(&self.network.post.cuts).extend([(one, other), (other, one)]);
    }

    /// Loses everything that one replica sends to another, but nothing on the way back.
    pub fn cut_one_way(&self, from: ReplicaID, to: ReplicaID) {
        lock(&self.network.post.cuts).insert((from, to));
    }

    /// Loses everything from and to a replica.
    pub fn isolate(&self, id: ReplicaID) {
        (0..self.lives.len()).for_each(|other| self.cut(id, other));
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        lock(&self.network.post.cuts).clear();
    }
}

impl<S, T: StateMachineTransition, D: Clone> Drop for Threads<S, T, D> {
    fn drop(&mut self) {
        for life in self.lives.iter().flatten() {
            life.killed.store(true, SeqCst);
        }
        self.lives.iter_mut().flatten().for_each(Life::join);
    }
}

impl<S, T: StateMachineTransition> Life<S, T> {
    /// Takes notice of a replica that has ended.
    fn look_after(&mut self) {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join();
        }
    }

    fn join(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ = self.bell.try_send(());
        match thread.join() {
            Ok(result) => self.ended = Some(result),
            Err(_) if thread::panicking() => {}
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Locks what may have been left by a thread that has panicked; the panic is told elsewhere.
fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's state machine, and what was given from outside for it to propose and ask.
struct Seat<S, T: StateMachineTransition> {
    machine: S,
    pending: Vec<T>,
    questions: Vec<T::TransitionID>,
    /// What was submitted last, and how it ended.
    submitted: Option<(T, Option<TransitionState>)>,
}

impl<S: StateMachine<T, D>, T: StateMachineTransition, D: Clone> StateMachine<T, D> for Seat<S, T> {
    fn register_transition_state(&mut self, id: T::TransitionID, state: TransitionState) {
        let ends = matches!(state, TransitionState::Applied | TransitionState::Abandoned(_));
        if let Some((transition, end)) = &mut self.submitted
            && transition.get_id() == id
            && ends
        {
            *end = Some(state.clone());
        }
        self.machine.register_transition_state(id, state);
    }

    fn apply_transition(&mut self, transition: T) {
        self.machine.apply_transition(transition);
    }

    fn get_pending_transitions(&mut self) -> Vec<T> {
        let mut pending = self.machine.get_pending_transitions();
        pending.append(&mut self.pending);
        pending
    }

    fn get_snapshot(&mut self) -> Option<Snapshot<D>> {
        self.machine.get_snapshot()
    }

    fn create_snapshot(&mut self, last_index: usize, last_term: usize) -> Snapshot<D> {
        self.machine.create_snapshot(last_index, last_term)
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<D>) {
        self.machine.set_snapshot(snapshot);
    }

    fn get_pending_reads(&mut self) -> Vec<T::TransitionID> {
        let mut reads = self.machine.get_pending_reads();
        reads.append(&mut self.questions);
        reads
    }

    fn register_read_state(&mut self, read_id: T::TransitionID, state: ReadState) {
        self.machine.register_read_state(read_id, state);
    }
}

/// A storage that loses a save in which its replica is killed, or keeps it and does not say so.
struct Mortal<T, D> {
    storage: Box<dyn Storage<T, D>>,
    killed: Arc<AtomicBool>,
}

impl<T, D> Mortal<T, D> {
    fn check(&self) -> io::Result<()> {
        let killed = self.killed.load(SeqCst);
        if killed { Err(io::Error::other("the replica was killed")) } else { Ok(()) }
    }
}

impl<T, D> Storage<T, D> for Mortal<T, D> {
    fn load(&mut self) -> io::Result<Change<T, D>> {
        self.storage.load()
    }

    fn save(&mut self, change: Change<T, D>) -> io::Result<()> {
        self.check()?;
        self.storage.save(change)?;
        self.check()
    }
}

/// A replica's place in the network.
struct Wire<T, D> {
    id: ReplicaID,
    network: Arc<Network<T, D>>,
    killed: Arc<AtomicBool>,
    status: Arc<Mutex<Option<Status>>>,
}

impl<T: StateMachineTransition, D: Clone> Cluster<T, D> for Wire<T, D> {
    fn send_message(&mut self, to_id: ReplicaID, message: Message<T, D>) {
        if !self.killed.load(SeqCst) {
            self.network.send(self.id, to_id, message);
        }
    }

    fn receive_messages(&mut self) -> Vec<Message<T, D>> {
        std::mem::take(&mut *lock(&self.network.post.boxes[self.id].messages))
    }

    fn halt(&self) -> bool {
        self.killed.load(SeqCst)
    }

    fn register_leader(&mut self, _: Option<ReplicaID>) {}

    fn register_status(&mut self, status: Status) {
        *lock(&self.status) = Some(status);
    }
}

/// A message, from whom and to whom, and when it is to arrive.
type Packet<T, D> = (Instant, (ReplicaID, ReplicaID), Message<T, D>);

struct Network<T, D> {
    post: Arc<Post<T, D>>,
    weather: Mutex<(Weather, Random)>,
    /// Takes what is underway for a while.
    courier: Sender<Packet<T, D>>,
}

/// Where messages arrive.
struct Post<T, D> {
    boxes: Vec<Mailbox<T, D>>,
    cuts: Mutex<BTreeSet<(ReplicaID, ReplicaID)>>,
}

struct Mailbox<T, D> {
    open: AtomicBool,
    messages: Mutex<Vec<Message<T, D>>>,
    bell: (Sender<()>, Receiver<()>),
}

impl<T: Clone + Send + Sync + 'static, D: Clone + Send + Sync + 'static> Network<T, D> {
    fn new(replicas: usize) -> Arc<Self> {
        let (open, bell) = (|| AtomicBool::new(false), || bounded(1));
        let mailbox = |_| Mailbox { open: open(), messages: Mutex::default(), bell: bell() };
        let boxes = (0..replicas).map(mailbox).collect();
        let post = Arc::new(Post { boxes, cuts: Mutex::default() });
        let ((courier, packets), carrier) = (unbounded(), post.clone());
        thread::spawn(move || carrier.carry(&packets));
        let weather = Mutex::new((Weather::default(), Random::seed_from_u64(0)));
        Arc::new(Network { post, weather, courier })
    }

    /// A replica starts: nothing that was sent to it before arrives.
    fn open(&self, id: ReplicaID) -> Receiver<()> {
        let mailbox = &self.post.boxes[id];
        lock(&mailbox.messages).clear();
        mailbox.open.store(true, SeqCst);
        mailbox.bell.1.clone()
    }

    fn close(&self, id: ReplicaID) {
        self.post.boxes[id].open.store(false, SeqCst);
    }
}

impl<T: Clone, D: Clone> Network<T, D> {
    fn send(&self, from: ReplicaID, to: ReplicaID, message: Message<T, D>) {
        let mut weather = lock(&self.weather);
        let (Weather { lost, duplicated, delay }, random) = &mut *weather;
        let mut happens = |chance: u32| random.random_range(0..1_000_000) < chance;
        if happens(*lost) {
            return;
        }
        let copies = 1 + u32::from(happens(*duplicated));
        for _ in 0..copies {
            let wait = random.random_range(Duration::ZERO..=*delay);
            if wait.is_zero() {
                self.post.arrive((from, to), message.clone());
            } else {
                // The courier is there as long as the network is.
                let _ = self.courier.send((Instant::now() + wait, (from, to), message.clone()));
            }
        }
    }
}

impl<T, D> Post<T, D> {
    /// Holds messages until their time has come.
    fn carry(&self, packets: &Receiver<Packet<T, D>>) {
        let (mut underway, mut number) = (BTreeMap::new(), 0_u64);
        loop {
            let received = match underway.first_key_value() {
                Some(((at, _), _)) => packets.recv_deadline(*at),
                None => packets.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok((at, way, message)) => {
                    number += 1;
                    underway.insert((at, number), (way, message));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let due = underway.pop_first();
                    due.into_iter().for_each(|(_, (way, message))| self.arrive(way, message));
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// A message arrives, unless its link is cut by now.
    fn arrive(&self, way: (ReplicaID, ReplicaID), message: Message<T, D>) {
        if !lock(&self.cuts).contains(&way) {
            self.deliver(way.1, message);
        }
    }

    fn deliver(&self, to: ReplicaID, message: Message<T, D>) {
        let mailbox = self.boxes.get(to).filter(|mailbox| mailbox.open.load(SeqCst));
        if let Some(mailbox) = mailbox {
            lock(&mailbox.messages).push(message);
            let _ = mailbox.bell.0.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(network: &Network<u8, ()>, count: usize) -> Vec<ReplicaID> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while lock(&network.post.boxes[1].messages).len() < count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let messages = std::mem::take(&mut *lock(&network.post.boxes[1].messages));
        messages.into_iter().map(|message| message.from_id).collect()
    }

    fn send(network: &Network<u8, ()>, count: usize) {
        for from_id in 0..count {
            let body = little_raft::Body::TimeoutNow;
            network.send(0, 1, Message { from_id, term: 1, body });
        }
    }

    #[test]
    fn messages_overtake_each_other_and_come_twice_or_not_at_all() {
        let network = Network::new(2);
        let _bell = network.open(1);
        send(&network, 100);
        assert_eq!(receive(&network, 100), (0..100).collect::<Vec<_>>(), "fair weather");

        let delay = Duration::from_millis(5);
        lock(&network.weather).0 = Weather { lost: 0, duplicated: 1_000_000, delay };
        send(&network, 100);
        let mut twice = receive(&network, 200);
        assert!(!twice.is_sorted(), "none has overtaken another");
        twice.sort_unstable();
        assert_eq!(twice, (0..200).map(|number| number / 2).collect::<Vec<_>>());

        lock(&network.weather).0 = Weather { lost: 500_000, ..Weather::default() };
        send(&network, 1_000);
        let some = receive(&network, 0).len();
        assert!((300..700).contains(&some), "half is lost, but {some} came");

        lock(&network.weather).0 = Weather::default();
        lock(&network.post.cuts).insert((0, 1));
        send(&network, 100);
        network.close(1);
        lock(&network.post.cuts).clear();
        send(&network, 100);
        assert_eq!(receive(&network, 0).len(), 0, "neither a cut nor a dead replica is passed");
    }
}
