//! The vocabulary: positions in the log, runs of entries, and what replicas say to each other.

use crate::raft::LIMIT;
use crate::{Membership, ReplicaID, Snapshot};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A position in the log. The first entry has index 1; index 0 stands for "before every entry".
pub type Index = usize;

/// A leadership's number (§5.1). It only grows; 0 stands for "before every leadership".
pub type Term = usize;

/// Index and term of an entry, which identify it and everything before it (Log Matching, §5.3).
/// Ordered by term first: the greater is the more up-to-date log (§5.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The entry's place in the log.
    pub index: Index,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// Consecutive entries of one term: what is appended together is stored, saved and sent as one
/// thing, and shared rather than copied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Run<T> {
    /// Index of the first entry.
    pub first: Index,
    /// Term of every entry.
    pub term: Term,
    /// The entries.
    pub entries: Entries<T>,
}

/// What a run holds: some transitions, or one configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Entries<T> {
    /// The user's transitions, or a new leader's no-op; at least one.
    Transitions(Arc<Vec<T>>),
    /// A change of the configuration: a single entry.
    Membership(Arc<Membership>),
}

impl<T> Run<T> {
    /// The number of entries, at least one in a valid run.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Transitions(transitions) => transitions.len(),
            Entries::Membership(_) => 1,
        }
    }

    /// The position of the last entry.
    pub fn last(&self) -> LogId {
        LogId { term: self.term, index: (self.first + self.len()).saturating_sub(1) }
    }

    /// The transitions in it, none if it is a configuration.
    pub fn transitions(&self) -> &[T] {
        match &self.entries {
            Entries::Transitions(transitions) => transitions,
            Entries::Membership(_) => &[],
        }
    }

    /// Whether this run may come right after the entry `last`: the next index, a term that does not
    /// fall, and not empty.
    pub(crate) fn follows(&self, last: LogId) -> bool {
        self.first == last.index + 1 && self.term >= last.term.max(1) && self.len() > 0
    }
}

impl<T: Clone> Run<T> {
    /// The part of this run from index `from` up to and including `to`, which overlap it. Shared if
    /// it is the whole run; copied, which is rare, if not.
    pub fn slice(&self, from: Index, to: Index) -> Run<T> {
        let first = from.max(self.first);
        let entries = match &self.entries {
            Entries::Transitions(transitions) if first > self.first || to < self.last().index => {
                let end = transitions.len().min(to + 1 - self.first);
                Entries::Transitions(Arc::new(transitions[first - self.first..end].to_vec()))
            }
            whole => whole.clone(),
        };
        Run { first, term: self.term, entries }
    }
}

/// When a leader sent something, by its own clock and count; every answer echoes it.
///
/// That a quorum has echoed a round means that this leader still led when the round began. Reads,
/// check-quorum and the lease all ask this one question (thesis §6.2, §6.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Round {
    /// The leader's clock as the round began.
    pub began: Duration,
    /// Tells apart what happened at the same reading of the clock.
    pub number: u64,
}

/// What travels through a [`Cluster`](crate::Cluster).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Message<T, D = Vec<u8>> {
    /// From one replica to another.
    Protocol {
        /// The sender.
        from_id: ReplicaID,
        /// The sender's term; in a pre-vote request and its grant the term that is asked for.
        term: Term,
        /// What it says.
        body: Body<T, D>,
    },
    /// From a user to the leader.
    Request {
        /// What is asked for.
        request: Request,
        /// Whether a replica that did not lead has passed it on. It does so once.
        forwarded: bool,
    },
}

/// What replicas say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Body<T, D = Vec<u8>> {
    /// A candidate asks for a vote (§5.2).
    RequestVote {
        /// Only asks whether a vote would be granted (thesis §9.6).
        pre: bool,
        /// The leader asked the candidate to stand, so having a leader is no reason to refuse
        /// (thesis §3.10).
        transfer: bool,
        /// The end of the candidate's log.
        last: LogId,
    },
    /// Answers [`Body::RequestVote`].
    Vote {
        /// Whether the question was a pre-vote.
        pre: bool,
        /// Whether the vote is granted.
        granted: bool,
    },
    /// The leader replicates its log, and shows that it lives (§5.3).
    AppendEntries {
        /// The entry before the first of `runs`.
        prev: LogId,
        /// The entries; none in a heartbeat.
        runs: Vec<Run<T>>,
        /// Up to where the leader knows the log to be committed.
        commit: Index,
        /// Echoed by the answer.
        round: Round,
    },
    /// The leader replaces a log that is too far behind (§7).
    InstallSnapshot {
        /// The state machine's state.
        snapshot: Snapshot<D>,
        /// The configuration at the snapshot's end.
        membership: Membership,
        /// Echoed by the answer.
        round: Round,
    },
    /// The sender's log durably matches the leader's up to here.
    Accepted {
        /// The last matching index.
        matched: Index,
        /// The round of what is answered.
        round: Round,
    },
    /// The sender's log does not hold what the message built upon.
    Rejected {
        /// The latest entry of the sender that the leader may hold as well.
        hint: LogId,
        /// The round of what is answered.
        round: Round,
    },
    /// The leader asks the receiver to stand for election at once (thesis §3.10).
    TimeoutNow,
    /// A follower asks the leader for a read index (thesis §6.4).
    ReadIndex {
        /// Chosen by the follower, repeated in the answer.
        context: u64,
    },
    /// Answers [`Body::ReadIndex`]: the read may be served once `index` is applied.
    ReadIndexResponse {
        /// What was asked.
        context: u64,
        /// The read index.
        index: Index,
    },
}

/// What a user may ask of the leader. The outcome shows in the [`Status`](crate::Status).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Request {
    /// See [`Message::change_membership`].
    ChangeMembership {
        /// The replicas that shall vote.
        voters: Vec<ReplicaID>,
        /// The replicas that shall only follow.
        learners: Vec<ReplicaID>,
    },
    /// See [`Message::transfer_leadership`].
    TransferLeadership {
        /// The voter that shall lead.
        to_id: ReplicaID,
    },
}

impl<T, D> Message<T, D> {
    /// Asks the leader to change the configuration to exactly these voters and learners, by joint
    /// consensus (§6). Put it among what [`Cluster::receive_messages`](crate::Cluster) returns, at
    /// any replica.
    ///
    /// It is refused, with a warning in the log, while an earlier change is underway, before the
    /// leader has committed an entry of its own term, if there is no voter, or if a replica is named
    /// twice.
    pub fn change_membership(voters: Vec<ReplicaID>, learners: Vec<ReplicaID>) -> Self {
        let request = Request::ChangeMembership { voters, learners };
        Message::Request { request, forwarded: false }
    }

    /// Asks the leader to hand its leadership to a voter (thesis §3.10). The leader lets it catch
    /// up, takes no transitions meanwhile, and gives up after an election timeout.
    pub fn transfer_leadership(to_id: ReplicaID) -> Self {
        let request = Request::TransferLeadership { to_id };
        Message::Request { request, forwarded: false }
    }
}

impl<T, D> Body<T, D> {
    /// Whether an honest sender in `term` can have sent this: nothing overflows, and the entries
    /// follow `prev` and one another.
    pub(crate) fn is_plausible(&self, term: Term) -> bool {
        let known = |id: &LogId| id.index < LIMIT && id.term <= term;
        match self {
            Body::AppendEntries { prev, runs, .. } => {
                let mut last = *prev;
                known(prev)
                    && runs.iter().all(|run| {
                        let follows = run.follows(last);
                        last = run.last();
                        follows && known(&last)
                    })
            }
            Body::InstallSnapshot { snapshot, membership, .. } => {
                known(&snapshot.last()) && !membership.voters.is_empty()
            }
            _ => true,
        }
    }
}
