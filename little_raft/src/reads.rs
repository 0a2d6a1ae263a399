//! Linearizable reads that put nothing into the log (thesis §6.4).
//!
//! A read asks the leader for a *read index*: an index at or above everything that was committed
//! when the read came. The leader gives it once it is sure that it still led at that moment, because
//! a quorum has echoed a round that began later, or because its lease has not run out. The read is
//! ready, wherever it was asked, when that index is applied there.

use crate::*;
use rand::RngExt;
use std::time::Duration;

/// A read asked at this replica.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// Drawn at random, so that a late answer to an earlier life of this replica answers nothing.
    ticket: u64,
    /// The leader that was asked, in its term.
    leader: Option<(Term, ReplicaID)>,
    /// Its answer, and when to stop waiting for that.
    index: Option<Index>,
    overdue_at: Duration,
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Asks for a linearizable read at time `now`, which must not lie before the read was asked for.
    /// Returns the ticket under which [`take_reads`](Self::take_reads) answers it.
    pub fn read(&mut self, now: Duration) -> u64 {
        self.now = self.now.max(now);
        let (ticket, leader) = (self.random.random(), self.leader.map(|id| (self.term, id)));
        let overdue_at = self.now.saturating_add(self.config.election_timeout_range.1);
        self.reads.push(Read { ticket, leader, index: None, overdue_at });
        match self.leader {
            Some(id) if id == self.config.id => self.on_read_index(id, ticket),
            Some(id) => self.send(id, Body::ReadIndex { context: ticket }),
            None => {}
        }
        ticket
    }

    /// The reads that have come to an end. Call it after applying: ready is what the applied state
    /// can answer now.
    pub fn take_reads(&mut self) -> Vec<(u64, ReadState)> {
        let (applied, leader) = (self.applied, self.leader.map(|leader| (self.term, leader)));
        let ready = |read: &Read| read.index.is_some_and(|index| index <= applied);
        let late = |read: &Read| self.now >= read.overdue_at;
        let lost = |read: &Read| leader.is_none() || read.leader != leader || late(read);
        let lost = |read: &Read| lost(read) && read.index.is_none_or(|index| index > self.commit);
        let state = |it: &Read| if ready(it) { ReadState::Ready } else { ReadState::Abandoned };
        let ended = self.reads.extract_if(.., |read| ready(read) || lost(read));
        ended.map(|read| (read.ticket, state(&read))).collect()
    }

    /// The leader takes down a question, its own or a follower's; nobody else can answer it.
    pub(crate) fn on_read_index(&mut self, from: ReplicaID, context: u64) {
        // All that was committed in earlier terms lies before the leader's no-op, so before that is
        // committed its index serves (thesis §6.4, step 1).
        let index = self.commit.max(self.leading.first);
        if self.role == Role::Leader && self.has_lease() {
            self.answer_read(from, context, index);
        } else if self.role == Role::Leader {
            let round = self.leading.begin_round(self.now);
            self.leading.questions.push((from, context, index, round));
        }
    }

    /// Answers what a quorum has confirmed by now.
    pub(crate) fn confirm_reads(&mut self) {
        let echoed = self.echoed_by_quorum();
        let confirmed = self.leading.questions.extract_if(.., |(.., round)| *round <= echoed);
        for (from, context, index, _) in confirmed.collect::<Vec<_>>() {
            self.answer_read(from, context, index);
        }
    }

    /// Gives whoever asked the index of its read.
    fn answer_read(&mut self, to: ReplicaID, context: u64, index: Index) {
        match to == self.config.id {
            true => self.on_read_answer(context, index),
            false => self.send(to, Body::ReadIndexResponse { context, index }),
        }
    }

    pub(crate) fn on_read_answer(&mut self, context: u64, index: Index) {
        let asked = self.reads.iter_mut().filter(|read| read.ticket == context);
        asked.for_each(|read| read.index = Some(index));
    }

    /// Whether no other leader can have been elected yet: the followers that heard this one wait at
    /// least the least election timeout before they vote (thesis §6.4.1).
    fn has_lease(&self) -> bool {
        let (echoed, least) = (self.echoed_by_quorum(), self.config.election_timeout_range.0);
        let lease = self.config.max_clock_drift.filter(|_| !self.leading.lease_void);
        let held = |drift| self.now.saturating_add(drift) < echoed.saturating_add(least);
        !echoed.is_zero() && lease.is_some_and(held)
    }
}
