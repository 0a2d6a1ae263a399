//! Linearizable reads that put nothing into the log (thesis §6.4).
//!
//! A read asks the leader for a *read index*: an index at or above everything that was committed
//! when the read came. The leader gives it once it is sure that it still led at that moment,
//! because a quorum has echoed a round that began later, or because its lease has not run out. The
//! read is ready, wherever it was asked, when that index is applied there.

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
    /// it has its lease, there is no round to wait for.
    pub(crate) fn on_read_index(&mut self, from: ReplicaID, context: u64) {
        if self.me.role == Role::Leader {
            // All that was committed in earlier terms lies before the leader's no-op, so before
            // that is committed its index serves (thesis §6.4, step 1).
            let index = self.me.commit.max(self.leading.first);
            let round = if self.has_lease() { Round::ZERO } else { self.begin_round() };
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

    /// Whether no other leader can have been elected yet: the followers that heard this one wait at
    /// least the least election timeout before they vote (thesis §6.4.1).
    fn has_lease(&self) -> bool {
        let (echoed, least) =
            (self.quorum(self.leading.round, |it| it.heard), self.config.election_timeout_range.0);
        let held = |drift| self.me.now.saturating_add(drift) < echoed.saturating_add(least);
        let drift = self.config.max_clock_drift.filter(|_| !self.leading.lease_void);
        !echoed.is_zero() && drift.is_some_and(held)
    }
}
