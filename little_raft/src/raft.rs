//! One replica as a pure machine: inputs in, one batch of outputs out.
//!
//! There is no clock, no I/O, no lock, no thread and no global randomness in here. The same code
//! runs in the threads of a user, in a simulator, in a model checker and in a fuzzer.
//!
//! A turn looks like this:
//!
//! ```text
//!   messages, transitions, reads, time
//!                  |  step, propose, read, tick
//!                  v
//!               [ Raft ] -- outputs --> send the appends
//!                                       save the change           (may fail: stop)
//!                  <------- saved -----
//!                                       send the messages
//!                  -------- committed, take_reads --> apply, answer
//! ```
//!
//! Nothing that promises anything leaves before what it promises is durable.

use crate::TransitionAbandonedReason::NotLeader;
use crate::{log::Log, reads::Read, replication::Leading, *};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use std::io::{Error, ErrorKind};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Entries that one message holds at most.
pub(crate) const MAX_BATCH: usize = 1024;
/// Entries that may be underway to one peer.
pub(crate) const MAX_IN_FLIGHT: usize = 64 * MAX_BATCH;
/// Entries that may wait to be applied before the leader stops asking for more.
const MAX_UNAPPLIED: usize = 64 * MAX_BATCH;
/// How many times as much as usual is kept for a peer that is installing a snapshot.
const MAX_KEPT: usize = 32;
/// No honest term or index comes near this, and none above it is believed, so that adding to one
/// never overflows.
pub(crate) const LIMIT: usize = usize::MAX / 2;

/// What a configuration must fulfil.
const SENSIBLE: &str = "peers other than this replica, and 0 < heartbeat timeout < least election \
     timeout <= greatest, and clock drift < least election timeout";

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
    /// Entries applied between two snapshots, and kept behind each; 0 for no snapshots.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Role {
    /// Follows a leader, or waits for one.
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The leader of that term, if known.
    pub leader: Option<ReplicaID>,
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

/// What one turn leaves to be done, in the order of the fields.
#[derive(Clone, Debug)]
pub struct Outputs<T, D = Vec<u8>> {
    /// To be sent at once: entries may leave while the leader itself saves them (thesis §10.2.1).
    pub appends: Vec<(ReplicaID, Message<T, D>)>,
    /// To be saved, and [`Raft::saved`] to be called.
    pub change: Option<Change<T, D>>,
    /// To be sent once the change is saved.
    pub messages: Vec<(ReplicaID, Message<T, D>)>,
    /// To replace the state machine's state.
    pub restore: Option<Snapshot<D>>,
    /// What this replica has appended as the leader.
    pub queued: Vec<Run<T>>,
    /// What was proposed here and will, as is now certain, not be applied on that account.
    pub abandoned: Vec<(T, TransitionAbandonedReason)>,
    /// How things are, if role, term, leader or configuration are new, or it is time to say so.
    pub status: Option<Status>,
}

impl<T, D> Default for Outputs<T, D> {
    fn default() -> Self {
        let (appends, messages, queued, abandoned) = (vec![], vec![], vec![], vec![]);
        let (change, restore, status) = (None, None, None);
        Outputs { appends, change, messages, restore, queued, abandoned, status }
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
/// * a leader voted for itself, and for each peer matched < next ≤ last + 1.
#[derive(Clone, Debug)]
pub struct Raft<T, D = Vec<u8>> {
    pub(crate) config: Config,
    pub(crate) noop: T,
    pub(crate) random: Xoshiro256PlusPlus,
    pub(crate) now: Duration,
    /// When to send heartbeats, for a leader, or else to stand for election.
    pub(crate) deadline: Duration,
    /// When a leader was last heard. With leases a start counts as well: this replica may have
    /// heard one that it does not remember.
    pub(crate) heard: Option<Duration>,

    pub(crate) term: Term,
    pub(crate) voted_for: Option<ReplicaID>,
    pub(crate) role: Role,
    pub(crate) leader: Option<ReplicaID>,
    /// What belongs to a candidacy or a leadership, and ends with it.
    pub(crate) leading: Leading,
    pub(crate) log: Log<T>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    pub(crate) snapshot: Option<Snapshot<D>>,

    pub(crate) reads: Vec<Read>,
    /// What this replica queued in leaderships that are over, and whose fate is not known yet.
    pub(crate) orphans: BTreeMap<LogId, T>,
    pub(crate) outputs: Outputs<T, D>,
    /// The term, vote and snapshot that are saved; nothing before the first save.
    durable: Option<(Term, Option<ReplicaID>, Index)>,
    /// What was last told: term, role, leader and configuration. And when to tell it again.
    told: (Term, Role, Option<ReplicaID>, Arc<Membership>),
    tell_at: Duration,
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
    pub fn new(config: Config, noop: T, saved: Change<T, D>, now: Duration) -> Result<Self, Error> {
        let ((least, greatest), id) = (config.election_timeout_range, config.id);
        let rising = config.heartbeat_timeout < least && least <= greatest;
        let sensible =
            rising && !config.heartbeat_timeout.is_zero() && !config.peer_ids.contains(&id);
        if !sensible || config.max_clock_drift >= Some(least) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{SENSIBLE}: {config:?}")));
        }
        let voters = config.peer_ids.iter().copied().chain([id]).filter(|_| !config.joining);
        let initial = Membership { voters: voters.collect(), ..Membership::default() };
        let unlike_any =
            Error::new(ErrorKind::InvalidData, "no replica has ever saved such a state");
        let log = Log::load(&saved, initial).ok_or(unlike_any)?;
        let start = log.memberships[0].0;
        let mut raft = Raft {
            random: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            now,
            deadline: now,
            heard: config.max_clock_drift.map(|_| now),
            config,
            noop,
            term: saved.term,
            voted_for: saved.voted_for,
            role: Role::Follower,
            leader: None,
            leading: Leading::default(),
            log,
            commit: start,
            applied: start,
            snapshot: saved.snapshot,
            reads: Vec::new(),
            orphans: BTreeMap::new(),
            outputs: Outputs::default(),
            durable: saved.membership.map(|_| (saved.term, saved.voted_for, start)),
            told: (0, Role::Follower, None, Arc::default()),
            tell_at: now,
        };
        raft.reset_election_timer();
        Ok(raft)
    }

    /// Takes in a message at time `now`, the time since the replica began on a clock that never
    /// goes back.
    pub fn step(&mut self, now: Duration, message: Message<T, D>) {
        self.now = self.now.max(now);
        match message {
            Message::Request(request) => self.on_request(request, false),
            Message::Protocol { from_id, term, body } => self.receive(from_id, term, body),
        }
    }

    /// The term gate (§5.1): the one place where a message may raise the term, and where one of an
    /// older term ends, its sender told of the newer.
    fn receive(&mut self, from: ReplicaID, term: Term, body: Body<T, D>) {
        match body {
            _ if from == self.config.id || term >= LIMIT => {}
            // Pre-votes are about a term that nobody is in yet; these others are true at any term.
            Body::RequestVote { pre: true, last, .. } => self.judge(from, term, true, false, last),
            Body::Vote { pre: true, granted: true } => self.on_vote(from, term, Role::PreCandidate),
            Body::ReadIndex { context } => self.on_read_index(from, context),
            Body::ReadIndexResponse { context, index } => self.on_read_answer(context, index),
            Body::Request(request) => self.on_request(request, true),
            Body::RequestVote { transfer: false, .. } if term > self.term && self.has_leader() => {}
            _ if term < self.term => self.send(from, Body::Vote { pre: false, granted: false }),
            _ if term > self.term => {
                self.enter(term, Role::Follower, None);
                self.receive(from, term, body);
            }
            Body::RequestVote { transfer, last, .. } => {
                self.judge(from, term, false, transfer, last)
            }
            Body::Vote { pre: false, granted: true } => self.on_vote(from, term, Role::Candidate),
            Body::AppendEntries { prev, runs, commit, round } if self.heed(from) => {
                let result = self.on_append_entries(prev, runs, commit);
                self.send(from, Body::Appended { result, round });
            }
            Body::InstallSnapshot { snapshot, membership, round } if self.heed(from) => {
                let result = Ok(self.on_install_snapshot(snapshot, membership));
                self.send(from, Body::Appended { result, round });
            }
            Body::Appended { result, round } => self.on_appended(from, result, round),
            // The leader asks for it: no pre-vote, which the others would refuse while they hear it.
            Body::TimeoutNow if self.leader == Some(from) && self.may_campaign() => {
                self.campaign(Role::Candidate, true);
            }
            _ => {}
        }
    }

    /// The one place where term and role change, and with them all that belongs to a role. Only a
    /// greater term clears the vote.
    pub(crate) fn enter(&mut self, term: Term, role: Role, leader: Option<ReplicaID>) {
        if self.role == Role::Leader {
            for run in self.log.slice(self.leading.first.max(self.commit + 1), LIMIT) {
                let ids = (run.first..).map(|index| LogId { term: run.term, index });
                self.orphans.extend(ids.zip(run.transitions.iter().cloned()));
            }
            self.reset_election_timer();
        }
        self.voted_for = self.voted_for.filter(|_| term == self.term);
        (self.term, self.role, self.leader) = (term, role, leader);
        self.leading = Leading::default();
    }

    /// Lets time pass. To be called at [`deadline`](Self::deadline) at the latest, and after the
    /// messages that have arrived.
    pub fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        match self.role {
            _ if self.now < self.deadline => {}
            Role::Leader => self.on_heartbeat_timeout(),
            // Even after an election that led to nothing a pre-vote comes next, so that terms do not
            // rise in vain (thesis §9.6).
            _ if self.may_campaign() => self.campaign(Role::PreCandidate, false),
            _ => self.reset_election_timer(),
        }
    }

    /// When [`tick`](Self::tick) is due next.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Appends transitions to the log. They are abandoned if this replica does not lead or is
    /// handing its leadership over.
    pub fn propose(&mut self, transitions: Vec<T>) {
        let mut rest = transitions.into_iter();
        if self.role != Role::Leader || self.leading.transfer.is_some() {
            self.outputs.abandoned.extend(rest.by_ref().map(|it| (it, NotLeader)));
        }
        while rest.len() > 0 {
            let batch = match rest.len() {
                // Collected as a whole it keeps its place in memory.
                ..=MAX_BATCH => std::mem::take(&mut rest).collect(),
                _ => rest.by_ref().take(MAX_BATCH).collect(),
            };
            self.append_as_leader(batch, None);
        }
    }

    /// Whether more transitions should be asked for. A leader with too much underway says no and
    /// lets its log drain first.
    pub fn wants_transitions(&self) -> bool {
        self.role != Role::Leader || self.log.last().index - self.applied < MAX_UNAPPLIED
    }

    /// What is to be done now. Call it once a turn, after all inputs.
    ///
    /// # Panics
    /// If a law of Raft is broken, which is a bug in this library.
    pub fn outputs(&mut self) -> Outputs<T, D> {
        if self.role == Role::Leader {
            self.lead();
        }
        self.check();
        let news = (self.term, self.role, self.leader, self.log.membership().1.clone());
        if news != self.told || self.now >= self.tell_at {
            self.outputs.status = Some(self.status());
            (self.told, self.tell_at) = (news, self.now + self.config.heartbeat_timeout);
        }
        let (snapshot, membership) = &self.log.memberships[0];
        let promised = Some((self.term, self.voted_for, *snapshot));
        let renewed = self.durable.is_none_or(|(.., saved)| saved != *snapshot);
        if self.log.saved < self.log.last().index || promised != self.durable {
            self.outputs.change = Some(Change {
                term: self.term,
                voted_for: self.voted_for,
                truncate_from: self.log.truncated,
                compacted: self.log.base,
                runs: self.log.slice(self.log.saved + 1, LIMIT),
                snapshot: self.snapshot.as_ref().filter(|_| renewed).cloned(),
                membership: renewed.then(|| Membership::clone(membership)),
            });
            self.durable = promised;
        }
        std::mem::take(&mut self.outputs)
    }

    /// Tells that the change of the last outputs is durable.
    pub fn saved(&mut self) {
        (self.log.saved, self.log.truncated) = (self.log.last().index, None);
        if self.role == Role::Leader {
            self.advance_commit();
        }
    }

    /// The next committed transitions to apply, in order; none if all are applied. To be followed
    /// by [`applied`](Self::applied).
    pub fn committed(&self) -> &[T] {
        self.log.transitions(self.applied + 1, self.commit)
    }

    /// Tells that the first `count` of the [`committed`](Self::committed) transitions are applied.
    /// Configurations among them take effect in here; there is nothing to apply.
    pub fn applied(&mut self, count: usize) {
        self.applied += count.min(self.committed().len());
        while self.applied < self.commit && self.committed().is_empty() {
            self.applied += 1;
        }
    }

    /// The position at which it is time for a snapshot: right after what is applied.
    pub fn snapshot_due(&self) -> Option<LogId> {
        let (delta, since) = (self.config.snapshot_delta, self.applied - self.log.memberships[0].0);
        let known = !self.log.memberships_from(self.applied)[0].1.voters.is_empty();
        self.log.entry(self.applied).filter(|_| delta > 0 && since >= delta && known)
    }

    /// Takes a snapshot, if it is of where one was due, and forgets what it covers but for a part
    /// that slow followers may need.
    pub fn compact(&mut self, snapshot: Snapshot<D>) {
        if Some(snapshot.last()) == self.snapshot_due() {
            let kept = self.applied.saturating_sub(self.config.snapshot_delta);
            let longest = self.config.snapshot_delta.saturating_mul(MAX_KEPT);
            let kept = kept.min(self.needed_by_receivers());
            self.log.compact(self.applied, kept.max(self.applied.saturating_sub(longest)));
            self.snapshot = Some(snapshot);
        }
    }

    /// How things are now.
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            now: self.now,
            role: self.role,
            term: self.term,
            leader: self.leader,
            membership: self.log.membership().1.clone(),
            commit: self.commit,
            applied: self.applied,
            first_index: self.log.base.index + 1,
            last_index: self.log.last().index,
            peers: self.leading.peers.clone(),
        }
    }

    /// Checks the laws that [`Raft`] lists.
    fn check(&self) {
        let (id, last, snapshot) = (self.config.id, self.log.last(), self.log.memberships[0].0);
        let order = [self.log.base.index, snapshot, self.applied, self.commit, last.index];
        assert!(order.is_sorted(), "{id}: base ≤ snapshot ≤ applied ≤ commit ≤ last: {order:?}");
        assert!(last.term <= self.term, "{id}: {last:?} is of a term after {}", self.term);
        let own_vote = self.role != Role::Leader || self.voted_for == Some(id);
        assert!(own_vote, "{id}: leads without its own vote");
        let peers = &self.leading.peers;
        let mut in_order =
            peers.values().map(|it| it.matched < it.next && it.next <= last.index + 1);
        assert!(in_order.all(|it| it), "{id}: matched < next ≤ last + 1: {last:?} {peers:?}");
    }

    /// Sends a message in the current term.
    pub(crate) fn send(&mut self, to: ReplicaID, body: Body<T, D>) {
        self.send_at(to, self.term, body);
    }

    /// Sends a message to another replica. Everything waits for the save but appends: they promise
    /// nothing that is not durable, if only the term is (thesis §10.2.1).
    pub(crate) fn send_at(&mut self, to: ReplicaID, term: Term, body: Body<T, D>) {
        let early = matches!(body, Body::AppendEntries { .. })
            && self.durable.is_some_and(|(saved, ..)| saved == term);
        let message = Message::Protocol { from_id: self.config.id, term, body };
        let queue = if early { &mut self.outputs.appends } else { &mut self.outputs.messages };
        queue.extend((to != self.config.id).then_some((to, message)));
    }
}
