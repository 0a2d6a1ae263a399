//! How a leader comes to be, and how a read relies on its still being one.

use crate::*;

/// A read asked at this replica.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// Drawn at random, so that a late answer to an earlier life of this replica answers nothing.
    pub(crate) ticket: u64,
    /// The leader's answer or, as long as there is none, until when to wait for it.
    pub(crate) answer: Result<Index, Duration>,
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    // Elections.

    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.me.deadline = self.me.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// Asks everybody for a vote in the next term or, as a pre-candidate, whether it would be
    /// given. Only if this replica votes in a configuration that may turn out to be the last
    /// committed one: without its vote, one that removes it might never be committed.
    pub(crate) fn campaign(&mut self, role: Role, transfer: bool) {
        let (pre, last, me) = (role == PreCandidate, self.log.last(), self.me.id);
        let votes = |it: &Membership| it.voters.contains(&me) || it.outgoing.contains(&me);
        self.reset_election_timer();
        if !self.log.memberships_from(self.me.commit).iter().any(|(_, it)| votes(it)) {
            return;
        }
        self.enter(self.me.term + usize::from(!pre), role, None);
        self.me.voted_for = if pre { self.me.voted_for } else { Some(me) };
        for id in self.log.membership().1.members().into_iter().filter(|id| *id != me) {
            self.send(id, Body::RequestVote { pre, transfer, last });
        }
        self.on_vote(me);
    }

    /// Votes for a candidate whose log is at least as up-to-date (§5.4.1), once per term, though as
    /// often as that candidate asks. A pre-vote is about the next term, and changes nothing.
    pub(crate) fn judge(&mut self, from: ReplicaID, pre: bool, last: LogId) {
        let free = pre || self.me.voted_for.is_none_or(|id| id == from);
        let granted = free && last >= self.log.last();
        if granted && !pre {
            self.enter(self.me.term, Follower, None);
            self.me.voted_for = Some(from);
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
        if won && self.me.role == PreCandidate {
            self.campaign(Candidate, false);
        } else if won {
            info!("{}: leads term {}", self.me.id, self.me.term);
            self.enter(self.me.term, Leader, Some(self.me.id));
            (self.leading.first, self.leading.round) = (self.log.last().index + 1, self.me.now);
            self.append_as_leader(vec![self.noop.clone()], None);
            self.watch_members();
            self.me.deadline = self.me.now;
        }
    }

    // Linearizable reads that put nothing into the log (thesis §6.4).
    //
    // A read asks the leader for a *read index*: an index at or above everything that was committed
    // when the read came. The leader gives it once it is sure that it still led at that moment,
    // because a quorum has echoed a round that began later, or because its lease has not run out.
    // The read is ready, wherever it was asked, when that index is applied there.

    /// Asks for a linearizable read at time `now`, which must not lie before the read was asked
    /// for. Returns the ticket under which [`take_reads`](Self::take_reads) answers it.
    pub fn read(&mut self, now: Duration) -> u64 {
        self.me.now = self.me.now.max(now);
        let (ticket, leader) = (self.random.random(), self.me.leader);
        let patience = leader.map_or(Duration::ZERO, |_| self.config.election_timeout_range.1);
        self.reads.push(Read { ticket, answer: Err(self.me.now.saturating_add(patience)) });
        leader.into_iter().for_each(|id| self.send(id, Body::ReadIndex { context: ticket }));
        ticket
    }

    /// The reads that have come to an end. Call it after applying: ready is what the applied state
    /// can answer now.
    pub fn take_reads(&mut self) -> Vec<(u64, ReadState)> {
        let Status { now, applied, .. } = self.me;
        let over = |it: &mut Read| it.answer.map_or_else(|at| at <= now, |it| it <= applied);
        let state = |ready| if ready { ReadState::Ready } else { ReadState::Abandoned };
        let ended = self.reads.extract_if(.., over);
        ended.map(|it| (it.ticket, state(it.answer.is_ok()))).collect()
    }

    /// The leader takes down a question, its own or a follower's; nobody else can answer it. A
    /// quorum must echo a later round than the last, unless the leader has its lease: then no other
    /// can have been elected yet, for the followers that heard it wait at least the least election
    /// timeout before they vote (thesis §6.4.1). A round of zero is no answer, not an early one.
    pub(crate) fn on_read_index(&mut self, from: ReplicaID, context: u64) {
        let Leader = self.me.role else { return };
        let echoed = self.quorum(self.leading.round, |it| it.heard);
        let until = echoed.saturating_add(self.config.election_timeout_range.0);
        let drift = self.config.max_clock_drift.filter(|_| self.leading.transfer.1.is_zero());
        let held =
            drift.is_some_and(|it| self.me.now.saturating_add(it) < until && !echoed.is_zero());
        let after = if held { Round::ZERO } else { self.leading.round };
        self.me.deadline = if held { self.me.deadline } else { self.me.now };
        // All that was committed in earlier terms lies before the leader's no-op, so before
        // that is committed its index serves (thesis §6.4, step 1).
        let index = self.me.commit.max(self.leading.first);
        self.leading.questions.push((from, context, index, after));
    }
}
