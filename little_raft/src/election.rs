//! How a leader comes to be, and how a read relies on its still being one.

use crate::*;

/// A read asked at this replica.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// Drawn at random, so that a late answer to an earlier life of this replica answers nothing.
    ticket: u64,
    /// The leader's answer.
    index: Option<Index>,
    /// When to stop waiting for that: after a while, or as soon as the leader is another.
    pub(crate) overdue_at: Duration,
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    // Elections.

    /// Draws the time of the next election anew, so that rivals seldom stand at once (§5.2).
    pub(crate) fn reset_election_timer(&mut self) {
        let (least, greatest) = self.config.election_timeout_range;
        self.deadline = self.me.now.saturating_add(self.random.random_range(least..=greatest));
    }

    /// Asks everybody for a vote in the next term or, as a pre-candidate, whether it would be
    /// given. Only if this replica votes in a configuration that may turn out to be the last
    /// committed one: without its vote, one that removes it might never be committed.
    pub(crate) fn campaign(&mut self, role: Role, transfer: bool) {
        let (pre, last, me) = (role == PreCandidate, self.log.last(), self.me.id);
        let votes = |it: &Membership| it.voters.contains(&me) || it.outgoing.contains(&me);
        if !self.log.memberships_from(self.me.commit).iter().any(|(_, it)| votes(it)) {
            return self.reset_election_timer();
        }
        self.enter(self.me.term + usize::from(!pre), role, None);
        self.me.voted_for = if pre { self.me.voted_for } else { Some(me) };
        self.reset_election_timer();
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
            self.me.loyal_until = Duration::MAX;
            (self.leading.first, self.leading.round) = (self.log.last().index + 1, self.me.now);
            self.append_as_leader(vec![self.noop.clone()], None);
            self.watch_members();
            self.on_heartbeat_timeout();
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
        let (ticket, greatest) = (self.random.random(), self.config.election_timeout_range.1);
        let patience = self.me.leader.map_or(Duration::ZERO, |_| greatest);
        let overdue_at = self.me.now.saturating_add(patience);
        self.reads.push(Read { ticket, index: None, overdue_at });
        if let Some(id) = self.me.leader {
            self.send(id, Body::ReadIndex { context: ticket });
        }
        ticket
    }

    /// The reads that have come to an end. Call it after applying: ready is what the applied state
    /// can answer now.
    pub fn take_reads(&mut self) -> Vec<(u64, ReadState)> {
        let Status { now, commit, applied, .. } = self.me;
        let ready = |it: &Read| it.index.is_some_and(|index| index <= applied);
        let lost = |it: &Read| now >= it.overdue_at && it.index.is_none_or(|index| index > commit);
        let state = |it: &Read| if ready(it) { ReadState::Ready } else { ReadState::Abandoned };
        let ended = self.reads.extract_if(.., |read| ready(read) || lost(read));
        ended.map(|read| (read.ticket, state(&read))).collect()
    }

    /// The leader takes down a question, its own or a follower's; nobody else can answer it. While
    /// it has its lease there is no round to wait for: no other can have been elected yet, for the
    /// followers that heard it wait at least the least election timeout before they vote (thesis
    /// §6.4.1). A round of zero is no answer, not an early one.
    pub(crate) fn on_read_index(&mut self, from: ReplicaID, context: u64) {
        if self.me.role == Leader {
            let echoed = self.quorum(self.leading.round, |it| it.heard);
            let until = echoed.saturating_add(self.config.election_timeout_range.0);
            let drift = self.config.max_clock_drift.filter(|_| !self.leading.lease_void);
            let held = drift.is_some_and(|drift| self.me.now.saturating_add(drift) < until);
            let leased = held && !echoed.is_zero();
            let round = if leased { Round::ZERO } else { self.begin_round() };
            // All that was committed in earlier terms lies before the leader's no-op, so before
            // that is committed its index serves (thesis §6.4, step 1).
            let index = self.me.commit.max(self.leading.first);
            self.leading.questions.push((from, context, index, round));
        }
    }

    pub(crate) fn on_read_answer(&mut self, context: u64, index: Index) {
        let asked = self.reads.iter_mut().filter(|read| read.ticket == context);
        asked.for_each(|read| read.index = Some(index));
    }

    /// Gives those whose questions a quorum has confirmed the index of their reads.
    pub(crate) fn confirm_reads(&mut self) {
        let echoed = self.quorum(self.leading.round, |it| it.heard);
        let confirmed = self.leading.questions.extract_if(.., |(.., round)| *round <= echoed);
        for (from, context, index, _) in confirmed.collect::<Vec<_>>() {
            self.send(from, Body::ReadIndexResponse { context, index });
        }
    }
}
