//! How a leader comes to be, and ceases to be.

use crate::message::Body;
use crate::raft::{Raft, State};
use crate::replication::Leader;
use crate::{LogId, ReplicaID, StateMachineTransition, Term};
use rand::RngExt;
use std::collections::BTreeSet;

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.election_at = self.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// Without a leader for too long. An earlier election that led to nothing begins anew with a
    /// pre-vote, so that terms do not rise in vain (thesis §9.6).
    pub(crate) fn on_election_timeout(&mut self) {
        match self.may_campaign() {
            true => self.campaign(true, false),
            false => self.reset_election_timer(),
        }
    }

    /// A replica may stand for election if it is a voter, in any configuration that may turn out to
    /// be the last committed one: one that removes it may never be committed without it.
    fn may_campaign(&self) -> bool {
        self.log.memberships_from(self.commit).any(|membership| membership.is_voter(self.config.id))
    }

    /// Asks everybody who votes; `pre` only asks whether they would.
    fn campaign(&mut self, pre: bool, transfer: bool) {
        let id = self.config.id;
        let term = self.term + usize::from(!pre);
        self.enter(term, State::Candidate { pre, votes: BTreeSet::from([id]) });
        if !pre {
            self.voted_for = Some(id);
        }
        self.reset_election_timer();
        log::debug!("{id}: stands for election in term {}, pre-vote: {pre}", self.term);
        let last = self.log.last();
        for voter in self.log.membership().clone().members() {
            if voter != id && self.log.membership().is_voter(voter) {
                let body = Body::RequestVote { pre, transfer, last };
                self.send_at(voter, self.term + usize::from(pre), body);
            }
        }
        self.count_votes();
    }

    /// Would this replica vote for the sender in `term`? Changes nothing here but that it answers:
    /// a grant carries the term asked for, a refusal its own, which may be greater.
    pub(crate) fn on_pre_vote(&mut self, from_id: ReplicaID, term: Term, last: LogId) {
        let granted = term > self.term && last >= self.log.last() && !self.has_leader();
        let term = if granted { term } else { self.term };
        self.send_at(from_id, term, Body::Vote { pre: true, granted });
    }

    /// Votes for a candidate of the current term whose log is at least as up-to-date (§5.4.1), once
    /// per term, though as often as that candidate asks.
    pub(crate) fn on_request_vote(&mut self, from_id: ReplicaID, transfer: bool, last: LogId) {
        let free = self.voted_for.is_none_or(|id| id == from_id);
        let undisturbed = transfer || !self.has_leader();
        let granted = free && undisturbed && last >= self.log.last();
        if granted {
            self.voted_for = Some(from_id);
            self.enter(self.term, State::Follower { leader: None });
            self.reset_election_timer();
        }
        self.send(from_id, Body::Vote { pre: false, granted });
    }

    /// Counts a vote for this replica in `term`, if that is what it stands for.
    pub(crate) fn on_vote(&mut self, from_id: ReplicaID, term: Term, pre: bool) {
        let asked = self.term + usize::from(pre);
        if let State::Candidate { pre: standing, votes } = &mut self.state
            && (*standing, asked) == (pre, term)
        {
            votes.insert(from_id);
            self.count_votes();
        }
    }

    /// A pre-vote that is won is followed by the vote, and that by leadership.
    fn count_votes(&mut self) {
        let State::Candidate { pre, votes } = &self.state else { return };
        if self.log.membership().quorum(|id| votes.contains(&id)) {
            match *pre {
                true => self.campaign(false, false),
                false => self.become_leader(),
            }
        }
    }

    /// Leads, and begins with an entry of its own term: only that lets it commit what earlier
    /// leaders left (§5.4.2, §8).
    fn become_leader(&mut self) {
        log::info!("{}: leads term {}", self.config.id, self.term);
        let leader = Leader::new(self.log.last().index + 1, self.now, &self.config);
        self.enter(self.term, State::Leader(leader));
        let settled = self.log.term_at(self.applied);
        self.led.retain(|term| Some(*term) >= settled);
        self.led.insert(self.term);
        self.append_as_leader(vec![self.noop.clone()]);
        self.watch_members();
    }

    /// The leader asks this replica to take over: it stands at once, without a pre-vote, which the
    /// others would refuse while they hear the leader.
    pub(crate) fn on_timeout_now(&mut self, from_id: ReplicaID) {
        if self.leader() == Some(from_id) && self.may_campaign() {
            self.campaign(false, true);
        }
    }

    /// Whether a leader is, or was lately, alive: then nobody gets a vote, whatever the term, unless
    /// that leader itself asked for the election (thesis §4.2.3). Its lease counts on it.
    pub(crate) fn has_leader(&self) -> bool {
        let least = self.config.election_timeout_range.0;
        self.is_leader() || self.heard.is_some_and(|heard| self.now < heard.saturating_add(least))
    }
}
