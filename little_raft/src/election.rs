//! How a leader comes to be.

use crate::message::Body;
use crate::raft::{Raft, Role};
use crate::replication::Leading;
use crate::{LogId, ReplicaID, StateMachineTransition, Term};
use rand::RngExt;

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.deadline = self.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// Without a leader for too long. Even after an election that led to nothing it is a pre-vote
    /// that comes next, so that terms do not rise in vain (thesis §9.6).
    pub(crate) fn on_election_timeout(&mut self) {
        self.reset_election_timer();
        if self.may_campaign() {
            self.campaign(true, false);
        }
    }

    /// A replica may stand for election if it votes in any configuration that may turn out to be the
    /// last committed one: without it, one that removes it might never be committed.
    fn may_campaign(&self) -> bool {
        self.log.memberships_from(self.commit).iter().any(|(_, it)| it.is_voter(self.config.id))
    }

    /// Asks everybody for a vote; if `pre`, only whether it would be given.
    fn campaign(&mut self, pre: bool, transfer: bool) {
        let (id, asked, last) = (self.config.id, self.term + 1, self.log.last());
        log::debug!("{id}: stands for election in term {asked}, pre-vote: {pre}");
        if pre {
            self.enter(self.term, Role::PreCandidate, None);
        } else {
            self.enter(asked, Role::Candidate, None);
            self.voted_for = Some(id);
        }
        self.reset_election_timer();
        for member in self.log.membership().1.members().into_iter().filter(|it| *it != id) {
            self.send_at(member, asked, Body::RequestVote { pre, transfer, last });
        }
        self.on_vote(id, asked, self.role);
    }

    /// Would this replica vote for the sender in `term`? Changes nothing here; a grant carries the
    /// term asked for, a refusal this replica's own, from which the sender may learn.
    pub(crate) fn on_pre_vote(&mut self, from_id: ReplicaID, term: Term, last: LogId) {
        let granted = term > self.term && last >= self.log.last() && !self.has_leader();
        let term = if granted { term } else { self.term };
        self.send_at(from_id, term, Body::Vote { pre: true, granted });
    }

    /// Votes for a candidate of the current term whose log is at least as up-to-date (§5.4.1): once
    /// per term, though as often as that candidate asks.
    pub(crate) fn on_request_vote(&mut self, from_id: ReplicaID, transfer: bool, last: LogId) {
        let free = self.voted_for.is_none_or(|id| id == from_id) && self.role != Role::Leader;
        let granted = free && (transfer || !self.has_leader()) && last >= self.log.last();
        if granted {
            self.enter(self.term, Role::Follower, None);
            self.voted_for = Some(from_id);
            self.reset_election_timer();
        }
        self.send(from_id, Body::Vote { pre: false, granted });
    }

    /// Counts a vote for `term` as `role`, if that is what this replica stands for. A pre-vote that
    /// is won is followed by the vote, and that by leadership, which begins with an entry of its own
    /// term: only that lets it commit what earlier leaders left (§5.4.2, §8).
    pub(crate) fn on_vote(&mut self, from_id: ReplicaID, term: Term, role: Role) {
        let asked = self.term + usize::from(role == Role::PreCandidate);
        if (role, asked) != (self.role, term) {
            return;
        }
        self.votes.insert(from_id);
        if !self.log.membership().1.quorum(|id| self.votes.contains(&id)) {
            return;
        } else if role == Role::PreCandidate {
            return self.campaign(false, false);
        }
        log::info!("{}: leads term {term}", self.config.id);
        self.enter(term, Role::Leader, Some(self.config.id));
        let (first, round) = (self.log.last().index + 1, self.now);
        self.leading = Leading { first, round, ..Leading::default() };
        self.append_as_leader(vec![self.noop.clone()], None);
        self.watch_members();
        self.on_heartbeat_timeout();
    }

    /// The leader asks this replica to take over: it stands at once, without a pre-vote, which the
    /// others would refuse as long as they hear the leader.
    pub(crate) fn on_timeout_now(&mut self, from_id: ReplicaID) {
        if self.leader == Some(from_id) && self.may_campaign() {
            self.campaign(false, true);
        }
    }

    /// Whether a leader is, or was lately, alive: then nobody gets a vote, whatever the term, unless
    /// that leader itself asked for the election (thesis §4.2.3). Its lease counts on it.
    pub(crate) fn has_leader(&self) -> bool {
        let least = self.config.election_timeout_range.0;
        self.role == Role::Leader
            || self.heard.is_some_and(|heard| self.now < heard.saturating_add(least))
    }
}
