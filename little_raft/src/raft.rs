//! One replica as a pure machine: inputs in, one batch of outputs out.
//!
//! There is no clock, no I/O, no lock, no thread and no global randomness in here. The same code
//! runs in the threads of a user, in a simulator, in a model checker and in a fuzzer.
//!
//! A turn looks like this:
//!
//! ```text
//!   messages, transitions, reads, time
//!                  |  step, propose, read
//!                  v
//!               [ Raft ] -- outputs --> send the appends
//!                                       save the change           (may fail: stop)
//!                  <------- saved -----
//!                                       send the messages
//!                  -------- committed, take_reads --> apply, answer
//! ```
//!
//! Nothing that promises anything leaves before what it promises is durable.

use crate::{election::Read, log::Log, replication::Leading, *};

/// Entries that one message holds at most.
pub(crate) const MAX_BATCH: usize = 1024;
/// Entries that may be underway to one peer, or wait to be applied before a leader stops asking for
/// more.
pub(crate) const MAX_UNDERWAY: usize = 64 * MAX_BATCH;
/// Entries that a follower holds beyond what it has applied before it stops acknowledging more.
pub(crate) const MAX_UNAPPLIED: usize = 16 * MAX_UNDERWAY;
/// How many times as much as usual is kept for a peer that is installing a snapshot.
const MAX_KEPT: usize = 32;
/// No honest term or index comes near this, and none above it is believed, so that adding to one
/// never overflows.
pub(crate) const LIMIT: usize = usize::MAX / 2;

/// What a configuration must fulfil.
const SENSIBLE: &str = "an id but USER, peers other than this replica, 0 < heartbeat timeout < least \
     election timeout <= greatest, and clock drift < least election timeout";

/// What one replica is told about itself and its cluster.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// This replica.
    pub id: ReplicaID,
    /// The other voters of the first configuration. What is saved wins over it.
    pub peer_ids: Vec<ReplicaID>,
    /// Time between two heartbeats of the leader.
    pub heartbeat_timeout: Duration,
    /// Least and greatest time without a leader after which a replica stands for election. The
    /// least must be above the heartbeat timeout, better several times.
    pub election_timeout_range: (Duration, Duration),
    /// Entries applied between two snapshots, and kept behind each, more while a peer may be
    /// installing one; 0 for no snapshots.
    pub snapshot_delta: usize,
    /// Serve reads from the leader's lease, on clocks that drift apart by at most this much in one
    /// election timeout (thesis §6.4.1). The same on all replicas.
    pub max_clock_drift: Option<Duration>,
    /// This replica is in no configuration yet; it waits to be added.
    pub joining: bool,
    /// Where randomness comes from. Must differ between replicas and between starts.
    pub seed: u64,
}

/// The part a replica plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// How a replica and its cluster are, as this replica sees it: why there is no leader, why
/// something is not committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Status {
    /// This replica.
    pub id: ReplicaID,
    /// When this was so: the time since the replica began.
    pub now: Duration,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in that term.
    pub voted_for: Option<ReplicaID>,
    /// The leader of that term, if known.
    pub leader: Option<ReplicaID>,
    /// Until when that leader, or an earlier one, counts as alive. Before that nobody gets a vote,
    /// whatever the term, unless the leader itself asked for the election (thesis §4.2.3). Its
    /// lease counts on it. With leases a start counts as hearing a leader, for this replica may
    /// have heard one that it does not remember.
    pub loyal_until: Duration,
    /// When it is going to send heartbeats, as a leader, or else to stand for election.
    pub deadline: Duration,
    /// The configuration in force, committed or not.
    pub membership: Arc<Membership>,
    /// Index up to which the log is known to be committed.
    pub commit: Index,
    /// Index up to which the log is applied here.
    pub applied: Index,
    /// First index that is still in the log.
    pub first_index: Index,
    /// Last index in the log.
    pub last_index: Index,
    /// At the leader, how far its peers are.
    pub peers: BTreeMap<ReplicaID, Progress>,
}

/// How far a peer is, as its leader sees it. Entries go to it as they come, ahead of the answers,
/// unless the leader is probing, or waits for it to install a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Progress {
    /// Index up to which the peer's log durably matches.
    pub matched: Index,
    /// Index of the next entry to send; ahead of `matched` by what is underway.
    pub next: Index,
    /// The leader finds out where the logs part, one message at a time.
    pub probing: bool,
    /// It may be installing a snapshot: until when, before it gets another, and how long that wait
    /// is.
    pub installing: Option<(Duration, Duration)>,
    /// The latest round that it has echoed, zero for none: then, by the leader's clock, it was
    /// alive.
    pub heard: Round,
    /// Answers to earlier rounds say nothing about where its log is now.
    pub since: Round,
}

/// Messages, and to whom they go.
pub type Outbox<T, D> = Vec<(ReplicaID, Message<T, D>)>;

/// What one turn leaves to be done, in the order of the fields.
#[derive(Clone, Debug)]
pub struct Outputs<T, D = Vec<u8>> {
    /// To be sent at once: entries may leave while the leader itself saves them (thesis §10.2.1).
    pub appends: Outbox<T, D>,
    /// To be saved, and [`Raft::saved`] to be called.
    pub change: Option<Change<T, D>>,
    /// To be sent once the change is saved.
    pub messages: Outbox<T, D>,
    /// To replace the state machine's state.
    pub restore: Option<Snapshot<D>>,
    /// What has become of transitions that were proposed here.
    pub states: Vec<(Arc<Vec<T>>, TransitionState)>,
    /// How things are, if role, term, leader or configuration are new, or it is time to say so. May
    /// be told at any point of the turn: term and vote need not be durable yet.
    pub status: Option<Status>,
}

impl<T, D> Default for Outputs<T, D> {
    fn default() -> Self {
        let (appends, change, messages, restore, states, status) = Default::default();
        Outputs { appends, change, messages, restore, states, status }
    }
}

/// One replica's Raft.
///
/// Its laws are checked in every batch of outputs, in release builds too; a breach is a bug in this
/// library and panics with the law it broke:
///
/// * base ≤ snapshot ≤ applied ≤ commit ≤ last;
/// * no entry has a term above the replica's;
/// * what is committed is never removed, which the log itself sees to;
/// * a leader has its own vote, and for each peer matched < next ≤ last + 1.
#[derive(Clone, Debug)]
pub struct Raft<T, D = Vec<u8>> {
    pub(crate) config: Config,
    pub(crate) noop: T,
    pub(crate) random: Xoshiro256PlusPlus,
    /// How this replica is; to be looked at, not to be changed. What follows from the log (its first
    /// and last index, the configuration) is as of the last outputs.
    pub me: Status,
    /// When to tell that again.
    tell_at: Duration,
    /// What belongs to a candidacy or a leadership, and ends with it.
    pub(crate) leading: Leading,
    pub(crate) log: Log<T, D>,
    /// What this replica queued in leaderships that are over, and whose fate is not known yet.
    pub(crate) orphans: BTreeMap<LogId, T>,
    pub(crate) reads: Vec<Read>,
    pub(crate) outputs: Outputs<T, D>,
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// A replica that continues from what was saved, as a follower, at time `now`.
    ///
    /// The state machine must already be where `saved.snapshot` is; the entries after it come again
    /// as they commit.
    ///
    /// # Errors
    /// `InvalidInput` if the configuration makes no sense, `InvalidData` if no Raft can have saved
    /// this.
    pub fn new(config: Config, noop: T, saved: Change<T, D>, now: Duration) -> io::Result<Self> {
        let ((least, greatest), beat) = (config.election_timeout_range, config.heartbeat_timeout);
        let rising = Duration::ZERO < beat && beat < least && least <= greatest;
        let (id, drift, peer_ids) = (config.id, config.max_clock_drift, &config.peer_ids);
        if !rising || drift >= Some(least) || peer_ids.contains(&id) || id == USER {
            return Err(io::Error::new(InvalidInput, format!("{SENSIBLE}: {config:?}")));
        }
        let voters = peer_ids.iter().copied().chain([id]).filter(|_| !config.joining).collect();
        let initial = Membership { voters, ..Membership::default() };
        let impossible = || io::Error::new(InvalidData, "no replica has ever saved such a state");
        let (term, voted_for) = (saved.term, saved.voted_for);
        let log = Log::load(saved, initial).ok_or_else(impossible)?;
        let commit = log.memberships[0].0;
        let loyal_until = drift.map_or(now, |_| now.saturating_add(least));
        let me = Status { id, now, term, voted_for, loyal_until, commit, ..Status::default() };
        let mut random = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let deadline = now.saturating_add(random.random_range(least..=greatest));
        let (first_index, last_index) = (log.base.index + 1, log.last().index);
        let membership = log.membership().1.clone();
        let me = Status { applied: commit, deadline, membership, first_index, last_index, ..me };
        let (tell_at, (leading, orphans, reads, outputs)) = (now, Default::default());
        Ok(Raft { config, noop, random, me, tell_at, leading, log, orphans, reads, outputs })
    }

    /// Takes in a message at time `now`, the time since the replica began on a clock that never
    /// goes back.
    pub fn step(&mut self, now: Duration, message: Message<T, D>) {
        self.me.now = self.me.now.max(now);
        if message.from_id != self.me.id {
            self.receive(message.from_id, message.term, message.body);
        }
    }

    /// The term gate (§5.1): the one place where a message may raise the term, and where one of an
    /// older term ends, its sender told of the newer.
    fn receive(&mut self, from: ReplicaID, term: Term, body: Body<T, D>) {
        let stands = |pre| if pre { PreCandidate } else { Candidate };
        let loyal = self.me.role == Leader || self.me.now < self.me.loyal_until;
        match body {
            _ if term >= LIMIT => warn!("{}: drops a message of term {term}", self.me.id),
            // An answer to what was asked in an older term tells nothing, nor does its sender wait.
            Body::Vote { .. } if term < self.me.term => {}
            // What is asked and answered about reads, and what users ask, is so at any term.
            Body::ReadIndex { context } => self.on_read_index(from, context),
            Body::ReadIndexResponse { context, index } => {
                let asked = self.reads.iter_mut().filter(|read| read.ticket == context);
                asked.for_each(|read| read.answer = Ok(index));
            }
            Body::ChangeMembership(_) | Body::TransferLeadership(_) => self.on_request(from, body),
            _ if term < self.me.term => self.send(from, Body::Vote { pre: false, granted: false }),
            Body::RequestVote { transfer: false, .. } if loyal => {}
            _ if term > self.me.term => {
                self.enter(term, Follower, None);
                self.receive(from, term, body);
            }
            Body::RequestVote { pre, last, .. } => self.judge(from, pre, last),
            Body::Vote { pre, granted: true } if self.me.role == stands(pre) => self.on_vote(from),
            Body::AppendEntries { prev, runs, commit, round } if self.heed(from) => {
                let result = self.take_entries(prev, runs, commit);
                self.send(from, Body::Appended { result, round });
            }
            Body::InstallSnapshot { snapshot, membership, round } if self.heed(from) => {
                let result = self.install(snapshot, membership);
                self.send(from, Body::Appended { result, round });
            }
            Body::Appended { result, round } => self.on_appended(from, result, round),
            // The leader asks for it: so no pre-vote, which those who hear it would refuse.
            Body::TimeoutNow if self.me.leader == Some(from) => self.campaign(Candidate, true),
            _ => {}
        }
    }

    /// The one place where term and role change, and with them all that belongs to a role. Only a
    /// greater term clears the vote.
    pub(crate) fn enter(&mut self, term: Term, role: Role, leader: Option<ReplicaID>) {
        if self.me.role == Leader {
            for run in self.log.slice(self.leading.first.max(self.me.commit + 1), LIMIT) {
                let ids = (run.first..).map(|index| LogId { term: run.term, index });
                self.orphans.extend(ids.zip(run.transitions.iter().cloned()));
            }
            self.reset_election_timer();
        }
        self.me.voted_for = self.me.voted_for.filter(|_| term == self.me.term);
        (self.me.term, self.me.role, self.me.leader) = (term, role, leader);
        (self.leading, self.me.peers) = (Leading::default(), BTreeMap::new());
        self.tell_at = self.me.now;
        self.reads.iter_mut().for_each(|read| read.answer = Err(self.me.now));
    }

    /// Appends transitions to the log. They are abandoned if this replica does not lead or is
    /// handing its leadership over.
    pub fn propose(&mut self, transitions: Vec<T>) {
        let accepts = self.me.role == Leader && self.leading.transfer.1 <= self.me.now;
        let mut rest = transitions.into_iter();
        while accepts && rest.len() > 0 {
            self.append_as_leader(rest.by_ref().take(MAX_BATCH).collect(), None);
        }
        self.outputs.states.push((Arc::new(rest.collect()), Abandoned(NotLeader)));
    }

    /// Whether more transitions should be asked for. A leader with too much underway says no and
    /// lets its log drain first.
    pub fn wants_transitions(&self) -> bool {
        self.me.role != Leader || self.log.last().index - self.me.applied < MAX_UNDERWAY
    }

    /// What is to be done at time `now`. Call it once a turn, after all inputs, and at the
    /// [`deadline`](Status::deadline) at the latest.
    ///
    /// # Panics
    /// If a law of Raft is broken, which is a bug in this library.
    pub fn outputs(&mut self, now: Duration) -> Outputs<T, D> {
        self.me.now = self.me.now.max(now);
        if self.me.role != Leader && self.me.now >= self.me.deadline {
            // Even after an election that led to nothing a pre-vote comes next, so that terms do
            // not rise in vain (thesis §9.6).
            self.campaign(PreCandidate, false);
        }
        self.lead();
        self.check();
        let news = self.me.membership != self.log.membership().1 || self.me.now >= self.tell_at;
        self.me.first_index = self.log.base.index + 1;
        self.me.last_index = self.log.last().index;
        if news {
            self.me.membership = self.log.membership().1.clone();
            self.tell_at = self.me.now.saturating_add(self.config.heartbeat_timeout);
            self.outputs.status = Some(self.me.clone());
        }
        self.outputs.change = self.log.unsaved(self.me.term, self.me.voted_for);
        take(&mut self.outputs)
    }

    /// Tells that the change of the last outputs is durable.
    pub fn saved(&mut self) {
        self.log.saved = self.log.last().index;
        self.advance_commit();
    }

    /// The next committed transitions to apply, in order; none if all are applied. To be followed
    /// by [`applied`](Self::applied).
    pub fn committed(&self) -> &[T] {
        self.log.transitions(self.me.applied + 1, self.me.commit)
    }

    /// Tells that the first `count` of the [`committed`](Self::committed) transitions are applied.
    /// Configurations among them take effect when they are appended; there is nothing to apply.
    pub fn applied(&mut self, count: usize) {
        self.me.applied = self.me.commit.min(self.me.applied.saturating_add(count));
        while self.me.applied < self.me.commit && self.committed().is_empty() {
            self.me.applied += 1;
        }
    }

    /// If it is time for a snapshot, has it created, of what is applied, and forgets what it covers,
    /// but for a part that slow followers may need. Call it after applying.
    ///
    /// # Errors
    /// `InvalidInput` if the snapshot is not of the index and term that were asked for.
    pub fn compact(&mut self, create: impl FnOnce(Index, Term) -> Snapshot<D>) -> io::Result<()> {
        let (delta, applied, now) = (self.config.snapshot_delta, self.me.applied, self.me.now);
        let known = || !self.log.memberships_from(applied)[0].1.voters.is_empty();
        let due = delta > 0 && applied - self.log.memberships[0].0 >= delta && known();
        let Some(last) = due.then(|| self.log.entry(applied)).flatten() else { return Ok(()) };
        let snapshot = create(last.index, last.term);
        if snapshot.last() != last {
            return Err(io::Error::new(InvalidInput, format!("the snapshot is not of {last:?}")));
        }
        // A peer that may still be installing a snapshot will need what follows it.
        let waits = |it: &Progress| it.installing.is_some_and(|(until, _)| now < until);
        let times = if self.me.peers.values().any(waits) { MAX_KEPT } else { 1 };
        self.log.compact(snapshot, applied.saturating_sub(delta.saturating_mul(times)));
        Ok(())
    }

    /// Checks the laws that [`Raft`] lists.
    fn check(&self) {
        let (me, last, snapshot) = (&self.me, self.log.last(), self.log.memberships[0].0);
        let order = [self.log.base.index, snapshot, me.applied, me.commit, last.index];
        assert!(order.is_sorted(), "base ≤ snapshot ≤ applied ≤ commit ≤ last: {order:?} {me:?}");
        assert!(last.term <= me.term, "no entry has a term above the replica's: {last:?} {me:?}");
        assert!(me.role != Leader || me.voted_for == Some(me.id), "a leader has its vote: {me:?}");
        let in_order = |it: &Progress| it.matched < it.next && it.next <= last.index + 1;
        assert!(me.peers.values().all(in_order), "matched < next ≤ last + 1: {last:?} {me:?}");
    }

    /// Sends a message, in the current term. Everything waits for the save but appends: they
    /// promise nothing that is not durable, once the leader's first entry is, and with it the term
    /// (thesis §10.2.1).
    pub(crate) fn send(&mut self, to: ReplicaID, body: Body<T, D>) {
        let (term, append) = (self.me.term, matches!(body, Body::AppendEntries { .. }));
        if to == self.me.id {
            return self.receive(to, term, body);
        }
        let early = append && self.leading.first <= self.log.saved;
        let queue = if early { &mut self.outputs.appends } else { &mut self.outputs.messages };
        queue.push((to, Message { from_id: self.me.id, term, body }));
    }
}
