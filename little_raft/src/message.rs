//! The vocabulary: positions in the log, runs of entries, and what replicas say to each other.
#![allow(missing_docs)] // The fields of a message are explained by the message.

use crate::*;

/// A position in the log. The first entry has index 1; index 0 stands for "before every entry".
pub type Index = usize;

/// A leadership's number (§5.1). It only grows; 0 stands for "before every leadership".
pub type Term = usize;

/// Term and index of an entry, which identify it and everything before it (Log Matching, §5.3).
/// Ordered by term first: the log that ends with the greater one is more up-to-date (§5.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The entry's place in the log.
    pub index: Index,
}

/// Consecutive entries of one term: what is appended together is stored, saved and sent as one
/// thing, and shared rather than copied. Either some transitions or one configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Run<T> {
    /// Index of the first entry.
    pub first: Index,
    /// Term of every entry.
    pub term: Term,
    /// The user's transitions, or a new leader's no-op.
    pub transitions: Arc<Vec<T>>,
    /// A configuration, which is an entry by itself.
    pub membership: Option<Arc<Membership>>,
}

impl<T: Clone> Run<T> {
    /// The last entry.
    pub fn last(&self) -> LogId {
        let len = self.transitions.len() + usize::from(self.membership.is_some());
        LogId { term: self.term, index: self.first.saturating_add(len).saturating_sub(1) }
    }

    /// The part from index `from` up to and including `to`, which must overlap the run. Shared if
    /// it is the whole, copied, which is rare, if not.
    pub fn slice(&self, from: Index, to: Index) -> Run<T> {
        let (first, last) = (from.max(self.first), to.min(self.last().index));
        let part = || self.transitions[first - self.first..=last - self.first].to_vec().into();
        let whole = last - first + 1 >= self.transitions.len();
        let transitions = if whole { self.transitions.clone() } else { part() };
        Run { first, term: self.term, transitions, membership: self.membership.clone() }
    }
}

/// The time at which a leader began a round of messages, by its own clock, which goes on by at
/// least a nanosecond from round to round. Every answer echoes it.
///
/// That a quorum has echoed a round means that this leader still led when the round began. Reads,
/// check-quorum and the lease all ask this one question (thesis §6.2, §6.4).
pub type Round = Duration;

/// What a follower says of its log: the index up to which it now durably matches the leader's or,
/// if it lacks what the leader built upon, its latest entry that the leader may hold as well.
pub type Answer = Result<Index, LogId>;

/// Stands for a user where a message names its sender; no replica may have this id.
pub const USER: ReplicaID = ReplicaID::MAX;

/// What travels through a [`Cluster`]: what replicas say to each other, and what users ask of the
/// leader, at whichever replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Message<T, D = Vec<u8>> {
    /// The sender.
    pub from_id: ReplicaID,
    /// The sender's term; 0 from a user.
    pub term: Term,
    /// What it says.
    pub body: Body<T, D>,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Body<T, D = Vec<u8>> {
    /// A candidate, whose log ends with `last`, asks for a vote (§5.2). If `pre`, it only asks
    /// whether it would get it (thesis §9.6). If `transfer`, the leader asked it to stand, so that
    /// having a leader is no reason to refuse (thesis §3.10).
    RequestVote { pre: bool, transfer: bool, last: LogId },
    /// Answers that.
    Vote { pre: bool, granted: bool },
    /// The leader's entries after `prev`, none in a heartbeat, and up to where they are committed
    /// (§5.3).
    AppendEntries { prev: LogId, runs: Vec<Run<T>>, commit: Index, round: Round },
    /// The state that replaces a log which is too far behind, and the configuration that holds
    /// there (§7).
    InstallSnapshot { snapshot: Snapshot<D>, membership: Arc<Membership>, round: Round },
    /// Answers both.
    Appended { result: Answer, round: Round },
    /// The leader asks the receiver to stand for election at once (thesis §3.10).
    TimeoutNow,
    /// A follower asks for the index at which it may serve a read (thesis §6.4). It chooses the
    /// `context`, which the answer repeats.
    ReadIndex { context: u64 },
    /// Answers that.
    ReadIndexResponse { context: u64, index: Index },
    /// A user asks for this configuration; see [`Message::change_membership`].
    ChangeMembership(Membership),
    /// A user asks for another leader; see [`Message::transfer_leadership`].
    TransferLeadership(ReplicaID),
}

impl<T, D> Message<T, D> {
    /// Asks the leader to change the configuration to exactly these voters and learners, by joint
    /// consensus (§6). Put it among what [`Cluster::receive_messages`](crate::Cluster) returns, at
    /// any replica.
    ///
    /// It is refused, with a warning in the log, while an earlier change is underway, before the
    /// leader has committed an entry of its own term, while it hands its leadership over, or if
    /// nobody would vote. Who votes need not be named as a learner too.
    pub fn change_membership(voters: Vec<ReplicaID>, learners: Vec<ReplicaID>) -> Self {
        let [voters, learners] = [voters, learners].map(BTreeSet::from_iter);
        let asked = Membership { learners: &learners - &voters, voters, ..Membership::default() };
        Message { from_id: USER, term: 0, body: Body::ChangeMembership(asked) }
    }

    /// Asks the leader to hand its leadership to a voter (thesis §3.10). The leader lets it catch
    /// up, takes no transitions meanwhile, and gives up after an election timeout.
    pub fn transfer_leadership(to_id: ReplicaID) -> Self {
        Message { from_id: USER, term: 0, body: Body::TransferLeadership(to_id) }
    }
}
