//! How a leader comes to be.

use crate::*;
use rand::RngExt;

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.deadline = self.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// A replica may stand for election if it votes in any configuration that may turn out to be the
    /// last committed one: without it, one that removes it might never be committed.
    pub(crate) fn may_campaign(&self) -> bool {
        let votes = |it: &Membership| it.voters.union(&it.outgoing).any(|id| *id == self.config.id);
        self.log.memberships_from(self.commit).iter().any(|(_, it)| votes(it))
    }

    /// Asks everybody for a vote in the next term or, as a pre-candidate, whether it would be given.
    pub(crate) fn campaign(&mut self, role: Role, transfer: bool) {
        let (pre, asked, last) = (role == Role::PreCandidate, self.term + 1, self.log.last());
        self.enter(if pre { self.term } else { asked }, role, None);
        self.voted_for = if pre { self.voted_for } else { Some(self.config.id) };
        self.reset_election_timer();
        for member in self.log.membership().1.members() {
            self.send_at(member, asked, Body::RequestVote { pre, transfer, last });
        }
        self.on_vote(self.config.id, asked, role);
    }

    /// Votes for a candidate whose log is at least as up-to-date (§5.4.1), once per term, though as
    /// often as that candidate asks. A pre-vote changes nothing; its grant carries the term asked
    /// for, its refusal this replica's own, from which the sender may learn.
    pub(crate) fn judge(
        &mut self, from: ReplicaID, term: Term, pre: bool, transfer: bool, last: LogId,
    ) {
        let free = term > self.term || !pre && self.voted_for.is_none_or(|id| id == from);
        let granted = free && last >= self.log.last() && (transfer || !self.has_leader());
        if granted && !pre {
            self.enter(term, Role::Follower, None);
            self.voted_for = Some(from);
            self.reset_election_timer();
        }
        self.send_at(from, if granted { term } else { self.term }, Body::Vote { pre, granted });
    }

    /// Counts a vote for `term` as `role`, if that is what this replica stands for. A pre-vote that
    /// is won is followed by the vote, and that by leadership, which begins with an entry of its own
    /// term: only that lets it commit what earlier leaders left (§5.4.2, §8).
    pub(crate) fn on_vote(&mut self, from: ReplicaID, term: Term, role: Role) {
        if self.role != role || self.term + usize::from(role == Role::PreCandidate) != term {
            return;
        }
        self.leading.votes.insert(from);
        let won = self.log.membership().1.quorum(|id| self.leading.votes.contains(&id));
        if won && role == Role::PreCandidate {
            self.campaign(Role::Candidate, false);
        } else if won {
            info!("{}: leads term {term}", self.config.id);
            self.enter(term, Role::Leader, Some(self.config.id));
            (self.leading.first, self.leading.round) = (self.log.last().index + 1, self.now);
            self.append_as_leader(vec![self.noop.clone()], None);
            self.watch_members();
            self.on_heartbeat_timeout();
        }
    }

    /// Whether a leader is, or was lately, alive: then nobody gets a vote, whatever the term, unless
    /// that leader itself asked for the election (thesis §4.2.3). Its lease counts on it.
    pub(crate) fn has_leader(&self) -> bool {
        let until =
            self.heard.map(|heard| heard.saturating_add(self.config.election_timeout_range.0));
        self.role == Role::Leader || until > Some(self.now)
    }
}
