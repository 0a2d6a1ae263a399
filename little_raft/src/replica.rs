//! The blocking loop: the only place with a thread, a lock, a clock and a channel.

use crate::*;
use crossbeam_channel::{Receiver, Select, Sender, bounded, never};
use timer::{Guard, Timer};

/// Identifies a replica in its cluster.
pub type ReplicaID = usize;

/// The local instance that keeps a user's state machine in step with the rest of the cluster.
pub struct Replica<S, T: StateMachineTransition, C, D = Vec<u8>> {
    config: Config,
    noop: T,
    cluster: Arc<Mutex<C>>,
    state_machine: Arc<Mutex<S>>,
    storage: Option<Box<dyn Storage<T, D>>>,
    /// Present before the first start and between two starts; gone for good after an error.
    raft: Option<Option<Raft<T, D>>>,
    began: Instant,
    /// The reads underway, by the ticket under which they were asked together.
    reads: HashMap<u64, Vec<T::TransitionID>>,
    /// The leader of which the cluster was told last.
    leader: Option<ReplicaID>,
}

impl<S: StateMachine<T, D>, T: StateMachineTransition, C: Cluster<T, D>, D: Clone>
    Replica<S, T, C, D>
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
        id: ReplicaID, peer_ids: Vec<ReplicaID>, cluster: Arc<Mutex<C>>,
        state_machine: Arc<Mutex<S>>, noop_transition: T, heartbeat_timeout: Duration,
        election_timeout_range: (Duration, Duration),
    ) -> Self {
        let others = Config { seed: rand::random(), ..Config::default() };
        let config = Config { id, peer_ids, heartbeat_timeout, election_timeout_range, ..others };
        let (noop, began, raft) = (noop_transition, Instant::now(), Some(None));
        let (storage, reads, leader) = Default::default();
        Replica { config, noop, began, cluster, state_machine, storage, raft, reads, leader }
    }

    /// Keeps term, vote, log and snapshots in a storage, so that the replica may come back.
    pub fn with_storage(mut self, storage: impl Storage<T, D> + 'static) -> Self {
        self.storage = Some(Box::new(storage));
        self
    }

    /// Takes a snapshot every `snapshot_delta` applied entries and compacts the log behind it, but
    /// for `snapshot_delta` entries that slow followers may still need, up to 32 times as many
    /// while one may be installing a snapshot. 0 for never.
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
    /// * `InvalidInput`: the arguments make no sense, or a snapshot is not the one asked for;
    /// * `InvalidData`: the storage holds what no replica can have saved;
    /// * `Other`: a mutex is poisoned, that is, a thread that held it has panicked; or an earlier
    ///   start has failed;
    /// * whatever the storage returned. It is not used again.
    pub fn start(
        &mut self, recv_msg: Receiver<()>, recv_transition: Receiver<()>,
    ) -> io::Result<()> {
        let failed = || io::Error::other("this replica has failed before, make a new one");
        let mut raft = self.raft.take().ok_or_else(failed)?.map_or_else(|| self.load(), Ok)?;
        let (wake, recv_timer) = bounded(1);
        let channels = [recv_msg, recv_timer, recv_transition];
        let mut wakeups = Wakeups { channels, timer: Timer::new(), wake, armed: None };
        while self.take_inputs(&mut raft, &mut wakeups)? {
            let mut outputs = raft.outputs(self.began.elapsed());
            self.tell(&mut outputs.appends, outputs.status.take())?;
            if let Some(change) = outputs.change.take() {
                self.storage.as_mut().map_or(Ok(()), |storage| storage.save(change))?;
                raft.saved();
            }
            self.tell(&mut outputs.messages, None)?;
            self.apply(&mut raft, outputs)?;
        }
        self.raft = Some(Some(raft));
        Ok(())
    }

    /// The replica as the storage has it, and the state machine brought to where its snapshot is.
    fn load(&mut self) -> io::Result<Raft<T, D>> {
        let loaded = self.storage.as_mut().map(|storage| storage.load()).transpose()?;
        if loaded.is_none() {
            warn!("{}: keeps nothing, must not come back under its id", self.config.id);
        }
        let mut saved = loaded.unwrap_or_default();
        let mut state_machine = lock(&self.state_machine)?;
        let restore = saved.snapshot.clone();
        if restore.is_none() {
            saved.snapshot = state_machine.get_snapshot();
            let seed = saved.snapshot.as_ref().filter(|_| saved.runs.is_empty());
            saved.compacted = seed.map_or(saved.compacted, Snapshot::last);
            saved.term = saved.term.max(saved.compacted.term);
        }
        let raft = Raft::new(self.config.clone(), self.noop.clone(), saved, self.began.elapsed());
        raft.inspect(|_| restore.into_iter().for_each(|it| state_machine.set_snapshot(it)))
    }

    /// Waits for something to do, and takes in all that has come: messages, time, transitions,
    /// reads. False if it is time to halt.
    fn take_inputs(&mut self, raft: &mut Raft<T, D>, wakeups: &mut Wakeups) -> io::Result<bool> {
        let now = self.began.elapsed();
        let wake_at = if raft.committed().is_empty() { raft.me.deadline } else { now };
        wakeups.wait(now, wake_at, self.config.heartbeat_timeout, raft.wants_transitions());
        let mut cluster = lock(&self.cluster)?;
        if cluster.halt() {
            return Ok(false);
        }
        let messages = if wakeups.take(0) { cluster.receive_messages() } else { Vec::new() };
        drop(cluster);
        messages.into_iter().for_each(|message| raft.step(self.began.elapsed(), message));
        if raft.wants_transitions() && wakeups.take(2) {
            let mut state_machine = lock(&self.state_machine)?;
            raft.propose(state_machine.get_pending_transitions());
            let reads = state_machine.get_pending_reads();
            if !reads.is_empty() {
                // A lease is judged by a time after the reads were asked for, so not by `now`.
                self.reads.insert(raft.read(self.began.elapsed()), reads);
            }
        }
        Ok(true)
    }

    /// Sends messages and tells what is new, under the cluster's mutex.
    fn tell(&mut self, messages: &mut Outbox<T, D>, status: Option<Status>) -> io::Result<()> {
        let mut cluster = lock(&self.cluster)?;
        messages.drain(..).for_each(|(to_id, message)| cluster.send_message(to_id, message));
        if let Some(status) = status {
            if replace(&mut self.leader, status.leader) != status.leader {
                cluster.register_leader(status.leader);
            }
            cluster.register_status(status);
        }
        Ok(())
    }

    /// Passes on what has become of transitions and reads, and applies what is committed, under the
    /// state machine's mutex.
    fn apply(&mut self, raft: &mut Raft<T, D>, outputs: Outputs<T, D>) -> io::Result<()> {
        let mut state_machine = lock(&self.state_machine)?;
        outputs.restore.into_iter().for_each(|snapshot| state_machine.set_snapshot(snapshot));
        for (transitions, state) in outputs.states {
            let ids = transitions.iter().map(T::get_id);
            ids.for_each(|id| state_machine.register_transition_state(id, state.clone()));
        }
        // No longer than heartbeats can wait; a look at the clock costs as much as a small
        // transition.
        let (began, limit) = (Instant::now(), self.config.heartbeat_timeout / 4);
        let late = |n: usize| (n.is_power_of_two() || n % 64 == 63) && began.elapsed() > limit;
        let slice = raft.committed().iter().zip(0..).take_while(|(_, n)| !late(*n));
        let applied = slice.map(|(transition, _)| {
            state_machine.register_transition_state(transition.get_id(), Committed);
            state_machine.apply_transition(transition.clone());
            state_machine.register_transition_state(transition.get_id(), Applied);
        });
        raft.applied(applied.count());
        for (ticket, state) in raft.take_reads() {
            let reads = self.reads.remove(&ticket).into_iter().flatten();
            reads.for_each(|id| state_machine.register_read_state(id, state));
        }
        raft.compact(|index, term| state_machine.create_snapshot(index, term))
    }
}

/// Locks one of the user's mutexes. A poisoned one guards something half done.
fn lock<M>(mutex: &Mutex<M>) -> io::Result<std::sync::MutexGuard<'_, M>> {
    mutex.lock().map_err(|_| io::Error::other("a thread panicked while it held a replica's mutex"))
}

/// What wakes the loop.
struct Wakeups {
    /// For messages, for the time, for transitions and reads.
    channels: [Receiver<()>; 3],
    timer: Timer,
    wake: Sender<()>,
    /// When the timer is going to wake the loop, and what cancels that if dropped.
    armed: Option<(Duration, Guard)>,
}

impl Wakeups {
    /// Waits for a notification, or for the timer, which is to wake the loop at `wake_at` or
    /// earlier; though no longer than `longest`, because it follows the wall clock, which may be
    /// set back. Tokens of the last channel stay there as long as nobody `wants` them.
    fn wait(&mut self, now: Duration, wake_at: Duration, longest: Duration, wants: bool) {
        let left = wake_at.saturating_sub(now).min(Duration::from_secs(3600));
        let armed = self.armed.as_ref().is_some_and(|(at, _)| (now..=wake_at).contains(at));
        if !armed && !left.is_zero() {
            let wake = self.wake.clone();
            let set = |date| self.timer.schedule_with_date(date, move || _ = wake.try_send(()));
            // The type of a date is chrono's, which `timer` does not name for us: its default value
            // is the Unix epoch, and a `Duration` can be added to it.
            let date = default_argument(&set).to_utc() + UNIX_EPOCH.elapsed().unwrap_or_default();
            self.armed = Some((now + left, set(date + left)));
        }
        let mut select = Select::new();
        self.channels[..2 + usize::from(wants)].iter().for_each(|it| _ = select.recv(it));
        // Which of them is ready shows when their tokens are taken.
        let _ = select.ready_timeout(if left.is_zero() { left } else { longest });
        self.take(1);
    }

    /// Takes all tokens of a channel, and says whether there were any: they are tokens, not counts.
    /// Not before it is certain that this turn will serve them: at a halt they stay for the next
    /// start. A channel that is disconnected is forgotten.
    fn take(&mut self, place: usize) -> bool {
        let channel = &mut self.channels[place];
        let (token, others) = (channel.try_recv(), channel.len());
        channel.try_iter().take(others).for_each(drop);
        if token.is_err_and(|error| error.is_disconnected()) {
            *channel = never();
        }
        token.is_ok()
    }
}

/// The default value of what a function takes.
fn default_argument<A: Default, R>(_: &impl FnOnce(A) -> R) -> A {
    A::default()
}
