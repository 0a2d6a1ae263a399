//! The blocking loop: the only place with a thread, a lock, a clock and a channel.

use crate::raft::{Config, Outputs, Raft};
use crate::{
    Cluster, LogId, Message, Saved, StateMachine, StateMachineTransition, Status, Storage,
};
use crate::{TransitionAbandonedReason::NotLeader, TransitionState};
use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use std::collections::HashMap;
use std::io::{Error, Result};
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use timer::{Guard, Timer};

/// Identifies a replica in its cluster.
pub type ReplicaID = usize;

/// How many transitions are applied between two looks at the clock.
const APPLY_BETWEEN_LOOKS: usize = 16;

/// The local instance that keeps a user's state machine in step with the rest of the cluster.
pub struct Replica<S, T, C, D = Vec<u8>>
where
    T: StateMachineTransition,
{
    config: Config,
    noop_transition: T,
    cluster: Arc<Mutex<C>>,
    state_machine: Arc<Mutex<S>>,
    storage: Option<Box<dyn Storage<T, D>>>,
    started: bool,
    /// Present between two starts.
    raft: Option<Raft<T, D>>,
    began: Instant,
    /// The reads underway, by the ticket of the batch in which they were polled.
    reads: HashMap<u64, Vec<T::TransitionID>>,
}

impl<S, T, C, D> Replica<S, T, C, D>
where
    S: StateMachine<T, D>,
    T: StateMachineTransition,
    C: Cluster<T, D>,
    D: Clone,
{
    /// A replica that keeps its log in memory only, never compacts it, and asks a quorum for every
    /// read.
    ///
    /// * `id` is this replica's, unique in the cluster and never used again for one that has lost
    ///   what it saved;
    /// * `peer_ids` are the others, the same cluster on every replica. What the storage holds wins;
    /// * `noop_transition` begins every leadership and must not change the state machine;
    /// * `heartbeat_timeout` is the time between two heartbeats of a leader;
    /// * `election_timeout_range` bounds the time without a leader after which a replica stands for
    ///   election; its least must be above the heartbeat timeout, better several times.
    pub fn new(
        id: ReplicaID,
        peer_ids: Vec<ReplicaID>,
        cluster: Arc<Mutex<C>>,
        state_machine: Arc<Mutex<S>>,
        noop_transition: T,
        heartbeat_timeout: Duration,
        election_timeout_range: (Duration, Duration),
    ) -> Self {
        let config = Config {
            id,
            peer_ids,
            heartbeat_timeout,
            election_timeout_range,
            snapshot_delta: 0,
            max_clock_drift: None,
            joining: false,
            seed: rand::random(),
        };
        Replica {
            config,
            noop_transition,
            cluster,
            state_machine,
            storage: None,
            started: false,
            raft: None,
            began: Instant::now(),
            reads: HashMap::new(),
        }
    }

    /// Keeps term, vote, log and snapshots in a storage, so that the replica may come back.
    pub fn with_storage(mut self, storage: impl Storage<T, D> + 'static) -> Self {
        self.storage = Some(Box::new(storage));
        self
    }

    /// Takes a snapshot every `snapshot_delta` applied entries and compacts the log behind it, but
    /// for `snapshot_delta` entries that slow followers may still need. 0 for never.
    pub fn with_snapshots(mut self, snapshot_delta: usize) -> Self {
        self.config.snapshot_delta = snapshot_delta;
        self
    }

    /// Lets a leader answer reads without asking a quorum, for as long as no other can have been
    /// elected on clocks that drift apart by at most `max_clock_drift` in one election timeout
    /// (thesis §6.4.1). Must be the same on every replica; a wrong bound makes stale reads.
    pub fn with_lease_reads(mut self, max_clock_drift: Duration) -> Self {
        self.config.max_clock_drift = Some(max_clock_drift);
        self
    }

    /// This replica is in no configuration yet: it waits to be added by
    /// [`Message::change_membership`], and never stands for election before.
    pub fn joining(mut self) -> Self {
        self.config.joining = true;
        self
    }

    /// Runs the replica in this thread until [`Cluster::halt`] says to stop.
    ///
    /// A notification on `recv_msg` says that [`Cluster::receive_messages`] has something, one on
    /// `recv_transition` that [`StateMachine::get_pending_transitions`] or
    /// [`StateMachine::get_pending_reads`] has. Notifications are tokens, not counts: one is enough
    /// for any number, so a channel of capacity one with `try_send` will do.
    ///
    /// Started again after a halt it goes on where it stopped.
    ///
    /// # Errors
    /// * `InvalidInput`: the arguments make no sense;
    /// * `InvalidData`: the storage holds what no replica can have saved;
    /// * `Other`: a mutex is poisoned, that is, a thread that held it has panicked;
    /// * whatever the storage returned. It is not used again.
    pub fn start(&mut self, recv_msg: Receiver<()>, recv_transition: Receiver<()>) -> Result<()> {
        if self.started && self.raft.is_none() {
            return Err(Error::other("this replica has stopped with an error, make a new one"));
        }
        self.started = true;
        let mut raft = match self.raft.take() {
            Some(raft) => raft,
            None => self.load()?,
        };
        let mut wakeups = Wakeups::new(recv_msg, recv_transition, self.config.heartbeat_timeout);
        loop {
            let now = self.began.elapsed();
            let idle = raft.committed().is_empty();
            wakeups.wait(now, if idle { raft.deadline() } else { now });
            let Some(refused) = self.take_inputs(&mut raft, &mut wakeups)? else {
                self.raft = Some(raft);
                return Ok(());
            };
            let mut outputs = raft.outputs();
            let (leader, status) = (outputs.leader.take(), outputs.status.take());
            self.tell(take(&mut outputs.appends), leader, status)?;
            if let Some(change) = outputs.change.take() {
                if let Some(storage) = &mut self.storage {
                    storage.save(change)?;
                }
                raft.saved();
            }
            self.tell(take(&mut outputs.messages), None, None)?;
            self.apply(&mut raft, outputs, refused)?;
        }
    }

    /// The replica as the storage has it, and the state machine brought to where its snapshot is.
    fn load(&mut self) -> Result<Raft<T, D>> {
        let mut saved = match &mut self.storage {
            Some(storage) => storage.load()?,
            None => {
                log::warn!(
                    "replica {} keeps nothing: it must not come back under this id once it stops",
                    self.config.id
                );
                Saved::default()
            }
        };
        let restore = saved.snapshot.clone();
        if saved.snapshot.is_none() {
            saved.snapshot = lock(&self.state_machine)?.get_snapshot();
            if let Some(snapshot) = saved.snapshot.as_ref().filter(|_| saved.runs.is_empty()) {
                saved.compacted = snapshot.last();
                saved.term = saved.term.max(snapshot.last_included_term);
            }
        }
        let now = self.began.elapsed();
        let raft = Raft::new(self.config.clone(), self.noop_transition.clone(), saved, now)?;
        if let Some(snapshot) = restore {
            lock(&self.state_machine)?.set_snapshot(snapshot);
        }
        Ok(raft)
    }

    /// Takes in all that has come: messages, time, transitions, reads. Returns the transitions that
    /// were refused, or nothing if it is time to halt.
    fn take_inputs(
        &mut self,
        raft: &mut Raft<T, D>,
        wakeups: &mut Wakeups,
    ) -> Result<Option<Vec<T>>> {
        let mut messages = Vec::new();
        {
            let mut cluster = lock(&self.cluster)?;
            if cluster.halt() {
                return Ok(None);
            }
            if take(&mut wakeups.messages_due) {
                messages = cluster.receive_messages();
            }
        }
        let now = self.began.elapsed();
        for message in messages {
            raft.step(now, message);
        }
        raft.tick(now);
        if !wakeups.transitions_due || !raft.wants_transitions() {
            return Ok(Some(Vec::new()));
        }
        wakeups.transitions_due = false;
        let (transitions, reads) = {
            let mut state_machine = lock(&self.state_machine)?;
            (state_machine.get_pending_transitions(), state_machine.get_pending_reads())
        };
        if !reads.is_empty() {
            // A lease is judged at a time after the read was asked for, hence not by `now`.
            self.reads.insert(raft.read(self.began.elapsed()), reads);
        }
        Ok(Some(raft.propose(transitions).err().unwrap_or_default()))
    }

    /// Sends messages and passes on news, under the cluster's mutex.
    fn tell(
        &self,
        messages: Vec<(ReplicaID, Message<T, D>)>,
        leader: Option<Option<ReplicaID>>,
        status: Option<Status>,
    ) -> Result<()> {
        if messages.is_empty() && leader.is_none() && status.is_none() {
            return Ok(());
        }
        let mut cluster = lock(&self.cluster)?;
        messages.into_iter().for_each(|(to_id, message)| cluster.send_message(to_id, message));
        leader.into_iter().for_each(|leader_id| cluster.register_leader(leader_id));
        status.into_iter().for_each(|status| cluster.register_status(status));
        Ok(())
    }

    /// Passes on what has become of transitions and reads, and applies what is committed, under the
    /// state machine's mutex.
    fn apply(
        &mut self,
        raft: &mut Raft<T, D>,
        outputs: Outputs<T, D>,
        refused: Vec<T>,
    ) -> Result<()> {
        let mut state_machine = lock(&self.state_machine)?;
        if let Some(snapshot) = outputs.restore {
            state_machine.set_snapshot(snapshot);
        }
        for run in &outputs.queued {
            for transition in run.transitions() {
                let id = transition.get_id();
                state_machine.register_transition_state(id, TransitionState::Queued);
            }
        }
        let refused = refused.into_iter().map(|transition| (transition, NotLeader));
        for (transition, reason) in refused.chain(outputs.abandoned) {
            let state = TransitionState::Abandoned(reason);
            state_machine.register_transition_state(transition.get_id(), state);
        }
        apply_committed(&mut *state_machine, raft, self.config.heartbeat_timeout / 4);
        for (ticket, state) in raft.take_reads() {
            for read_id in self.reads.remove(&ticket).into_iter().flatten() {
                state_machine.register_read_state(read_id, state);
            }
        }
        match raft.snapshot_due() {
            Some(LogId { index, term }) => raft.compact(state_machine.create_snapshot(index, term)),
            None => Ok(()),
        }
    }
}

/// Applies what is committed, but for no longer than `limit`, so that heartbeats leave on time; the
/// rest is left to the next turn.
fn apply_committed<S, T, D>(state_machine: &mut S, raft: &mut Raft<T, D>, limit: Duration)
where
    S: StateMachine<T, D>,
    T: StateMachineTransition,
    D: Clone,
{
    let began = Instant::now();
    while !raft.committed().is_empty() && began.elapsed() < limit {
        let slice = raft.committed();
        let slice = &slice[..slice.len().min(APPLY_BETWEEN_LOOKS)];
        for transition in slice {
            state_machine
                .register_transition_state(transition.get_id(), TransitionState::Committed);
            state_machine.apply_transition(transition.clone());
            state_machine.register_transition_state(transition.get_id(), TransitionState::Applied);
        }
        raft.applied(slice.len());
    }
}

/// Locks one of the user's mutexes. One that is poisoned guards something half done.
fn lock<M>(mutex: &Mutex<M>) -> Result<MutexGuard<'_, M>> {
    mutex.lock().map_err(|_| Error::other("a thread has panicked while it held a replica's mutex"))
}

/// The channels that wake the loop: the user's two, and the timer's.
struct Wakeups {
    recv_msg: Receiver<()>,
    recv_transition: Receiver<()>,
    recv_timer: Receiver<()>,
    wake: Sender<()>,
    timer: Timer,
    /// The wake-up that the timer has in hand: when, and what cancels it if dropped.
    armed: Option<(Duration, Guard)>,
    /// The timer follows the wall clock, which may be set back: no wait is longer than this.
    longest: Duration,
    messages_due: bool,
    transitions_due: bool,
}

impl Wakeups {
    fn new(recv_msg: Receiver<()>, recv_transition: Receiver<()>, longest: Duration) -> Wakeups {
        let (wake, recv_timer) = bounded(1);
        let (timer, armed) = (Timer::new(), None);
        let (messages_due, transitions_due) = (false, false);
        Wakeups {
            recv_msg,
            recv_transition,
            recv_timer,
            wake,
            timer,
            armed,
            longest,
            messages_due,
            transitions_due,
        }
    }

    /// Waits until there is a notification or, by the time `deadline`, nothing; then takes every
    /// notification there is.
    fn wait(&mut self, now: Duration, deadline: Duration) {
        let left = deadline.saturating_sub(now);
        if !left.is_zero() {
            self.arm(now, deadline);
        }
        select! {
            recv(self.recv_msg) -> token => {
                note(token.is_ok(), &mut self.messages_due, &mut self.recv_msg);
            }
            recv(self.recv_transition) -> token => {
                note(token.is_ok(), &mut self.transitions_due, &mut self.recv_transition);
            }
            recv(self.recv_timer) -> _ => self.armed = None,
            default(left.min(self.longest)) => {}
        }
        drain(&mut self.recv_msg, &mut self.messages_due);
        drain(&mut self.recv_transition, &mut self.transitions_due);
    }

    /// Has the timer wake the loop at `deadline`, unless it does so earlier anyway.
    fn arm(&mut self, now: Duration, deadline: Duration) {
        if self.armed.as_ref().is_some_and(|(at, _)| (now..=deadline).contains(at)) {
            return;
        }
        let wake = self.wake.clone();
        let wake = move || wake.try_send(()).unwrap_or_default();
        let schedule = |date| self.timer.schedule_with_date(date, wake);
        // `timer` takes its dates as a type of a crate that it does not re-export: its default value
        // is the Unix epoch, and a `Duration` can be added to it.
        let epoch = default_argument(&schedule).to_utc();
        let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.armed = Some((deadline, schedule(epoch + date + (deadline - now))));
    }
}

/// The default value of what a function takes.
fn default_argument<A: Default, R>(_: &impl FnOnce(A) -> R) -> A {
    A::default()
}

/// Takes note of a token. A disconnected channel is no wake-up, now or ever again.
fn note(token: bool, due: &mut bool, channel: &mut Receiver<()>) {
    match token {
        true => *due = true,
        false => *channel = never(),
    }
}

/// Takes the tokens that are there; many mean no more than one.
fn drain(channel: &mut Receiver<()>, due: &mut bool) {
    for _ in 0..channel.len() {
        *due |= channel.try_recv().is_ok();
    }
}
