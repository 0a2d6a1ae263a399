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
pub use crate::replication::Activity;
use crate::replication::Leader;
use crate::storage::{Change, Saved};
use crate::{Index, LogId, Membership, ReplicaID, Snapshot, Term};
use crate::{StateMachineTransition, TransitionAbandonedReason};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
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
    /// Entries applied between two snapshots, and kept behind each; 0 for none.
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
    fn check(&self) -> Result<(), String> {
        let (least, greatest) = self.election_timeout_range;
        if self.peer_ids.contains(&self.id) {
            Err(format!("peer_ids must name the others, not replica {} itself", self.id))
        } else if self.heartbeat_timeout.is_zero() {
            Err("heartbeat_timeout must not be zero".into())
        } else if least <= self.heartbeat_timeout {
            Err(format!(
                "election timeouts from {least:?} on must be above the heartbeat timeout of {:?}",
                self.heartbeat_timeout
            ))
        } else if least > greatest {
            Err(format!("election_timeout_range is inverted: {least:?} is above {greatest:?}"))
        } else if self.max_clock_drift.is_some_and(|drift| drift >= least) {
            Err(format!("max_clock_drift must be below the least election timeout of {least:?}"))
        } else {
            Ok(())
        }
    }
}

/// The part a replica plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Role {
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks whether it could win an election.
    PreCandidate,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
}

/// A role with what belongs to it, so that it is gone when the role is.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Follower { leader: Option<ReplicaID> },
    Candidate { pre: bool, votes: BTreeSet<ReplicaID> },
    Leader(Leader),
}

/// How a replica and its cluster are, as this replica sees it: why there is no leader, why
/// something is not committed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Status {
    /// This replica.
    pub id: ReplicaID,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<ReplicaID>,
    /// Index up to which the log is known to be committed.
    pub commit: Index,
    /// Index up to which the log is applied here.
    pub applied: Index,
    /// First index that is still in the log.
    pub first_index: Index,
    /// Last index in the log.
    pub last_index: Index,
    /// The configuration in force, committed or not.
    pub membership: Membership,
    /// At the leader, how far its peers are.
    pub peers: Vec<PeerStatus>,
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerStatus {
    /// The peer.
    pub id: ReplicaID,
    /// Index up to which its log is known to match.
    pub matched: Index,
    /// Index of the next entry to send to it.
    pub next: Index,
    /// What the leader is doing about it.
    pub activity: Activity,
    /// Time since it was last heard from in this leadership, or since the leader began to wait.
    pub silent_for: Duration,
}

/// What one turn leaves to be done, in the order of the fields.
#[derive(Clone, Debug)]
pub struct Outputs<T, D = Vec<u8>> {
    /// To be sent at once: entries may leave while the leader itself saves them (thesis §10.2.1).
    pub appends: Vec<(ReplicaID, Message<T, D>)>,
    /// To be saved, followed by [`Raft::saved`].
    pub change: Option<Change<T, D>>,
    /// To be sent once the change is saved.
    pub messages: Vec<(ReplicaID, Message<T, D>)>,
    /// To replace the state machine's state.
    pub restore: Option<Snapshot<D>>,
    /// The entries that this replica has appended as the leader.
    pub queued: Vec<Run<T>>,
    /// The transitions once queued here of which it is now certain that this replica will not apply
    /// them.
    pub abandoned: Vec<(T, TransitionAbandonedReason)>,
    /// Who leads now, if that has changed.
    pub leader: Option<Option<ReplicaID>>,
    /// How things are, if role, term, leader or configuration have changed or it is time to say so.
    pub status: Option<Status>,
}

impl<T, D> Default for Outputs<T, D> {
    fn default() -> Self {
        Outputs {
            appends: Vec::new(),
            change: None,
            messages: Vec::new(),
            restore: None,
            queued: Vec::new(),
            abandoned: Vec::new(),
            leader: None,
            status: None,
        }
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

    pub(crate) term: Term,
    pub(crate) voted_for: Option<ReplicaID>,
    pub(crate) state: State,
    pub(crate) log: Log<T>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    pub(crate) snapshot: Option<Snapshot<D>>,

    /// When a leader was last heard. With leases a start counts as well: this replica may have
    /// heard one that it does not remember.
    pub(crate) heard: Option<Duration>,
    /// When to stand for election.
    pub(crate) election_at: Duration,
    pub(crate) status_at: Duration,

    pub(crate) reads: Reads,
    /// The terms that this replica led, whose entries it has queued.
    pub(crate) led: BTreeSet<Term>,
    /// Queued entries that left the log before their fate was known.
    pub(crate) orphans: BTreeMap<LogId, T>,

    pub(crate) outputs: Outputs<T, D>,
    pub(crate) snapshot_unsaved: bool,
    pub(crate) durable: (Term, Option<ReplicaID>),
    checked: Checked,
}

/// What the last check saw.
#[derive(Clone, Debug, Default)]
struct Checked {
    term: Term,
    voted_for: Option<ReplicaID>,
    leader: Option<ReplicaID>,
    role: Option<Role>,
    commit: LogId,
    membership: Arc<Membership>,
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
    pub fn new(config: Config, noop: T, saved: Saved<T, D>, now: Duration) -> Result<Self, Error> {
        config.check().map_err(|error| Error::new(ErrorKind::InvalidInput, error))?;
        let invalid = |error: String| Error::new(ErrorKind::InvalidData, error);
        let initial = match config.joining {
            true => Membership::default(),
            false => Membership::of(config.peer_ids.iter().copied().chain([config.id])),
        };
        let log = Log::load(&saved, initial).map_err(invalid)?;
        let last = log.last();
        if saved.term.max(last.index) > LIMIT || last.term > saved.term {
            return Err(invalid(format!("the saved term {} cannot hold {last}", saved.term)));
        }
        let start = saved.snapshot.as_ref().map_or(0, |snapshot| snapshot.last_included_index);
        let mut raft = Raft {
            random: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            heard: config.max_clock_drift.map(|_| now),
            config,
            noop,
            now,
            term: saved.term,
            voted_for: saved.voted_for,
            state: State::Follower { leader: None },
            log,
            commit: start,
            applied: start,
            snapshot: saved.snapshot,
            election_at: now,
            status_at: now,
            reads: Reads::default(),
            led: BTreeSet::new(),
            orphans: BTreeMap::new(),
            outputs: Outputs::default(),
            snapshot_unsaved: saved.membership.is_none(),
            durable: (saved.term, saved.voted_for),
            checked: Checked::default(),
        };
        raft.reads = Reads::starting_at(raft.random.random());
        raft.reset_election_timer();
        raft.skip_configurations();
        Ok(raft)
    }

    /// Takes in a message at time `now`, the time since the replica began on a clock that never
    /// goes back.
    pub fn step(&mut self, now: Duration, message: Message<T, D>) {
        self.now = self.now.max(now);
        match message {
            Message::Request { request, forwarded } => self.on_request(request, forwarded),
            Message::Protocol { from_id, term, body } => {
                if from_id == self.config.id || term > LIMIT || !body.is_plausible(term) {
                    log::warn!("{}: dropped a forged message from {from_id}", self.config.id);
                } else {
                    self.receive(from_id, term, body);
                }
            }
        }
    }

    /// The term gate: what may raise the term, and what an old term is answered (§5.1).
    fn receive(&mut self, from_id: ReplicaID, term: Term, body: Body<T, D>) {
        match body {
            // Pre-votes are about a term that nobody is in yet; reads are true at any term.
            Body::RequestVote { pre: true, last, .. } => self.on_pre_vote(from_id, term, last),
            Body::Vote { pre: true, granted: true } => self.on_vote(from_id, term, true),
            Body::ReadIndex { context } => self.on_read_index(from_id, context),
            Body::ReadIndexResponse { context, index } => self.on_read_answer(context, index),
            Body::RequestVote { transfer: false, .. } if term > self.term && self.has_leader() => {
                // Whoever hears a leader does not let itself be disturbed (thesis §4.2.3).
                log::debug!("{}: ignores candidate {from_id}, has a leader", self.config.id);
            }
            body if term < self.term => self.on_stale(from_id, body),
            body => {
                if term > self.term {
                    self.enter(term, State::Follower { leader: None });
                }
                match body {
                    Body::RequestVote { transfer, last, .. } => {
                        self.on_request_vote(from_id, transfer, last);
                    }
                    Body::Vote { granted, pre } => {
                        if granted && !pre {
                            self.on_vote(from_id, term, false);
                        }
                    }
                    Body::AppendEntries { prev, runs, commit, round } => {
                        self.on_append_entries(from_id, prev, runs, commit, round);
                    }
                    Body::InstallSnapshot { snapshot, membership, round } => {
                        self.on_install_snapshot(from_id, snapshot, membership, round);
                    }
                    Body::Accepted { matched, round } => self.on_accepted(from_id, matched, round),
                    Body::Rejected { hint, round } => self.on_rejected(from_id, hint, round),
                    Body::TimeoutNow => self.on_timeout_now(from_id),
                    Body::ReadIndex { .. } | Body::ReadIndexResponse { .. } => {}
                }
            }
        }
    }

    /// Answers a sender of an older term, so that it learns of the newer one.
    fn on_stale(&mut self, from_id: ReplicaID, body: Body<T, D>) {
        match body {
            Body::RequestVote { pre, .. } => self.send(from_id, Body::Vote { pre, granted: false }),
            Body::AppendEntries { round, .. } | Body::InstallSnapshot { round, .. } => {
                let hint = self.log.last();
                self.send(from_id, Body::Rejected { hint, round });
            }
            _ => {}
        }
    }

    /// The one place where the term and the role change, so that neither outlives the other. Only a
    /// greater term clears the vote.
    pub(crate) fn enter(&mut self, term: Term, state: State) {
        if term > self.term {
            self.voted_for = None;
        }
        (self.term, self.state) = (term, state);
        self.reads.abandon_unanswered(self.commit);
    }

    /// Lets time pass. To be called at [`deadline`](Self::deadline) at the latest, and after the
    /// messages that have arrived.
    pub fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.reads.abandon_overdue(self.now);
        match self.state {
            State::Leader(_) => self.tick_leader(),
            _ if self.now >= self.election_at => self.on_election_timeout(),
            _ => {}
        }
    }

    /// When [`tick`](Self::tick) is due next.
    pub fn deadline(&self) -> Duration {
        match &self.state {
            State::Leader(leader) => leader.deadline(),
            _ => self.election_at,
        }
    }

    /// Appends transitions to the log.
    ///
    /// # Errors
    /// Gives them back if this replica does not lead or is handing its leadership over.
    pub fn propose(&mut self, transitions: Vec<T>) -> Result<(), Vec<T>> {
        match &self.state {
            State::Leader(leader) if !leader.is_handing_over() => {}
            _ => return Err(transitions),
        }
        if transitions.len() <= MAX_BATCH {
            self.append_as_leader(transitions);
        } else {
            let mut rest = transitions.into_iter().peekable();
            while rest.peek().is_some() {
                let batch = rest.by_ref().take(MAX_BATCH).collect();
                self.append_as_leader(batch);
            }
        }
        Ok(())
    }

    /// Whether more transitions should be asked for. A leader with too much underway says no and
    /// lets its log drain first.
    pub fn wants_transitions(&self) -> bool {
        self.log.last().index - self.applied < MAX_UNAPPLIED || !self.is_leader()
    }

    /// What is to be done now. Call it once a turn, after all inputs.
    ///
    /// # Panics
    /// If a law of Raft is broken, which is a bug in this library.
    pub fn outputs(&mut self) -> Outputs<T, D> {
        if self.is_leader() {
            self.lead();
        }
        self.check();
        self.announce();
        let (truncate_from, runs) = self.log.unsaved();
        let promise = (self.term, self.voted_for);
        let log_changed = truncate_from.is_some() || !runs.is_empty();
        if promise != self.durable || log_changed || self.snapshot_unsaved {
            self.outputs.change = Some(Change {
                term: self.term,
                voted_for: self.voted_for,
                truncate_from,
                runs,
                snapshot: self.snapshot.clone().filter(|_| self.snapshot_unsaved),
                membership: self.snapshot_unsaved.then(|| self.log.snapshot_membership().clone()),
                compacted: self.log.base(),
            });
            (self.durable, self.snapshot_unsaved) = (promise, false);
        }
        std::mem::take(&mut self.outputs)
    }

    /// Tells that the change of the last outputs is durable.
    pub fn saved(&mut self) {
        self.log.set_saved();
        if self.is_leader() {
            self.advance_commit();
        }
    }

    /// The next committed transitions to apply, in order; none if all are applied. To be followed
    /// by [`applied`](Self::applied).
    pub fn committed(&self) -> &[T] {
        self.log.transitions(self.applied + 1, self.commit)
    }

    /// Tells that the first `count` of the [`committed`](Self::committed) transitions are applied.
    pub fn applied(&mut self, count: usize) {
        self.applied += count.min(self.committed().len());
        self.skip_configurations();
    }

    /// Configurations take effect in here; there is nothing to apply.
    pub(crate) fn skip_configurations(&mut self) {
        while self.applied < self.commit && self.committed().is_empty() {
            self.applied += 1;
        }
    }

    /// The position at which it is time for a snapshot: right after what is applied.
    pub fn snapshot_due(&self) -> Option<LogId> {
        let delta = self.config.snapshot_delta;
        let covered = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.last_included_index);
        let term = self.log.term_at(self.applied)?;
        (delta > 0 && self.applied - covered >= delta)
            .then_some(LogId { term, index: self.applied })
    }

    /// Takes a snapshot of what is applied, and forgets what it covers but for a part that slow
    /// followers may need.
    ///
    /// # Errors
    /// `InvalidInput` if it is not at the position where it was due.
    pub fn compact(&mut self, snapshot: Snapshot<D>) -> Result<(), Error> {
        let (index, found) = (self.applied, snapshot.last());
        if !self.log.matches(found) || found.index != index {
            let error = format!("create_snapshot was asked for one at {index}, returned {found}");
            return Err(Error::new(ErrorKind::InvalidInput, error));
        }
        let kept = index.saturating_sub(self.config.snapshot_delta);
        self.log.compact(index, kept.min(self.needed_by_receivers()));
        self.snapshot = Some(snapshot);
        self.snapshot_unsaved = true;
        Ok(())
    }

    /// How things are now.
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            role: self.role(),
            term: self.term,
            leader: self.leader(),
            commit: self.commit,
            applied: self.applied,
            first_index: self.log.base().index + 1,
            last_index: self.log.last().index,
            membership: Membership::clone(self.log.membership()),
            peers: match &self.state {
                State::Leader(leader) => leader.peer_statuses(self.now),
                _ => Vec::new(),
            },
        }
    }

    /// The role of this replica.
    pub fn role(&self) -> Role {
        match &self.state {
            State::Follower { .. } => Role::Follower,
            State::Candidate { pre: true, .. } => Role::PreCandidate,
            State::Candidate { pre: false, .. } => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// The leader of the current term, if known.
    pub fn leader(&self) -> Option<ReplicaID> {
        match &self.state {
            State::Follower { leader } => *leader,
            State::Candidate { .. } => None,
            State::Leader(_) => Some(self.config.id),
        }
    }

    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// Says what has changed since it was last said.
    fn announce(&mut self) {
        let (seen, role, leader) = (&self.checked, self.role(), self.leader());
        let same_leader = seen.leader == leader;
        let same_membership = Arc::ptr_eq(&seen.membership, self.log.membership());
        let same =
            same_leader && same_membership && (seen.role, seen.term) == (Some(role), self.term);
        if !same_leader {
            self.outputs.leader = Some(leader);
        }
        if !same || self.now >= self.status_at {
            self.outputs.status = Some(self.status());
            self.status_at = self.now.saturating_add(self.config.heartbeat_timeout);
        }
        self.checked = Checked {
            term: self.term,
            voted_for: self.voted_for,
            leader,
            role: Some(role),
            commit: LogId { term: self.log.term_at(self.commit).unwrap_or(0), index: self.commit },
            membership: self.log.membership().clone(),
        };
    }

    /// Checks the laws that [`Raft`] lists.
    fn check(&self) {
        let (seen, last, base) = (&self.checked, self.log.last(), self.log.base());
        let snapshot = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.last_included_index);
        assert!(base.index <= snapshot, "base ≤ snapshot: {base} {snapshot}");
        assert!(snapshot <= self.applied, "snapshot ≤ applied: {snapshot} {}", self.applied);
        assert!(self.applied <= self.commit, "applied ≤ commit: {} {}", self.applied, self.commit);
        assert!(self.commit <= last.index, "commit ≤ last: {} {last}", self.commit);
        assert!(last.term <= self.term, "an entry's term is above the term: {last} {}", self.term);
        assert!(seen.term <= self.term, "the term fell: {} {}", seen.term, self.term);
        assert!(seen.commit.index <= self.commit, "commit fell: {} {}", seen.commit, self.commit);
        let kept = self.log.term_at(seen.commit.index).is_none_or(|term| term == seen.commit.term);
        assert!(kept, "what was committed at {} has changed", seen.commit);
        if seen.term == self.term {
            let kept = seen.voted_for.is_none() || seen.voted_for == self.voted_for;
            assert!(kept, "two votes in term {}", self.term);
            let one =
                seen.leader.is_none() || self.leader().is_none() || seen.leader == self.leader();
            assert!(one, "two leaders in term {}", self.term);
        }
        if let State::Leader(leader) = &self.state {
            assert!(self.voted_for == Some(self.config.id), "a leader did not vote for itself");
            leader.check(last.index);
        }
    }

    /// Sends what must wait for the save.
    pub(crate) fn send(&mut self, to_id: ReplicaID, body: Body<T, D>) {
        self.send_at(to_id, self.term, body);
    }

    /// As [`send`](Self::send), in a term that this replica is not in.
    pub(crate) fn send_at(&mut self, to_id: ReplicaID, term: Term, body: Body<T, D>) {
        let message = Message::Protocol { from_id: self.config.id, term, body };
        self.outputs.messages.push((to_id, message));
    }
}
