//! How a leader comes to be.

use crate::*;

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.deadline = self.me.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// A replica may stand for election if it votes in any configuration that may turn out to be
    /// the last committed one: without it, one that removes it might never be committed.
    pub(crate) fn may_campaign(&self) -> bool {
        let votes = |it: &Membership| it.voters.union(&it.outgoing).any(|id| *id == self.me.id);
        self.log.memberships_from(self.me.commit).iter().any(|(_, it)| votes(it))
    }

    /// Asks everybody for a vote in the next term or, as a pre-candidate, whether it would be
    /// given.
    pub(crate) fn campaign(&mut self, role: Role, transfer: bool) {
        let (pre, last) = (role == Role::PreCandidate, self.log.last());
        self.enter(self.me.term + usize::from(!pre), role, None);
        self.voted_for = if pre { self.voted_for } else { Some(self.me.id) };
        self.reset_election_timer();
        let mut others = self.log.membership().1.members();
        others.remove(&self.me.id);
        for member in others {
            self.send(member, Body::RequestVote { pre, transfer, last });
        }
        self.on_vote(self.me.id);
    }

    /// Votes for a candidate whose log is at least as up-to-date (§5.4.1), once per term, though as
    /// often as that candidate asks. A pre-vote is about the next term, and changes nothing.
    pub(crate) fn judge(&mut self, from: ReplicaID, pre: bool, last: LogId) {
        let free = pre || self.voted_for.is_none_or(|id| id == from);
        let granted = free && last >= self.log.last();
        if granted && !pre {
            self.enter(self.me.term, Role::Follower, None);
            self.voted_for = Some(from);
            self.reset_election_timer();
        }
        self.send(from, Body::Vote { pre, granted });
    }

    /// Counts a vote or, for a pre-candidate, a pre-vote. A pre-vote that is won is followed by the
    /// vote, and that by leadership, which begins with an entry of its own term: only that lets it
    /// commit what earlier leaders left (§5.4.2, §8).
    pub(crate) fn on_vote(&mut self, from: ReplicaID) {
        self.leading.votes.insert(from);
        let won = self.log.membership().1.quorum(|id| self.leading.votes.contains(&id));
        if won && self.me.role == Role::PreCandidate {
            self.campaign(Role::Candidate, false);
        } else if won {
            info!("{}: leads term {}", self.me.id, self.me.term);
            self.enter(self.me.term, Role::Leader, Some(self.me.id));
            self.loyal_until = Duration::MAX;
            (self.leading.first, self.leading.round) = (self.log.last().index + 1, self.me.now);
            self.append_as_leader(vec![self.noop.clone()], None);
            self.watch_members();
            self.on_heartbeat_timeout();
        }
    }
}
