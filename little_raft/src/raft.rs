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

use crate::log::Log;
use crate::message::{Body, Message, Run};
use crate::reads::Reads;
use crate::replication::{Leading, Progress};
use crate::storage::Change;
use crate::{Index, LogId, Membership, ReplicaID, Snapshot, Term};
use crate::{StateMachineTransition, TransitionAbandonedReason};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

/// Entries that one message holds at most.
pub(crate) const MAX_BATCH: usize = 1024;
/// Entries that may be underway to one peer.
pub(crate) const MAX_IN_FLIGHT: usize = 64 * MAX_BATCH;
/// Entries that may wait to be applied before the leader stops asking for more.
const MAX_UNAPPLIED: usize = 64 * MAX_BATCH;
/// No honest term or index comes near this, and none above it is believed, so that adding to one
/// never overflows.
pub(crate) const LIMIT: usize = usize::MAX / 2;

/// What one replica is told about itself and its cluster.
#[derive(Clone, Debug)]
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

impl Config {
    fn check(&self) -> Result<(), Error> {
        let (least, greatest) = self.election_timeout_range;
        let drift = self.max_clock_drift.unwrap_or_default();
        let mistakes = [
            (self.peer_ids.contains(&self.id), "peer_ids must name the other replicas only"),
            (self.heartbeat_timeout.is_zero(), "heartbeat_timeout must be above zero"),
            (least <= self.heartbeat_timeout, "election timeouts must be above the heartbeat's"),
            (least > greatest, "election_timeout_range must go from the least to the greatest"),
            (least <= drift, "max_clock_drift must be below the least election timeout"),
        ];
        let mistake = mistakes.iter().find(|(made, _)| *made);
        mistake.map_or(Ok(()), |(_, rule)| Err(Error::new(ErrorKind::InvalidInput, *rule)))
    }
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
    /// What was once queued here and will, as is now certain, not be applied on that account.
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
/// * no entry has a term above the replica's, and what is committed keeps its term;
/// * the term and the commit index never fall;
/// * within a term, the vote and the leader are set at most once;
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
    /// A candidate's votes.
    pub(crate) votes: BTreeSet<ReplicaID>,
    /// What belongs to a leadership.
    pub(crate) leading: Leading,
    pub(crate) log: Log<T>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    pub(crate) snapshot: Option<Snapshot<D>>,

    pub(crate) reads: Reads,
    /// What this replica queued in leaderships that are over, and whose fate is not known yet.
    pub(crate) orphans: BTreeMap<LogId, T>,
    pub(crate) outputs: Outputs<T, D>,
    /// The term, vote and snapshot that are saved; nothing before the first save.
    durable: Option<(Term, Option<ReplicaID>, Index)>,
    /// What was last told: term, role, leader, and the entry of the configuration. And when to tell
    /// it again.
    told: (Term, Role, Option<ReplicaID>, LogId),
    tell_at: Duration,
    /// The vote and the last committed entry that the last check saw.
    checked: (Option<ReplicaID>, LogId),
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
        config.check()?;
        let known = config.peer_ids.iter().copied().chain([config.id]);
        let voters = if config.joining { BTreeSet::new() } else { known.collect() };
        let log = Log::load(&saved, Membership { voters, ..Membership::default() })?;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let (start, _) = *log.snapshot();
        let mut raft = Raft {
            reads: Reads { next: random.random(), ..Reads::default() },
            random,
            now,
            deadline: now,
            heard: config.max_clock_drift.map(|_| now),
            config,
            noop,
            term: saved.term,
            voted_for: saved.voted_for,
            role: Role::Follower,
            leader: None,
            votes: BTreeSet::new(),
            leading: Leading::default(),
            log,
            commit: start,
            applied: start,
            snapshot: saved.snapshot,
            orphans: BTreeMap::new(),
            outputs: Outputs::default(),
            durable: saved.membership.map(|_| (saved.term, saved.voted_for, start)),
            told: (0, Role::Follower, None, LogId::default()),
            tell_at: now,
            checked: (None, LogId::default()),
        };
        raft.reset_election_timer();
        Ok(raft)
    }

    /// Takes in a message at time `now`, the time since the replica began on a clock that never
    /// goes back.
    pub fn step(&mut self, now: Duration, message: Message<T, D>) {
        self.now = self.now.max(now);
        match message {
            Message::Request(request) => self.on_request(request),
            Message::Protocol { from_id, term, body }
                if from_id != self.config.id && term < LIMIT =>
            {
                self.receive(from_id, term, body);
            }
            _ => log::warn!("{}: dropped a message that no replica sends", self.config.id),
        }
    }

    /// The term gate (§5.1): the one place where a message may raise the term, and where one of an
    /// older term ends, its sender told of the newer.
    fn receive(&mut self, from_id: ReplicaID, term: Term, body: Body<T, D>) {
        match body {
            // Pre-votes are about a term that nobody is in yet; these others are true at any term.
            Body::RequestVote { pre: true, last, .. } => self.on_pre_vote(from_id, term, last),
            Body::Vote { pre: true, granted: true } => {
                self.on_vote(from_id, term, Role::PreCandidate)
            }
            Body::ReadIndex { context } => self.on_read_index(from_id, context),
            Body::ReadIndexResponse { context, index } => self.on_read_answer(context, index),
            Body::Request(request) => self.serve(request),
            Body::RequestVote { transfer: false, .. } if term > self.term && self.has_leader() => {}
            _ if term < self.term => self.send(from_id, Body::Vote { pre: false, granted: false }),
            _ if term > self.term => {
                self.enter(term, Role::Follower, None);
                self.receive(from_id, term, body);
            }
            Body::RequestVote { transfer, last, .. } => {
                self.on_request_vote(from_id, transfer, last)
            }
            Body::Vote { pre: false, granted: true } => {
                self.on_vote(from_id, term, Role::Candidate)
            }
            Body::AppendEntries { prev, runs, commit, round } if self.heed(from_id) => {
                let result = self.on_append_entries(prev, runs, commit);
                self.send(from_id, Body::Appended { result, round });
            }
            Body::InstallSnapshot { snapshot, membership, round } if self.heed(from_id) => {
                let result = Ok(self.on_install_snapshot(snapshot, membership));
                self.send(from_id, Body::Appended { result, round });
            }
            Body::Appended { result, round } => self.on_appended(from_id, result, round),
            Body::TimeoutNow => self.on_timeout_now(from_id),
            _ => {}
        }
    }

    /// The one place where term and role change, and with them all that belongs to a role. Only a
    /// greater term clears the vote.
    pub(crate) fn enter(&mut self, term: Term, role: Role, leader: Option<ReplicaID>) {
        if self.role == Role::Leader {
            for run in self.log.slice(self.applied + 1, LIMIT) {
                let own = (run.first..).map(|index| LogId { term: run.term, index });
                let own = own.filter(|id| id.term == self.term);
                self.orphans.extend(own.zip(run.transitions.iter().cloned()));
            }
            self.reset_election_timer();
        }
        self.voted_for = self.voted_for.filter(|_| term == self.term);
        (self.term, self.role, self.leader) = (term, role, leader);
        (self.votes, self.leading) = (BTreeSet::new(), Leading::default());
        self.reads.abandon_unanswered(self.commit);
    }

    /// Lets time pass. To be called at [`deadline`](Self::deadline) at the latest, and after the
    /// messages that have arrived.
    pub fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.reads.abandon_overdue(self.now);
        match self.role {
            _ if self.now < self.deadline => {}
            Role::Leader => self.on_heartbeat_timeout(),
            _ => self.on_election_timeout(),
        }
    }

    /// When [`tick`](Self::tick) is due next.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Appends transitions to the log.
    ///
    /// # Errors
    /// Gives them back if this replica does not lead or is handing its leadership over.
    pub fn propose(&mut self, transitions: Vec<T>) -> Result<(), Vec<T>> {
        if self.role != Role::Leader || self.leading.transfer.is_some() {
            return Err(transitions);
        }
        let mut rest = transitions.into_iter();
        while rest.len() > 0 {
            let batch = rest.by_ref().take(MAX_BATCH).collect();
            self.append_as_leader(batch, None);
        }
        Ok(())
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
        self.lead();
        self.check();
        let (snapshot, membership) = self.log.snapshot();
        let promised = Some((self.term, self.voted_for, *snapshot));
        let renewed = self.durable.is_none_or(|(.., saved)| saved != *snapshot);
        if self.log.saved < self.log.last().index || promised != self.durable {
            self.outputs.change = Some(Change {
                term: self.term,
                voted_for: self.voted_for,
                truncate_from: self.log.truncated,
                compacted: self.log.base,
                runs: self.log.slice(self.log.saved + 1, LIMIT),
                snapshot: self.snapshot.clone().filter(|_| renewed),
                membership: renewed.then(|| Membership::clone(membership)),
            });
            self.durable = promised;
        }
        std::mem::take(&mut self.outputs)
    }

    /// Tells that the change of the last outputs is durable.
    pub fn saved(&mut self) {
        self.log.set_saved();
        self.advance_commit();
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
        let (delta, since) = (self.config.snapshot_delta, self.applied - self.log.snapshot().0);
        self.log.entry(self.applied).filter(|_| delta > 0 && since >= delta)
    }

    /// Takes a snapshot of what is applied, and forgets what it covers but for a part that slow
    /// followers may need.
    ///
    /// # Errors
    /// `InvalidInput` if it is not at the position where it was due.
    pub fn compact(&mut self, snapshot: Snapshot<D>) -> Result<(), Error> {
        if Some(snapshot.last()) != self.snapshot_due() {
            let error = format!("create_snapshot was not asked for one at {:?}", snapshot.last());
            return Err(Error::new(ErrorKind::InvalidInput, error));
        }
        let kept = self.applied.saturating_sub(self.config.snapshot_delta);
        self.log.compact(self.applied, kept.min(self.needed_by_receivers()));
        self.snapshot = Some(snapshot);
        Ok(())
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

    /// Checks the laws that [`Raft`] lists, and tells what is new.
    fn check(&mut self) {
        let ((term, _, leader, _), (vote, committed)) = (self.told, self.checked);
        let (last, base, new_term) = (self.log.last(), self.log.base, self.term > term);
        let order = [base.index, self.log.snapshot().0, self.applied, self.commit, last.index];
        let kept = self.log.entry(committed.index).is_none_or(|entry| entry == committed);
        let same_leader = leader.zip(self.leader).is_none_or(|(was, is)| was == is);
        let own_vote = self.voted_for == Some(self.config.id);
        let mut peers = self.leading.peers.values();
        let in_reach = peers.all(|it| it.matched < it.next && it.next <= last.index + 1);
        let laws = [
            (order.is_sorted(), "base ≤ snapshot ≤ applied ≤ commit ≤ last"),
            (last.term <= self.term && term <= self.term, "terms never fall"),
            (committed.index <= self.commit && kept, "what is committed stays committed"),
            (new_term || vote.is_none() || vote == self.voted_for, "one vote in a term"),
            (new_term || same_leader, "one leader in a term"),
            (own_vote || self.role != Role::Leader, "a leader voted for itself"),
            (in_reach, "matched < next ≤ last + 1"),
        ];
        for (holds, law) in laws {
            assert!(holds, "{law}: {:?} {:?} {:?}", self.told, self.checked, self.status());
        }
        self.checked = (self.voted_for, self.log.entry(self.commit).unwrap_or_default());
        let configured = self.log.entry(self.log.membership().0).unwrap_or_default();
        let news = (self.term, self.role, self.leader, configured);
        if news != self.told || self.now >= self.tell_at {
            self.outputs.status = Some(self.status());
            (self.told, self.tell_at) = (news, self.now + self.config.heartbeat_timeout);
        }
    }

    /// Sends a message in the current term.
    pub(crate) fn send(&mut self, to_id: ReplicaID, body: Body<T, D>) {
        self.send_at(to_id, self.term, body);
    }

    /// Sends a message. Everything waits for the save but appends: they promise nothing that is not
    /// durable, if only the term is (thesis §10.2.1).
    pub(crate) fn send_at(&mut self, to_id: ReplicaID, term: Term, body: Body<T, D>) {
        let is_append = matches!(body, Body::AppendEntries { .. });
        let early = is_append && self.durable.is_some_and(|(saved, ..)| saved == term);
        let queue = if early { &mut self.outputs.appends } else { &mut self.outputs.messages };
        queue.push((to_id, Message::Protocol { from_id: self.config.id, term, body }));
    }
}
